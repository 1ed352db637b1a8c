//! A name in a directory.

use std::ffi::{CStr, CString};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// One name: not empty, no slash, neither `.` nor `..`, at most 255 bytes. It leads to an entry of a directory and
/// nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "CString", into = "CString")]
pub struct Name(CString);

/// `NAME_MAX`.
const LONGEST: usize = 255;

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// `EINVAL` or `ENAMETOOLONG`.
    pub fn new(text: &[u8]) -> Result<Self, Errno> {
        if text.len() > LONGEST {
            return Err(Errno::NAMETOOLONG);
        }
        if matches!(text, b"" | b"." | b"..") || text.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        CString::new(text).map(Self).map_err(|_| Errno::INVAL)
    }

    pub(super) fn as_c_str(&self) -> &CStr {
        &self.0
    }
}

impl TryFrom<CString> for Name {
    type Error = Errno;

    fn try_from(text: CString) -> Result<Self, Errno> {
        Self::new(text.to_bytes())
    }
}

impl From<Name> for CString {
    fn from(name: Name) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_lead_elsewhere_is_no_name() {
        for bad in [&b""[..], b".", b"..", b"/", b"a/b", b"../a", b"a/", b"a\0b"] {
            assert_eq!(Name::new(bad), Err(Errno::INVAL), "{bad:?}");
        }
        assert_eq!(Name::new(&[b'a'; 256]), Err(Errno::NAMETOOLONG));
        for good in [&b"a"[..], b"...", b".a", b"\xff\n", &[b'a'; 255]] {
            assert!(Name::new(good).is_ok(), "{good:?}");
        }
    }
}
