//! How guest-virtual addresses become machine frames.

use crate::choice::by_name;

/// A technique of memory virtualization by name. All of them show a guest the same memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MmuChoice {
    /// Walk the guest's page table at each TLB miss.
    #[default]
    Walk,
    /// A virtual TLB behind the TLB.
    Vtlb,
    /// Shadow page tables, brought into step when the guest invalidates.
    Lazy,
    /// Shadow page tables, each write to a guest table mirrored at once.
    Eager,
    /// A two-dimensional walk, with the largest host pages there can be.
    Nested,
    /// A two-dimensional walk, with host pages of at most 2 MiB.
    Nested2M,
    /// A two-dimensional walk, with host pages of 4 KiB.
    Nested4K,
}

impl MmuChoice {
    /// Every choice, for help and completions.
    pub const ALL: [Self; 7] =
        [Self::Walk, Self::Vtlb, Self::Lazy, Self::Eager, Self::Nested, Self::Nested2M, Self::Nested4K];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Walk => "walk",
            Self::Vtlb => "vtlb",
            Self::Lazy => "lazy",
            Self::Eager => "eager",
            Self::Nested => "nested",
            Self::Nested2M => "nested-2m",
            Self::Nested4K => "nested-4k",
        }
    }
}

by_name!(MmuChoice, UnknownMmu);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for choice in MmuChoice::ALL {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let said = "shadow".parse::<MmuChoice>().unwrap_err().to_string();
        for choice in MmuChoice::ALL {
            assert!(said.contains(choice.name()), "{said}");
        }
    }
}
