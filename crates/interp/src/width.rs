//! Operand widths as types.

use memory::Word;

/// One of the four integer operand widths.
pub(crate) trait Width: Word {
    /// Bits.
    const BITS: u32;
    /// All ones.
    const MASK: u64;
    /// Bytes, as a register index step or stack adjustment.
    const SIZE: u64;
}

macro_rules! widths {
    ($($t:ty),*) => {$(
        impl Width for $t {
            const BITS: u32 = <$t>::BITS;
            const MASK: u64 = u64::MAX >> (64 - <$t>::BITS);
            const SIZE: u64 = <$t>::BITS as u64 / 8;
        }
    )*};
}

widths!(u8, u16, u32, u64);

/// Picks the instance of a generic handler for an operand size in bytes.
macro_rules! by_width {
    ($bytes:expr, $($handler:ident)::+) => {
        match $bytes {
            1 => $($handler)::+::<u8>,
            2 => $($handler)::+::<u16>,
            4 => $($handler)::+::<u32>,
            _ => $($handler)::+::<u64>,
        }
    };
    ($bytes:expr, $($handler:ident)::+, $($arg:ty),+) => {
        match $bytes {
            1 => $($handler)::+::<u8, $($arg),+>,
            2 => $($handler)::+::<u16, $($arg),+>,
            4 => $($handler)::+::<u32, $($arg),+>,
            _ => $($handler)::+::<u64, $($arg),+>,
        }
    };
}
pub(crate) use by_width;
