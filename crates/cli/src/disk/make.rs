//! New images. They get their name when they are finished: who sees the name sees a whole image. Until then they have none, so
//! that of one that is given up, in whatever way, nothing is left; or another, on file systems that know no files without.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use backend::qcow2::Backing;
use backend::{Changes, Format, Image};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::args::{ConvertArgs, CreateArgs, ImageFormat};
use super::image;
use crate::progress::Progress;
use crate::status::Status;

/// A file that is being made.
struct New<'a> {
    file: Unfinished,
    path: &'a Path,
}

/// A file that does not have its name yet.
enum Unfinished {
    /// And no other.
    Nameless(File),
    /// But another one.
    Named(NamedTempFile),
}

/// What files may be, but for what the user's mask takes away.
const MODE: u32 = 0o666;

impl Unfinished {
    /// A new one in a directory.
    fn begin(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(directory, flags, Mode::from_raw_mode(MODE)) {
            Ok(file) => Ok(Self::Nameless(file.into())),
            // What file systems say that cannot, and kernels that do not know what is asked for (open(2)).
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => tempfile::Builder::new()
                .prefix(".umbra-")
                .permissions(Permissions::from_mode(MODE))
                .tempfile_in(directory)
                .map(Self::Named),
            Err(error) => Err(error.into()),
        }
    }

    fn file(&self) -> &File {
        match self {
            Self::Nameless(file) => file,
            Self::Named(file) => file.as_file(),
        }
    }

    /// Gives it this name, unless somebody has it.
    fn persist(self, path: &Path) -> io::Result<()> {
        match self {
            Self::Nameless(file) => {
                // By its place among our descriptors, since without a privilege there is no other way (linkat(2)).
                let here = format!("/proc/self/fd/{}", file.as_raw_fd());
                Ok(linkat(CWD, here, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
            }
            Self::Named(file) => file.persist_noclobber(path).map(drop).map_err(|error| error.error),
        }
    }
}

impl<'a> New<'a> {
    /// Begins beside the place where it will be.
    fn begin(path: &'a Path) -> Result<Self> {
        ensure!(
            path.symlink_metadata().is_err(),
            "'{}' exists already: choose another name, or delete it first",
            path.display()
        );
        let file = Unfinished::begin(directory_of(path))
            .with_context(|| format!("cannot make '{}'", path.display()))?;
        Ok(Self { file, path })
    }

    /// Gives it its name, unless somebody else has taken that.
    fn finish(self) -> Result<Status> {
        let making = || format!("cannot make '{}'", self.path.display());
        self.file.file().sync_all().with_context(making)?;
        self.file.persist(self.path).with_context(making)?;
        File::open(directory_of(self.path))
            .and_then(|directory| directory.sync_all())
            .with_context(making)?;
        Ok(Status::OK)
    }

    fn create(&self, format: Format, bytes: u64, backing: Option<Backing>) -> Result<()> {
        ensure!(
            bytes != 0 && bytes.is_multiple_of(512),
            "a disk of {bytes} bytes cannot be: its size is a multiple of 512 bytes and not 0"
        );
        match backend::create(self.file.file(), format, bytes, backing) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err(error).with_context(|| format!("no image in this format holds a disk of {bytes} bytes"))
            }
            done => done.with_context(|| format!("cannot write '{}'", self.path.display())),
        }
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
    let to = new.file.file().try_clone().and_then(|file| backend::open_new(file, format));
    let to = to.with_context(writing)?;
    let progress = Progress::copying(&format!("copying to {}", args.to.display()), from.bytes());
    backend::copy(&*from, &*to, |done| progress.position(done))
        .with_context(|| format!("cannot copy '{}' to '{}'", args.from.file.display(), args.to.display()))?;
    // Only a qcow2 image that was closed is in order.
    drop(to);
    new.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn an_image_gets_its_name_when_it_is_finished_and_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let names = || std::fs::read_dir(&dir).unwrap().count();
        let named = || Unfinished::Named(NamedTempFile::new_in(&dir).unwrap());
        for begin in [&|| Unfinished::begin(dir.path()).unwrap(), &named as &dyn Fn() -> Unfinished] {
            let file = begin();
            assert_eq!(names(), usize::from(matches!(file, Unfinished::Named(_))));
            file.file().write_all(b"image").unwrap();
            file.persist(&path).unwrap();
            assert_eq!(begin().persist(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!((std::fs::read(&path).unwrap().as_slice(), names()), (&b"image"[..], 1));
            std::fs::remove_file(&path).unwrap();
        }
    }
}
