//! The four page-directory-pointer entries that PAE paging holds in registers (SDM vol. 3, 4.4.1).

use memory::GuestMemory;
use x86::Gpa;
use x86::paging::pte;

use crate::PagingFeatures;

/// An entry is present with a reserved bit set: the load raises #GP(0) and changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidPdpte;

/// Bits 2:1 and 8:5 are reserved, besides those above the physical address.
const RESERVED_LOW: u64 = 0b1_1110_0110;

/// Reads the entries that `cr3` refers to, as MOV to CR3 does in PAE paging, and MOV to CR0 and CR4 when they enable
/// it or change its rules.
///
/// # Errors
/// If a present entry has a reserved bit set. Tables outside memory read as all ones and so are invalid.
pub fn load_pdptes(
    memory: &GuestMemory,
    cr3: u64,
    features: &PagingFeatures,
) -> Result<[u64; 4], InvalidPdpte> {
    let table = Gpa(cr3 & 0xffff_ffe0);
    let high = u64::MAX.checked_shl(u32::from(features.phys_bits)).unwrap_or(0);
    let mut entries = [0; 4];
    for (entry, at) in entries.iter_mut().zip((0..).step_by(8)) {
        *entry = memory.read_word(table + at).unwrap_or(u64::MAX);
        if *entry & pte::P != 0 && *entry & (RESERVED_LOW | high) != 0 {
            return Err(InvalidPdpte);
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use memory::RamRange;

    use super::*;

    #[test]
    fn reserved_bits_matter_only_in_present_entries() {
        let memory = GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 0x4000)]).unwrap();
        let features = PagingFeatures { phys_bits: 40, gib_pages: true, pse36: true, pat: true };
        let load = |entry: u64| {
            memory.write_word(Gpa(0x1020 + 16), entry).unwrap();
            load_pdptes(&memory, 0x1020 | 0x1f, &features)
        };
        assert_eq!(load(0x3000 | pte::P), Ok([0, 0, 0x3001, 0]));
        // PWT, PCD and the three ignored bits.
        assert_eq!(load(0x3e19), Ok([0, 0, 0x3e19, 0]));
        for bit in [1, 2, 5, 6, 7, 8, 40, 51, 52, 62, 63] {
            assert_eq!(load(1 << bit | pte::P), Err(InvalidPdpte), "bit {bit}");
            assert!(load(1 << bit).is_ok(), "bit {bit}, not present");
        }
        assert_eq!(load_pdptes(&memory, 0x8000_0000, &features), Err(InvalidPdpte));
    }
}
