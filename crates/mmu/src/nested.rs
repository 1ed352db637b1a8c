//! Nested paging: the guest's table is walked, and every guest-physical address that comes up on the way is translated by a
//! second walk, of a *host table* from guest frames to machine frames.
//!
//! A walk of *n* guest levels makes *n* references to guest entries, each after a walk of the host table, and one more walk
//! for the address it ends at: (*n* + 1)·*m* references to host entries where each host walk takes *m*. *m* is 4 for a page
//! of 4 KiB, 3 for 2 MiB, 2 for 1 GiB: large host pages are what makes this technique cheap. Both kinds are counted as they
//! are made.
//!
//! The host table is filled at *host faults*, from the P2M, with the largest page that is all RAM in ascending machine
//! frames; changes of the P2M drop the page that holds the frame, and no other. All vCPUs share it.

use std::sync::{Arc, Mutex};

use memory::{FrameKind, GuestMemory, P2mEntry, Word};
use x86::{Gfn, Gpa, Mfn, PAGE_SHIFT};

use crate::compose::{keep_up, run_around};
use crate::strategy::{MmuFigures, MmuStats, Reached, Strategy, lock};
use crate::tables::{Tables, table_limit, word};
use crate::tlb::Invalidation;
use crate::walk::{Miss, PageFault, PageSize, Physical, walk_through};

/// What an entry of the top level spans.
const TOP_SHIFT: u32 = 39;
/// log2 of the entries of a host table.
const INDEX_BITS: u32 = 9;
/// Guest-physical addresses that the host table covers; there is no memory above.
const ADDRESS_BITS: u32 = TOP_SHIFT + INDEX_BITS;

/// From guest frames to machine frames, for all vCPUs.
#[derive(Debug)]
pub(crate) struct HostTable {
    memory: Arc<GuestMemory>,
    tables: Tables<()>,
    root: Option<u32>,
    largest: PageSize,
    seen: u64,
}

/// Where a guest-physical address leads.
#[derive(Clone, Copy, Debug)]
struct Host {
    mfn: Mfn,
    writable: bool,
    references: u64,
    /// It was not in the table.
    fault: bool,
}

impl HostTable {
    /// An empty table with pages up to this size.
    pub(crate) fn new(memory: &Arc<GuestMemory>, largest: PageSize) -> Self {
        let tables = Tables::new(table_limit(memory));
        Self { seen: memory.epoch(), memory: memory.clone(), tables, root: None, largest }
    }

    pub(crate) fn figures(&self) -> MmuFigures {
        let (tables, bytes, evictions) = self.tables.figures();
        MmuFigures { tables, bytes, evictions, ..MmuFigures::default() }
    }

    /// Acts on changes of the P2M.
    fn catch_up(&mut self) {
        keep_up(&mut self.tables, &self.memory, &mut self.seen);
    }

    /// Translates; `None` if there is no memory to be had.
    fn reach(&mut self, gpa: Gpa) -> Option<Host> {
        if gpa.0 >> ADDRESS_BITS != 0 {
            return None;
        }
        let known = self.root.and_then(|root| self.tables.walk(root, gpa.0));
        let found = match known {
            Some(found) => found,
            None => {
                self.enter(gpa)?;
                self.tables.walk(self.root?, gpa.0)?
            }
        };
        let (mfn, writable, references) = (found.mfn, found.p2m_write, found.references);
        Some(Host { mfn, writable, references, fault: known.is_none() })
    }

    /// Enters what the P2M says.
    fn enter(&mut self, gpa: Gpa) -> Option<()> {
        let (page_shift, (gfn, mfn, write)) = self.page(gpa.frame())?;
        self.tables.make_room(4);
        let mut number = match self.root {
            Some(root) if self.tables.what(root).is_some() => root,
            _ => self.tables.add((), TOP_SHIFT, 1 << INDEX_BITS),
        };
        self.root = Some(number);
        loop {
            let slot = self.tables.slot_of(number, gpa.0)?;
            if self.tables.shift(number) == page_shift {
                self.tables.set_leaf(slot, word::ALL | write, gfn, mfn);
                return Some(());
            }
            number = match self.tables.child(slot) {
                Some(child) => child,
                None => self.tables.add_below(slot, (), INDEX_BITS, word::ALL, Gfn(0)),
            };
        }
    }

    /// log2 of the size of the largest page around a frame that the P2M allows, and the page as a run of frames.
    fn page(&self, gfn: Gfn) -> Option<(u32, (Gfn, Mfn, u64))> {
        let around = |shift| Some((shift, run_around(&self.memory, gfn, shift)?));
        let small = around(PAGE_SHIFT)?;
        let large = [PageSize::Gib1, PageSize::Mib2].into_iter().filter(|&size| size <= self.largest);
        large.map(PageSize::shift).find_map(around).or(Some(small))
    }
}

/// One vCPU's end.
pub(crate) struct Nested {
    memory: Arc<GuestMemory>,
    host: Arc<Mutex<HostTable>>,
}

impl Nested {
    pub(crate) fn new(memory: Arc<GuestMemory>, host: Arc<Mutex<HostTable>>) -> Self {
        Self { memory, host }
    }
}

/// Guest-physical memory, each reference by a walk of the host table.
struct SecondDimension<'a> {
    memory: &'a GuestMemory,
    host: &'a mut HostTable,
    stats: &'a mut MmuStats,
}

impl SecondDimension<'_> {
    fn reach(&mut self, gpa: Gpa) -> Option<Host> {
        let host = self.host.reach(gpa)?;
        self.stats.host_references += host.references;
        self.stats.hidden_p2m += u64::from(host.fault);
        Some(host)
    }
}

impl Physical for SecondDimension<'_> {
    fn read<W: Word>(&mut self, at: Gpa) -> u64 {
        self.stats.guest_references += 1;
        match self.reach(at) {
            Some(host) => self.memory.frames().read::<W>(host.mfn, at.offset()).into_u64(),
            // A frame of the balloon reads as zeros, and what is no memory as ones.
            None => Physical::read::<W>(&mut { self.memory }, at),
        }
    }

    fn mark<W: Word>(&mut self, at: Gpa, expected: u64, new: u64) -> Option<Result<(), u64>> {
        // A processor still has the entry in its hand.
        Physical::mark::<W>(&mut { self.memory }, at, expected, new)
    }
}

impl Strategy for Nested {
    fn translate(&mut self, miss: &Miss<'_>, stats: &mut MmuStats) -> Result<Reached, PageFault> {
        let mut host = lock(&self.host);
        host.catch_up();
        let mut physical = SecondDimension { memory: &self.memory, host: &mut host, stats };
        let (translation, _) = walk_through(&mut physical, miss)?;
        Ok(match physical.reach(translation.gpa) {
            Some(Host { mfn, writable: true, .. }) => {
                Reached { translation, entry: P2mEntry { kind: FrameKind::Ram, mfn } }
            }
            // What it is instead.
            _ => Reached::looked_up(translation, &self.memory),
        })
    }

    fn invalidate(&mut self, _: Invalidation) {}
}
