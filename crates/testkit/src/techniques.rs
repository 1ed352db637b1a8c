//! Techniques of memory virtualization, of which a test that runs under one should run under all.

use mmu::{PageSize, Technique};

/// All of them, nested paging with each size of page.
pub const ALL: [Technique; 7] = [
    Technique::Walk,
    Technique::Vtlb,
    Technique::Lazy,
    Technique::Eager,
    Technique::Nested(PageSize::Gib1),
    Technique::Nested(PageSize::Mib2),
    Technique::Nested(PageSize::Kib4),
];

/// One of them, by a number that is as good as random.
pub fn chosen(number: u64) -> Technique {
    let index = x86::bits::index((number >> 7) % ALL.len() as u64);
    ALL.get(index).copied().unwrap_or_default()
}
