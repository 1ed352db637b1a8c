//! The x87 environment in memory, in its four layouts (SDM vol. 1, figures 8-9 to 8-12), with the registers behind it
//! for FNSAVE and FRSTOR.
//!
//! | 32-bit, protected | 16-bit, protected | 32-bit, real | 16-bit, real |
//! |---|---|---|---|
//! | FCW, FSW, FTW as dwords | as words | as dwords | as words |
//! | FIP | FIP | FIP 15:0 | FIP 15:0 |
//! | FCS, opcode above it | FCS | opcode, FIP 31:16 from bit 12 | opcode, FIP 19:16 from bit 12 |
//! | FDP | FDP | FDP 15:0 | FDP 15:0 |
//! | FDS | FDS | FDP 31:16 from bit 12 | FDP 19:16 from bit 12 |
//!
//! Unused upper halves of dwords are written as ones, as processors do.

use x86::FpuState;
use x86::bits::{low16, low32};

use super::{REGISTER, load_words};
use crate::vector::mmx;

/// Bytes of the largest image.
pub(super) const MAX: usize = 108;

/// Which layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// 32-bit operand size.
    pub(super) wide: bool,
    /// Real or virtual-8086 mode.
    pub(super) real: bool,
    /// The registers follow.
    pub(super) registers: bool,
}

impl Layout {
    fn environment(self) -> usize {
        if self.wide { 28 } else { 14 }
    }

    /// What alignment checks demand: the operand size (SDM vol. 3, table 6-7).
    pub(super) fn align(self) -> u64 {
        if self.wide { 4 } else { 2 }
    }

    /// The size of the image.
    pub(super) fn len(self) -> usize {
        self.environment() + if self.registers { 80 } else { 0 }
    }
}

/// The full tag word: 0 valid, 1 zero, 2 special, 3 empty for each physical register (SDM vol. 1, 8.1.7).
fn tag_word(fpu: &FpuState) -> u16 {
    let top = usize::from(fpu.top());
    let tag = |physical: usize| {
        if fpu.ftw >> physical & 1 == 0 {
            return 3;
        }
        let value = fpu.st[(physical + 8 - top) % 8] & REGISTER;
        let exponent = low16(x86::bits::low64(value >> 64)) & 0x7fff;
        let mantissa = x86::bits::low64(value);
        match exponent {
            0 if mantissa == 0 => 1,
            0 | 0x7fff => 2,
            _ if mantissa >> 63 == 0 => 2,
            _ => 0,
        }
    };
    (0..8).fold(0, |word, physical| word | tag(physical) << (2 * physical))
}

/// Builds the image; returns it with its length.
pub(super) fn write(fpu: &FpuState, layout: Layout) -> ([u8; MAX], usize) {
    let mut image = [0; MAX];
    let (fip, fdp) = (low32(fpu.fip), low32(fpu.fdp));
    let opcode = u32::from(fpu.fop & 0x7ff);
    let ones = 0xffff_0000;
    let [control, status] = [fpu.fcw, fpu.fsw].map(u32::from);
    let tags = u32::from(tag_word(fpu));
    let pointers = match (layout.real, layout.wide) {
        (false, true) => [fip, u32::from(fpu.fcs) | opcode << 16, fdp, u32::from(fpu.fds) | ones],
        (false, false) => [fip, u32::from(fpu.fcs), fdp, u32::from(fpu.fds)],
        (true, true) => [fip & 0xffff | ones, opcode | fip >> 16 << 12, fdp & 0xffff | ones, fdp >> 16 << 12],
        (true, false) => [fip, opcode | (fip >> 16 & 0xf) << 12, fdp, (fdp >> 16 & 0xf) << 12],
    };
    let words = [control | ones, status | ones, tags | ones].into_iter().chain(pointers);
    let width = if layout.wide { 4 } else { 2 };
    for (place, word) in image.chunks_exact_mut(width).zip(words) {
        place.copy_from_slice(&word.to_le_bytes()[..width]);
    }
    if layout.registers {
        for (place, value) in image[layout.environment()..].chunks_exact_mut(10).zip(&fpu.st) {
            place.copy_from_slice(&value.to_le_bytes()[..10]);
        }
    }
    (image, layout.len())
}

/// Loads an image.
pub(super) fn read(fpu: &mut FpuState, image: &[u8; MAX], layout: Layout, selectors: bool) {
    let width = if layout.wide { 4 } else { 2 };
    let field = |index: usize| {
        image[index * width..][..width].iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte))
    };
    let tags = field(2);
    let (fip, fdp) = (field(3), field(5));
    let selector = |value: u64| if selectors { low16(value) } else { 0 };
    if layout.real {
        fpu.fip = fip & 0xffff | (field(4) >> 12 & 0xffff) << 16;
        fpu.fdp = fdp & 0xffff | (field(6) >> 12 & 0xffff) << 16;
        fpu.fop = low16(field(4)) & 0x7ff;
        (fpu.fcs, fpu.fds) = (0, 0);
    } else {
        (fpu.fip, fpu.fdp) = (fip, fdp);
        (fpu.fcs, fpu.fds) = (selector(field(4)), selector(field(6)));
        fpu.fop = if layout.wide { low16(field(4) >> 16) & 0x7ff } else { 0 };
    }
    let (control, status) = (low16(field(0)), low16(field(1)));
    // Physical registers stay where they are; only their names move with TOP.
    let top = x86::bits::low8(u64::from(status) >> x86::fpu::fsw::TOP_SHIFT) & 7;
    mmx::set_top(fpu, top);
    load_words(fpu, control, status);
    fpu.ftw = (0..8).fold(0, |valid, n| valid | u8::from(tags >> (2 * n) & 3 != 3) << n);
    if layout.registers {
        for (place, value) in image[layout.environment()..].chunks_exact(10).zip(&mut fpu.st) {
            *value = place.iter().rev().fold(0, |value, &byte| value << 8 | u128::from(byte));
        }
    }
}
