//! The files of a disk's image, open: what a chain of images is before it is a disk.
//!
//! Whoever may open files by name finds the chain ([`crate::Image::layers`]); whoever has nothing but descriptors, in a jail, makes the
//! disk of it ([`Layers::stack`]). Which file is made upon which is said by their order, and not looked up again.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use crate::image::Format;
use crate::qcow2::{self, Qcow2};
use crate::{Disk, DiskError, RawDisk};

/// One image of a chain.
#[derive(Debug)]
pub struct Layer {
    /// Its name in messages.
    pub path: PathBuf,
    /// Its file, locked.
    pub file: File,
    /// How it is stored.
    pub format: Format,
    /// Whether it may only be read.
    pub read_only: bool,
    /// Whether what is flushed is to be there after a crash of the host.
    pub durable: bool,
}

impl Layer {
    /// The size of the disk that it is, or stands for.
    ///
    /// # Errors
    /// If it is none, or of a size that no disk has.
    pub(crate) fn disk_bytes(&self) -> Result<u64, DiskError> {
        match self.format {
            Format::Raw => {
                let bytes = self.file_bytes()?;
                RawDisk::check_size(&self.path, bytes)?;
                Ok(bytes)
            }
            Format::Qcow2 => {
                let wrong = |problem| DiskError::Qcow2 { path: self.path.clone(), problem };
                Ok(qcow2::facts(&self.file).map_err(wrong)?.bytes)
            }
        }
    }

    /// A block device's metadata does not have its size.
    fn file_bytes(&self) -> Result<u64, DiskError> {
        let Self { path, read_only, .. } = self;
        let opening = |source| DiskError::Open { path: path.clone(), read_only: *read_only, source };
        (&self.file).seek(SeekFrom::End(0)).map_err(opening)
    }

    fn upon(self, below: Option<Arc<dyn Disk>>) -> Result<Arc<dyn Disk>, DiskError> {
        let bytes = self.file_bytes()?;
        let Self { path, file, format, read_only, durable } = self;
        match format {
            Format::Raw => Ok(Arc::new(RawDisk::of(&path, file, bytes, read_only)?)),
            Format::Qcow2 => match Qcow2::open(file, bytes, below, read_only, durable) {
                Ok(disk) => Ok(Arc::new(disk)),
                Err(problem) => Err(DiskError::Qcow2 { path, problem }),
            },
        }
    }
}

/// A chain of images: the last is made upon nothing, every other upon the next one.
#[derive(Debug)]
pub struct Layers(Vec<Layer>);

impl Layers {
    /// A chain from the top down. `None` if there is nothing in it, or a raw image has one below.
    pub fn new(layers: Vec<Layer>) -> Option<Self> {
        let (_, above) = layers.split_last()?;
        let possible = above.iter().all(|layer| layer.format == Format::Qcow2);
        possible.then_some(Self(layers))
    }

    /// From the top down.
    pub fn into_inner(self) -> Vec<Layer> {
        self.0
    }

    /// Makes the disk.
    ///
    /// # Errors
    /// If an image is none or is damaged.
    pub fn stack(self) -> Result<Arc<dyn Disk>, DiskError> {
        let mut below: Option<Arc<dyn Disk>> = None;
        for layer in self.0.into_iter().rev() {
            below = Some(layer.upon(below.take())?);
        }
        // There is one layer at least.
        below.ok_or_else(|| DiskError::NotAnImage(PathBuf::new()))
    }
}
