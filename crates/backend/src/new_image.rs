//! A file that is to be an image. It gets its name when it is finished: who sees the name sees a whole image. Until then it has none, so
//! that of one that is given up, in whatever way, nothing is left; or another, on file systems that know no files without.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use crate::image::directory_of;
use crate::qcow2::Qcow2;
use crate::{Disk, Format, RawDisk};

/// What files may be, but for what the user's mask takes away.
const MODE: u32 = 0o666;

/// A file that does not have its name yet.
enum Unfinished {
    /// And no other.
    Nameless(File),
    /// But another one.
    Named(NamedTempFile),
}

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

/// An image that is being made.
pub struct NewImage<'a> {
    file: Unfinished,
    path: &'a Path,
}

impl<'a> NewImage<'a> {
    /// Begins, in the directory where it will be.
    ///
    /// # Errors
    /// If the host gives no file there.
    pub fn begin(path: &'a Path) -> io::Result<Self> {
        Ok(Self { file: Unfinished::begin(directory_of(path))?, path })
    }

    /// Its file.
    pub fn file(&self) -> &File {
        self.file.file()
    }

    /// The disk of the image that [`crate::create`] has just made in it, upon no other. What is written is durable when it is
    /// finished.
    ///
    /// # Errors
    /// If the host cannot read it.
    pub fn open(&self, format: Format) -> io::Result<Arc<dyn Disk>> {
        let file = self.file().try_clone()?;
        let bytes = file.metadata()?.len();
        Ok(match format {
            Format::Raw => Arc::new(RawDisk::new(file, bytes, false)),
            Format::Qcow2 => {
                Arc::new(Qcow2::open(file, bytes, None, false, false).map_err(io::Error::other)?)
            }
        })
    }

    /// Makes it durable and gives it its name.
    ///
    /// # Errors
    /// If the host cannot write it, or somebody else has taken the name.
    pub fn finish(self) -> io::Result<()> {
        self.file().sync_all()?;
        self.file.persist(self.path)?;
        File::open(directory_of(self.path))?.sync_all()
    }
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
