//! Registers, the guest's and the host's, and where the one lives in the other.
//!
//! | host register | holds |
//! |---|---|
//! | RAX, RCX | nothing: scratch within one instruction's sequence |
//! | RSP | the shadow return stack, where VMM code could also push |
//! | R10, R11, R15 | the guest's RAX, RCX, RSP |
//! | the others | the guest's register of the same name |
//!
//! The guest's R10, R11 and R15, those that compilers use least, live in memory; in loops they may lodge elsewhere
//! ([`crate::lodgers`]). RAX and RCX are the scratch registers
//! because LAHF and SAHF, which keep the status flags across what clobbers them, know only AH, and JRCXZ, the one branch
//! that needs no flags, knows only RCX.

use iced_x86::Register;

/// A general-purpose register, by its number in encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gpr(u8);

#[allow(missing_docs)]
impl Gpr {
    pub const RAX: Self = Self(0);
    pub const RCX: Self = Self(1);
    pub const RDX: Self = Self(2);
    pub const RBX: Self = Self(3);
    pub const RSP: Self = Self(4);
    pub const RBP: Self = Self(5);
    pub const RSI: Self = Self(6);
    pub const RDI: Self = Self(7);
    pub const R8: Self = Self(8);
    pub const R9: Self = Self(9);
    pub const R10: Self = Self(10);
    pub const R11: Self = Self(11);
    pub const R12: Self = Self(12);
    pub const R13: Self = Self(13);
    pub const R14: Self = Self(14);
    pub const R15: Self = Self(15);
}

impl Gpr {
    /// The register with a number below 16.
    pub const fn new(number: u8) -> Self {
        Self(number & 15)
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The 64-bit register that holds `register`, if it is a general-purpose one.
    pub(crate) fn of(register: Register) -> Option<Self> {
        if !register.is_gpr() {
            return None;
        }
        u8::try_from(register.full_register().number()).ok().map(Self)
    }

    /// The registers of a set, a bit each.
    pub(crate) fn of_bits(bits: u16) -> impl Iterator<Item = Self> {
        (0..16).filter(move |number| bits >> number & 1 != 0).map(Self)
    }

    /// The host register in which this guest register lives, if not in memory.
    pub const fn home(self) -> Option<Self> {
        match self {
            Self::RAX => Some(Self::R10),
            Self::RCX => Some(Self::R11),
            Self::RSP => Some(Self::R15),
            Self::R10 | Self::R11 | Self::R15 => None,
            other => Some(other),
        }
    }

    /// This host register at a width in bytes (1, 2, 4 or 8).
    pub(crate) fn sized(self, bytes: usize) -> Register {
        let base = match bytes {
            // The byte registers of the low eight have others (AH to BH) between them and the rest.
            1 if self.0 < 4 => Register::AL,
            1 => return Register::SPL + u32::from(self.0 - 4),
            2 => Register::AX,
            4 => Register::EAX,
            _ => Register::RAX,
        };
        base + u32::from(self.0)
    }
}

/// Whether a register is AH, CH, DH or BH.
pub(crate) const fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sized_names() {
        assert_eq!(Gpr::RAX.sized(1), Register::AL);
        assert_eq!(Gpr::RSP.sized(1), Register::SPL);
        assert_eq!(Gpr::R15.sized(1), Register::R15L);
        assert_eq!(Gpr::R10.sized(2), Register::R10W);
        assert_eq!(Gpr::RDI.sized(4), Register::EDI);
        assert_eq!(Gpr::of(Register::DH), Some(Gpr::RDX));
        assert_eq!(Gpr::of(Register::SIL), Some(Gpr::RSI));
        assert_eq!(Gpr::of(Register::XMM1), None);
    }

    #[test]
    fn homes_are_distinct_and_leave_the_scratch_registers_alone() {
        let homes: Vec<_> = (0..16).filter_map(|n| Gpr::new(n).home()).collect();
        let distinct: std::collections::HashSet<_> = homes.iter().collect();
        assert_eq!((homes.len(), distinct.len()), (13, 13));
        for reserved in [Gpr::RAX, Gpr::RCX, Gpr::RSP] {
            assert!(!homes.contains(&reserved));
        }
    }
}
