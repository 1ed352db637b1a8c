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

use memory::GuestMemory;
use x86::paging::PagingMode;
use x86::{Gfn, Gva, PAGE_SHIFT};

use crate::compose::{answer, keep_up, resolve, run_around};
use crate::strategy::{MmuStats, Reached, Strategy};
use crate::tables::{Found, Tables, rights_bits, size_bits, table_limit, word};
use crate::tlb::Invalidation;
use crate::walk::{Miss, PageFault, PageSize, Translation};

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

impl Vtlb {
    pub(crate) fn new(memory: Arc<GuestMemory>) -> Self {
        let tables = Tables::new(table_limit(&memory));
        Self { seen: memory.epoch(), memory, tables, roots: HashMap::new(), pcid: 0 }
    }

    fn catch_up(&mut self) {
        keep_up(&mut self.tables, &self.memory, &mut self.seen);
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
        let top = match format.mode {
            PagingMode::Off => return None,
            PagingMode::Legacy32 => 2,
            PagingMode::Pae => 3,
            PagingMode::FourLevel => 4,
        };
        let new_root = || self.tables.add(space, format.shift(top), format.table_entries());
        let root = *self.roots.entry(space).or_insert_with(new_root);
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
                    let flags = word::ALL | whole(shift);
                    self.tables.add_below(slot, space, format.index_bits(), flags, Gfn(0))
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
        if let Some(reached) = found.and_then(|found| answer(&found, miss, &self.memory, stats)) {
            return Ok(reached);
        }
        let (translation, _) = resolve(found.as_ref(), miss, &self.memory, stats)?;
        self.enter(miss, &translation);
        Ok(Reached::looked_up(translation, &self.memory))
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
