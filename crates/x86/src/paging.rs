//! Page-table formats (SDM vol. 3, chapter 4).

/// Bits of a paging-structure entry, common to all formats.
pub mod pte {
    /// Present.
    pub const P: u64 = 1 << 0;
    /// Writable.
    pub const RW: u64 = 1 << 1;
    /// User.
    pub const US: u64 = 1 << 2;
    /// Write-through.
    pub const PWT: u64 = 1 << 3;
    /// Cache disable.
    pub const PCD: u64 = 1 << 4;
    /// Accessed.
    pub const A: u64 = 1 << 5;
    /// Dirty (leaf entries).
    pub const D: u64 = 1 << 6;
    /// Page size: a leaf above the lowest level.
    pub const PS: u64 = 1 << 7;
    /// Global (leaf entries).
    pub const G: u64 = 1 << 8;
    /// PAT bit of a large page.
    pub const PAT_LARGE: u64 = 1 << 12;
    /// No execute, with EFER.NXE.
    pub const NX: u64 = 1 << 63;
    /// The frame field of 64-bit entries, up to 52 bits of physical address.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// The paging mode in force (SDM vol. 3, 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PagingMode {
    /// CR0.PG is clear: linear addresses are physical ones.
    Off,
    /// Two levels of 32-bit entries.
    Legacy32,
    /// Three levels of 64-bit entries, the top one held in registers.
    Pae,
    /// Four levels of 64-bit entries.
    FourLevel,
}

impl PagingMode {
    /// The mode that the control registers select.
    #[inline]
    pub const fn of(cr0: u64, cr4: u64, efer: u64) -> Self {
        use crate::control::{cr0, cr4, efer};
        if cr0 & cr0::PG == 0 {
            Self::Off
        } else if cr4 & cr4::PAE == 0 {
            Self::Legacy32
        } else if efer & efer::LMA == 0 {
            Self::Pae
        } else {
            Self::FourLevel
        }
    }
}
