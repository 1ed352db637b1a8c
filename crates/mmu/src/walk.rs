//! The page walk (SDM vol. 3, 4.3 to 4.8): what an address translates to, by definition.
//!
//! A walk first *looks*: it reads one entry per level, checks it and gathers rights, changing nothing. If the access
//! is allowed, it *marks*: sets the accessed bit in every entry used and, for a write, the dirty bit in the last
//! one, each by compare-exchange against the value that was looked at. An entry that changed in between (by more than
//! these two bits, which other walks, or this one through a table that refers to itself, may set) starts the walk
//! over, so a translation and its marks are always of the same entries. So a walk that faults leaves the tables as
//! they were; processors may leave accessed bits in the upper levels behind (4.8).
//!
//! Every guest word is read once per look. The number of levels bounds a look, [`ATTEMPTS`] bounds the
//! looks: a guest that rewrites its tables that often during one access gets the page fault that a processor might
//! have given it between two of the writes.
//!
//! Tables need not be in memory. An entry that is not in RAM or ROM reads as all ones, as from an empty bus: device
//! registers are never read by a walk. That is a reserved-bit fault in the 64-bit formats, and in the 32-bit format
//! ends at the all-ones address. Marks in ROM are dropped.

use memory::{GuestMemory, Word};
use x86::bits::{low32, mask_of};
use x86::exception::pf;
use x86::paging::{PagingMode, pte};
use x86::{Exception, Gpa, Gva, PAGE_SHIFT};

use crate::context::{Access, PagingContext, Privilege, Rights};

/// How often a walk starts over before it faults instead.
const ATTEMPTS: u32 = 64;

/// The size of the page that a translation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB.
    Kib4,
    /// 2 MiB.
    Mib2,
    /// 4 MiB.
    Mib4,
    /// 1 GiB.
    Gib1,
    /// There is no page: paging is off.
    Everything,
}

impl PageSize {
    /// The size whose log2 this is, as an entry of a page table may span.
    pub(crate) const fn of_shift(shift: u32) -> Self {
        match shift {
            PAGE_SHIFT => Self::Kib4,
            21 => Self::Mib2,
            22 => Self::Mib4,
            _ => Self::Gib1,
        }
    }

    /// log2 of the size in bytes.
    pub const fn shift(self) -> u32 {
        match self {
            Self::Kib4 => PAGE_SHIFT,
            Self::Mib2 => 21,
            Self::Mib4 => 22,
            Self::Gib1 => 30,
            Self::Everything => 63,
        }
    }
}

/// Where an address leads, and what else its page allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// The size of the page.
    pub page_size: PageSize,
    /// The page is the same in all address spaces: G, with CR4.PGE.
    pub global: bool,
    /// The dirty bit, after this access.
    pub dirty: bool,
    pub(crate) rights: Rights,
}

impl Translation {
    /// Every entry has R/W set.
    pub const fn writable(&self) -> bool {
        self.rights.writable
    }

    /// Every entry has U/S set: a user-mode address.
    pub const fn user(&self) -> bool {
        self.rights.user
    }

    /// Some entry has NX set.
    pub const fn no_execute(&self) -> bool {
        self.rights.no_execute
    }
}

/// The access is not allowed: #PF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// What CR2 becomes.
    pub address: Gva,
    /// The error code, of bits from [`pf`].
    pub error: u32,
}

impl From<PageFault> for Exception {
    fn from(fault: PageFault) -> Self {
        Self::page_fault(fault.address.0, fault.error)
    }
}

/// Guest-physical memory as a walk reaches it: directly, or by one more walk for each reference.
pub(crate) trait Physical {
    /// Reads an entry; all ones if there is no memory.
    fn read<W: Word>(&mut self, at: Gpa) -> u64;

    /// Replaces an entry if it is `expected`; what was found otherwise. `None` if it cannot be written.
    fn mark<W: Word>(&mut self, at: Gpa, expected: u64, new: u64) -> Option<Result<(), u64>>;
}

impl Physical for &GuestMemory {
    #[inline]
    fn read<W: Word>(&mut self, at: Gpa) -> u64 {
        let ones = mask_of(low32(W::BYTES as u64));
        self.read_word::<W>(at).map_or(ones, Word::into_u64)
    }

    fn mark<W: Word>(&mut self, at: Gpa, expected: u64, new: u64) -> Option<Result<(), u64>> {
        let outcome = self.mark_entry(at, W::from_u64(expected), W::from_u64(new)).ok()?;
        Some(outcome.map(|_| ()).map_err(Word::into_u64))
    }
}

/// Translates one address and sets accessed and dirty bits.
///
/// # Errors
/// If the access is not allowed, with the architecture's error code.
pub fn walk(
    memory: &GuestMemory,
    context: &PagingContext,
    va: Gva,
    access: Access,
    privilege: Privilege,
) -> Result<Translation, PageFault> {
    let mut memory = memory;
    walk_through(&mut memory, &Miss { context, va, access, privilege }).map(|(translation, _)| translation)
}

/// An access that has to be translated.
#[derive(Clone, Copy, Debug)]
pub struct Miss<'a> {
    /// The rules and the root.
    pub context: &'a PagingContext,
    /// The address.
    pub va: Gva,
    /// What it does.
    pub access: Access,
    /// On whose behalf.
    pub privilege: Privilege,
}

/// As [`walk`], with the entries that led there; inlined so that they are not gathered where nobody looks at them.
#[inline(always)]
pub(crate) fn walk_through<M: Physical>(
    memory: &mut M,
    miss: &Miss<'_>,
) -> Result<(Translation, Path), PageFault> {
    let &Miss { context, va, access, privilege } = miss;
    let regime = &context.regime;
    let fault = |why| PageFault { address: va, error: why | regime.error_bits(access, privilege) };
    for _ in 0..ATTEMPTS {
        let (mut translation, path) = look(memory, context, va).map_err(fault)?;
        if !regime.permits(translation.rights, access, privilege) {
            return Err(fault(pf::PRESENT));
        }
        let write = access == Access::Write;
        let marked = match regime.mode {
            PagingMode::Off => true,
            PagingMode::Legacy32 => path.mark::<u32, M>(memory, write),
            PagingMode::Pae | PagingMode::FourLevel => path.mark::<u64, M>(memory, write),
        };
        if marked {
            translation.dirty |= write;
            return Ok((translation, path));
        }
    }
    Err(fault(pf::PRESENT))
}

/// Where an address leads if its page is present, whatever that page allows; changes nothing. For debuggers and dumps.
pub fn probe(memory: &GuestMemory, context: &PagingContext, va: Gva) -> Option<Gpa> {
    let mut memory = memory;
    look(&mut memory, context, va).ok().map(|(translation, _)| translation.gpa)
}

/// The entries that a look used, from the top level down.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    entries: [(Gpa, u64); 4],
    used: usize,
}

impl Path {
    const EMPTY: Self = Self { entries: [(Gpa(0), 0); 4], used: 0 };

    fn push(&mut self, at: Gpa, entry: u64) {
        if let Some(slot) = self.entries.get_mut(self.used) {
            *slot = (at, entry);
            self.used += 1;
        }
    }

    /// Where each entry lies, and what it was but for accessed and dirty bits.
    pub(crate) fn entries(&self) -> &[(Gpa, u64)] {
        self.entries.get(..self.used).unwrap_or_default()
    }

    /// Sets the accessed and dirty bits; false if an entry is not what it was.
    fn mark<W: Word, M: Physical>(&self, memory: &mut M, write: bool) -> bool {
        let last = self.used.wrapping_sub(1);
        self.entries().iter().enumerate().all(|(i, &(at, entry))| {
            let bits = if write && i == last { pte::A | pte::D } else { pte::A };
            entry & bits == bits || set_bits::<W, M>(memory, at, entry, bits)
        })
    }
}

/// Sets `bits` in an entry that held `seen`; false if it has changed by more than accessed and dirty bits, or changes
/// all the time.
fn set_bits<W: Word, M: Physical>(memory: &mut M, at: Gpa, seen: u64, bits: u64) -> bool {
    let mut expected = seen;
    for _ in 0..ATTEMPTS {
        match memory.mark::<W>(at, expected, expected | bits) {
            Some(Ok(())) => return true,
            Some(Err(found)) => expected = found,
            // Not RAM: the mark is dropped.
            None => return true,
        }
        if (expected ^ seen) & !(pte::A | pte::D) != 0 {
            return false;
        }
    }
    false
}

/// Where a walk of an address begins: the table and its level, counted from 1 at the bottom; 0 if paging is off. `None` if
/// a PDPTE register says that nothing is there.
pub(crate) fn start(context: &PagingContext, va: Gva) -> Option<(Gpa, u32)> {
    Some(match context.regime.mode {
        PagingMode::Off => (Gpa(0), 0),
        PagingMode::Legacy32 => (Gpa(context.cr3 & 0xffff_f000), 2),
        PagingMode::Pae => {
            let [a, b, c, d] = context.pdpte;
            let entry = match va.0 >> 30 & 3 {
                0 => a,
                1 => b,
                2 => c,
                _ => d,
            };
            if entry & pte::P == 0 {
                return None;
            }
            (Gpa(entry & pte::ADDRESS), 2)
        }
        PagingMode::FourLevel => (Gpa(context.cr3 & pte::ADDRESS), 4),
    })
}

/// Follows the tables. `Err` is the error code's part about the translation: P and RSVD.
fn look<M: Physical>(memory: &mut M, context: &PagingContext, va: Gva) -> Result<(Translation, Path), u32> {
    let regime = &context.regime;
    let (Gpa(mut table), levels) = start(context, va).ok_or(0u32)?;
    if levels == 0 {
        return Ok((identity(va), Path::EMPTY));
    }
    let format = &regime.format;
    let bytes = format.entry_bytes();
    let mut rights = Rights::ALL;
    let mut path = Path::EMPTY;
    for level in (1..=levels).rev() {
        let shift = format.shift(level);
        let at = Gpa(table + (va.0 >> shift & (format.table_entries() - 1)) * bytes);
        let entry = if bytes == 4 { memory.read::<u32>(at) } else { memory.read::<u64>(at) };
        if entry & pte::P == 0 {
            return Err(0);
        }
        let large = format.is_large(level, entry);
        if entry & format.reserved(level, large) != 0 {
            return Err(pf::PRESENT | pf::RESERVED);
        }
        rights.restrict(entry);
        path.push(at, entry);
        if large || level == 1 {
            let page_size = PageSize::of_shift(shift);
            let offset = (1 << shift) - 1;
            let translation = Translation {
                gpa: page_base(page_size, entry) + (va.0 & offset),
                page_size,
                global: regime.global_pages && entry & pte::G != 0,
                dirty: entry & pte::D != 0,
                rights,
            };
            return Ok((translation, path));
        }
        table = entry & pte::ADDRESS;
    }
    // Not reached: level 1 always ends the walk.
    Err(0)
}

/// The first address of the page that an entry maps.
pub(crate) const fn page_base(size: PageSize, entry: u64) -> Gpa {
    let offset = (1 << size.shift()) - 1;
    // PSE-36: SDM vol. 3, table 4-4.
    let high = if matches!(size, PageSize::Mib4) { (entry >> 13 & 0xff) << 32 } else { 0 };
    Gpa(entry & pte::ADDRESS & !offset | high)
}

/// Paging is off: addresses are 32 bits wide and lead to themselves.
fn identity(va: Gva) -> Translation {
    Translation {
        gpa: Gpa(va.0 & 0xffff_ffff),
        page_size: PageSize::Everything,
        global: false,
        dirty: true,
        rights: Rights::ALL,
    }
}

#[cfg(test)]
mod tests;
