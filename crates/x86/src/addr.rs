//! The three address spaces (guest-virtual, guest-physical, machine) as types that do not mix.

use core::fmt;
use core::ops::Add;

use serde::{Deserialize, Serialize};

/// log2 of the base page size.
pub const PAGE_SHIFT: u32 = 12;
/// The base page size in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// The bits of an address below the page number.
pub const PAGE_MASK: u64 = PAGE_SIZE - 1;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $tag:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The byte's offset within its page.
            #[inline(always)]
            pub const fn offset(self) -> u64 {
                self.0 & PAGE_MASK
            }

            /// The address of the first byte of the page.
            #[inline(always)]
            pub const fn page_base(self) -> Self {
                Self(self.0 & !PAGE_MASK)
            }

            /// The address `bytes` further on, wrapping at 2^64 as address arithmetic does.
            #[inline(always)]
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// The address `bytes` further on, or `None` past 2^64.
            #[inline(always)]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(a) => Some(Self(a)),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($tag, ":{:#x}"), self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        impl Add<u64> for $name {
            type Output = Self;
            #[inline(always)]
            fn add(self, bytes: u64) -> Self {
                self.wrapping_add(bytes)
            }
        }
    };
}

address!(
    /// A guest-virtual (after segmentation: linear) address.
    Gva,
    "gva"
);
address!(
    /// A guest-physical address: what the guest believes is on its memory bus.
    Gpa,
    "gpa"
);

macro_rules! frame {
    ($(#[$doc:meta])* $name:ident, $tag:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($tag, ":{:#x}"), self.0)
            }
        }
    };
}

frame!(
    /// A guest frame number (PPN): a guest-physical address without its page offset.
    Gfn,
    "gfn"
);
frame!(
    /// A machine frame number (MPN): an index into the hypervisor's own frames.
    Mfn,
    "mfn"
);

impl Gpa {
    /// The guest frame that holds the byte.
    #[inline(always)]
    pub const fn frame(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }
}

impl Gfn {
    /// The address of the frame's first byte.
    #[inline(always)]
    pub const fn base(self) -> Gpa {
        Gpa(self.0 << PAGE_SHIFT)
    }
}

impl Gva {
    /// The virtual page number.
    #[inline(always)]
    pub const fn page(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }

    /// Whether bits 63:47 are all equal, as 4-level paging demands (SDM vol. 1, 3.3.7.1).
    #[inline(always)]
    pub const fn is_canonical(self) -> bool {
        crate::bits::sign_extend(self.0, 48) == self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_halves() {
        assert!(Gva(0x0000_7fff_ffff_ffff).is_canonical());
        assert!(!Gva(0x0000_8000_0000_0000).is_canonical());
        assert!(Gva(0xffff_8000_0000_0000).is_canonical());
        assert!(!Gva(0xffff_7fff_ffff_ffff).is_canonical());
    }

    #[test]
    fn frames_and_offsets() {
        let a = Gpa(0x1234_5678);
        assert_eq!((a.frame(), a.offset(), a.page_base()), (Gfn(0x12345), 0x678, Gpa(0x1234_5000)));
        assert_eq!(a.frame().base(), a.page_base());
    }
}
