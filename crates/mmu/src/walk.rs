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
            PagingMode::Legacy32 => path.mark::<u32>(memory, write),
            PagingMode::Pae | PagingMode::FourLevel => path.mark::<u64>(memory, write),
        };
        if marked {
            translation.dirty |= write;
            return Ok(translation);
        }
    }
    Err(fault(pf::PRESENT))
}

/// Where an address leads if its page is present, whatever that page allows; changes nothing. For debuggers and dumps.
pub fn probe(memory: &GuestMemory, context: &PagingContext, va: Gva) -> Option<Gpa> {
    look(memory, context, va).ok().map(|(translation, _)| translation.gpa)
}

/// The entries that a look used, from the top level down.
struct Path {
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

    /// Sets the accessed and dirty bits; false if an entry is not what it was.
    fn mark<W: Word>(&self, memory: &GuestMemory, write: bool) -> bool {
        let last = self.used.wrapping_sub(1);
        self.entries.iter().take(self.used).enumerate().all(|(i, &(at, entry))| {
            let bits = if write && i == last { pte::A | pte::D } else { pte::A };
            entry & bits == bits || set_bits::<W>(memory, at, entry, bits)
        })
    }
}

/// Sets `bits` in an entry that held `seen`; false if it has changed by more than accessed and dirty bits, or changes
/// all the time.
fn set_bits<W: Word>(memory: &GuestMemory, at: Gpa, seen: u64, bits: u64) -> bool {
    let mut expected = seen;
    for _ in 0..ATTEMPTS {
        match memory.compare_exchange(at, W::from_u64(expected), W::from_u64(expected | bits)) {
            Ok(Ok(_)) => return true,
            Ok(Err(found)) => expected = found.into_u64(),
            // Not RAM: the mark is dropped.
            Err(_) => return true,
        }
        if (expected ^ seen) & !(pte::A | pte::D) != 0 {
            return false;
        }
    }
    false
}

/// Follows the tables. `Err` is the error code's part about the translation: P and RSVD.
fn look(memory: &GuestMemory, context: &PagingContext, va: Gva) -> Result<(Translation, Path), u32> {
    let regime = &context.regime;
    let wide = pte::ADDRESS;
    let (mut table, levels, index_bits, bytes) = match regime.mode {
        PagingMode::Off => return Ok((identity(va), Path::EMPTY)),
        PagingMode::Legacy32 => (context.cr3 & 0xffff_f000, 2, 10, 4),
        PagingMode::Pae => {
            let [a, b, c, d] = context.pdpte;
            let entry = match va.0 >> 30 & 3 {
                0 => a,
                1 => b,
                2 => c,
                _ => d,
            };
            if entry & pte::P == 0 {
                return Err(0);
            }
            (entry & wide, 2, 9, 8)
        }
        PagingMode::FourLevel => (context.cr3 & wide, 4, 9, 8),
    };
    let mut rights = Rights { user: true, writable: true, no_execute: false };
    let mut path = Path::EMPTY;
    for level in (1..=levels).rev() {
        let shift = PAGE_SHIFT + index_bits * (level - 1);
        let at = Gpa(table + (va.0 >> shift & ((1 << index_bits) - 1)) * bytes);
        let entry = if bytes == 4 { read_entry::<u32>(memory, at) } else { read_entry::<u64>(memory, at) };
        if entry & pte::P == 0 {
            return Err(0);
        }
        let large = regime.is_large(level, entry);
        if entry & regime.reserved(level, large) != 0 {
            return Err(pf::PRESENT | pf::RESERVED);
        }
        rights.user &= entry & pte::US != 0;
        rights.writable &= entry & pte::RW != 0;
        // A set bit is NX here: without EFER.NXE it was reserved.
        rights.no_execute |= entry & pte::NX != 0;
        path.push(at, entry);
        if large || level == 1 {
            let page_size = match shift {
                PAGE_SHIFT => PageSize::Kib4,
                21 => PageSize::Mib2,
                22 => PageSize::Mib4,
                _ => PageSize::Gib1,
            };
            let offset = (1 << shift) - 1;
            let high = if page_size == PageSize::Mib4 { (entry >> 13 & 0xff) << 32 } else { 0 };
            let translation = Translation {
                gpa: Gpa(entry & wide & !offset | high | va.0 & offset),
                page_size,
                global: regime.global_pages && entry & pte::G != 0,
                dirty: entry & pte::D != 0,
                rights,
            };
            return Ok((translation, path));
        }
        table = entry & wide;
    }
    // Not reached: level 1 always ends the walk.
    Err(0)
}

fn read_entry<W: Word>(memory: &GuestMemory, at: Gpa) -> u64 {
    memory.read_word::<W>(at).map_or(mask_of(low32(W::BYTES as u64)), Word::into_u64)
}

/// Paging is off: addresses are 32 bits wide and lead to themselves.
fn identity(va: Gva) -> Translation {
    Translation {
        gpa: Gpa(va.0 & 0xffff_ffff),
        page_size: PageSize::Everything,
        global: false,
        dirty: true,
        rights: Rights { user: true, writable: true, no_execute: false },
    }
}

#[cfg(test)]
mod tests;
