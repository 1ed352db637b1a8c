//! The software TLB of one vCPU: from a guest-virtual page straight to a machine frame, in one comparison.
//!
//! # Entries
//! A direct-mapped table per privilege, with separate tags for reads, writes and fetches: a tag matches only if that
//! access by that privilege is allowed, needs no accessed or dirty bit set any more, and ends in memory. So a hit
//! checks everything at once, and whatever is special (a fault, a first write, a device, a write to a frame that holds
//! decoded code or is traced) is a miss and goes to [`Tlb::fill`].
//!
//! # Address spaces
//! A tag is the page's address with the **id** of an address space in its low twelve bits. To empty an address space is
//! to give it an id never used before; a PCID keeps its id across switches of CR3. Entries of dead ids match nothing
//! and are overwritten in time. When the ids run out, everything is cleared. The id also stirs the slot number, so
//! that programs laid out alike do not evict each other.
//!
//! Pages of the upper half of the address space that are global ("the kernel") are tagged with one **shared id**, so
//! that they survive switches. Which id a look-up takes depends only on the address's top bit; therefore an address
//! space uses the shared id for its upper half only as long as it has met no page there that is not global. Once it
//! has (kernels that isolate page tables have only such), it uses its own id for both halves. A global page met in a
//! half that uses the own id is tagged with it, as if it were not global, and remembered in a filter.
//!
//! # Invalidation
//! Entries may always be dropped early; what SDM vol. 3, 4.10.4 demands is the least. INVLPG drops the page's entries
//! under the current and the shared id. If the filters say that the address may lie in a large page, or in a global
//! page tagged as if it were not, it looks at every entry for pieces of that page, whatever the id.
//!
//! # What is behind it
//! A miss is answered by a [`Strategy`], which every invalidation of the guest's is handed on to: how the guest's tables and
//! the P2M become one translation is its business. Only the right to cache a *writable* one is asked of memory here, each
//! time: a frame that holds code, is traced, or has to be logged is no less mapped for it.
//!
//! # Memory's rules
//! `memory::guest` states what a holder of cached translations promises: "seen" is the epoch it last acted on, and before
//! it drops a writable translation it compares. Every method here that drops any begins with [`Tlb::sync_epoch`],
//! and so does `fill`, which replaces entries. An engine calls it at block boundaries.

use std::sync::Arc;

use memory::{Change, FrameKind, GuestMemory};
use x86::bits::index;
use x86::{Gfn, Gpa, Gva, Mfn, PAGE_MASK, PAGE_SHIFT};

use crate::context::{Access, PagingContext, Privilege, Regime};
use crate::region::{LargePages, RegionFilter};
use crate::strategy::{MmuStats, Reached, Strategy};
use crate::walk::{Miss, PageFault, PageSize, Translation};

/// Entries per privilege: with 4 KiB pages, a reach of 4 MiB.
const SLOTS: usize = 1024;
/// One part per privilege and one that is never used, so that masks prove every index in bounds.
const ENTRIES: usize = 4 * SLOTS;
/// The part that is used.
const USED: usize = Privilege::ALL.len() * SLOTS;
/// Slots that share a word of [`Tlb::writers`].
const GROUP: usize = 16;
/// How far the id is shifted into the slot number: ids that differ in the low bits are that many pages apart.
const STIR: u32 = 6;
/// Ids are 1 to this; 0 marks tags that match nothing.
const LAST_ID: u16 = 0xfff;
const PCIDS: usize = 4096;
/// No tag ever computed for a look-up.
const NO_TAG: u64 = 0;

#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Entry {
    read: u64,
    write: u64,
    exec: u64,
    mfn: Mfn,
}

const EMPTY: Entry = Entry { read: NO_TAG, write: NO_TAG, exec: NO_TAG, mfn: Mfn(0) };

impl Entry {
    /// Whether any access has a tag for which `is` holds.
    fn any(&self, is: impl Fn(u64) -> bool) -> bool {
        [self.read, self.write, self.exec].into_iter().any(|tag| tag != NO_TAG && is(tag))
    }
}

/// The bit of a frame in a word of [`Tlb::writers`].
const fn writer(mfn: Mfn) -> u64 {
    1 << (mfn.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

/// How an address space is tagged.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Space {
    /// Its own id; 0 if it has none yet.
    id: u16,
    /// Its upper half uses its own id too.
    private: bool,
}

/// What a translated access meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Memory.
    Ram {
        /// The machine frame.
        mfn: Mfn,
        /// The guest frame.
        gfn: Gfn,
        /// The translation is cached. If a write's is not, the frame holds decoded code, or is traced.
        ///
        /// Either way an engine calls [`GuestMemory::note_write`] after it has written through a target: a target is a
        /// translation in its hand, which the TLB cannot account for if the epoch changes before the write (an access
        /// across two pages, a host that preempts). Only writes through [`Tlb::lookup_write`] need no note.
        cached: bool,
    },
    /// The bus, at this address.
    Mmio(Gpa),
    /// Nothing: writes are dropped (ROM), reads give all ones.
    Ignore,
}

/// A translated access, for whoever caches it elsewhere too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What it meets.
    pub target: Target,
    /// The size of the page, of which an invalidation drops all.
    pub page_size: PageSize,
    /// The page is global.
    pub global: bool,
    /// A write is allowed, too, and it would leave no mark in the tables: the page is dirty.
    pub writable: bool,
}

impl Resolved {
    /// The machine frame, if the access ends in memory.
    pub const fn frame(&self) -> Option<Mfn> {
        match self.target {
            Target::Ram { mfn, .. } => Some(mfn),
            Target::Mmio(_) | Target::Ignore => None,
        }
    }
}

/// What was invalidated, for whoever caches translations elsewhere too ([`Tlb::take_invalidations`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// Everything in every address space.
    All,
    /// Everything but global pages.
    NonGlobal,
    /// The page that holds this address, in the current address space, and everywhere if it is global.
    Page(Gva),
    /// That page in one address space, unless it is global.
    PageOf(u16, Gva),
    /// An address space, global pages excepted.
    Space(u16),
    /// Another address space is the current one from now on.
    Switch(u16),
}

/// Invalidations kept for somebody who does not ask; more are one [`Invalidation::All`].
const LOGGED: usize = 16;

/// The kinds of INVPCID (SDM vol. 2A).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invpcid {
    /// Type 0: one address of one PCID, globals excepted.
    Address {
        /// The PCID.
        pcid: u16,
        /// The address.
        va: Gva,
    },
    /// Type 1: one PCID, globals excepted.
    Single {
        /// The PCID.
        pcid: u16,
    },
    /// Type 2: everything.
    All,
    /// Type 3: everything, globals excepted.
    AllNonGlobal,
}

/// The TLB.
pub struct Tlb {
    entries: Box<[Entry; ENTRIES]>,
    /// The ids in use for the lower and the upper half.
    ids: [u64; 2],
    memory: Arc<GuestMemory>,
    /// The epoch that all entries are as good as.
    seen: u64,
    /// By groups of slots: a bit for each frame that one of them may be written through, by its hash.
    writers: Box<[u64; ENTRIES / GROUP]>,
    /// Guest frames of the entries, for memory to be told which were writable.
    gfns: Box<[Gfn; ENTRIES]>,
    regime: Option<Regime>,
    pcid: u16,
    /// By PCID.
    spaces: Box<[Space; PCIDS]>,
    shared_id: u16,
    next_id: u16,
    large: LargePages,
    gib: RegionFilter,
    /// Global pages that are tagged with an address space's own id.
    global_private: RegionFilter,
    /// How what is not here is translated.
    strategy: Box<dyn Strategy>,
    stats: MmuStats,
    /// What was invalidated since somebody asked, if anybody does.
    log: Option<Vec<Invalidation>>,
}

impl Tlb {
    /// An empty TLB that is filled like this ([`crate::Mmu::tlb`]).
    pub(crate) fn with_strategy(memory: Arc<GuestMemory>, strategy: Box<dyn Strategy>) -> Self {
        let seen = memory.epoch();
        let mut tlb = Self {
            entries: Box::new([EMPTY; ENTRIES]),
            ids: [0; 2],
            memory,
            seen,
            writers: Box::new([0; ENTRIES / GROUP]),
            gfns: Box::new([Gfn(0); ENTRIES]),
            regime: None,
            pcid: 0,
            spaces: Box::new([Space::default(); PCIDS]),
            shared_id: 0,
            next_id: 0,
            large: LargePages::default(),
            gib: RegionFilter::default(),
            global_private: RegionFilter::default(),
            strategy,
            stats: MmuStats::default(),
            log: None,
        };
        tlb.clear();
        tlb
    }

    /// What was counted.
    pub const fn stats(&self) -> MmuStats {
        self.stats
    }

    // ---- look-up: the hot path -----------------------------------------------------------------------------------

    #[inline(always)]
    fn tag(&self, va: Gva) -> u64 {
        va.0 & !PAGE_MASK | self.ids[index(va.0 >> 63)]
    }

    #[inline(always)]
    const fn slot(tag: u64, privilege: Privilege) -> usize {
        let slot = index(tag >> PAGE_SHIFT ^ tag << STIR) & (SLOTS - 1);
        slot | ((privilege as usize & 3) * SLOTS)
    }

    /// The machine frame for a read, if cached.
    #[inline(always)]
    pub fn lookup_read(&mut self, va: Gva, privilege: Privilege) -> Option<Mfn> {
        let tag = self.tag(va);
        let entry = &self.entries[Self::slot(tag, privilege)];
        if entry.read != tag {
            return None;
        }
        self.stats.hits += 1;
        Some(entry.mfn)
    }

    /// The machine frame for a write, if cached.
    #[inline(always)]
    pub fn lookup_write(&mut self, va: Gva, privilege: Privilege) -> Option<Mfn> {
        let tag = self.tag(va);
        let entry = &self.entries[Self::slot(tag, privilege)];
        if entry.write != tag {
            return None;
        }
        self.stats.hits += 1;
        Some(entry.mfn)
    }

    /// The machine frame for an instruction fetch, if cached.
    #[inline(always)]
    pub fn lookup_exec(&self, va: Gva, privilege: Privilege) -> Option<Mfn> {
        let tag = self.tag(va);
        let entry = &self.entries[Self::slot(tag, privilege)];
        (entry.exec == tag).then_some(entry.mfn)
    }

    // ---- fill ----------------------------------------------------------------------------------------------------

    /// Translates an access that missed, and caches what may be cached.
    ///
    /// A ballooned frame is taken back by any access.
    ///
    /// # Errors
    /// If the guest's tables do not allow the access.
    #[inline(never)]
    pub fn fill(
        &mut self,
        context: &PagingContext,
        va: Gva,
        access: Access,
        privilege: Privilege,
    ) -> Result<Target, PageFault> {
        self.resolve(context, va, access, privilege).map(|resolved| resolved.target)
    }

    /// As [`Tlb::fill`], with what a cache of the caller's own needs to know besides.
    ///
    /// # Errors
    /// If the guest's tables do not allow the access.
    pub fn resolve(
        &mut self,
        context: &PagingContext,
        va: Gva,
        access: Access,
        privilege: Privilege,
    ) -> Result<Resolved, PageFault> {
        self.resolve_ahead(context, va, access, privilege).inspect_err(|_| self.stats.faults += 1)
    }

    /// As [`Tlb::resolve`], for an access that nobody has made yet: that it is not allowed is no fault of anybody's.
    ///
    /// # Errors
    /// If the guest's tables do not allow the access.
    pub fn resolve_ahead(
        &mut self,
        context: &PagingContext,
        va: Gva,
        access: Access,
        privilege: Privilege,
    ) -> Result<Resolved, PageFault> {
        self.sync_epoch();
        let miss = Miss { context, va, access, privilege };
        let reached = self.strategy.translate(&miss, &mut self.stats)?;
        self.stats.fills += 1;
        let translation = reached.translation;
        let target = self.reach(&miss, &reached);
        let is_ram = |gfn| self.memory.entry(gfn).kind == FrameKind::Ram;
        let permitted = context.regime.permits(translation.rights, Access::Write, privilege)
            && matches!(target, Target::Ram { gfn, .. } if is_ram(gfn));
        Ok(Resolved {
            target,
            page_size: translation.page_size,
            global: translation.global,
            writable: permitted && translation.dirty,
        })
    }

    /// Where a translation ends, cached if it may be.
    fn reach(&mut self, miss: &Miss<'_>, reached: &Reached) -> Target {
        let Reached { translation, mut entry } = *reached;
        let gfn = translation.gpa.frame();
        if entry.kind == FrameKind::Ballooned && self.memory.set_kind(gfn, FrameKind::Ram).is_ok() {
            self.stats.hidden_p2m += 1;
            self.sync_epoch();
            entry = self.memory.entry(gfn);
        }
        let write = miss.access == Access::Write;
        let cached = match (entry.kind, write) {
            (FrameKind::Ram, true) => self.may_cache_writes(gfn, entry.mfn),
            (FrameKind::Ram | FrameKind::ReadOnly | FrameKind::Shared, false) => true,
            (FrameKind::Mmio, _) => return Target::Mmio(translation.gpa),
            _ => return Target::Ignore,
        };
        self.insert(miss, &translation, (gfn, entry.mfn), write && cached);
        Target::Ram { mfn: entry.mfn, gfn, cached }
    }

    fn may_cache_writes(&mut self, gfn: Gfn, mfn: Mfn) -> bool {
        let allowed = self.memory.may_cache_writes(gfn, mfn);
        if !allowed && self.memory.is_traced(mfn) {
            self.stats.hidden_trace += 1;
        }
        allowed
    }

    /// Caches a translation: for reads and fetches if its page allows them, for writes if told so.
    fn insert(&mut self, miss: &Miss<'_>, translation: &Translation, (gfn, mfn): (Gfn, Mfn), write: bool) {
        let &Miss { context: PagingContext { regime, .. }, va, privilege, .. } = miss;
        self.choose_tagging(va, translation);
        let tag = self.tag(va);
        let slot = Self::slot(tag, privilege);
        let permitted = |access| {
            if regime.permits(translation.rights, access, privilege) { tag } else { NO_TAG }
        };
        self.entries[slot] = Entry {
            read: permitted(Access::Read),
            write: if write { tag } else { NO_TAG },
            exec: permitted(Access::Execute),
            mfn,
        };
        self.gfns[slot] = gfn;
        if write {
            self.writers[slot / GROUP] |= writer(mfn);
        }
        let page = va.page();
        match translation.page_size {
            PageSize::Kib4 | PageSize::Everything => {}
            PageSize::Mib2 | PageSize::Mib4 => self.large.insert(va.0),
            PageSize::Gib1 => self.gib.insert(page >> 18),
        }
        if translation.global && self.ids[index(va.0 >> 63)] != u64::from(self.shared_id) {
            self.global_private.insert(page);
        }
    }

    /// Stops using the shared id for this address space's upper half when a page is met that is not shared.
    fn choose_tagging(&mut self, va: Gva, translation: &Translation) {
        let space = &mut self.spaces[usize::from(self.pcid) % PCIDS];
        if va.0 >> 63 != 0 && !translation.global && !space.private {
            space.private = true;
            self.ids[1] = space.id.into();
        }
    }

    // ---- invalidation --------------------------------------------------------------------------------------------

    /// The epoch up to which changes of guest memory have been acted on.
    pub const fn seen(&self) -> u64 {
        self.seen
    }

    /// Acts on changes of guest memory: compares its epoch, and if it has changed, drops what that concerns. True if it
    /// has.
    #[inline(always)]
    pub fn sync_epoch(&mut self) -> bool {
        let changed = self.memory.epoch() != self.seen;
        if changed {
            self.new_epoch();
        }
        changed
    }

    #[cold]
    #[inline(never)]
    fn new_epoch(&mut self) {
        self.stats.epochs += 1;
        let memory = self.memory.clone();
        let now = memory.epoch();
        let seen = std::mem::replace(&mut self.seen, now);
        for change in memory.changes(seen, now) {
            match change {
                Change::Everything => {
                    self.note_writes();
                    return self.clear();
                }
                Change::Remapped(gfn) => self.drop_frame(gfn),
                Change::Logged => self.drop_writable(),
                Change::Watched(mfn) => self.drop_writable_to(mfn),
                Change::Written(_) | Change::Nothing => {}
            }
        }
    }

    /// Reports what may have been written.
    fn note_writes(&self) {
        for (entry, &gfn) in self.entries.iter().zip(self.gfns.iter()).take(USED) {
            if entry.write != NO_TAG {
                self.memory.note_write(gfn, entry.mfn);
            }
        }
    }

    fn drop_writable(&mut self) {
        self.note_writes();
        for entry in self.entries.iter_mut().take(USED) {
            entry.write = NO_TAG;
        }
        self.writers.fill(0);
    }

    /// Drops writable translations of one frame, after reporting them.
    fn drop_writable_to(&mut self, mfn: Mfn) {
        let groups = self.entries.chunks_exact_mut(GROUP).zip(self.gfns.chunks_exact(GROUP));
        for (writers, (entries, gfns)) in self.writers.iter_mut().zip(groups).take(USED / GROUP) {
            if *writers & writer(mfn) == 0 {
                continue;
            }
            // What has been overwritten or dropped since is left out from now on.
            *writers = 0;
            for (entry, &gfn) in entries.iter_mut().zip(gfns).filter(|(entry, _)| entry.write != NO_TAG) {
                if entry.mfn == mfn {
                    self.memory.note_write(gfn, mfn);
                    entry.write = NO_TAG;
                } else {
                    *writers |= writer(entry.mfn);
                }
            }
        }
    }

    /// Drops translations that lead to a guest frame.
    fn drop_frame(&mut self, frame: Gfn) {
        for (entry, &gfn) in self.entries.iter_mut().zip(self.gfns.iter()).take(USED) {
            if gfn == frame {
                if entry.write != NO_TAG {
                    self.memory.note_write(gfn, entry.mfn);
                }
                *entry = EMPTY;
            }
        }
    }

    /// To be called when anything has changed in the context other than by a load of CR3 (CR0, CR4, EFER, the whole
    /// state): drops everything if that makes a difference to translation, and follows a change of PCID.
    pub fn set_regime(&mut self, context: &PagingContext) {
        if self.regime != Some(context.regime) {
            self.regime = Some(context.regime);
            self.flush_all();
        }
        if self.pcid != context.pcid() {
            self.sync_epoch();
            self.strategy.invalidate(Invalidation::Switch(context.pcid()));
            self.select(context.pcid());
        }
    }

    /// To be called when CR3 is loaded (and, in PAE paging, when the PDPTEs are): goes over to the address space of the
    /// context's PCID. Its entries survive only with `keep`, bit 63 of the operand under CR4.PCIDE (SDM vol. 3,
    /// 4.10.4.1).
    pub fn switch_root(&mut self, context: &PagingContext, keep: bool) {
        self.sync_epoch();
        self.stats.switches += 1;
        let pcid = context.pcid();
        self.strategy.load_root(pcid, keep);
        if !keep {
            self.stats.flushes += 1;
            self.forget(pcid);
            self.record(Invalidation::Space(pcid));
        }
        self.select(pcid);
    }

    /// Drops everything.
    pub fn flush_all(&mut self) {
        self.sync_epoch();
        self.invalidate(Invalidation::All);
        self.stats.flushes += 1;
        self.spaces.fill(Space::default());
        self.shared_id = self.take_id();
        self.select(self.pcid);
    }

    /// Drops everything but global pages, in all address spaces.
    pub fn flush_non_global(&mut self) {
        self.sync_epoch();
        self.invalidate(Invalidation::NonGlobal);
        self.stats.flushes += 1;
        self.spaces.fill(Space::default());
        self.select(self.pcid);
    }

    /// INVLPG: drops the page that holds `va` from the current address space, and from all if it is global.
    pub fn invalidate_page(&mut self, va: Gva) {
        self.sync_epoch();
        self.invalidate(Invalidation::Page(va));
        self.stats.invalidations += 1;
        self.drop_tag(self.tag(va));
        self.drop_tag(va.0 & !PAGE_MASK | u64::from(self.shared_id));
        self.scan_for(va, self.global_private.may_contain(va.page()));
    }

    /// INVPCID.
    pub fn invpcid(&mut self, kind: Invpcid) {
        match kind {
            Invpcid::Address { pcid, va } => {
                self.sync_epoch();
                self.stats.invalidations += 1;
                self.invalidate(Invalidation::PageOf(pcid, va));
                let id = self.spaces[usize::from(pcid) % PCIDS].id;
                self.drop_tag(va.0 & !PAGE_MASK | u64::from(id));
                self.scan_for(va, false);
            }
            Invpcid::Single { pcid } => {
                self.sync_epoch();
                self.stats.flushes += 1;
                self.invalidate(Invalidation::Space(pcid));
                self.forget(pcid);
                self.select(self.pcid);
            }
            Invpcid::All => self.flush_all(),
            Invpcid::AllNonGlobal => self.flush_non_global(),
        }
    }

    /// Keeps a log of invalidations from now on.
    pub fn log_invalidations(&mut self) {
        self.log = Some(Vec::with_capacity(LOGGED + 2));
        self.record(Invalidation::All);
        self.record(Invalidation::Switch(self.pcid));
    }

    /// Whether anything has been invalidated since the log was last taken.
    #[inline(always)]
    pub fn has_invalidations(&self) -> bool {
        self.log.as_ref().is_some_and(|log| !log.is_empty())
    }

    /// Hands what was invalidated since the last time, in order, to `act`.
    pub fn take_invalidations(&mut self, act: impl FnMut(Invalidation)) {
        if let Some(log) = &mut self.log {
            log.drain(..).for_each(act);
        }
    }

    /// The guest has said so: whoever composes translations, and whoever caches them elsewhere, has to know.
    fn invalidate(&mut self, what: Invalidation) {
        self.strategy.invalidate(what);
        self.record(what);
    }

    fn record(&mut self, what: Invalidation) {
        let Some(log) = &mut self.log else { return };
        if log.len() >= LOGGED {
            log.clear();
            log.extend([Invalidation::All, Invalidation::Switch(self.pcid)]);
        }
        log.push(what);
    }

    fn drop_tag(&mut self, tag: u64) {
        for privilege in Privilege::ALL {
            let entry = &mut self.entries[Self::slot(tag, privilege)];
            if entry.any(|t| t == tag) {
                *entry = EMPTY;
            }
        }
    }

    /// Drops, from all address spaces, the page that holds `va` (if it may be there) and the large pages that may.
    fn scan_for(&mut self, va: Gva, page: bool) {
        let shift = if self.gib.may_contain(va.0 >> 30) {
            30
        } else if self.large.may_contain(va.0) {
            LargePages::SHIFT
        } else if page {
            PAGE_SHIFT
        } else {
            return;
        };
        for entry in self.entries.iter_mut().take(USED).filter(|e| e.any(|tag| (tag ^ va.0) >> shift == 0)) {
            *entry = EMPTY;
        }
    }

    // ---- ids -----------------------------------------------------------------------------------------------------

    fn forget(&mut self, pcid: u16) {
        self.spaces[usize::from(pcid) % PCIDS] = Space::default();
    }

    /// Makes `pcid`'s address space the current one.
    fn select(&mut self, pcid: u16) {
        if self.pcid != pcid {
            self.record(Invalidation::Switch(pcid));
        }
        self.pcid = pcid;
        if self.spaces[usize::from(pcid) % PCIDS].id == 0 {
            // Taking an id may clear everything, so the space is looked at again.
            let id = self.take_id();
            self.spaces[usize::from(pcid) % PCIDS] = Space { id, private: false };
        }
        let space = self.spaces[usize::from(pcid) % PCIDS];
        let high = if space.private { space.id } else { self.shared_id };
        self.ids = [space.id.into(), high.into()];
    }

    /// An id that no entry has.
    fn take_id(&mut self) -> u16 {
        if self.next_id > LAST_ID {
            self.clear();
        }
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Drops everything by itself, which it may at any time; nobody is told but memory.
    #[cfg(test)]
    pub(crate) fn empty(&mut self) {
        self.sync_epoch();
        self.note_writes();
        self.clear();
    }

    /// Empties the table itself and starts the ids anew. The current address space keeps being the current one.
    fn clear(&mut self) {
        self.entries[..USED].fill(EMPTY);
        self.writers.fill(0);
        self.spaces.fill(Space::default());
        self.large = LargePages::default();
        self.gib = RegionFilter::default();
        self.global_private = RegionFilter::default();
        self.shared_id = 1;
        self.next_id = 2;
        self.select(self.pcid);
    }
}

impl std::fmt::Debug for Tlb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tlb")
            .field("ids", &self.ids)
            .field("pcid", &self.pcid)
            .field("stats", &self.stats)
            .finish()
    }
}

#[cfg(test)]
mod tests;
