//! Sizes in bytes with units, and how much memory a VM may have.
//!
//! Units are powers of 1024, as memory is made: `K`, `M`, `G`, `T`, or the same as `KiB`, `MiB`, `GiB`, `TiB`, in
//! either case; `bytes`, spelled out, is for what is no whole number of them. Two spellings are refused on purpose rather than guessed at: a bare number, which some tools read as
//! bytes and others as mebibytes, and `MB`, which is a million bytes to some and 2^20 to others.

use std::fmt;
use std::str::FromStr;

use crate::SpecError;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

/// The units by their first letter, with their power of two.
const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

/// What is no multiple of a unit is counted in.
const BYTES: &str = "bytes";

impl ByteSize {
    /// So many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many mebibytes.
    pub const fn from_mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let syntax = || SpecError::SizeSyntax { text: text.to_owned() };
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = unit.strip_prefix(' ').unwrap_or(unit);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.contains('.') {
            return Err(syntax());
        }
        if unit.is_empty() {
            return Err(SpecError::SizeWithoutUnit { text: text.to_owned() });
        }
        let shift = unit_shift(unit).ok_or_else(syntax)?;
        exact(whole, fraction, shift).map(Self).ok_or_else(|| SpecError::SizeRange { text: text.to_owned() })
    }
}

/// The power of two of a unit's spelling.
fn unit_shift(unit: &str) -> Option<u32> {
    if unit.eq_ignore_ascii_case(BYTES) {
        return Some(0);
    }
    UNITS.into_iter().find_map(|(letter, shift)| {
        let long = format!("{letter}iB");
        (unit.eq_ignore_ascii_case(&long) || unit.eq_ignore_ascii_case(&long[..1])).then_some(shift)
    })
}

/// `whole.fraction << shift`, if that is a whole number that fits.
fn exact(whole: &str, fraction: &str, shift: u32) -> Option<u64> {
    let scaled = |digits: &str| digits.parse::<u128>().ok().filter(|value| *value <= u128::from(u64::MAX));
    let mut bytes = scaled(whole)? << shift;
    if !fraction.is_empty() {
        let unit = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let part = scaled(fraction)? << shift;
        if !part.is_multiple_of(unit) {
            return None;
        }
        bytes += part / unit;
    }
    u64::try_from(bytes).ok()
}

impl fmt::Display for ByteSize {
    /// In the largest unit that is exact, so that it parses back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.iter().rev().find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift);
        match exact {
            Some((letter, shift)) => write!(f, "{} {letter}iB", self.0 >> shift),
            None => write!(f, "{} {BYTES}", self.0),
        }
    }
}

/// How much RAM a VM has: whole pages, between [`MemorySize::MIN`] and [`MemorySize::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(ByteSize);

impl MemorySize {
    /// The least: the first megabyte with its holes, and as much again above it for a kernel.
    pub const MIN: ByteSize = ByteSize::from_mib(2);
    /// The most: leaves half of a 40-bit physical address space for devices.
    pub const MAX: ByteSize = ByteSize::from_mib(512 << 10);

    /// Checks an amount of RAM.
    ///
    /// # Errors
    /// If it is too little, too much, or not whole pages.
    pub fn new(size: ByteSize) -> Result<Self, SpecError> {
        if size < Self::MIN {
            Err(SpecError::MemoryTooSmall { size, min: Self::MIN })
        } else if size > Self::MAX {
            Err(SpecError::MemoryTooLarge { size, max: Self::MAX })
        } else if !size.bytes().is_multiple_of(x86::PAGE_SIZE) {
            Err(SpecError::MemoryNotPages { size })
        } else {
            Ok(Self(size))
        }
    }

    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0.bytes()
    }
}

impl FromStr for MemorySize {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        Self::new(text.parse()?)
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(text: &str) -> Result<u64, SpecError> {
        text.parse().map(ByteSize::bytes)
    }

    #[test]
    fn units_are_powers_of_1024() {
        assert_eq!(bytes("1K"), Ok(1024));
        assert_eq!(bytes("512 bytes"), Ok(512));
        assert_eq!(bytes("3m"), Ok(3 << 20));
        assert_eq!(bytes("512MiB"), Ok(512 << 20));
        assert_eq!(bytes("1.5G"), Ok(3 << 29));
        assert_eq!(bytes("0.25gib"), Ok(1 << 28));
        assert_eq!(bytes("2T"), Ok(2 << 40));
        assert_eq!(bytes("256 MiB"), Ok(256 << 20));
    }

    #[test]
    fn doubtful_sizes_are_refused() {
        assert!(matches!(bytes("512"), Err(SpecError::SizeWithoutUnit { .. })));
        for text in ["", "M", "512MB", "5  M", "-1M", "1..5M", "1.M", ".5M", "1e3M", "1Mi", "µM", "1M "] {
            assert!(matches!(bytes(text), Err(SpecError::SizeSyntax { .. })), "{text:?}");
        }
        for text in ["99999999999999999999999999999999999999999999K", "17179869184G", "0.3K", "1.0000000001K"]
        {
            assert!(matches!(bytes(text), Err(SpecError::SizeRange { .. })), "{text:?}");
        }
    }

    #[test]
    fn memory_has_bounds_and_pages() {
        assert_eq!("128M".parse::<MemorySize>().map(MemorySize::bytes), Ok(128 << 20));
        assert!(matches!("1M".parse::<MemorySize>(), Err(SpecError::MemoryTooSmall { .. })));
        assert!(matches!("2T".parse::<MemorySize>(), Err(SpecError::MemoryTooLarge { .. })));
        assert!(matches!("4097K".parse::<MemorySize>(), Err(SpecError::MemoryNotPages { .. })));
    }

    #[test]
    fn the_sentence_says_what_to_do() {
        let error = "1M".parse::<MemorySize>().unwrap_err().to_string();
        assert_eq!(
            error,
            "1 MiB of memory is too little: a VM has at least 2 MiB, and Linux wants 128M or more"
        );
    }

    proptest! {
        #[test]
        fn display_parses_back(bytes: u64, shift in 0_u32..64) {
            let size = ByteSize::from_bytes(bytes >> shift << (shift / 2));
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn any_text_is_an_answer(text in "\\PC*") {
            let _ = text.parse::<MemorySize>();
        }
    }
}
