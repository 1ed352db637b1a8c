//! Segment descriptors, selectors and descriptor-table registers (SDM vol. 3, 3.4 and 3.5).

use serde::{Deserialize, Serialize};

use crate::bits::{high32, low16, low32};

/// The six segment registers, in the encoding order of ModRM.reg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SegmentIndex {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

impl SegmentIndex {
    /// All six, in encoding order.
    pub const ALL: [Self; 6] = [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs];
}

/// A segment selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Selector(pub u16);

impl Selector {
    /// The requested privilege level.
    #[inline]
    pub const fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }

    /// Whether the selector refers to the LDT.
    #[inline]
    pub const fn is_local(self) -> bool {
        self.0 & 4 != 0
    }

    /// The byte offset of the descriptor in its table.
    #[inline]
    pub const fn offset(self) -> u64 {
        (self.0 & !7) as u64
    }

    /// Whether this is a null selector (0 to 3).
    #[inline]
    pub const fn is_null(self) -> bool {
        self.0 & !3 == 0
    }

    /// The selector without its RPL, as error codes carry it.
    #[inline]
    pub const fn error_code(self) -> u32 {
        (self.0 & !3) as u32
    }

    /// The same selector with another RPL.
    #[inline]
    pub const fn with_rpl(self, rpl: u8) -> Self {
        Self(self.0 & !3 | (rpl & 3) as u16)
    }
}

/// Bits of [`Segment::attr`]: the descriptor's bytes 5 and 6 without the limit nibble.
pub mod attr {
    /// The four type bits.
    pub const TYPE: u16 = 0xf;
    /// Accessed (code and data).
    pub const ACCESSED: u16 = 1 << 0;
    /// Writable (data) or readable (code).
    pub const WRITABLE: u16 = 1 << 1;
    /// Readable: the same bit, for code.
    pub const READABLE: u16 = 1 << 1;
    /// Expand-down (data) or conforming (code).
    pub const EXPAND_DOWN: u16 = 1 << 2;
    /// Conforming: the same bit, for code.
    pub const CONFORMING: u16 = 1 << 2;
    /// Code rather than data.
    pub const CODE: u16 = 1 << 3;
    /// Code or data rather than system.
    pub const S: u16 = 1 << 4;
    /// Bit position of the two DPL bits.
    pub const DPL_SHIFT: u32 = 5;
    /// Present.
    pub const P: u16 = 1 << 7;
    /// Available to software.
    pub const AVL: u16 = 1 << 12;
    /// 64-bit code.
    pub const L: u16 = 1 << 13;
    /// 32-bit code, stack or expand-down limit.
    pub const DB: u16 = 1 << 14;
    /// The limit counts 4 KiB units.
    pub const G: u16 = 1 << 15;
}

/// System-descriptor types (SDM vol. 3, table 3-2).
#[allow(missing_docs)]
pub mod system {
    pub const TSS16_AVAILABLE: u16 = 1;
    pub const LDT: u16 = 2;
    pub const TSS16_BUSY: u16 = 3;
    pub const CALL_GATE16: u16 = 4;
    pub const TASK_GATE: u16 = 5;
    pub const INTERRUPT_GATE16: u16 = 6;
    pub const TRAP_GATE16: u16 = 7;
    pub const TSS_AVAILABLE: u16 = 9;
    pub const TSS_BUSY: u16 = 11;
    pub const CALL_GATE: u16 = 12;
    pub const INTERRUPT_GATE: u16 = 14;
    pub const TRAP_GATE: u16 = 15;
    /// The bit that turns an available TSS into a busy one.
    pub const BUSY_BIT: u16 = 2;
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Segment {
    /// The visible selector.
    pub selector: Selector,
    /// Attributes, bits of [`attr`]. A register without [`attr::P`] is unusable (null).
    pub attr: u16,
    /// The last valid byte offset (for expand-down data: the last invalid one), already scaled by granularity.
    pub limit: u32,
    /// The linear base address.
    pub base: u64,
}

impl Segment {
    /// What a null selector loads in protected mode: nothing usable.
    pub const fn null(selector: Selector) -> Self {
        Self { selector, attr: 0, limit: 0, base: 0 }
    }

    /// What loading `selector` in real or virtual-8086 mode gives: base = selector × 16, 64 KiB data.
    ///
    /// Real mode keeps limit and attributes from before; this is the state after reset (SDM vol. 3, table 9-1).
    pub const fn real(selector: u16) -> Self {
        Self {
            selector: Selector(selector),
            attr: attr::P | attr::S | attr::WRITABLE | attr::ACCESSED,
            limit: 0xffff,
            base: (selector as u64) << 4,
        }
    }

    /// Parses the 8-byte descriptor `raw` of `selector`.
    ///
    /// The upper half of a 16-byte system descriptor's base is the caller's to add.
    pub const fn from_descriptor(selector: Selector, raw: u64) -> Self {
        let high = high32(raw);
        let attr = low16((high >> 8) as u64) & 0xf0ff;
        let limit = low32(raw & 0xffff) | high & 0xf_0000;
        let limit = if attr & attr::G != 0 { limit << 12 | 0xfff } else { limit };
        let base = raw >> 16 & 0xff_ffff | (high as u64 & 0xff00_0000);
        Self { selector, attr, limit, base }
    }

    /// Whether the register holds a usable segment.
    #[inline]
    pub const fn usable(&self) -> bool {
        self.attr & attr::P != 0
    }

    /// The descriptor privilege level.
    #[inline]
    pub const fn dpl(&self) -> u8 {
        (self.attr >> attr::DPL_SHIFT & 3) as u8
    }

    /// The four type bits.
    #[inline]
    pub const fn kind(&self) -> u16 {
        self.attr & attr::TYPE
    }

    /// Whether this is a code segment.
    #[inline]
    pub const fn is_code(&self) -> bool {
        self.attr & (attr::S | attr::CODE) == attr::S | attr::CODE
    }

    /// Whether this is a data segment.
    #[inline]
    pub const fn is_data(&self) -> bool {
        self.attr & (attr::S | attr::CODE) == attr::S
    }

    /// Whether this is a conforming code segment.
    #[inline]
    pub const fn is_conforming(&self) -> bool {
        self.is_code() && self.attr & attr::CONFORMING != 0
    }

    /// Whether data may be read through it.
    #[inline]
    pub const fn readable(&self) -> bool {
        self.is_data() || self.is_code() && self.attr & attr::READABLE != 0
    }

    /// Whether data may be written through it.
    #[inline]
    pub const fn writable(&self) -> bool {
        self.is_data() && self.attr & attr::WRITABLE != 0
    }

    /// Whether this is a system segment or gate of type `kind` (see [`system`]).
    #[inline]
    pub const fn is_system(&self, kind: u16) -> bool {
        self.attr & (attr::S | attr::TYPE) == kind
    }

    /// The D/B bit.
    #[inline]
    pub const fn big(&self) -> bool {
        self.attr & attr::DB != 0
    }

    /// The L bit.
    #[inline]
    pub const fn long(&self) -> bool {
        self.attr & attr::L != 0
    }

    /// Whether `offset..offset + size` lies within the limit (SDM vol. 3, 5.3). `size` is at least 1.
    #[inline]
    pub const fn contains(&self, offset: u64, size: u64) -> bool {
        let last = offset.wrapping_add(size - 1);
        if self.is_data() && self.attr & attr::EXPAND_DOWN != 0 {
            let top = if self.big() { 0xffff_ffff } else { 0xffff };
            offset > self.limit as u64 && last <= top && last >= offset
        } else {
            last <= self.limit as u64 && last >= offset
        }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// The linear base address.
    pub base: u64,
    /// The offset of the last byte.
    pub limit: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_a_flat_code_descriptor() {
        let s = Segment::from_descriptor(Selector(0x10), 0x00af_9b00_0000_ffff);
        assert_eq!((s.base, s.limit, s.dpl()), (0, 0xffff_ffff, 0));
        assert!(s.is_code() && s.long() && !s.big() && s.usable());
    }

    #[test]
    fn parses_split_base_and_limit() {
        let s = Segment::from_descriptor(Selector(8), 0x120f_9234_5678_9abc);
        assert_eq!((s.base, s.limit), (0x1234_5678, 0xf_9abc));
        assert!(s.is_data() && s.writable());
    }

    #[test]
    fn expand_down_limits_are_inverted() {
        let mut s = Segment::real(0);
        s.attr |= attr::EXPAND_DOWN;
        s.limit = 0xfff;
        assert!(!s.contains(0xfff, 1) && s.contains(0x1000, 4) && s.contains(0xffff, 1));
        assert!(!s.contains(0xffff, 2), "past 64 KiB without the B bit");
    }

    #[test]
    fn limits_do_not_wrap() {
        let s = Segment { limit: u32::MAX, ..Segment::real(0) };
        assert!(s.contains(0xffff_fffc, 4) && !s.contains(0xffff_fffd, 4) && !s.contains(u64::MAX, 2));
    }
}
