//! How guest-virtual addresses become machine frames.

use crate::choice::{by_name, choice};

choice! {
    /// A technique of memory virtualization by name. All of them show a guest the same memory.
    #[derive(Default)]
    pub enum MmuChoice {
        /// Walk the guest's page table at each TLB miss.
        #[default]
        Walk = "walk",
        /// A virtual TLB behind the TLB.
        Vtlb = "vtlb",
        /// Shadow page tables, brought into step when the guest invalidates.
        Lazy = "lazy",
        /// Shadow page tables, each write to a guest table mirrored at once.
        Eager = "eager",
        /// A two-dimensional walk, with the largest host pages there can be.
        Nested = "nested",
        /// A two-dimensional walk, with host pages of at most 2 MiB.
        Nested2M = "nested-2m",
        /// A two-dimensional walk, with host pages of 4 KiB.
        Nested4K = "nested-4k",
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
