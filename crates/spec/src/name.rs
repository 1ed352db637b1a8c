//! A VM's name.

use std::fmt;
use std::str::FromStr;

use crate::SpecError;

/// A name that can also be a host name: one label of RFC 1123, section 2.1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(String);

/// The longest label (RFC 1035, section 2.3.4).
const MAX_LEN: usize = 63;

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Name {
    fn default() -> Self {
        Self("umbra".to_owned())
    }
}

impl FromStr for Name {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let good = (1..=MAX_LEN).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if good { Ok(Self(text.to_owned())) } else { Err(SpecError::Name { text: text.to_owned() }) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_only() {
        for good in ["a", "web-1", "0x", &"n".repeat(63)] {
            assert_eq!(good.parse::<Name>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "-a", "a-", "a b", "a.b", "ä", "a\n", &"n".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        assert!(Name::default().as_str().parse::<Name>().is_ok());
    }
}
