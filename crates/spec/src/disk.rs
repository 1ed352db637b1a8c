//! A disk, as people name it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::SpecError;

/// A disk: `FILE[,ro]`. A comma in the file's name is written twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// The image.
    pub file: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

impl DiskSpec {
    /// The most disks of a VM: what the root bus has room for.
    pub const MOST: usize = 24;
}

const READ_ONLY: &str = "ro";

impl FromStr for DiskSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        // An escaped comma is put where no other character is.
        let mut parts = Vec::from([String::new()]);
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            if c == ',' && rest.next_if_eq(&',').is_none() {
                parts.push(String::new());
            } else if let Some(part) = parts.last_mut() {
                part.push(c);
            }
        }
        let refusal = |option: &str| SpecError::Disk { text: text.to_owned(), option: option.to_owned() };
        let mut parts = parts.into_iter();
        let file = parts.next().filter(|file| !file.is_empty());
        let file = PathBuf::from(file.ok_or(SpecError::DiskWithoutFile { text: text.to_owned() })?);
        let mut read_only = false;
        for option in parts {
            match option.as_str() {
                READ_ONLY => read_only = true,
                other => return Err(refusal(other)),
            }
        }
        Ok(Self { file, read_only })
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display().to_string().replace(',', ",,");
        f.write_str(&file)?;
        if self.read_only { write!(f, ",{READ_ONLY}") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_options_and_commas() {
        let disk = |file: &str, read_only| Ok(DiskSpec { file: file.into(), read_only });
        assert_eq!("d.img".parse(), disk("d.img", false));
        assert_eq!("a/d.img,ro".parse(), disk("a/d.img", true));
        assert_eq!("a,,ro,ro".parse(), disk("a,ro", true));
        assert_eq!("a,,,ro".parse(), disk("a,", true));
        assert_eq!("a,,".parse(), disk("a,", false));
        for bad in ["", ",ro", "d,rw", "d,", "d,ro,,"] {
            assert!(bad.parse::<DiskSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_is_understood() {
        for text in ["d", "d,ro", "a,,b,ro", ",,"] {
            assert_eq!(text.parse::<DiskSpec>().unwrap().to_string(), text);
        }
    }
}
