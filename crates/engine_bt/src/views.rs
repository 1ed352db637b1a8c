//! The tables behind GS: what translated code finds memory and code by.
//!
//! A [`Views`] belongs to one vCPU. It has a view per address space that was current lately, by PCID; all begin with the
//! same context and supervisor tables (one anonymous file mapped into each), so a switch of address space is a switch of
//! GS. The least recently used view makes room when there are too many.
//!
//! Entries may always be dropped early; what must be dropped, and when, the MMU says ([`mmu::Invalidation`]). To drop
//! everything must cost what was filled, not what the tables hold: each table keeps a list of the slots in use.
//!
//! The supervisor tables are shared because kernels map themselves globally. A page there that is not global is on a
//! list of its own and dropped at every switch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use host::{HostError, Mapping, Memfd, Protection};
use memory::GuestMemory;
use mmu::{Invalidation, PageSize, RegionFilter, Resolved, Target};
use translate::Mode;
use translate::context::{self, ANCHORS, Anchor, Context, Table, TlbEntry, at, tlb_slot};
use x86::{Gfn, Mfn, PAGE_MASK, PAGE_SIZE};

use crate::cache::NumberMap;
use crate::jumps::JumpBook;
use crate::writers::Writers;

/// Address spaces that keep their tables.
const VIEWS: usize = 16;
/// Bytes of the part that all views share.
const SHARED: u64 = at::USER_ANCHORS as u64;

/// Bit of [`TlbBook::frames`]: the page is not global, and the slot on the list of those.
const PRIVATE: u64 = 1 << 63;

/// Binary logarithm of a large page's size.
pub(crate) const LARGE_SHIFT: u32 = 21;
/// Large pages that a table knows of before it is emptied.
const MOST_LARGE: usize = 1 << 12;

/// Where a table lies from GS, as an index.
pub(crate) const fn offset(displacement: i32) -> usize {
    displacement.unsigned_abs() as usize
}

/// What one TLB holds.
#[derive(Debug)]
struct TlbBook {
    table: Table,
    /// By slot in use: the guest frame, and [`PRIVATE`].
    frames: Box<[u64]>,
    /// Slots in use.
    filled: Vec<u32>,
    /// A bit per slot: it has been in use since the table was last emptied. Only pages of such a slot have anchors.
    touched: Box<[u64]>,
    /// Slots in use whose page is not global; of the supervisor's only.
    private: Vec<u32>,
    /// The pages that may have been written since the table was last emptied. Who has lost its slot may still be written:
    /// by the block that had it checked before.
    writers: Writers,
    /// The large pages of 2 MiB that were in it since the table was last emptied, and larger ones.
    large: NumberMap<()>,
    gib: RegionFilter,
}

/// An address space's own tables.
#[derive(Debug)]
struct View {
    mapping: Mapping,
    pcid: u16,
    used: u64,
    user: TlbBook,
    ac: TlbBook,
    jumps: JumpBook,
}

/// All tables of a vCPU.
#[derive(Debug)]
pub(crate) struct Views {
    file: Memfd,
    views: Vec<View>,
    current: usize,
    clock: u64,
    supervisor: TlbBook,
    supervisor_jumps: JumpBook,
    ac_jumps: JumpBook,
    /// A user page that is global is cached somewhere.
    global_user: bool,
    drops: u64,
    go: Go,
}

impl TlbBook {
    fn new(table: Table) -> Self {
        Self {
            table,
            frames: vec![0; context::tlb_entries(table)].into_boxed_slice(),
            filled: Vec::new(),
            touched: vec![0; context::tlb_entries(table) / 64].into_boxed_slice(),
            private: Vec::new(),
            writers: Writers::default(),
            large: NumberMap::default(),
            gib: RegionFilter::default(),
        }
    }

    /// Where a slot is.
    fn entry(&self, base: *mut u8, slot: usize) -> *mut TlbEntry {
        let slot = slot % context::tlb_entries(self.table);
        base.wrapping_add(offset(at::tlb(self.table))).cast::<TlbEntry>().wrapping_add(slot)
    }

    fn read(&self, base: *mut u8, slot: usize) -> TlbEntry {
        // SAFETY: `base` is a view's start and the slot lies in this table, which lies in every view; translated code of
        // this vCPU only reads entries, and does not run meanwhile.
        unsafe { self.entry(base, slot).read() }
    }

    fn write(&self, base: *mut u8, slot: usize, entry: TlbEntry) {
        // SAFETY: as in `read`.
        unsafe { self.entry(base, slot).write(entry) }
    }

    fn clear_slot(&self, base: *mut u8, slot: usize) {
        self.write(base, slot, TlbEntry::empty(slot));
    }

    /// Where an anchor is.
    fn anchor(&self, base: *mut u8, number: usize) -> *mut Anchor {
        base.wrapping_add(offset(at::anchors(self.table))).cast::<Anchor>().wrapping_add(number % ANCHORS)
    }

    /// Empties the anchors that `concerns` picks, which hears whether they are for writes.
    fn drop_anchors(&self, base: *mut u8, mut concerns: impl FnMut(&Anchor, bool) -> bool) {
        for group in 0..ANCHORS / 8 {
            let marks = self.anchor_marks(base, group);
            // SAFETY: `base` is a view's start and the marks lie behind this table's anchors, which lie in every view;
            // translated code of this vCPU does not run meanwhile.
            let marked = unsafe { marks.read() };
            if marked == 0 {
                continue;
            }
            let mut kept = marked.to_le_bytes();
            for (number, mark) in (group * 8..).zip(&mut kept).filter(|(_, mark)| **mark != 0) {
                let at = self.anchor(base, number);
                // SAFETY: as above, for the anchor.
                let anchor = unsafe { at.read() };
                if concerns(&anchor, number % 2 == 1) {
                    // SAFETY: as above.
                    unsafe { at.write(Anchor::default()) };
                    *mark = 0;
                }
            }
            // SAFETY: as above.
            unsafe { marks.write(u64::from_le_bytes(kept)) };
        }
    }

    /// The bytes of eight anchors that are nonzero where one may be in use.
    fn anchor_marks(&self, base: *mut u8, group: usize) -> *mut u64 {
        let marks = base.wrapping_add(offset(at::anchors(self.table) + at::ANCHOR_MARKS));
        marks.cast::<u64>().wrapping_add(group % (ANCHORS / 8))
    }

    fn clear(&mut self, base: *mut u8) {
        while let Some(slot) = self.filled.pop() {
            self.clear_slot(base, slot as usize);
            if let Some(word) = self.touched.get_mut(slot as usize / 64) {
                *word = 0;
            }
        }
        self.drop_anchors(base, |_, _| true);
        self.private.clear();
        self.writers.clear();
        self.large.clear();
        self.gib = RegionFilter::default();
    }

    fn clear_private(&mut self, base: *mut u8) {
        if self.private.is_empty() {
            return;
        }
        while let Some(slot) = self.private.pop() {
            self.clear_slot(base, slot as usize);
        }
        // Those of private pages are among them.
        self.drop_anchors(base, |anchor, write| self.slot_of(base, anchor, write).is_none());
    }

    /// The slot that an anchor is a copy of, if that has not been given to another page.
    fn slot_of(&self, base: *mut u8, anchor: &Anchor, write: bool) -> Option<usize> {
        let slot = tlb_slot(self.table, anchor.page);
        let entry = self.read(base, slot);
        let page = if write { entry.write } else { entry.read };
        (entry.base == anchor.base && page == anchor.page).then_some(slot)
    }

    fn frame(&self, slot: usize) -> Gfn {
        Gfn(self.frames.get(slot).map_or(0, |frame| frame & !PRIVATE))
    }

    /// The guest frame that an anchor leads to; of one that is only read it may have been forgotten.
    fn frame_of(&self, base: *mut u8, anchor: &Anchor, write: bool) -> Option<Gfn> {
        let slot = self.slot_of(base, anchor, write);
        slot.map(|slot| self.frame(slot)).or_else(|| self.writers.frame(anchor.base))
    }

    fn is_touched(&self, slot: usize) -> bool {
        self.touched.get(slot / 64).is_some_and(|word| word >> (slot % 64) & 1 != 0)
    }

    /// Drops the page of `va`, and all of it if it may be a large one.
    fn invalidate(&self, base: *mut u8, va: u64) {
        let slot = tlb_slot(self.table, va);
        let page = va & !PAGE_MASK;
        let entry = self.read(base, slot);
        if entry.read == page || entry.write == page {
            self.clear_slot(base, slot);
        }
        let shift = if self.gib.may_contain(va >> 30) {
            30
        } else if self.large.contains_key(&(va >> LARGE_SHIFT)) {
            LARGE_SHIFT
        } else {
            12
        };
        if shift == 12 && !self.is_touched(slot) {
            return;
        }
        self.drop_anchors(base, |anchor, _| (anchor.page ^ va) >> shift == 0);
        match shift {
            12 => {}
            LARGE_SHIFT => {
                let first = va >> LARGE_SHIFT << LARGE_SHIFT;
                let pages = (first..=first | ((1 << LARGE_SHIFT) - 1)).step_by(PAGE_SIZE as usize);
                pages.for_each(|page| self.drop_entry(base, tlb_slot(self.table, page), va, shift));
            }
            _ => self.filled.iter().for_each(|&slot| self.drop_entry(base, slot as usize, va, shift)),
        }
    }

    /// Empties a slot if its page has all but the low `shift` bits of its address in common with `va`.
    fn drop_entry(&self, base: *mut u8, slot: usize, va: u64, shift: u32) {
        let entry = self.read(base, slot);
        if (entry.read ^ va) >> shift == 0 || (entry.write ^ va) >> shift == 0 {
            self.clear_slot(base, slot);
        }
    }

    /// Drops writable translations, of one host page or all, after `report` has heard of them.
    fn drop_writable(&mut self, base: *mut u8, page: Option<u64>, mut report: impl FnMut(Gfn)) {
        match page {
            Some(page) => {
                if !self.drop_writer(base, page, &mut report) {
                    return;
                }
            }
            None => {
                for page in self.writers.pages() {
                    self.drop_writer(base, page, &mut report);
                }
            }
        }
        // Anchors are copies of entries that have been here.
        self.drop_anchors(base, |anchor, _| page.is_none_or(|page| anchor.base == page));
    }

    /// Drops the writable translations of one host page; false if there have been none.
    fn drop_writer(&mut self, base: *mut u8, page: u64, mut report: impl FnMut(Gfn)) -> bool {
        let Some((frame, slots)) = self.writers.remove(page) else { return false };
        report(frame);
        for slot in slots {
            let entry = self.read(base, slot as usize);
            if entry.base == page && entry.write != TlbEntry::empty(slot as usize).write {
                self.clear_slot(base, slot as usize);
            }
        }
        true
    }

    /// Drops translations that lead to one of these guest frames, which ascend, after `report` has heard of writable ones.
    fn drop_frames(&self, base: *mut u8, frames: &[Gfn], mut report: impl FnMut(Gfn)) {
        let concerned = |frame: Gfn| frames.binary_search(&frame).is_ok();
        self.drop_anchors(base, |anchor, write| match self.frame_of(base, anchor, write) {
            Some(frame) if concerned(frame) => {
                if write {
                    report(frame);
                }
                true
            }
            Some(_) => false,
            None => true,
        });
        for &slot in &self.filled {
            let entry = self.read(base, slot as usize);
            let empty = TlbEntry::empty(slot as usize);
            let frame = self.frame(slot as usize);
            if entry != empty && concerned(frame) {
                if entry.write != empty.write {
                    report(frame);
                }
                self.clear_slot(base, slot as usize);
            }
        }
    }

    /// True if everything else was dropped for it.
    fn insert(&mut self, base: *mut u8, va: u64, new: TlbEntry, frame: Gfn, resolved: &Resolved) -> bool {
        let slot = tlb_slot(self.table, va);
        // Slots were cleared one by one and filled again more often than the lists have room.
        let most = self.filled.len().max(self.private.len()).max(self.writers.slots());
        let full = most >= 2 * context::tlb_entries(self.table) || self.large.len() >= MOST_LARGE;
        if full {
            self.clear(base);
        }
        let old = self.read(base, slot);
        let empty = TlbEntry::empty(slot);
        let mut entry = new;
        if old.base == new.base && (old.read == va & !PAGE_MASK || old.write == va & !PAGE_MASK) {
            // The same page again, for another kind of access.
            entry.write = if new.write == empty.write { old.write } else { new.write };
        }
        let number = u32::try_from(slot).unwrap_or(0);
        if old == empty {
            self.filled.push(number);
        }
        let private = self.table == Table::Supervisor && !resolved.global;
        if let Some(kept) = self.frames.get_mut(slot) {
            let listed = old != empty && *kept & PRIVATE != 0;
            if private && !listed {
                self.private.push(number);
            }
            *kept = frame.0 | if private { PRIVATE } else { 0 };
        }
        if new.write != empty.write {
            self.writers.insert(entry.base, frame, number);
        }
        match resolved.page_size {
            PageSize::Mib2 => drop(self.large.insert(va >> LARGE_SHIFT, ())),
            PageSize::Mib4 | PageSize::Gib1 => self.gib.insert(va >> 30),
            PageSize::Kib4 | PageSize::Everything => {}
        }
        if let Some(word) = self.touched.get_mut(slot / 64) {
            *word |= 1 << (slot % 64);
        }
        self.write(base, slot, entry);
        full
    }
}

impl View {
    fn new(file: &Memfd, pcid: u16) -> Result<Self, HostError> {
        let mapping = Mapping::headed(file, at::END.unsigned_abs().into())?;
        let view = Self {
            mapping,
            pcid,
            used: 0,
            user: TlbBook::new(Table::User),
            ac: TlbBook::new(Table::SupervisorAc),
            jumps: JumpBook::new(Table::User),
        };
        view.user.clear_slot(view.base(), 0);
        view.ac.clear_slot(view.base(), 0);
        view.jumps.clear_slot(view.base(), 0);
        Ok(view)
    }

    fn base(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    fn clear(&mut self) {
        self.clear_memory();
        self.jumps.clear(self.base());
    }

    fn clear_memory(&mut self) {
        let base = self.base();
        self.user.clear(base);
        self.ac.clear(base);
    }
}

/// Which shadow stacks an invalidation makes worthless.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stale {
    pub(crate) supervisor: bool,
    pub(crate) user: bool,
}

impl Views {
    /// Views with one address space, PCID 0, all empty.
    pub(crate) fn new() -> Result<Self, HostError> {
        let file = Memfd::new("umbra-tlb", SHARED)?;
        let first = View::new(&file, 0)?;
        let go = Go(Arc::new(Mapping::new(&file, 0, PAGE_SIZE, Protection::ReadWrite)?));
        let views = Self {
            file,
            views: vec![first],
            current: 0,
            clock: 0,
            supervisor: TlbBook::new(Table::Supervisor),
            supervisor_jumps: JumpBook::new(Table::Supervisor),
            ac_jumps: JumpBook::new(Table::SupervisorAc),
            global_user: false,
            drops: 0,
            go,
        };
        views.supervisor.clear_slot(views.base(), 0);
        views.supervisor_jumps.clear_slot(views.base(), 0);
        views.ac_jumps.clear_slot(views.base(), 0);
        Ok(views)
    }

    /// The number of the current address space.
    pub(crate) fn pcid(&self) -> u16 {
        self.views.get(self.current).map_or(0, |view| view.pcid)
    }

    /// The start of the current view: what GS points at.
    pub(crate) fn base(&self) -> *mut u8 {
        self.views.get(self.current).map_or(std::ptr::null_mut(), View::base)
    }

    /// The context.
    pub(crate) fn context(&mut self) -> &mut Context {
        // SAFETY: every view begins with a context, zero when new, which is a valid one. Translated code of this vCPU does
        // not run meanwhile, and the word that other threads write lies behind the context.
        unsafe { &mut *self.base().cast::<Context>() }
    }

    /// The word by which other threads ask for attention.
    pub(crate) fn go(&self) -> Go {
        self.go.clone()
    }

    /// Grows whenever anything is dropped.
    pub(crate) const fn drops(&self) -> u64 {
        self.drops
    }

    /// Caches a translation; false if it was cached already.
    pub(crate) fn insert(
        &mut self,
        memory: &GuestMemory,
        table: Table,
        va: u64,
        write: bool,
        resolved: &Resolved,
    ) -> bool {
        let Target::Ram { mfn, gfn, .. } = resolved.target else { return false };
        let (base, page) = (self.base(), va & !PAGE_MASK);
        self.global_user |= resolved.global && table != Table::Supervisor;
        let Some(book) = self.book(table) else { return false };
        let slot = tlb_slot(table, va);
        let empty = TlbEntry::empty(slot);
        let old = book.read(base, slot);
        let host = memory.frames().host_ptr(mfn) as u64;
        let cached = if write { old.write } else { old.read } == page && old.base == host;
        if cached || host == 0 {
            return false;
        }
        // A page that may be written may be read.
        let write = if write { page } else { empty.write };
        // Whoever resumes a block relies on what it has checked before, anchors included.
        let new = TlbEntry { read: page, write, base: host, delta: host.wrapping_sub(page) };
        let dropped = book.insert(base, va, new, gfn, resolved);
        self.drops += u64::from(dropped);
        true
    }

    /// Whether translated code would find a page there for this access.
    pub(crate) fn holds(&mut self, table: Table, va: u64, write: bool) -> bool {
        let base = self.base();
        self.book(table).is_some_and(|book| {
            let entry = book.read(base, tlb_slot(table, va));
            (if write { entry.write } else { entry.read }) == va & !PAGE_MASK
        })
    }

    fn book(&mut self, table: Table) -> Option<&mut TlbBook> {
        let current = self.views.get_mut(self.current)?;
        Some(match table {
            Table::Supervisor => &mut self.supervisor,
            Table::SupervisorAc => &mut current.ac,
            Table::User => &mut current.user,
        })
    }

    fn jump_book(&mut self, table: Table) -> Option<&mut JumpBook> {
        let current = self.views.get_mut(self.current)?;
        Some(match table {
            Table::Supervisor => &mut self.supervisor_jumps,
            Table::SupervisorAc => &mut self.ac_jumps,
            Table::User => &mut current.jumps,
        })
    }

    /// The code at a linear address, if it is cached.
    pub(crate) fn code_at(&mut self, table: Table, va: u64) -> Option<u64> {
        let base = self.base();
        self.jump_book(table)?.look_up(base, va)
    }

    /// Caches where the code at a linear address is, and, by the key of its page's first byte, where other code of the page
    /// can be found.
    pub(crate) fn insert_code(
        &mut self,
        table: Table,
        va: u64,
        code: u64,
        key: Option<u64>,
        resolved: &Resolved,
    ) {
        self.note_code_page(table, va, key, resolved);
        let base = self.base();
        if let Some(book) = self.jump_book(table) {
            book.insert(base, va, code);
        }
    }

    /// Code that is cached depends on the page of `va`; by the key of the page's first byte, if there is one, other code
    /// there can be found.
    pub(crate) fn note_code_page(&mut self, table: Table, va: u64, key: Option<u64>, resolved: &Resolved) {
        let base = self.base();
        self.global_user |= resolved.global && table == Table::User;
        if let Some(book) = self.jump_book(table) {
            book.note_page(base, va, key, resolved);
        }
    }

    /// Forgets where the code at a linear address is.
    pub(crate) fn forget_code(&mut self, table: Table, va: u64) {
        let base = self.base();
        if let Some(book) = self.jump_book(table) {
            book.forget(base, va);
        }
    }

    /// The mode of the code in a jump cache.
    pub(crate) fn code_mode(&mut self, table: Table) -> Mode {
        self.jump_book(table).map_or(Mode::new(), |book| book.mode)
    }

    /// From now on a jump cache holds code of this mode; what it holds of another is forgotten. True if so.
    pub(crate) fn set_code_mode(&mut self, table: Table, mode: Mode) -> bool {
        let base = self.base();
        let Some(book) = self.jump_book(table).filter(|book| book.mode != mode) else { return false };
        book.clear(base);
        book.mode = mode;
        true
    }

    /// Forgets all code.
    pub(crate) fn clear_code(&mut self) {
        let base = self.base();
        self.supervisor_jumps.clear(base);
        self.ac_jumps.clear(base);
        for view in &mut self.views {
            view.jumps.clear(view.mapping.as_ptr());
        }
    }

    /// Forgets where all memory is.
    pub(crate) fn clear_memory(&mut self) {
        self.drops += 1;
        let base = self.base();
        self.supervisor.clear(base);
        self.views.iter_mut().for_each(View::clear_memory);
        self.global_user = false;
    }

    /// Drops what the MMU says.
    pub(crate) fn invalidate(&mut self, what: Invalidation) -> Result<Stale, HostError> {
        self.drops += 1;
        let everything = Stale { supervisor: true, user: true };
        Ok(match what {
            Invalidation::All => {
                self.clear_memory();
                self.clear_code();
                everything
            }
            Invalidation::NonGlobal => {
                self.views.iter_mut().for_each(View::clear);
                self.drop_private();
                everything
            }
            Invalidation::Page(va) => {
                let current = self.current;
                let everywhere = self.global_user;
                let stale = self.invalidate_page(va.0, |index, _| everywhere || index == current);
                Stale { supervisor: stale, user: stale }
            }
            Invalidation::PageOf(pcid, va) => {
                let stale = self.invalidate_page(va.0, |_, view| view.pcid == pcid);
                Stale { supervisor: stale, user: stale }
            }
            Invalidation::Space(pcid) => {
                self.views.iter_mut().filter(|view| view.pcid == pcid).for_each(View::clear);
                Stale { supervisor: self.drop_private(), user: true }
            }
            Invalidation::Switch(pcid) => {
                self.switch(pcid)?;
                Stale { supervisor: self.drop_private(), user: true }
            }
        })
    }

    /// True if code may have been concerned.
    fn invalidate_page(&mut self, va: u64, concerned: impl Fn(usize, &View) -> bool) -> bool {
        let base = self.base();
        self.supervisor.invalidate(base, va);
        let mut code = self.supervisor_jumps.invalidate(base, va);
        code |= self.ac_jumps.invalidate(base, va);
        for (index, view) in self.views.iter_mut().enumerate() {
            if concerned(index, view) {
                let base = view.base();
                view.user.invalidate(base, va);
                view.ac.invalidate(base, va);
                code |= view.jumps.invalidate(base, va);
            }
        }
        code
    }

    /// Drops the supervisor's pages that are not global. True if code may have been among them.
    fn drop_private(&mut self) -> bool {
        let base = self.base();
        self.supervisor.clear_private(base);
        let code = self.supervisor_jumps.private || self.ac_jumps.private;
        if code {
            self.supervisor_jumps.clear(base);
            self.ac_jumps.clear(base);
        }
        code
    }

    fn switch(&mut self, pcid: u16) -> Result<(), HostError> {
        self.clock += 1;
        let known = self.views.iter().position(|view| view.pcid == pcid);
        self.current = match known {
            Some(index) => index,
            None if self.views.len() < VIEWS => {
                self.views.push(View::new(&self.file, pcid)?);
                self.views.len() - 1
            }
            None => self.replace_oldest(pcid),
        };
        if let Some(view) = self.views.get_mut(self.current) {
            view.used = self.clock;
        }
        Ok(())
    }

    /// The view of another address space becomes this one's, empty.
    fn replace_oldest(&mut self, pcid: u16) -> usize {
        let by_use = self.views.iter_mut().enumerate().min_by_key(|(_, view)| view.used);
        by_use.map_or(0, |(index, view)| {
            view.clear();
            view.pcid = pcid;
            index
        })
    }

    /// Drops whatever translates an address; memory has been told.
    pub(crate) fn forget(&mut self, table: Table, va: u64) {
        self.drops += 1;
        let base = self.base();
        if let Some(book) = self.book(table) {
            book.clear_slot(base, tlb_slot(table, va));
            book.drop_anchors(base, |anchor, _| (anchor.page ^ va) & !PAGE_MASK == 0);
        }
    }

    /// Drops translations that lead to one of these guest frames, which ascend, after telling memory of writable ones.
    pub(crate) fn drop_frames(&mut self, memory: &GuestMemory, frames: &[Gfn]) {
        self.drops += 1;
        let note = |gfn: Gfn| memory.note_write(gfn, memory.entry(gfn).mfn);
        self.supervisor.drop_frames(self.base(), frames, note);
        for view in &self.views {
            view.user.drop_frames(view.base(), frames, note);
            view.ac.drop_frames(view.base(), frames, note);
        }
    }

    /// Drops writable translations, of one frame or of all, after telling memory of them.
    pub(crate) fn drop_writable(&mut self, memory: &GuestMemory, frame: Option<Mfn>) {
        self.drops += 1;
        let page = frame.map(|mfn| memory.frames().host_ptr(mfn) as u64);
        let note = |gfn: Gfn| memory.note_write(gfn, memory.entry(gfn).mfn);
        let base = self.base();
        self.supervisor.drop_writable(base, page, note);
        for view in &mut self.views {
            let base = view.base();
            view.user.drop_writable(base, page, note);
            view.ac.drop_writable(base, page, note);
        }
    }
}

/// The word by which other threads ask for attention: zero if they do.
#[derive(Clone, Debug)]
pub(crate) struct Go(Arc<Mapping>);

impl Go {
    fn word(&self) -> &AtomicU32 {
        let address = self.0.as_ptr().wrapping_add(offset(at::GO)).cast();
        // SAFETY: the word lies in the mapping, which lives as long as `self`, is aligned, and is only ever accessed
        // atomically.
        unsafe { AtomicU32::from_ptr(address) }
    }

    /// Asks for attention.
    pub(crate) fn call(&self) {
        self.word().store(0, Ordering::SeqCst);
    }

    /// Whether somebody has asked.
    #[inline]
    pub(crate) fn is_called(&self) -> bool {
        self.word().load(Ordering::Relaxed) == 0
    }

    /// Takes the request back; whoever asks from now on is heard.
    pub(crate) fn reset(&self) {
        self.word().store(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use memory::RamRange;
    use x86::Gpa;

    use super::*;

    #[test]
    fn who_makes_room_says_so() {
        let memory = GuestMemory::new(&[RamRange::from_bytes(Gpa(0), PAGE_SIZE)]).unwrap();
        let mfn = memory.entry(Gfn(0)).mfn;
        let target = Target::Ram { mfn, gfn: Gfn(0), cached: true };
        let resolved = Resolved { target, page_size: PageSize::Kib4, global: true, writable: false };
        let mut views = Views::new().unwrap();
        let dropped = (0..=2 * context::LARGE_TLB).any(|_| {
            let drops = views.drops();
            assert!(views.insert(&memory, Table::Supervisor, 0x5000, false, &resolved));
            let dropped = views.drops() != drops;
            views.forget(Table::Supervisor, 0x5000);
            dropped
        });
        assert!(dropped);
    }

    #[test]
    fn memory_hears_of_a_writable_page_that_has_lost_its_slot() {
        let memory = GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 2 * PAGE_SIZE)]).unwrap();
        let mut views = Views::new().unwrap();
        let rivals = [0x5000, 0x5000 + context::LARGE_TLB as u64 * PAGE_SIZE];
        assert_eq!(tlb_slot(Table::User, rivals[0]), tlb_slot(Table::User, rivals[1]));
        for (number, va) in (0..).zip(rivals) {
            let target = Target::Ram { mfn: memory.entry(Gfn(number)).mfn, gfn: Gfn(number), cached: true };
            let resolved = Resolved { target, page_size: PageSize::Kib4, global: false, writable: false };
            assert!(views.insert(&memory, Table::User, va, true, &resolved));
        }
        memory.start_dirty_log();
        for expected in [vec![Gfn(0), Gfn(1)], Vec::new()] {
            views.drop_writable(&memory, None);
            assert_eq!(memory.take_dirty(), expected);
        }
    }

    #[test]
    fn nothing_is_found_at_address_zero() {
        let mut views = Views::new().unwrap();
        for table in [Table::Supervisor, Table::SupervisorAc, Table::User] {
            let base = views.base();
            let book = views.jump_book(table).unwrap();
            // SAFETY: as in `JumpBook::clear_slot`.
            let empty = |book: &JumpBook| unsafe { book.entry(base, 0).read() };
            assert_ne!(empty(book).address, 0);
            book.forget(base, 0);
            assert_ne!(empty(book).address, 0);
            book.clear(base);
            assert_ne!(empty(book).address, 0);
        }
    }
}
