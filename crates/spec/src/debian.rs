//! A root that is made from Debian's packages, as people name it.

use std::fmt;
use std::str::FromStr;

use crate::SpecError;

/// `debian` or `debian:SUITE`, with more packages or without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebianSpec {
    /// A codename, or a suite such as `stable`; nothing: the machine's own.
    pub suite: Option<String>,
    /// What is installed beside the usual packages.
    pub packages: Vec<PackageName>,
}

/// What people write.
const DEBIAN: &str = "debian";

impl FromStr for DebianSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let wrong = || SpecError::Suite { text: text.to_owned() };
        let suite = match text.split_once(':') {
            None if text == DEBIAN => None,
            Some((DEBIAN, suite)) => Some(suite),
            _ => return Err(wrong()),
        };
        let good = |suite: &str| {
            suite.starts_with(|c: char| c.is_ascii_lowercase())
                && suite
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        match suite {
            Some(suite) if !good(suite) => Err(wrong()),
            suite => Ok(Self { suite: suite.map(str::to_owned), packages: Vec::new() }),
        }
    }
}

impl fmt::Display for DebianSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DEBIAN)?;
        self.suite.as_ref().map_or(Ok(()), |suite| write!(f, ":{suite}"))
    }
}

/// A package's name (Debian Policy, 5.6.1), and so neither an option of apt's nor a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackageName(String);

impl PackageName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PackageName {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
        let starts = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        // apt-get(8) takes a sign at the end for what is to be done.
        let signs = text.ends_with('-') || text.ends_with('+') && !text.ends_with("++");
        if text.len() >= 2 && starts && !signs && text.bytes().all(good) {
            Ok(Self(text.to_owned()))
        } else {
            Err(SpecError::Package { text: text.to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_words() {
        let suite = |text: &str| text.parse::<DebianSpec>().map(|debian| debian.suite);
        assert_eq!(suite("debian"), Ok(None));
        assert_eq!(suite("debian:bookworm"), Ok(Some("bookworm".into())));
        assert_eq!("debian:sid".parse::<DebianSpec>().unwrap().to_string(), "debian:sid");
        for bad in ["", "ubuntu", "debian:", "debian:a b", "debian:../x", "debian:-x", "debian:X", "debianx"]
        {
            assert!(suite(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn packages_are_neither_options_nor_paths() {
        for good in ["gcc", "g++", "libc6-dev", "python3.11", "0ad"] {
            assert_eq!(good.parse::<PackageName>().unwrap().as_str(), good);
        }
        for bad in ["", "a", "-y", "gcc-", "gcc+", "a/b", "A", "a b", "gcc=1", "?essential", "../x.deb"] {
            assert!(bad.parse::<PackageName>().is_err(), "{bad}");
        }
    }
}
