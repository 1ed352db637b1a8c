//! The virtual TLB: a cache of translations in the form of a page table, larger than any TLB of the engine's, filled at
//! hidden faults and emptied as the architecture says (SDM vol. 3, 4.10.4). Nothing is traced.
//!
//! Each vCPU has one, with a tree for each PCID and one for global pages. An entry is what a processor's TLB would hold: the
//! outcome of one whole walk, with the rights of all levels combined in the leaf. The inner levels only lead there and
//! hold nothing of the guest's. They must not: a processor that meets a new entry in an upper level goes on to read the
//! level below anew, while a tree that kept both by themselves would combine the new upper entry with the old lower one,
//! and allow what neither the old tables nor the new ones do.
//!
//! An invalidation of a page drops a large page with all its pieces: where the P2M does not let a large page be one, a link
//! marked *whole* stands in its place. A fill that finds pieces of another kind in its way drops them, as one may at any
//! time. So at most one page of the guest's covers an address in each tree.

use std::collections::HashMap;
use std::sync::Arc;

use memory::{FrameKind, GuestMemory, P2mEntry};
use x86::paging::PagingMode;
use x86::{Gfn, Gva, Mfn, PAGE_SHIFT};

use crate::changes::{Heard, hear};
use crate::context::Access;
use crate::strategy::{MmuStats, Reached, Strategy};
use crate::tables::{Found, Tables, address, rights_bits, size_bits, table_limit, word};
use crate::tlb::Invalidation;
use crate::walk::{Miss, PageFault, PageSize, Translation, walk_through};

/// A tree: of a PCID, or of global pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Space {
    Own(u16),
    Global,
}

/// Pages that a fill may add.
const ROOM: usize = 4;

/// One vCPU's virtual TLB.
pub(crate) struct Vtlb {
    memory: Arc<GuestMemory>,
    tables: Tables<Space>,
    roots: HashMap<Space, u32>,
    pcid: u16,
    seen: u64,
}

/// What a translation found means under the rules in force.
pub(crate) fn translation(found: &Found, miss: &Miss<'_>) -> Translation {
    Translation {
        gpa: address(found, miss.va),
        page_size: found.size,
        global: miss.context.regime.global_pages && found.global,
        dirty: found.dirty,
        rights: found.rights,
    }
}

/// What a found translation leads to.
pub(crate) fn reached(found: &Found, miss: &Miss<'_>, memory: &GuestMemory) -> Reached {
    let entry = if found.p2m_write {
        P2mEntry { kind: FrameKind::Ram, mfn: found.mfn }
    } else {
        memory.entry(found.gfn)
    };
    Reached { translation: translation(found, miss), entry }
}

/// Whether what was found answers; if not, the hidden fault is counted, or the true one about to be found.
pub(crate) fn suffices(found: Option<&Found>, miss: &Miss<'_>, stats: &mut MmuStats) -> bool {
    let Some(found) = found else { return false };
    stats.host_references += found.references;
    if !miss.context.regime.permits(found.rights, miss.access, miss.privilege) {
        return false;
    }
    found.dirty || miss.access != Access::Write
}

/// Counts the hidden fault that a guest's walk has just resolved.
pub(crate) fn count_hidden(found: Option<&Found>, miss: &Miss<'_>, stats: &mut MmuStats) {
    let clean = found.is_some_and(|found| {
        !found.dirty && miss.context.regime.permits(found.rights, miss.access, miss.privilege)
    });
    if clean {
        stats.hidden_dirty += 1;
    } else {
        stats.hidden_fill += 1;
    }
}

/// The run of machine frames of `1 << shift` bytes around a guest-physical address, if the P2M allows that: its first
/// frames, and P2M-write if it may be written.
pub(crate) fn run_around(memory: &GuestMemory, gfn: Gfn, shift: u32) -> Option<(Gfn, Mfn, u64)> {
    if shift == PAGE_SHIFT {
        let entry = memory.entry(gfn);
        return match entry.kind {
            FrameKind::Ram => Some((gfn, entry.mfn, word::P2M_WRITE)),
            FrameKind::ReadOnly | FrameKind::Shared => Some((gfn, entry.mfn, 0)),
            _ => None,
        };
    }
    let frames = 1 << (shift - PAGE_SHIFT);
    let first = Gfn(gfn.0 & !(frames - 1));
    Some((first, memory.run(first, frames)?, word::P2M_WRITE))
}

impl Vtlb {
    pub(crate) fn new(memory: Arc<GuestMemory>) -> Self {
        let tables = Tables::new(table_limit(&memory));
        Self { seen: memory.epoch(), memory, tables, roots: HashMap::new(), pcid: 0 }
    }

    fn catch_up(&mut self) {
        let tables = &mut self.tables;
        hear(&self.memory, &mut self.seen, |heard| match heard {
            Heard::Everything => tables.remove_all(),
            Heard::Frame(gfn) => tables.drop_frame(gfn),
        });
        self.forget_removed();
    }

    fn forget_removed(&mut self) {
        for space in self.tables.take_removed() {
            self.roots.remove(&space);
        }
    }

    fn find(&mut self, pcid: u16, va: u64) -> Option<Found> {
        let own = self.roots.get(&Space::Own(pcid)).copied();
        if let Some(found) = own.and_then(|root| self.tables.walk(root, va)) {
            return Some(found);
        }
        let global = self.roots.get(&Space::Global).copied()?;
        self.tables.walk(global, va)
    }

    /// Enters the outcome of a walk, if it leads to memory.
    fn enter(&mut self, miss: &Miss<'_>, translation: &Translation) -> Option<()> {
        let gfn = translation.gpa.frame();
        // Also what cannot be entered must not leave a page of another kind behind.
        self.tables.make_room(ROOM);
        self.forget_removed();
        let space = if translation.global { Space::Global } else { Space::Own(miss.context.pcid()) };
        let format = &miss.context.regime.format;
        let entries = format.table_entries();
        let (top, bits) = match format.mode {
            PagingMode::Off => return None,
            PagingMode::Legacy32 => (22, 10),
            PagingMode::Pae => (30, 9),
            PagingMode::FourLevel => (39, 9),
        };
        let tables = &mut self.tables;
        let root = *self.roots.entry(space).or_insert_with(|| tables.add(space, top, entries, false));
        let size = translation.page_size;
        let whole = |shift: u32| {
            if shift <= size.shift() && size != PageSize::Kib4 { word::WHOLE | size_bits(size) } else { 0 }
        };
        let mut number = root;
        loop {
            let slot = self.tables.slot_of(number, miss.va.0)?;
            let shift = self.tables.shift(number);
            if shift <= size.shift()
                && let Some((first, mfn, write)) = run_around(&self.memory, gfn, shift)
            {
                let dirty = if translation.dirty { word::D } else { 0 };
                let global = if translation.global { word::G } else { 0 };
                let flags = rights_bits(translation.rights) | dirty | global | write | size_bits(size);
                self.tables.set_leaf(slot, flags, first, mfn);
                return Some(());
            }
            if shift == PAGE_SHIFT {
                self.tables.clear(slot);
                return None;
            }
            let kind = word::WHOLE | word::LEAF | size_bits(PageSize::Gib1);
            let (present, _) = self.tables.get(slot);
            number = match self.tables.child(slot).filter(|_| present & kind == whole(shift)) {
                Some(child) => child,
                None => {
                    let child = self.tables.add(space, shift - bits, entries, true);
                    self.tables.set_link(slot, word::ALL | whole(shift), child, Gfn(0));
                    child
                }
            };
        }
    }

    /// Drops the page that holds an address.
    fn drop_page(&mut self, space: Space, va: Gva) {
        let Some(mut number) = self.roots.get(&space).copied() else { return };
        while let Some(slot) = self.tables.slot_of(number, va.0) {
            let (found, _) = self.tables.get(slot);
            match self.tables.child(slot).filter(|_| found & word::WHOLE == 0) {
                Some(child) => number = child,
                None => return self.tables.clear(slot),
            }
        }
    }

    fn drop_space(&mut self, space: Space) {
        if let Some(&root) = self.roots.get(&space) {
            self.tables.remove(root);
            self.forget_removed();
        }
    }
}

impl Strategy for Vtlb {
    fn translate(&mut self, miss: &Miss<'_>, stats: &mut MmuStats) -> Result<Reached, PageFault> {
        self.catch_up();
        let found = self.find(miss.context.pcid(), miss.va.0);
        if let Some(found) = found.filter(|found| suffices(Some(found), miss, stats)) {
            stats.shadow_hits += 1;
            return Ok(reached(&found, miss, &self.memory));
        }
        let (translation, path) = walk_through(&mut &*self.memory, miss)?;
        stats.guest_references += path.entries().len() as u64;
        count_hidden(found.as_ref(), miss, stats);
        self.enter(miss, &translation);
        Ok(Reached { translation, entry: self.memory.entry(translation.gpa.frame()) })
    }

    fn invalidate(&mut self, what: Invalidation) {
        match what {
            Invalidation::All => {
                self.tables.remove_all();
                self.forget_removed();
            }
            Invalidation::NonGlobal => {
                let own: Vec<Space> = self.roots.keys().copied().filter(|&s| s != Space::Global).collect();
                own.into_iter().for_each(|space| self.drop_space(space));
            }
            Invalidation::Page(va) => {
                self.drop_page(Space::Own(self.pcid), va);
                self.drop_page(Space::Global, va);
            }
            Invalidation::PageOf(pcid, va) => self.drop_page(Space::Own(pcid), va),
            Invalidation::Space(pcid) => self.drop_space(Space::Own(pcid)),
            Invalidation::Switch(pcid) => self.pcid = pcid,
        }
    }
}
