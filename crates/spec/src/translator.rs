//! How binary translation is set up.

use std::fmt;
use std::str::FromStr;

use crate::{ByteSize, CpuCount, SpecError};

/// How binary translation is set up; nothing to other engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TranslatorSpec {
    /// Room for translated code and its records, for each vCPU: see [`CodeCacheSize::for_cpus`].
    pub code_cache: CodeCacheSize,
    /// Whether to write `/tmp/perf-PID.map`.
    pub perf_map: bool,
}

/// The size of a code cache, between [`CodeCacheSize::MIN`] and [`CodeCacheSize::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CodeCacheSize(ByteSize);

impl CodeCacheSize {
    /// The least: room for many times the largest block.
    pub const MIN: ByteSize = ByteSize::from_mib(1);
    /// The most: a jump reaches from any place to any other.
    pub const MAX: ByteSize = ByteSize::from_mib(1 << 10);

    /// Checks a size.
    ///
    /// # Errors
    /// If it is too little or too much.
    pub fn new(size: ByteSize) -> Result<Self, SpecError> {
        let (min, max) = (Self::MIN, Self::MAX);
        if size < min || size > max { Err(SpecError::CodeCache { size, min, max }) } else { Ok(Self(size)) }
    }

    /// Where nobody says how much, for each of so many vCPUs: 64 MiB, and with more than eight of them 512 MiB for all
    /// together, so that a large VM takes a bounded part of the host's memory for its translations.
    pub const fn for_cpus(cpus: CpuCount) -> Self {
        const EACH: u32 = 64;
        const ALL: u32 = 512;
        let share = ALL / cpus.get();
        Self(ByteSize::from_mib(if share < EACH { share } else { EACH }))
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0.bytes()
    }
}

impl Default for CodeCacheSize {
    fn default() -> Self {
        Self::for_cpus(CpuCount::ONE)
    }
}

impl FromStr for CodeCacheSize {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        Self::new(text.parse()?)
    }
}

impl fmt::Display for CodeCacheSize {
    /// As it is typed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}M", self.bytes() >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_cpus_share_what_eight_have() {
        let each = |cpus| CodeCacheSize::for_cpus(CpuCount::new(cpus).unwrap()).to_string();
        assert_eq!([1, 8, 9, 64].map(each), ["64M", "64M", "56M", "8M"]);
    }

    #[test]
    fn sizes_have_limits() {
        assert_eq!("64M".parse(), Ok(CodeCacheSize::default()));
        assert_eq!(CodeCacheSize::default().to_string(), "64M");
        assert!("1M".parse::<CodeCacheSize>().is_ok() && "1G".parse::<CodeCacheSize>().is_ok());
        for text in ["1023K", "1025M", "0M"] {
            assert!(matches!(text.parse::<CodeCacheSize>(), Err(SpecError::CodeCache { .. })), "{text}");
        }
        assert!(matches!("64".parse::<CodeCacheSize>(), Err(SpecError::SizeWithoutUnit { .. })));
    }
}
