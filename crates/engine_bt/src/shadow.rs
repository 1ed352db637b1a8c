//! The shadow return stacks: two rings of 64 KiB, the supervisor's and the user's.
//!
//! A ring lies at an address with bit 16 set and ends where the next such bit would carry, so that one OR keeps a
//! pointer that has run below the bottom inside ([`translate::context::SHADOW_BYTES`]). Behind its top lies an entry
//! whose host address is the exit for returns that nobody foresaw: who pops an empty stack arrives there.

use host::{HostError, Mapping};
use translate::context::SHADOW_BYTES;

const SIZE: u64 = SHADOW_BYTES as u64;

/// Both rings.
#[derive(Debug)]
pub(crate) struct Shadows {
    /// Room to choose aligned rings from.
    mapping: Mapping,
}

impl Shadows {
    /// Empty rings whose bottom entry returns to `unforeseen`.
    pub(crate) fn new(unforeseen: u64) -> Result<Self, HostError> {
        let shadows = Self { mapping: Mapping::zeros(8 * SIZE)? };
        for top in shadows.tops() {
            // SAFETY: by the choice of `tops` the two words lie in the mapping; nobody else knows them yet.
            unsafe {
                (top as *mut u64).write(unforeseen);
                // Not canonical: no return goes there without a fault.
                (top as *mut u64).add(1).write(1 << 63);
            }
        }
        Ok(shadows)
    }

    /// Where the supervisor's and the user's are empty.
    pub(crate) fn tops(&self) -> [u64; 2] {
        // The first ring starts at the first odd multiple of its size that leaves a page below it.
        let start = self.mapping.as_ptr() as u64 + 4096;
        let first = start.next_multiple_of(2 * SIZE) + SIZE;
        [first + SIZE - 16, first + 3 * SIZE - 16]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_lie_where_one_bit_keeps_pointers_inside() {
        let shadows = Shadows::new(0x1234).unwrap();
        let (start, end) = {
            let start = shadows.mapping.as_ptr() as u64;
            (start, start + shadows.mapping.len() as u64)
        };
        for top in shadows.tops() {
            let bottom = top + 16 - SIZE;
            assert!(bottom & SIZE != 0 && bottom.is_multiple_of(SIZE));
            // One entry may lie below before the next call corrects the pointer.
            assert!(start <= bottom - 16 && top + 16 <= end);
            assert_eq!((bottom - 16) | SIZE, bottom - 16 + SIZE);
        }
    }
}
