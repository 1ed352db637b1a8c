//! How many virtual CPUs a VM has.

use std::fmt;
use std::str::FromStr;

use crate::SpecError;

/// A number of virtual CPUs, from 1 to [`CpuCount::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuCount(u32);

impl CpuCount {
    /// One CPU.
    pub const ONE: Self = Self(1);
    /// The most CPUs of a VM.
    pub const MAX: u32 = 64;

    /// Checks a number of CPUs.
    ///
    /// # Errors
    /// If there are none, or too many.
    pub fn new(count: u32) -> Result<Self, SpecError> {
        if (1..=Self::MAX).contains(&count) { Ok(Self(count)) } else { Err(SpecError::CpusRange { count }) }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for CpuCount {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let count = text.parse().map_err(|_| SpecError::CpusSyntax { text: text.to_owned() })?;
        Self::new(count)
    }
}

impl fmt::Display for CpuCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_one_to_sixty_four() {
        assert_eq!("1".parse(), Ok(CpuCount::ONE));
        assert_eq!("64".parse::<CpuCount>().map(CpuCount::get), Ok(64));
        assert_eq!("0".parse::<CpuCount>(), Err(SpecError::CpusRange { count: 0 }));
        assert_eq!("65".parse::<CpuCount>(), Err(SpecError::CpusRange { count: 65 }));
        assert!(matches!("two".parse::<CpuCount>(), Err(SpecError::CpusSyntax { .. })));
        assert!(matches!("-1".parse::<CpuCount>(), Err(SpecError::CpusSyntax { .. })));
    }
}
