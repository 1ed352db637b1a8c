//! What SOURCE is.

use std::fmt;
use std::path::{Path, PathBuf};

/// What a VM is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nothing was named: the root file system that Umbra makes.
    Ours,
    /// The host's root.
    Host,
    /// A directory that is to be the root.
    Directory(PathBuf),
    /// A kernel's file.
    Kernel(PathBuf),
}

/// The name of the host's root. A file of this name is `./host`.
const HOST: &str = "host";

impl Source {
    /// What was named. What is not there is a kernel's file, to be missed when it is read.
    pub(crate) fn of(named: Option<&Path>) -> Self {
        match named {
            None => Self::Ours,
            Some(path) if path.as_os_str() == HOST => Self::Host,
            Some(path) if path.is_dir() => Self::Directory(path.to_owned()),
            Some(path) => Self::Kernel(path.to_owned()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours => f.write_str("busybox"),
            Self::Host => f.write_str(HOST),
            Self::Directory(path) | Self::Kernel(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_directories_and_files_are_told_apart() {
        assert_eq!(Source::of(None), Source::Ours);
        assert_eq!(Source::of(Some(Path::new("host"))), Source::Host);
        assert_eq!(Source::of(Some(Path::new("./host"))), Source::Kernel("./host".into()));
        assert_eq!(Source::of(Some(Path::new("/"))), Source::Directory("/".into()));
        assert_eq!(Source::of(Some(Path::new("bzImage"))), Source::Kernel("bzImage".into()));
    }
}
