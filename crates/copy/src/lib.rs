//! Files and directories copied between host and guest, as docker copies them: one side makes a tar archive ([`pack`]), the other makes
//! files of it again ([`unpack`]).
//!
//! Who receives trusts nobody: an archive from a guest makes no file outside of the place that it was meant for, whatever names and links
//! are in it, and takes a bounded part of memory.

mod pack;
pub mod tar;
mod unpack;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

pub use pack::{name_of, pack};
pub use unpack::{Place, unpack};

/// Why something was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file cannot be read.
    #[error("cannot read '{}'", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be made.
    #[error("cannot make '{}'", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Who sends or receives has gone.
    #[error("the copy was cut short")]
    CutShort(#[source] io::Error),
    /// What was received is no archive.
    #[error("what was received is no tar archive, or a damaged one: {0}")]
    Damaged(&'static str),
    /// A name that leads elsewhere.
    #[error("the archive has the name '{}', which leads out of where it is to be unpacked", .0.display())]
    Elsewhere(PathBuf),
    /// A thing that was not asked for.
    #[error("what was received is called '{}' and not '{}', which was asked for", name.display(), asked.display())]
    Unasked {
        /// What came.
        name: OsString,
        /// What should have.
        asked: OsString,
    },
    /// Something that is not copied.
    #[error("'{}' is neither a file, nor a directory, nor a link, and is not copied", .0.display())]
    Special(PathBuf),
    /// A directory over a file.
    #[error("'{}' is a file, over which no directory can be copied: name a directory, or a new one", .0.display())]
    OverFile(PathBuf),
    /// No such directory.
    #[error("there is no directory '{}' to copy to: make it first", .0.display())]
    NoDirectory(PathBuf),
}

impl CopyError {
    fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }

    fn make<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Make { path, source: source.into() }
    }
}
