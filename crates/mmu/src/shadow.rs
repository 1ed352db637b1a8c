//! Shadow page tables: for each table of the guest's one of ours, whose entries lead to machine frames.
//!
//! A shadow belongs to a guest *frame used as a table of a level in a format*, whichever tables refer to it: tables that roots
//! share have one shadow, and a frame that refers to itself has one for each level it is met at. An entry holds what the
//! guest's entry at the same place says by itself, and the walk combines the levels as a processor does; so WP, SMEP, SMAP
//! and privilege are judged at each use and shape nothing here. An entry is entered after a walk of the guest's has used
//! it, so its accessed bit is set; D is held beside it. A large page is one leaf if the P2M lets it be, and otherwise a link
//! to pages that stand for the *whole* of it ([`crate::tables`]).
//!
//! A guest's walk decides whatever the shadow does not answer: only it finds true faults, and only it sets accessed and dirty
//! bits. So the shadow may lack anything. What it holds must be what a processor could have in its TLB.
//!
//! # In step
//! The frames of guest tables are traced (`memory::traces`): the log of what was written to them is taken before each
//! use, and the entries concerned are compared with the guest's and dropped or changed. A table is *in step* while its
//! trace is settled. Entries of such tables are what the guest's are, on every vCPU, so they outlive every load of CR3 and
//! every flush.
//!
//! [`Step::Eager`] holds entries of tables in step only. A table that is written [`FLOOD`] times with no walk through it in
//! between is being filled, copied or emptied, or is a table no more: its shadow is given up, and its trace ends. Entries that
//! the guest makes with the accessed bit set, as kernels do that are about to return to the access that faulted, are
//! mirrored before anybody asks for them.
//!
//! [`Step::Lazy`] loses the trace at the first write. The table is then *behind*: its entries stay, and are what was true
//! at some time since. That is what a TLB may do until it is told otherwise. So at every invalidation of any vCPU's and every
//! load of CR3 whatever is behind is compared with the guest's and traced anew. A load of CR3 that keeps the PCID's
//! translations is no exception: the TLB of a processor may be empty when the shadow is not. A table that has been behind
//! [`IDLE`] times with no walk through it in between is most likely a table no more, and is given up.
//!
//! # Old and new never meet the wrong way
//! A processor may combine an old upper entry with a newer lower one, from its paging-structure caches (SDM vol. 3,
//! 4.10.3); never a new upper one with an older lower one, of which each may forbid what the other allows. In eager step
//! nothing is old. In lazy step an upper entry changes only in two ways: by being dropped, and by a fill, which brings
//! everything that is behind up to date first if it changes any link.
//!
//! # Races
//! All of this happens under one lock. A write by another vCPU between our walk and its being entered is in the log,
//! because the table was traced before the walk, and is acted on before the next use. Traces are begun before the entries
//! are read for good: a fill that begins any walks again.

use std::sync::{Arc, Mutex};

use memory::{FrameKind, GuestMemory, TracedWrite};
use x86::paging::pte;
use x86::{Gfn, Gpa, Mfn, PAGE_SHIFT};

use crate::compose::{Heard, answer, hear, resolve, run_around};
use crate::context::Format;
use crate::strategy::{MmuFigures, MmuStats, Reached, Strategy, lock, walk_guest};
use crate::tables::{Found, NumberMap, Slot, Tables, size_bits, slot, table_limit, word};
use crate::tlb::Invalidation;
use crate::walk::{Miss, PageFault, PageSize, Path, Translation, page_base, start, walk_through};

/// Granules of a table written, with no walk through its shadow in between, after which eager step gives it up.
const FLOOD: u32 = 6;
/// Times that a table is found behind, with no walk through its shadow in between, after which lazy step gives it up.
const IDLE: u32 = 2;
/// Pages that a fill may add: one for each level, and two for the pieces of a large page.
const ROOM: usize = 6;
/// How often a fill walks again because it began traces.
const ATTEMPTS: u32 = 3;
/// Formats that are told apart; a guest has a handful.
const FORMATS: usize = 16;
/// Bytes of a granule of the log.
const GRANULE: u64 = 64;

/// How shadows are kept in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Eager,
    Lazy,
}

/// What a page of ours is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    /// The shadow of a guest frame as a table.
    Table { gfn: Gfn, level: u32, format: usize },
    /// Pieces of a large page.
    Part,
}

/// How far a guest table is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trace {
    Settled,
    /// Until everybody has heard this epoch.
    Awaited(u64),
    Lost,
}

impl Trace {
    /// Begins a trace; to be called before the frame is read.
    fn begin(memory: &GuestMemory, mfn: Mfn) -> Self {
        match memory.trace(mfn) {
            0 => Self::Settled,
            epoch => Self::Awaited(epoch),
        }
    }
}

/// A guest frame that is used as a table.
#[derive(Debug)]
struct Guest {
    mfn: Mfn,
    trace: Trace,
    /// Since a walk came through: granules written, or in lazy step, times that the trace was lost.
    writes: u32,
    /// Its shadows.
    pages: Vec<u32>,
}

impl Guest {
    /// Whether a walk has come through one of its shadows since this was last asked.
    fn take_walked(&self, tables: &mut Tables<Node>) -> bool {
        self.pages.iter().fold(false, |walked, &page| tables.take_walked(page) | walked)
    }
}

/// The shadows of a VM.
#[derive(Debug)]
pub(crate) struct Shadow {
    memory: Arc<GuestMemory>,
    step: Step,
    tables: Tables<Node>,
    /// By guest frame.
    guests: NumberMap<Guest>,
    formats: Vec<Format>,
    /// Guest tables that are not settled.
    behind: Vec<Gfn>,
    seen: u64,
    lost: u64,
    resyncs: u64,
}

/// The part of a walk that can be entered.
struct Way<'a> {
    entries: &'a [(Gpa, u64)],
    /// The level of the first entry.
    top: u32,
    format: usize,
}

impl Way<'_> {
    fn level(&self, at: usize) -> u32 {
        self.top.saturating_sub(x86::bits::low32(at as u64))
    }

    /// Each entry's table and level.
    fn tables(&self) -> impl Iterator<Item = (Gfn, u32)> {
        self.entries.iter().enumerate().map(|(at, (gpa, _))| (gpa.frame(), self.level(at)))
    }
}

/// The flags of the shadow of a guest's entry.
fn flags_of(entry: u64, size: Option<PageSize>) -> u64 {
    let kept = word::RW | word::US | word::NX;
    match size {
        Some(size) => entry & (kept | word::D | word::G) | size_bits(size),
        None => entry & kept,
    }
}

impl Shadow {
    pub(crate) fn new(memory: &Arc<GuestMemory>, step: Step) -> Self {
        memory.limit_traces(match step {
            Step::Eager => u32::MAX,
            Step::Lazy => 1,
        });
        Self {
            memory: memory.clone(),
            step,
            tables: Tables::new(table_limit(memory)),
            guests: NumberMap::default(),
            formats: Vec::new(),
            behind: Vec::new(),
            seen: memory.epoch(),
            lost: 0,
            resyncs: 0,
        }
    }

    pub(crate) fn figures(&self) -> MmuFigures {
        let (tables, bytes, evictions) = self.tables.figures();
        let (lost_traces, resyncs) = (self.lost, self.resyncs);
        MmuFigures { tables, bytes, evictions, lost_traces, resyncs, ..MmuFigures::default() }
    }

    // ---- keeping up ----------------------------------------------------------------------------------------------

    /// To be called before each use: acts on changes of the P2M, on the log of traced writes, and on traces that have
    /// settled.
    fn catch_up(&mut self) {
        self.hear_memory();
        // In this order: what was written before a trace settled is in the log by then.
        let settled = self.settled();
        let memory = self.memory.clone();
        memory.take_traced(|write| self.follow(write));
        for gfn in settled {
            if let Some(guest) = self.guests.get_mut(&gfn.0)
                && matches!(guest.trace, Trace::Awaited(_))
            {
                guest.trace = Trace::Settled;
            }
        }
        self.forget_settled();
    }

    /// What has settled is not behind.
    fn forget_settled(&mut self) {
        let guests = &self.guests;
        self.behind.retain(|gfn| guests.get(&gfn.0).is_some_and(|guest| guest.trace != Trace::Settled));
    }

    fn hear_memory(&mut self) {
        let memory = self.memory.clone();
        let mut seen = self.seen;
        hear(&memory, &mut seen, |heard| match heard {
            Heard::Everything => self.forget_all(),
            Heard::Frame(gfn) => {
                self.tables.drop_frame(gfn);
                self.give_up(gfn);
            }
        });
        self.seen = seen;
    }

    /// Those behind whose trace has settled now.
    fn settled(&self) -> Vec<Gfn> {
        let is_settled = |gfn: &Gfn| match self.guests.get(&gfn.0) {
            Some(&Guest { mfn, trace: Trace::Awaited(epoch), .. }) => self.memory.trace_settled(mfn, epoch),
            _ => false,
        };
        self.behind.iter().copied().filter(is_settled).collect()
    }

    /// Acts on what was written to a guest table.
    fn follow(&mut self, write: TracedWrite) {
        let Some(guest) = self.guests.get_mut(&write.gfn.0) else { return };
        if write.lost {
            self.lost += 1;
            if guest.trace == Trace::Settled {
                self.behind.push(write.gfn);
            }
            guest.trace = Trace::Lost;
            return;
        }
        if self.step == Step::Eager && self.is_flooded(write) {
            self.lost += 1;
            return self.give_up(write.gfn);
        }
        self.compare(write.gfn, write.granules);
    }

    /// Whether a table is written much and not walked through.
    fn is_flooded(&mut self, write: TracedWrite) -> bool {
        let Some(guest) = self.guests.get_mut(&write.gfn.0) else { return false };
        let walked = guest.take_walked(&mut self.tables);
        // What is noted before a trace has settled is the end of earlier times.
        let settled = guest.trace == Trace::Settled;
        let before = if walked || !settled { 0 } else { guest.writes };
        guest.writes = if settled { before.saturating_add(write.granules.count_ones()) } else { 0 };
        guest.writes >= FLOOD
    }

    /// Compares the shadows of a guest table with it, in some granules.
    fn compare(&mut self, gfn: Gfn, granules: u64) {
        let pages = self.guests.get(&gfn.0).map(|guest| guest.pages.clone()).unwrap_or_default();
        for page in pages {
            let Some(&Node::Table { level, format, .. }) = self.tables.what(page) else { continue };
            let Some(&format) = self.formats.get(format) else { continue };
            let each = GRANULE / format.entry_bytes();
            for index in 0..format.table_entries() {
                if granules >> (index / each) & 1 != 0 {
                    self.compare_entry(slot(page, index), gfn, index, level, &format);
                }
            }
        }
    }

    fn compare_entry(&mut self, slot: Slot, table: Gfn, index: u64, level: u32, format: &Format) {
        let (present, target) = self.tables.get(slot);
        let eager = self.step == Step::Eager;
        if present & word::P == 0 && !(eager && level == 1) {
            return;
        }
        let entry = self.guest_entry(table, index, format);
        let large = format.is_large(level, entry);
        let maps = large || level == 1;
        let used = pte::P | pte::A;
        if entry & used != used || entry & format.reserved(level, large) != 0 {
            return self.tables.clear(slot);
        }
        let size = maps.then(|| PageSize::of_shift(format.shift(level)));
        let flags = flags_of(entry, size);
        if present & word::P == 0 {
            return self.mirror(slot, entry, flags);
        }
        let leads = match size {
            Some(size) => {
                present & (word::LEAF | word::WHOLE) != 0 && target == page_base(size, entry).frame()
            }
            None => {
                let child = self.tables.child(slot).and_then(|child| self.tables.what(child));
                let below = Gpa(entry & pte::ADDRESS).frame();
                let same = matches!(child, Some(&Node::Table { gfn, .. }) if gfn == below);
                // In lazy step what is below may be older than this.
                let kept = word::RW | word::US | word::NX;
                same && (eager || present & kept == flags & kept)
            }
        };
        if leads {
            self.tables.set_flags(slot, flags | present & (word::WHOLE | word::P2M_WRITE));
        } else {
            self.tables.clear(slot);
        }
    }

    /// Enters a page that nobody has asked for yet.
    fn mirror(&mut self, slot: Slot, entry: u64, flags: u64) {
        let gfn = page_base(PageSize::Kib4, entry).frame();
        if let Some((gfn, mfn, write)) = run_around(&self.memory, gfn, PAGE_SHIFT) {
            self.tables.set_leaf(slot, flags | write, gfn, mfn);
        }
    }

    fn guest_entry(&self, table: Gfn, index: u64, format: &Format) -> u64 {
        let at = Gpa((table.0 << PAGE_SHIFT) + index * format.entry_bytes());
        if format.entry_bytes() == 4 {
            self.memory.read_word::<u32>(at).map_or(0, u64::from)
        } else {
            self.memory.read_word::<u64>(at).unwrap_or(0)
        }
    }

    /// Brings everything that is behind into step, or as near as it gets before its trace settles.
    fn resync(&mut self) {
        for gfn in self.behind.clone() {
            let Some(guest) = self.guests.get_mut(&gfn.0) else { continue };
            if guest.trace == Trace::Lost {
                guest.writes = if guest.take_walked(&mut self.tables) { 0 } else { guest.writes + 1 };
                if guest.writes >= IDLE {
                    self.give_up(gfn);
                    continue;
                }
                guest.trace = Trace::begin(&self.memory, guest.mfn);
            }
            self.resyncs += 1;
            self.compare(gfn, u64::MAX);
        }
        self.forget_settled();
    }

    // ---- giving up -----------------------------------------------------------------------------------------------

    /// Forgets a guest table: what it maps, what leads to it, and its trace.
    fn give_up(&mut self, gfn: Gfn) {
        if let Some(guest) = self.guests.remove(&gfn.0) {
            self.memory.untrace(guest.mfn);
            self.behind.retain(|&behind| behind != gfn);
            guest.pages.into_iter().for_each(|page| self.tables.remove(page));
            self.tables.take_removed();
        }
    }

    fn forget_all(&mut self) {
        let guests: Vec<u64> = self.guests.keys().copied().collect();
        guests.into_iter().for_each(|gfn| self.give_up(Gfn(gfn)));
    }

    fn make_room(&mut self) {
        self.tables.make_room(ROOM);
        for node in self.tables.take_removed() {
            let Node::Table { gfn, .. } = node else { continue };
            let Some(guest) = self.guests.get_mut(&gfn.0) else { continue };
            let tables = &self.tables;
            guest.pages.retain(|&page| tables.what(page).is_some());
            if guest.pages.is_empty() {
                self.give_up(gfn);
            }
        }
    }

    // ---- finding and filling -------------------------------------------------------------------------------------

    fn format(&mut self, format: &Format) -> usize {
        if let Some(number) = self.formats.iter().position(|known| known == format) {
            return number;
        }
        if self.formats.len() >= FORMATS {
            self.forget_all();
            self.formats.clear();
        }
        self.formats.push(*format);
        self.formats.len() - 1
    }

    /// The shadow of a guest frame as a table.
    fn page_of(&self, gfn: Gfn, level: u32, format: usize) -> Option<u32> {
        let node = Node::Table { gfn, level, format };
        let guest = self.guests.get(&gfn.0)?;
        guest.pages.iter().copied().find(|&page| self.tables.what(page) == Some(&node))
    }

    fn find(&mut self, root: Gfn, level: u32, format: usize, va: u64) -> Option<Found> {
        let page = self.page_of(root, level, format)?;
        self.tables.walk(page, va)
    }

    /// Enters a walk that succeeded. Returns the newer outcome if it had to walk again.
    fn enter(
        &mut self,
        miss: &Miss<'_>,
        top: u32,
        format: usize,
        walked: (Translation, Path),
    ) -> Translation {
        let (mut translation, mut path) = walked;
        self.make_room();
        for _ in 0..ATTEMPTS {
            let way = Way { entries: path.entries(), top, format };
            let (depth, began) = self.prepare(&way);
            if !began {
                self.build(miss, &way, depth, &translation);
                break;
            }
            let memory = self.memory.clone();
            match walk_through(&mut &*memory, miss) {
                Ok(again) => (translation, path) = again,
                // It was right when it was made.
                Err(_) => break,
            }
        }
        translation
    }

    /// Sees to it that the tables of a walk have shadows and are traced: how many of them, from the top; and whether
    /// traces were begun.
    fn prepare(&mut self, way: &Way<'_>) -> (usize, bool) {
        let (mut depth, mut began) = (0, false);
        for (gfn, level) in way.tables() {
            let entry = self.memory.entry(gfn);
            if entry.kind != FrameKind::Ram {
                break;
            }
            if let Some(guest) = self.guests.get_mut(&gfn.0) {
                guest.writes = 0;
            } else {
                let trace = Trace::begin(&self.memory, entry.mfn);
                self.guests.insert(gfn.0, Guest { mfn: entry.mfn, trace, writes: 0, pages: Vec::new() });
                if trace != Trace::Settled {
                    self.behind.push(gfn);
                }
                began = true;
            }
            if self.page_of(gfn, level, way.format).is_none()
                && let Some(format) = self.formats.get(way.format)
            {
                let node = Node::Table { gfn, level, format: way.format };
                let page = self.tables.add(node, format.shift(level), format.table_entries());
                if let Some(guest) = self.guests.get_mut(&gfn.0) {
                    guest.pages.push(page);
                }
            }
            depth += 1;
        }
        (depth, began)
    }

    /// Whether entries of a guest table may be held.
    fn may_hold(&self, gfn: Gfn) -> bool {
        self.step == Step::Lazy || self.guests.get(&gfn.0).is_some_and(|guest| guest.trace == Trace::Settled)
    }

    /// Makes the entries on the way what the guest's are.
    fn build(&mut self, miss: &Miss<'_>, way: &Way<'_>, depth: usize, translation: &Translation) {
        let mut links = Vec::with_capacity(way.entries.len());
        for (at, (gfn, level)) in way.tables().take(depth).enumerate() {
            let page = self.page_of(gfn, level, way.format);
            let Some(slot) = page.and_then(|page| self.tables.slot_of(page, miss.va.0)) else { return };
            if !self.may_hold(gfn) {
                break;
            }
            let Some(&(_, entry)) = way.entries.get(at) else { return };
            match way.entries.get(at + 1) {
                None => {
                    self.build_links(&links);
                    return self.build_page(miss, slot, entry, translation);
                }
                Some((below, _)) => {
                    let below = self.page_of(below.frame(), level.saturating_sub(1), way.format);
                    let Some(below) = below.filter(|_| at + 1 < depth) else { break };
                    links.push((slot, flags_of(entry, None), below));
                }
            }
        }
        self.build_links(&links);
    }

    fn build_links(&mut self, links: &[(Slot, u64, u32)]) {
        let new = |tables: &Tables<Node>, &(slot, flags, below): &(Slot, u64, u32)| {
            let kept = word::RW | word::US | word::NX;
            let (present, _) = tables.get(slot);
            tables.child(slot) != Some(below) || present & kept != flags
        };
        if self.step == Step::Lazy && links.iter().any(|link| new(&self.tables, link)) {
            self.resync();
        }
        for link in links {
            if new(&self.tables, link) {
                let &(slot, flags, below) = link;
                self.tables.set_link(slot, flags, below, Gfn(0));
            }
        }
    }

    /// Enters a page of the guest's, whole or in pieces, or clears its place if it does not lead to memory.
    fn build_page(&mut self, miss: &Miss<'_>, at: Slot, entry: u64, translation: &Translation) {
        let size = translation.page_size;
        let dirty = if translation.dirty { pte::D } else { 0 };
        let flags = flags_of(entry | dirty, Some(size));
        let gfn = translation.gpa.frame();
        if let Some((first, mfn, write)) = run_around(&self.memory, gfn, size.shift()) {
            return self.tables.set_leaf(at, flags | write, first, mfn);
        }
        let leads = run_around(&self.memory, gfn, PAGE_SHIFT);
        let Some((gfn, mfn, write)) = leads.filter(|_| size != PageSize::Kib4) else {
            return self.tables.clear(at);
        };
        let first = page_base(size, entry).frame();
        let (mut at, mut link) = (at, (flags | word::WHOLE, first));
        let mut shift = size.shift();
        let bits = miss.context.regime.format.index_bits();
        loop {
            let (present, target) = self.tables.get(at);
            let same = present & word::WHOLE == link.0 & word::WHOLE && target == link.1;
            let child = match self.tables.child(at).filter(|_| same) {
                Some(child) => {
                    self.tables.set_flags(at, link.0);
                    child
                }
                None => self.tables.add_below(at, Node::Part, bits, link.0, link.1),
            };
            let Some(next) = self.tables.slot_of(child, miss.va.0) else { return };
            shift -= bits;
            if shift == PAGE_SHIFT {
                return self.tables.set_leaf(next, word::ALL | write, gfn, mfn);
            }
            if let Some((first, mfn, write)) = run_around(&self.memory, gfn, shift) {
                return self.tables.set_leaf(next, word::ALL | write, first, mfn);
            }
            (at, link) = (next, (word::ALL, Gfn(0)));
        }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        self.forget_all();
    }
}

/// One vCPU's end.
pub(crate) struct Shadowed {
    memory: Arc<GuestMemory>,
    shadow: Arc<Mutex<Shadow>>,
}

impl Shadowed {
    pub(crate) fn new(memory: Arc<GuestMemory>, shadow: Arc<Mutex<Shadow>>) -> Self {
        Self { memory, shadow }
    }
}

impl Strategy for Shadowed {
    fn translate(&mut self, miss: &Miss<'_>, stats: &mut MmuStats) -> Result<Reached, PageFault> {
        let root = start(miss.context, miss.va).filter(|&(_, level)| level != 0);
        let Some((root, level)) = root else {
            // Paging is off, or faults before there is a table.
            let (translation, _) = walk_guest(&self.memory, miss, stats)?;
            return Ok(Reached::looked_up(translation, &self.memory));
        };
        let mut shadow = lock(&self.shadow);
        shadow.catch_up();
        let format = shadow.format(&miss.context.regime.format);
        let found = shadow.find(root.frame(), level, format, miss.va.0);
        if let Some(reached) = found.and_then(|found| answer(&found, miss, &self.memory, stats)) {
            return Ok(reached);
        }
        let walked = resolve(found.as_ref(), miss, &self.memory, stats)?;
        let translation = shadow.enter(miss, level, format, walked);
        Ok(Reached::looked_up(translation, &self.memory))
    }

    fn invalidate(&mut self, _: Invalidation) {
        let mut shadow = lock(&self.shadow);
        if shadow.step == Step::Lazy {
            shadow.catch_up();
            shadow.resync();
        }
    }
}
