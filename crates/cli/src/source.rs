//! What SOURCE is.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use spec::{DebianSpec, DiskChanges, DiskSpec, SpecError};

/// What a VM is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nothing was named: the root file system that Umbra makes.
    Ours,
    /// The host's root.
    Host,
    /// A directory that is to be the root.
    Directory(PathBuf),
    /// A root of Debian's packages.
    Debian(DebianSpec),
    /// A disk with the root on it, which becomes the first disk.
    Image(DiskSpec),
    /// A kernel's file.
    Kernel(PathBuf),
}

/// The name of the host's root. A file of this name is `./host`.
const HOST: &str = "host";
/// The name of a root of Debian's packages, and what it begins with if a suite is named. A file of this name is `./debian`.
const DEBIAN: [&str; 2] = ["debian", "debian:"];
/// What lets the image itself be changed.
const CHANGED: &str = ",rw";

impl Source {
    /// What was named. What is not there is a kernel's file, to be missed when it is read.
    ///
    /// # Errors
    /// If a disk image is named with options that do not exist, or a suite that cannot be.
    pub(crate) fn of(named: Option<&Path>) -> Result<Self, SpecError> {
        Ok(match named {
            None => Self::Ours,
            Some(path) if path.as_os_str() == HOST => Self::Host,
            Some(path) if is_debian(path) => Self::Debian(path.to_string_lossy().parse()?),
            Some(path) if path.is_dir() => Self::Directory(path.to_owned()),
            Some(path) if path.exists() => {
                if is_image(path) {
                    Self::Image(DiskSpec {
                        changes: DiskChanges::Discarded,
                        ..DiskSpec::new(path.to_owned())
                    })
                } else {
                    Self::Kernel(path.to_owned())
                }
            }
            Some(path) => {
                image_with_options(path)?.map_or_else(|| Self::Kernel(path.to_owned()), Self::Image)
            }
        })
    }
}

fn is_debian(path: &Path) -> bool {
    let name = path.to_string_lossy();
    name == DEBIAN[0] || name.starts_with(DEBIAN[1])
}

/// A disk as `--disk` takes it, but that its image is not changed unless `,rw` is the last option; none if there is no such
/// image.
fn image_with_options(named: &Path) -> Result<Option<DiskSpec>, SpecError> {
    let text = named.to_string_lossy();
    let (rest, changed) = text.strip_suffix(CHANGED).map_or((&*text, false), |rest| (rest, true));
    let file = rest.split(',').next().unwrap_or_default();
    if !is_image(Path::new(file)) {
        return Ok(None);
    }
    let mut disk: DiskSpec = rest.parse()?;
    match (&disk.changes, changed) {
        (DiskChanges::Made, false) => disk.changes = DiskChanges::Discarded,
        (DiskChanges::Made, true) | (_, false) => {}
        (_, true) => return Err(SpecError::Disk { text: text.into_owned(), option: "rw".to_owned() }),
    }
    Ok(Some(disk))
}

/// Whether a file looks like a disk: a block device, a qcow2 image, a partition table or an ext file system. A bzImage
/// begins with a boot sector too.
fn is_image(path: &Path) -> bool {
    if path.metadata().is_ok_and(|status| status.file_type().is_block_device()) {
        return true;
    }
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(2048).read_to_end(&mut start));
    let has = |at: usize, mark: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(mark));
    let is_kernel = has(0x202, b"HdrS") || has(0, b"\x7fELF");
    read.is_ok() && !is_kernel && (has(0, b"QFI\xfb") || has(510, &[0x55, 0xaa]) || has(1080, &[0x53, 0xef]))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours => f.write_str("busybox"),
            Self::Host => f.write_str(HOST),
            Self::Debian(debian) => debian.fmt(f),
            Self::Directory(path) | Self::Kernel(path) => path.display().fmt(f),
            Self::Image(disk) => disk.file.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(named: &Path) -> Source {
        Source::of(Some(named)).unwrap()
    }

    #[test]
    fn names_directories_and_files_are_told_apart() {
        assert_eq!(Source::of(None), Ok(Source::Ours));
        assert_eq!(of(Path::new("host")), Source::Host);
        assert_eq!(of(Path::new("./host")), Source::Kernel("./host".into()));
        assert_eq!(of(Path::new("debian")), Source::Debian(DebianSpec::default()));
        let Source::Debian(debian) = of(Path::new("debian:bookworm")) else { panic!() };
        assert_eq!(debian.suite.as_deref(), Some("bookworm"));
        assert_eq!(of(Path::new("./debian")), Source::Kernel("./debian".into()));
        assert!(Source::of(Some(Path::new("debian:"))).is_err());
        assert_eq!(of(Path::new("/")), Source::Directory("/".into()));
        assert_eq!(of(Path::new("bzImage")), Source::Kernel("bzImage".into()));
        assert_eq!(of(Path::new("bzImage,rw")), Source::Kernel("bzImage,rw".into()));
    }

    #[test]
    fn images_are_told_by_their_contents_and_not_changed_unless_asked() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, at: usize, mark: &[u8]| {
            let mut bytes = vec![0; 4096];
            bytes[at..at + mark.len()].copy_from_slice(mark);
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        for (at, mark) in [(0, &b"QFI\xfb"[..]), (510, b"\x55\xaa"), (1080, b"\x53\xef")] {
            let path = file("disk", at, mark);
            let Source::Image(disk) = of(&path) else { panic!("{at}") };
            assert_eq!(disk, DiskSpec { changes: DiskChanges::Discarded, ..DiskSpec::new(path.clone()) });
            let with =
                |options: &str| Source::of(Some(&PathBuf::from(format!("{}{options}", path.display()))));
            assert_eq!(with(",rw"), Ok(Source::Image(DiskSpec::new(path.clone()))));
            let Ok(Source::Image(kept)) = with(",overlay=x,format=raw") else { panic!() };
            assert_eq!(kept.changes, DiskChanges::Kept("x".into()));
            assert!(with(",ro,rw").is_err() && with(",what").is_err());
        }
        let kernel = file("kernel", 0x202, b"HdrS");
        std::fs::write(&kernel, {
            let mut bytes = std::fs::read(&kernel).unwrap();
            bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
            bytes
        })
        .unwrap();
        assert_eq!(of(&kernel), Source::Kernel(kernel));
    }
}
