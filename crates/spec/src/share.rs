//! Directories of the host that a guest shares, as people name them and as a VM has them.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use crate::SpecError;

/// A directory that a VM shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareSpec {
    /// What the guest mounts it by: at most 36 bytes.
    pub tag: String,
    /// The directory.
    pub directory: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether nobody is expected to change it meanwhile, so that the guest may keep what it has read.
    pub settled: bool,
}

impl ShareSpec {
    /// The most shared directories of a VM.
    pub const MOST: usize = 16;
}

/// A directory and where the guest finds it: `HOST:GUEST[:ro|:rw]`. The guest's path has no colon, and is not
/// the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// The host's directory.
    pub host: PathBuf,
    /// Where the guest finds it, from its root.
    pub guest: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

impl FromStr for VolumeSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (paths, read_only) = match text.rsplit_once(':') {
            Some((paths, "ro")) => (paths, true),
            Some((paths, "rw")) => (paths, false),
            _ => (text, false),
        };
        match paths.rsplit_once(':') {
            Some((host, guest)) if !host.is_empty() && is_root(guest) => {
                Err(SpecError::VolumeOverRoot { text: text.to_owned() })
            }
            Some((host, guest)) if !host.is_empty() && guest.starts_with('/') => {
                Ok(Self { host: host.into(), guest: guest.into(), read_only })
            }
            _ => Err(SpecError::Volume { text: text.to_owned() }),
        }
    }
}

/// Whether a path is the root, however it is written.
fn is_root(path: &str) -> bool {
    path.starts_with('/')
        && !Path::new(path).components().any(|component| matches!(component, Component::Normal(_)))
}

impl fmt::Display for VolumeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.read_only { "ro" } else { "rw" };
        write!(f, "{}:{}:{access}", self.host.display(), self.guest.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_access() {
        let volume = |host: &str, guest: &str, read_only| {
            Ok(VolumeSpec { host: host.into(), guest: guest.into(), read_only })
        };
        assert_eq!(".:/work".parse(), volume(".", "/work", false));
        assert_eq!("/a:b:/c:ro".parse(), volume("/a:b", "/c", true));
        assert_eq!("a:/ro:rw".parse(), volume("a", "/ro", false));
        for bad in ["", "a", ":/b", "a:b", "a:", "a:ro", "/a:ro", "a:/b:rx"] {
            assert!(bad.parse::<VolumeSpec>().is_err(), "{bad}");
        }
        for root in ["a:/", "a:/:ro", "a://", "a:/.", "a:/.."] {
            let refusal = SpecError::VolumeOverRoot { text: root.to_owned() };
            assert_eq!(root.parse::<VolumeSpec>(), Err(refusal));
        }
        for text in [".:/work:rw", "a:b:/c:ro"] {
            assert_eq!(text.parse::<VolumeSpec>().unwrap().to_string(), text);
        }
    }
}
