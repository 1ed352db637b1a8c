//! From an image's name to a disk: formats, chains of backing files, overlays.
//!
//! **An image does not choose its format.** A guest writes what it likes to a raw disk, also what a qcow2 image begins with,
//! and such an image may name any file of the host as what it is made upon. So the format is what the user says, or what the
//! image's name says, which no guest can change: a name that ends in `.qcow2` is a qcow2 image, every other is raw. A
//! raw image that begins as a qcow2 image is refused until the user says which it is.
//!
//! **An image does not choose the host's files.** A backing file is opened, and only to be read, if it lies in the directory
//! of the image that the user named, or below, or in one that the user permits; symbolic links are followed before that is
//! asked. A chain has an end ([`MOST_LAYERS`]) and no file twice.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use host::io::try_lock;

use crate::layers::{Layer, Layers};
use crate::qcow2::{self, Backing, MAGIC, Report};
use crate::{Disk, DiskError, NewImage};

/// The most images of a chain, but for an overlay.
const MOST_LAYERS: usize = 32;

/// How an image is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// As [`crate::qcow2`] says.
    Qcow2,
}

/// Where changes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Nowhere: there are none.
    Refused,
    /// Into the image.
    Made,
    /// Into a file without a name, which is gone with the disk.
    Discarded,
    /// Into a qcow2 image of this name, upon the image.
    Kept(PathBuf),
}

/// An image to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its file.
    pub file: PathBuf,
    /// Its format, if the user says.
    pub format: Option<Format>,
    /// Where changes go.
    pub changes: Changes,
    /// A directory whose files it may be made upon, besides its own.
    pub backing: Option<PathBuf>,
}

impl Image {
    /// Opens it.
    ///
    /// # Errors
    /// If it is none, is damaged, or is not the user's to use in this way.
    pub fn open(&self) -> Result<Arc<dyn Disk>, DiskError> {
        self.layers()?.stack()
    }

    /// Opens its files and those that it is made upon, and looks no further at what is in them.
    ///
    /// # Errors
    /// If one is none, or is not the user's to use in this way.
    pub fn layers(&self) -> Result<Layers, DiskError> {
        let read_only = self.changes != Changes::Made;
        // What is not there is missed as what it was to be.
        std::fs::metadata(&self.file).map_err(|source| opening(&self.file, read_only, source))?;
        let mut chain = Chain { permitted: self.permitted()?, files: Vec::new() };
        let mut layers = chain.open(&self.file, self.format, read_only)?;
        let overlay = match (&self.changes, layers.first()) {
            (Changes::Discarded, Some(top)) => Some(self.discarded(top)?),
            (Changes::Kept(file), Some(top)) => Some(self.kept(top, file)?),
            _ => None,
        };
        layers.splice(0..0, overlay);
        Layers::new(layers).ok_or_else(|| DiskError::NotAnImage(self.file.clone()))
    }

    /// The directories whose files it may be made upon.
    fn permitted(&self) -> Result<Vec<PathBuf>, DiskError> {
        // Upon none; and it may be a file that is in no directory.
        if self.format == Some(Format::Raw) {
            return Ok(Vec::new());
        }
        let own = directory_of(&resolve(&self.file)?).to_owned();
        let other = self.backing.as_deref().map(resolve).transpose()?;
        Ok([Some(own), other].into_iter().flatten().collect())
    }

    /// What is written to it is gone with the disk. The file lies beside the image if it can, where there is room for it.
    fn discarded(&self, below: &Layer) -> Result<Layer, DiskError> {
        let beside = directory_of(&self.file);
        let making = |source| DiskError::Overlay { path: beside.to_owned(), source };
        let bytes = below.disk_bytes()?;
        let file = tempfile::tempfile_in(beside)
            .or_else(|_| tempfile::tempfile_in("/var/tmp"))
            .or_else(|_| tempfile::tempfile())
            .map_err(making)?;
        qcow2::create(&file, bytes, None).map_err(making)?;
        Ok(Layer { path: beside.to_owned(), file, format: Format::Qcow2, read_only: false, durable: false })
    }

    /// What is written to it is in a file of its own.
    fn kept(&self, below: &Layer, overlay: &Path) -> Result<Layer, DiskError> {
        let base = resolve(&self.file)?;
        let bytes = below.disk_bytes()?;
        if !overlay.exists() {
            let name = base.clone().into_os_string();
            let format = Some(below.format.name().to_owned());
            keep(overlay, bytes, Some(Backing { name, format }))?;
        }
        let (file, _) = open_file(overlay, false)?;
        let wrong = |problem| DiskError::Qcow2 { path: overlay.to_owned(), problem };
        let named = qcow2::backing(&file).map_err(wrong)?;
        let named = named.and_then(|backing| resolve(&directory_of(overlay).join(backing.name)).ok());
        if named.as_ref() != Some(&base) {
            return Err(DiskError::OverlayOfAnother {
                overlay: overlay.to_owned(),
                image: self.file.clone(),
            });
        }
        Ok(Layer { path: overlay.to_owned(), file, format: Format::Qcow2, read_only: false, durable: true })
    }
}

/// Makes an empty image in an empty file: of a disk of so many bytes of zeros, or of what the backing file has, which qcow2 images only
/// can be made upon.
///
/// # Errors
/// If the host cannot write it.
pub fn create(file: &File, format: Format, bytes: u64, backing: Option<Backing>) -> io::Result<()> {
    match (format, backing) {
        (Format::Qcow2, backing) => qcow2::create(file, bytes, backing),
        (Format::Raw, None) => file.set_len(bytes),
        (Format::Raw, Some(_)) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Makes a qcow2 image for changes to a disk of so many bytes. It is there whole or not at all.
fn keep(path: &Path, bytes: u64, backing: Option<Backing>) -> Result<(), DiskError> {
    let make = || {
        let new = NewImage::begin(path)?;
        qcow2::create(new.file(), bytes, backing)?;
        new.finish()
    };
    make().map_err(|source| DiskError::Overlay { path: path.to_owned(), source })
}

/// Checks a qcow2 image, and changes nothing.
///
/// # Errors
/// If it is none, is in use for writing, or is not understood.
pub fn check(path: &Path) -> Result<Report, DiskError> {
    let (file, bytes) = open_file(path, true)?;
    qcow2::check(file, bytes).map_err(|problem| DiskError::Qcow2 { path: path.to_owned(), problem })
}

/// Makes the refcounts of a qcow2 image right; false, and nothing is changed, if its tables contradict themselves.
///
/// # Errors
/// If it is none, is in use, or is not understood.
pub fn repair(path: &Path) -> Result<bool, DiskError> {
    let (file, bytes) = open_file(path, false)?;
    qcow2::repair(file, bytes).map_err(|problem| DiskError::Qcow2 { path: path.to_owned(), problem })
}

/// What is known of an image without reading what is on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The disk's size.
    pub bytes: u64,
    /// What the image takes of the host's disk.
    pub host_bytes: u64,
    /// What it says of itself, if it is a qcow2 image.
    pub qcow2: Option<qcow2::Facts>,
}

/// What is known of an image, in a format if the user says which.
///
/// # Errors
/// If it is none, or is in use for writing.
pub fn facts(path: &Path, format: Option<Format>) -> Result<Facts, DiskError> {
    let format = format_of(path, format)?;
    let (file, bytes) = open_file(path, true)?;
    let host_bytes = file.metadata().map_err(|source| opening(path, true, source))?.blocks() * 512;
    let wrong = |problem| DiskError::Qcow2 { path: path.to_owned(), problem };
    let qcow2 = match format {
        Format::Raw => None,
        Format::Qcow2 => Some(qcow2::facts(&file).map_err(wrong)?),
    };
    let bytes = qcow2.as_ref().map_or(bytes, |facts| facts.bytes);
    Ok(Facts { bytes, host_bytes, qcow2 })
}

/// A chain of images on the way down.
struct Chain {
    permitted: Vec<PathBuf>,
    /// Those that are open, by device and inode.
    files: Vec<(u64, u64)>,
}

impl Chain {
    /// Opens an image and all that it is made upon.
    fn open(
        &mut self,
        path: &Path,
        format: Option<Format>,
        read_only: bool,
    ) -> Result<Vec<Layer>, DiskError> {
        let mut layers = Vec::new();
        let mut next = Some((path.to_owned(), format, read_only));
        while let Some((path, format, read_only)) = next.take() {
            self.enter(&path, read_only)?;
            let format = format_of(&path, format)?;
            let (file, _) = open_file(&path, read_only)?;
            if format == Format::Qcow2 {
                let wrong = |problem| DiskError::Qcow2 { path: path.clone(), problem };
                if let Some(backing) = qcow2::backing(&file).map_err(wrong)? {
                    let (below, format) = self.below(&path, &backing)?;
                    next = Some((below, format, true));
                }
            }
            layers.push(Layer { path, file, format, read_only, durable: true });
        }
        Ok(layers)
    }

    /// Notes an image, which is to be a new one.
    fn enter(&mut self, path: &Path, read_only: bool) -> Result<(), DiskError> {
        if self.files.len() == MOST_LAYERS {
            return Err(DiskError::ChainTooLong { path: path.to_owned(), most: MOST_LAYERS });
        }
        let status = std::fs::metadata(path).map_err(|source| opening(path, read_only, source))?;
        let file = (status.dev(), status.ino());
        if self.files.contains(&file) {
            return Err(DiskError::ChainLoop(path.to_owned()));
        }
        self.files.push(file);
        Ok(())
    }

    /// What an image is made upon, and its format if the image says.
    fn below(&self, image: &Path, backing: &Backing) -> Result<(PathBuf, Option<Format>), DiskError> {
        let format = match backing.format.as_deref() {
            None => None,
            Some("raw") => Some(Format::Raw),
            Some("qcow2") => Some(Format::Qcow2),
            Some(other) => {
                return Err(DiskError::BackingFormat { image: image.to_owned(), format: other.to_owned() });
            }
        };
        let named = directory_of(&resolve(image)?).join(&backing.name);
        let path = resolve(&named)?;
        if !self.permitted.iter().any(|directory| path.starts_with(directory)) {
            return Err(DiskError::BackingElsewhere { image: image.to_owned(), backing: path });
        }
        Ok((path, format))
    }
}

impl Format {
    /// The format that an image's name says.
    pub fn by_name(path: &Path) -> Self {
        let is_qcow2 = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("qcow2"));
        if is_qcow2 { Self::Qcow2 } else { Self::Raw }
    }

    /// Its name, as images have it of what they are made upon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// An image's format: see the module's top.
fn format_of(path: &Path, said: Option<Format>) -> Result<Format, DiskError> {
    let format = said.unwrap_or(Format::by_name(path));
    if said.is_none() && format == Format::Raw && begins_as_qcow2(path)? {
        return Err(DiskError::FormatUnsaid(path.to_owned()));
    }
    Ok(format)
}

/// Whether an image begins as a qcow2 image, whatever it is.
///
/// # Errors
/// If it is no file or block device, cannot be read, or is in use for writing.
pub fn begins_as_qcow2(path: &Path) -> Result<bool, DiskError> {
    let (mut file, bytes) = open_file(path, true)?;
    let mut magic = MAGIC.map(|_| 0);
    let failed = |source| opening(path, true, source);
    if bytes >= magic.len() as u64 {
        file.rewind().map_err(failed)?;
        file.read_exact(&mut magic).map_err(failed)?;
    }
    Ok(magic == MAGIC)
}

/// Opens an image's file and locks it (flock(2)): for one VM that writes, or for any number that only read. Also says how
/// long it is.
pub(crate) fn open_file(path: &Path, read_only: bool) -> Result<(File, u64), DiskError> {
    let opening = |source| opening(path, read_only, source);
    // Opening some special files waits for others, or does things.
    let kind = std::fs::metadata(path).map_err(opening)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(DiskError::NotAnImage(path.to_owned()));
    }
    let mut file = File::options().read(true).write(!read_only).open(path).map_err(opening)?;
    if !try_lock(file.as_fd(), read_only).map_err(opening)? {
        return Err(DiskError::InUse(path.to_owned()));
    }
    // A block device's metadata does not have its size.
    let bytes = file.seek(SeekFrom::End(0)).map_err(opening)?;
    Ok((file, bytes))
}

fn opening(path: &Path, read_only: bool, source: std::io::Error) -> DiskError {
    DiskError::Open { path: path.to_owned(), read_only, source }
}

/// A path without symbolic links.
fn resolve(path: &Path) -> Result<PathBuf, DiskError> {
    path.canonicalize().map_err(|source| opening(path, true, source))
}

pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, symlink};

    use host::io::{Sources, Targets};

    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn raw(&self, name: &str) -> PathBuf {
            let path = self.path(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, [7; 1 << 20]).unwrap();
            path
        }

        fn upon(&self, name: &str, backing: &str, format: Option<&str>) -> PathBuf {
            let path = self.path(name);
            let backing = Backing { name: backing.into(), format: format.map(str::to_owned) };
            keep(&path, 1 << 20, Some(backing)).unwrap();
            path
        }
    }

    fn image(file: &Path) -> Image {
        Image { file: file.to_owned(), format: None, changes: Changes::Made, backing: None }
    }

    fn first(disk: &dyn Disk) -> u8 {
        let mut bytes = [0; 512];
        disk.read(0, &Targets::of(&mut bytes)).unwrap();
        bytes[0]
    }

    fn refusal(image: &Image) -> DiskError {
        image.open().map(|_| ()).unwrap_err()
    }

    #[test]
    fn a_guest_cannot_make_its_raw_disk_a_qcow2_image() {
        let place = Place::new();
        let raw = place.raw("disk.img");
        drop(place.raw("secret"));
        let trap = place.upon("trap", "secret", Some("raw"));
        File::options()
            .write(true)
            .open(&raw)
            .unwrap()
            .write_all_at(&std::fs::read(&trap).unwrap(), 0)
            .unwrap();
        assert!(matches!(refusal(&image(&raw)), DiskError::FormatUnsaid(_)));
        let said = Image { format: Some(Format::Raw), ..image(&raw) };
        assert_eq!(first(&*said.open().unwrap()), MAGIC[0]);
        // The same below another image.
        let upon = place.upon("upon.qcow2", "disk.img", None);
        assert!(matches!(refusal(&image(&upon)), DiskError::FormatUnsaid(_)));
        let said = Image { format: Some(Format::Qcow2), ..image(&trap) };
        assert_eq!(first(&*said.open().unwrap()), 7);
        let wrong = Image { format: Some(Format::Qcow2), ..image(&place.path("secret")) };
        assert!(matches!(refusal(&wrong), DiskError::Qcow2 { .. }));
    }

    #[test]
    fn an_image_is_made_upon_what_the_user_permits() {
        let place = Place::new();
        drop(place.raw("pool/base"));
        let within = place.raw("images/deeper/base");
        for (backing, allowed) in [
            ("deeper/base", true),
            (within.to_str().unwrap(), true),
            ("../images/deeper/base", true),
            ("../pool/base", false),
            ("/etc/passwd", false),
            ("link", false),
        ] {
            let path = place.upon("images/top.qcow2", backing, Some("raw"));
            let _ = symlink("../pool/base", place.path("images/link"));
            match image(&path).open() {
                Ok(disk) => assert!(allowed && first(&*disk) == 7, "{backing}"),
                Err(error) => {
                    assert!(!allowed && error.to_string().contains("backing="), "{backing}: {error}");
                }
            }
            std::fs::remove_file(path).unwrap();
        }
        let path = place.upon("images/top.qcow2", "../pool/base", Some("raw"));
        let permitted = Image { backing: Some(place.path("pool")), ..image(&path) };
        assert_eq!(first(&*permitted.open().unwrap()), 7);
        let other = place.upon("images/other.qcow2", "deeper/base", Some("vmdk"));
        assert!(matches!(refusal(&image(&other)), DiskError::BackingFormat { .. }));
    }

    #[test]
    fn what_is_not_there_is_made_first_unless_it_is_only_read() {
        let place = Place::new();
        for (changes, made) in [(Changes::Made, true), (Changes::Refused, false), (Changes::Discarded, false)]
        {
            let said = refusal(&Image { changes, ..image(&place.path("none")) }).to_string();
            assert_eq!(said.contains("make it first"), made, "{said}");
        }
    }

    #[test]
    fn chains_have_an_end() {
        let place = Place::new();
        let own = place.upon("own.qcow2", "own.qcow2", Some("qcow2"));
        assert!(matches!(refusal(&image(&own)), DiskError::ChainLoop(_)));
        drop(place.upon("a.qcow2", "b.qcow2", Some("qcow2")));
        let b = place.upon("b.qcow2", "a.qcow2", Some("qcow2"));
        assert!(matches!(refusal(&image(&b)), DiskError::ChainLoop(_)));
        drop(place.raw("0"));
        for number in 1..MOST_LAYERS + 1 {
            let below = number - 1;
            let (name, format) =
                if below == 0 { ("0".to_owned(), "raw") } else { (format!("{below}.qcow2"), "qcow2") };
            drop(place.upon(&format!("{number}.qcow2"), &name, Some(format)));
        }
        let at = |number: usize| image(&place.path(&format!("{number}.qcow2")));
        assert_eq!(first(&*at(MOST_LAYERS - 1).open().unwrap()), 7);
        assert!(matches!(refusal(&at(MOST_LAYERS)), DiskError::ChainTooLong { .. }));
    }

    #[test]
    fn an_overlay_keeps_changes_or_forgets_them() {
        let place = Place::new();
        let base = place.raw("base");
        let before = std::fs::read(&base).unwrap();
        let write = |disk: &dyn Disk| disk.write(0, &Sources::of(&[9; 512])).unwrap();
        let forgets = Image { changes: Changes::Discarded, ..image(&base) };
        let disk = forgets.open().unwrap();
        write(&*disk);
        let same_time = forgets.open().unwrap();
        assert_eq!((first(&*disk), first(&*same_time)), (9, 7), "each has its own");
        drop((disk, same_time));
        assert_eq!(std::fs::read_dir(place.0.path()).unwrap().count(), 1);

        let over = place.path("changes");
        let keeps = Image { changes: Changes::Kept(over.clone()), ..image(&base) };
        write(&*keeps.open().unwrap());
        assert_eq!(first(&*keeps.open().unwrap()), 9);
        assert_eq!(check(&over).unwrap(), Report::default());
        assert!(std::fs::read(&base).unwrap() == before);
        let other = place.raw("other");
        let wrong = Image { changes: Changes::Kept(over.clone()), ..image(&other) };
        assert!(matches!(refusal(&wrong), DiskError::OverlayOfAnother { .. }));
        let deep = Backing { name: "deep/".repeat(300).into(), format: None };
        let count = || std::fs::read_dir(place.0.path()).unwrap().count();
        let before = count();
        assert!(matches!(keep(&place.path("half"), 512, Some(deep)), Err(DiskError::Overlay { .. })));
        assert_eq!(count(), before, "nothing is left of what cannot be");
        let alone = Image { format: Some(Format::Qcow2), ..image(&over) };
        assert_eq!(first(&*alone.open().unwrap()), 9, "an image like others");
    }

    #[test]
    fn a_chain_is_files_first_and_a_disk_later() {
        let place = Place::new();
        drop(place.raw("base"));
        let top = place.upon("top.qcow2", "base", Some("raw"));
        let layers = Image { changes: Changes::Discarded, ..image(&top) }.layers().unwrap().into_inner();
        let seen: Vec<_> =
            layers.iter().map(|layer| (layer.format, layer.read_only, layer.durable)).collect();
        let (raw, qcow2) = (Format::Raw, Format::Qcow2);
        assert_eq!(seen, [(qcow2, false, false), (qcow2, true, true), (raw, true, true)]);
        // By their descriptors alone.
        for name in ["top.qcow2", "base"] {
            std::fs::remove_file(place.path(name)).unwrap();
        }
        assert_eq!(first(&*Layers::new(layers).unwrap().stack().unwrap()), 7);
        assert!(Layers::new(Vec::new()).is_none(), "nothing");
        let raw = |name| image(&place.raw(name)).layers().unwrap().into_inner();
        assert!(Layers::new(raw("a").into_iter().chain(raw("b")).collect()).is_none(), "upon a raw image");
    }
}
