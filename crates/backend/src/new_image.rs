//! A file that is to be an image. It gets its name when it is finished: who sees the name sees a whole image, and what fails or is killed
//! before leaves none.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::image::directory_of;

/// An image that is being made.
pub struct NewImage<'a> {
    file: NamedTempFile,
    path: &'a Path,
}

impl<'a> NewImage<'a> {
    /// Begins, beside the place where it will be.
    ///
    /// # Errors
    /// If the host gives no file there.
    pub fn begin(path: &'a Path) -> io::Result<Self> {
        let file = tempfile::Builder::new()
            .prefix(".umbra-")
            // What the user's mask takes away is taken away.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory_of(path))?;
        Ok(Self { file, path })
    }

    /// Its file.
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// What it is called as yet.
    pub fn beside(&self) -> &Path {
        self.file.path()
    }

    /// Makes it durable and gives it its name.
    ///
    /// # Errors
    /// If the host cannot write it, or somebody else has taken the name.
    pub fn finish(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file.persist_noclobber(self.path)?;
        File::open(directory_of(self.path))?.sync_all()
    }
}
