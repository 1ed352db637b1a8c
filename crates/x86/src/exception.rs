//! Exceptions, their classes and error codes (SDM vol. 3, chapter 6).

use serde::{Deserialize, Serialize};

/// Exception vectors.
#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// Bits of the page-fault error code (SDM vol. 3, 4.7).
pub mod pf {
    /// The translation was present: a protection violation.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access was made in user mode.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set in a paging-structure entry.
    pub const RESERVED: u32 = 1 << 3;
    /// The access was an instruction fetch (with NX or SMEP enabled).
    pub const FETCH: u32 = 1 << 4;
}

/// Bits of a selector error code (SDM vol. 3, 6.13).
pub mod selector_error {
    /// The event was external to the program.
    pub const EXT: u32 = 1 << 0;
    /// The index refers to the IDT.
    pub const IDT: u32 = 1 << 1;
    /// The index refers to the LDT.
    pub const TI: u32 = 1 << 2;
}

/// An exception on its way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// The vector, 0 to 31.
    pub vector: u8,
    /// The error code that is pushed, for those that have one.
    pub error: Option<u32>,
    /// What CR2 becomes, for #PF.
    pub cr2: Option<u64>,
    /// The bits that DR6 gains, for #DB.
    pub dr6: u64,
}

/// How two exceptions in a row combine (SDM vol. 3, table 6-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Never combines.
    Benign,
    /// Two in a row make a double fault.
    Contributory,
    /// A page fault: makes a double fault when it, or a contributory exception, meets another.
    PageFault,
    /// A double fault: another contributory exception or page fault shuts the processor down.
    DoubleFault,
}

impl Exception {
    /// An exception with no error code.
    #[inline]
    pub const fn plain(vector: u8) -> Self {
        Self { vector, error: None, cr2: None, dr6: 0 }
    }

    /// An exception with an error code.
    #[inline]
    pub const fn with_error(vector: u8, error: u32) -> Self {
        Self { vector, error: Some(error), cr2: None, dr6: 0 }
    }

    /// #UD.
    pub const fn ud() -> Self {
        Self::plain(vector::UD)
    }

    /// #NM.
    pub const fn nm() -> Self {
        Self::plain(vector::NM)
    }

    /// #GP with an error code (0, or a selector's).
    pub const fn gp(error: u32) -> Self {
        Self::with_error(vector::GP, error)
    }

    /// #SS with an error code.
    pub const fn ss(error: u32) -> Self {
        Self::with_error(vector::SS, error)
    }

    /// #NP with an error code.
    pub const fn np(error: u32) -> Self {
        Self::with_error(vector::NP, error)
    }

    /// #TS with an error code.
    pub const fn ts(error: u32) -> Self {
        Self::with_error(vector::TS, error)
    }

    /// #PF at `address`, with bits from [`pf`].
    pub const fn page_fault(address: u64, error: u32) -> Self {
        Self { vector: vector::PF, error: Some(error), cr2: Some(address), dr6: 0 }
    }

    /// #DB that sets `dr6` bits.
    pub const fn debug(dr6: u64) -> Self {
        Self { vector: vector::DB, error: None, cr2: None, dr6 }
    }

    /// How this exception combines with another one met while it is delivered.
    pub const fn class(&self) -> Class {
        match self.vector {
            vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
            vector::PF => Class::PageFault,
            vector::DF => Class::DoubleFault,
            _ => Class::Benign,
        }
    }

    /// Whether the saved RIP is that of the faulting instruction, and RF is set in the saved flags.
    ///
    /// #DB is a fault only for instruction breakpoints, which its raiser knows; here it counts as a trap.
    pub const fn is_fault(&self) -> bool {
        !matches!(self.vector, vector::DB | vector::NMI | vector::BP | vector::OF | vector::DF | vector::MC)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_follow_the_table() {
        assert_eq!(Exception::gp(0).class(), Class::Contributory);
        assert_eq!(Exception::page_fault(0, 0).class(), Class::PageFault);
        assert_eq!(Exception::ud().class(), Class::Benign);
        assert_eq!(Exception::with_error(vector::DF, 0).class(), Class::DoubleFault);
    }
}
