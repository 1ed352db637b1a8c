//! Truncation and extension that are meant.
//!
//! An emulator narrows and reinterprets integers all the time because the architecture does. Crates that see guest
//! data deny `as` for that, since an unintended truncation of a guest's number is how a hypervisor is broken into;
//! where narrowing *is* the meaning, these functions say so.

#![allow(clippy::cast_possible_truncation)]

/// Bits 7:0.
#[inline(always)]
pub const fn low8(value: u64) -> u8 {
    value as u8
}

/// Bits 15:0.
#[inline(always)]
pub const fn low16(value: u64) -> u16 {
    value as u16
}

/// Bits 31:0.
#[inline(always)]
pub const fn low32(value: u64) -> u32 {
    value as u32
}

/// Bits 63:0.
#[inline(always)]
pub const fn low64(value: u128) -> u64 {
    value as u64
}

/// Bits 63:32.
#[inline(always)]
pub const fn high32(value: u64) -> u32 {
    (value >> 32) as u32
}

/// Bits 127:64.
#[inline(always)]
pub const fn high64(value: u128) -> u64 {
    (value >> 64) as u64
}

/// Sign-extends the low `bits` (1 to 64) of `value`.
#[inline(always)]
pub const fn sign_extend(value: u64, bits: u32) -> u64 {
    let shift = 64 - bits;
    ((value << shift).cast_signed() >> shift).cast_unsigned()
}

/// The all-ones value of `bytes` bytes (1, 2, 4 or 8; larger counts give 64 ones).
#[inline(always)]
pub const fn mask_of(bytes: u32) -> u64 {
    if bytes >= 8 { u64::MAX } else { (1u64 << (bytes * 8)) - 1 }
}

/// An index from a guest's number on a 64-bit host; lossless there, which is the only host we build for.
#[inline(always)]
pub const fn index(value: u64) -> usize {
    const { assert!(size_of::<usize>() == 8, "Umbra builds for 64-bit hosts only") };
    value as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_keeps_the_low_bits() {
        let v = 0x1122_3344_5566_7788;
        assert_eq!((low8(v), low16(v), low32(v), high32(v)), (0x88, 0x7788, 0x5566_7788, 0x1122_3344));
    }

    #[test]
    fn sign_extension_copies_the_top_bit() {
        assert_eq!(sign_extend(0x80, 8), 0xffff_ffff_ffff_ff80);
        assert_eq!(sign_extend(0x7f, 8), 0x7f);
        assert_eq!(sign_extend(u64::MAX, 64), u64::MAX);
    }

    #[test]
    fn masks_by_width() {
        assert_eq!([1, 2, 4, 8].map(mask_of), [0xff, 0xffff, 0xffff_ffff, u64::MAX]);
    }
}
