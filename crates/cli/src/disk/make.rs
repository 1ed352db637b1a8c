//! New images: there is a whole one of its name, or none.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use backend::qcow2::Backing;
use backend::{Changes, Format, Image, NewImage};

use super::args::{ConvertArgs, CreateArgs, ImageFormat};
use super::image;
use crate::progress::Progress;
use crate::status::Status;

/// A file that is being made.
struct New<'a> {
    image: NewImage<'a>,
    path: &'a Path,
}

impl<'a> New<'a> {
    fn begin(path: &'a Path) -> Result<Self> {
        let (shown, directory) = (path.display(), directory_of(path));
        ensure!(
            path.symlink_metadata().is_err(),
            "'{shown}' exists already: choose another name, or delete it first"
        );
        ensure!(
            directory.is_dir(),
            "cannot make '{shown}': there is no directory '{}', make it first",
            directory.display()
        );
        // The name that it has as yet is nobody's business.
        let image = NewImage::begin(path)
            .map_err(|error| io::Error::from(error.kind()))
            .with_context(|| format!("cannot make '{shown}'"))?;
        Ok(Self { image, path })
    }

    fn finish(self) -> Result<Status> {
        self.image.finish().with_context(|| format!("cannot make '{}'", self.path.display()))?;
        Ok(Status::OK)
    }

    fn create(&self, format: Format, bytes: u64, backing: Option<Backing>) -> Result<()> {
        ensure!(
            bytes != 0 && bytes.is_multiple_of(512),
            "a disk of {bytes} bytes cannot be: its size is a multiple of 512 bytes and not 0"
        );
        let shown = self.path.display();
        backend::create(self.image.file(), format, bytes, backing).map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => {
                anyhow!("no image in this format holds a disk of {bytes} bytes: make it smaller")
            }
            io::ErrorKind::InvalidFilename => anyhow!(
                "the name of the image that '{shown}' is made upon is too long for it: keep both in one directory"
            ),
            _ => anyhow::Error::from(error).context(format!("cannot write '{shown}'")),
        })
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn format(said: Option<ImageFormat>, path: &Path) -> Format {
    match said {
        Some(ImageFormat::Raw) => Format::Raw,
        Some(ImageFormat::Qcow2) => Format::Qcow2,
        None => Format::by_name(path),
    }
}

/// `umbra disk create`.
pub(super) fn create(args: &CreateArgs) -> Result<Status> {
    let new = New::begin(&args.file)?;
    let size = args.size.map(spec::ByteSize::bytes);
    let Some(backing) = &args.backing else {
        new.create(format(args.format, &args.file), size.unwrap_or(0), None)?;
        return new.finish();
    };
    ensure!(
        format(args.format.or(Some(ImageFormat::Qcow2)), &args.file) == Format::Qcow2,
        "only qcow2 images are made upon others: leave out --format, or --backing"
    );
    // Whether it is a disk at all is found out by opening it.
    let below = Image { changes: Changes::Refused, ..image(backing)? };
    let bytes = below.open()?.bytes();
    let format = below.format.unwrap_or(Format::by_name(&below.file));
    let name = name_from(&below.file, directory_of(&args.file))?;
    let backing = Backing { name: name.into(), format: Some(format.name().to_owned()) };
    new.create(Format::Qcow2, size.unwrap_or(bytes), Some(backing))?;
    new.finish()
}

/// A file's name as an image in a directory has it: relative if it lies there or below, else absolute.
fn name_from(file: &Path, directory: &Path) -> Result<PathBuf> {
    let real = |path: &Path| path.canonicalize().with_context(|| format!("cannot find '{}'", path.display()));
    let (file, directory) = (real(file)?, real(directory)?);
    Ok(file.strip_prefix(&directory).map(Path::to_owned).unwrap_or(file))
}

/// `umbra disk convert`.
pub(super) fn convert(args: &ConvertArgs) -> Result<Status> {
    let from = image(&args.from)?.open()?;
    let new = New::begin(&args.to)?;
    let format = format(args.format, &args.to);
    new.create(format, from.bytes(), None)?;
    let writing = || format!("cannot write '{}'", args.to.display());
    let to = new.image.open(format).with_context(writing)?;
    let progress = Progress::copying(&format!("copying to {}", args.to.display()), from.bytes());
    backend::copy(&*from, &*to, |done| progress.position(done))
        .with_context(|| format!("cannot copy '{}' to '{}'", args.from.file.display(), args.to.display()))?;
    // Only a qcow2 image that was closed is in order.
    drop(to);
    new.finish()
}
