//! What the stub process has mapped: pages of one of the guest's address spaces.

use host::stub::{BREAKPOINTS, Rights, Stub};
use memory::GuestMemory;
use mmu::{Invalidation, PageSize, Resolved, Target};
use x86::{FpuState, Gfn, Mfn, PAGE_SHIFT, PAGE_SIZE, VectorState};

use crate::cache::NumberMap;
use crate::views::LARGE_SHIFT;

/// Pages that are mapped at most: Linux has a limit of 65530 mappings (`vm.max_map_count`).
const MOST: usize = 48 << 10;
/// Pages that are looked up again when all translations have been dropped.
const MOST_KEPT: usize = 512;
/// Binary logarithm of how many pages a large one is.
const REGION_SHIFT: u32 = LARGE_SHIFT - PAGE_SHIFT;
/// Ranges of such a size in which something is mapped at most.
const MOST_REGIONS: usize = 4 << 10;

/// How often a page is met for which there are no breakpoints before it gets those of others.
const PATIENCE: u32 = 32;

/// A page that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) mfn: Mfn,
    gfn: Gfn,
    pub(crate) rights: Rights,
}

/// A stub and what it has mapped.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) stub: Stub,
    /// The address space.
    pcid: u16,
    /// By linear page number.
    pages: NumberMap<View>,
    /// By frame: the linear page numbers that lead there.
    frames: NumberMap<Vec<u64>>,
    /// How many pages there are in each 2 MiB: the host has a page table for each.
    regions: NumberMap<u32>,
    /// The large pages of which there is something, by their number; one of 1 GiB counts as everything.
    large: NumberMap<()>,
    huge: bool,
    /// Translations have been dropped since.
    is_stale: bool,
    /// Pages whose code cannot be executed here, as far as is known, by their number; and for those that would need breakpoints which others
    /// have, how often they were wanted.
    foreign: NumberMap<Option<u32>>,
    /// Where the stub stops before instructions, in pages that are mapped to be executed.
    breakpoints: [Option<u64>; BREAKPOINTS],
    /// The instruction that has faulted last, and the address: the guest has been told, and will have done something about it when
    /// it comes back to the instruction.
    pub(crate) awaited: Option<(u64, u64)>,
    /// The registers of the units that the stub has, if it is known.
    pub(crate) units: Option<(FpuState, VectorState)>,
}

impl Space {
    pub(crate) fn new(stub: Stub) -> Self {
        Self {
            stub,
            pcid: 0,
            pages: NumberMap::default(),
            frames: NumberMap::default(),
            regions: NumberMap::default(),
            large: NumberMap::default(),
            huge: false,
            is_stale: false,
            foreign: NumberMap::default(),
            breakpoints: [None; BREAKPOINTS],
            awaited: None,
            units: None,
        }
    }

    /// From now on this is the address space of `pcid`. What was mapped when its translations were dropped stays if `finds` finds it again.
    pub(crate) fn choose(&mut self, pcid: u16, mut finds: impl FnMut(u64, Rights) -> Option<Resolved>) {
        if self.pcid != pcid || self.is_stale && self.pages.len() > MOST_KEPT {
            self.pcid = pcid;
            self.empty();
            self.is_stale = true;
        }
        if !std::mem::take(&mut self.is_stale) {
            return;
        }
        // It may be another program's. Nothing stays of one that the guest's processor does not have.
        self.units = None;
        let mut found = |(&number, view): (&u64, &View)| {
            let now = finds(number << PAGE_SHIFT, view.rights).filter(|now| view.is(now));
            (number, now.map(|now| now.page_size))
        };
        for (number, size) in self.pages.iter().map(&mut found).collect::<Vec<_>>() {
            match size {
                // A page may have become part of a large one.
                Some(size) => self.note_size(number, size),
                None => drop(self.unmap(number)),
            }
        }
    }

    /// What is mapped at an address.
    pub(crate) fn view(&self, va: u64) -> Option<&View> {
        self.pages.get(&(va >> PAGE_SHIFT))
    }

    /// Whether an address's page belongs to a large one.
    pub(crate) fn is_large(&self, va: u64) -> bool {
        self.large.contains_key(&(va >> LARGE_SHIFT))
    }

    /// Notes that the code of an address's page cannot be executed here.
    pub(crate) fn note_foreign(&mut self, va: u64) {
        self.note(va, None);
    }

    fn note(&mut self, va: u64, wanted: Option<u32>) {
        if self.foreign.len() >= MOST {
            self.foreign.clear();
        }
        self.foreign.insert(va >> PAGE_SHIFT, wanted);
    }

    /// Whether that was noted and is still so when the page is met.
    pub(crate) fn refuses(&mut self, va: u64) -> bool {
        match self.foreign.get_mut(&(va >> PAGE_SHIFT)) {
            None => false,
            Some(None) => true,
            Some(Some(wanted)) => {
                *wanted += 1;
                *wanted < PATIENCE
            }
        }
    }

    /// Has the stub stop before instructions of an address's page, which is mapped next, at these offsets, of which there are
    /// some. If breakpoints are lacking the page is foreign, until it has been met so often that others lose theirs.
    pub(crate) fn watch(&mut self, va: u64, offsets: &[u16]) -> bool {
        if !self.stub.has_breakpoints() {
            self.note_foreign(va);
            return false;
        }
        let number = va >> PAGE_SHIFT;
        let free = self.breakpoints.iter().filter(|place| place.is_none()).count();
        if free < offsets.len() {
            let wanted = self.foreign.get(&number).copied().flatten().unwrap_or(0);
            if wanted < PATIENCE {
                self.note(va, Some(wanted));
                return false;
            }
            for address in std::mem::take(&mut self.breakpoints).into_iter().flatten() {
                self.unmap(address >> PAGE_SHIFT);
            }
        }
        self.foreign.remove(&number);
        // What goes takes its breakpoints with it; nothing goes once they are there.
        self.unmap(number);
        self.make_room();
        let places = self.breakpoints.iter_mut().filter(|place| place.is_none());
        for (place, offset) in places.zip(offsets) {
            *place = Some((number << PAGE_SHIFT) + u64::from(*offset));
        }
        self.stub.set_breakpoints(self.breakpoints);
        true
    }

    /// Whether that was noted.
    pub(crate) fn is_foreign(&self, va: u64) -> bool {
        self.foreign.contains_key(&(va >> PAGE_SHIFT))
    }

    /// Whether the guest's pages can be where this page is.
    pub(crate) fn has_place_for(&self, va: u64) -> bool {
        va < Stub::END && !self.stub.own_pages().contains(&va)
    }

    /// Maps the page of an address, for which the host is to provide now if it is `met`. False if it leads to no memory.
    pub(crate) fn map(&mut self, va: u64, resolved: &Resolved, rights: Rights, met: bool) -> bool {
        let Target::Ram { mfn, gfn, .. } = resolved.target else { return false };
        if !self.has_place_for(va) {
            return false;
        }
        self.make_room();
        let number = va >> PAGE_SHIFT;
        self.forget(number);
        self.pages.insert(number, View { mfn, gfn, rights });
        self.frames.entry(mfn.0).or_default().push(number);
        *self.regions.entry(number >> REGION_SHIFT).or_default() += 1;
        self.note_size(number, resolved.page_size);
        self.stub.map(number << PAGE_SHIFT, PAGE_SIZE, mfn.0 << PAGE_SHIFT, rights, met);
        true
    }

    /// Room for one page more, if need be instead of all others.
    fn make_room(&mut self) {
        if self.pages.len() >= MOST || self.regions.len() >= MOST_REGIONS {
            self.empty();
        }
    }

    /// Notes that an invalidation of a page concerns others.
    fn note_size(&mut self, number: u64, size: PageSize) {
        match size {
            PageSize::Kib4 | PageSize::Everything => {}
            PageSize::Mib2 => drop(self.large.insert(number >> REGION_SHIFT, ())),
            PageSize::Mib4 | PageSize::Gib1 => self.huge = true,
        }
    }

    /// A page is not listed any more; what it was.
    fn forget(&mut self, number: u64) -> Option<View> {
        let old = self.pages.remove(&number)?;
        let there = |address: &u64| address >> PAGE_SHIFT == number;
        self.breakpoints
            .iter_mut()
            .filter(|place| place.as_ref().is_some_and(there))
            .for_each(|place| *place = None);
        if let Some(pages) = self.frames.get_mut(&old.mfn.0) {
            pages.retain(|&page| page != number);
            if pages.is_empty() {
                self.frames.remove(&old.mfn.0);
            }
        }
        let region = number >> REGION_SHIFT;
        if let Some(count) = self.regions.get_mut(&region) {
            *count -= 1;
            if *count == 0 {
                self.regions.remove(&region);
            }
        }
        Some(old)
    }

    /// All translations are dropped. What they were is looked up again before it is used: programs lose all at once more often than they
    /// lose anything in particular.
    pub(crate) fn make_stale(&mut self) {
        self.is_stale = true;
        self.foreign.clear();
    }

    /// Unmaps everything.
    pub(crate) fn empty(&mut self) {
        if !self.pages.is_empty() {
            self.stub.unmap_all();
        }
        self.pages.clear();
        self.frames.clear();
        self.regions.clear();
        self.large.clear();
        self.huge = false;
        self.is_stale = false;
        self.foreign.clear();
        self.breakpoints = [None; BREAKPOINTS];
        self.awaited = None;
    }

    fn unmap(&mut self, number: u64) -> Option<View> {
        let old = self.forget(number)?;
        self.stub.unmap(number << PAGE_SHIFT, PAGE_SIZE);
        Some(old)
    }

    /// Unmaps what the MMU says, and sometimes more.
    pub(crate) fn invalidate(&mut self, what: Invalidation) {
        match what {
            Invalidation::All | Invalidation::NonGlobal => self.make_stale(),
            Invalidation::Space(pcid) if pcid == self.pcid => self.make_stale(),
            Invalidation::Space(_) | Invalidation::Switch(_) => {}
            Invalidation::Page(va) | Invalidation::PageOf(_, va) => self.invalidate_page(va.0),
        }
    }

    fn invalidate_page(&mut self, va: u64) {
        self.foreign.remove(&(va >> PAGE_SHIFT));
        if self.huge {
            self.make_stale();
        } else if self.large.remove(&(va >> LARGE_SHIFT)).is_some() {
            let pages = 1 << REGION_SHIFT;
            let first = (va >> PAGE_SHIFT) & !(pages - 1);
            for number in first..first + pages {
                self.unmap(number);
            }
        } else {
            self.unmap(va >> PAGE_SHIFT);
        }
    }

    /// Unmaps the pages that lead to a frame and that `concerned` picks.
    fn unmap_frame(&mut self, mfn: Mfn, mut concerned: impl FnMut(&View) -> bool) {
        for number in self.frames.get(&mfn.0).cloned().unwrap_or_default() {
            if self.pages.get(&number).is_some_and(&mut concerned) {
                self.unmap(number);
            }
        }
    }

    /// A frame's code has been written: nobody executes it unseen.
    pub(crate) fn drop_code(&mut self, mfn: Mfn) {
        self.unmap_frame(mfn, |view| view.rights.execute);
    }

    /// Unmaps what is writable, of one frame or of all, after telling memory of it.
    pub(crate) fn drop_writable(&mut self, memory: &GuestMemory, frame: Option<Mfn>) {
        let frames = match frame {
            Some(mfn) => vec![mfn.0],
            None => self.frames.keys().copied().collect(),
        };
        for mfn in frames.into_iter().map(Mfn) {
            self.unmap_frame(mfn, |view| view.note_writes(memory));
        }
    }

    /// Unmaps what leads to one of these guest frames, which ascend, after telling memory of what is writable.
    pub(crate) fn drop_frames(&mut self, memory: &GuestMemory, frames: &[Gfn]) {
        let concerned = |view: &View| frames.binary_search(&view.gfn).is_ok();
        let numbers: Vec<u64> =
            self.pages.iter().filter(|(_, view)| concerned(view)).map(|(&number, _)| number).collect();
        for number in numbers {
            if let Some(view) = self.unmap(number) {
                view.note_writes(memory);
            }
        }
    }
}

impl View {
    /// Whether a translation leads there with these rights.
    fn is(&self, resolved: &Resolved) -> bool {
        let there =
            matches!(resolved.target, Target::Ram { mfn, gfn, .. } if (mfn, gfn) == (self.mfn, self.gfn));
        there && (resolved.writable || !self.rights.write)
    }

    /// Tells memory that it may have been written, if it is writable; whether it is.
    fn note_writes(&self, memory: &GuestMemory) -> bool {
        if self.rights.write {
            memory.note_write(self.gfn, memory.entry(self.gfn).mfn);
        }
        self.rights.write
    }
}
