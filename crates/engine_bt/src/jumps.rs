//! What a jump cache holds: where the code at linear addresses is, and the pages that it is filled from by translated code
//! itself ([`translate::context::CodePage`]).
//!
//! Whatever translated code may find depends on pages that are in the book, so a page that goes takes what was found with it.

use mmu::{PageSize, RegionFilter, Resolved};
use translate::Mode;
use translate::context::{CodePage, JUMP_GROUP, JUMPS, JumpEntry, Table, at, code_page_slot, jump_slot};
use x86::PAGE_MASK;

use crate::cache::NumberMap;
use crate::views::offset;

/// Groups of slots of a jump cache.
const GROUPS: usize = JUMPS / JUMP_GROUP;
/// Pages that a jump cache's code may lie in before it is emptied.
const MOST_PAGES: usize = 1 << 15;

/// What one jump cache holds.
#[derive(Debug)]
pub(crate) struct JumpBook {
    pub(crate) table: Table,
    /// The mode of all its code.
    pub(crate) mode: Mode,
    /// The pages that its code lies in, large ones by their regions too.
    pages: NumberMap<()>,
    large: RegionFilter,
    /// Some of it is not in global pages.
    pub(crate) private: bool,
}

impl JumpBook {
    pub(crate) fn new(table: Table) -> Self {
        let (pages, large) = (NumberMap::default(), RegionFilter::default());
        Self { table, mode: Mode::new(), pages, large, private: false }
    }

    fn at<T>(&self, base: *mut u8, part: i32, index: usize) -> *mut T {
        base.wrapping_add(offset(at::jumps(self.table) + part)).cast::<T>().wrapping_add(index)
    }

    pub(crate) fn entry(&self, base: *mut u8, slot: usize) -> *mut JumpEntry {
        self.at(base, 0, slot % JUMPS)
    }

    /// The byte that is nonzero if a group of slots may be in use.
    fn group(&self, base: *mut u8, number: usize) -> *mut u8 {
        self.at(base, at::JUMP_GROUPS, number % GROUPS)
    }

    fn code_page(&self, base: *mut u8, va: u64) -> *mut CodePage {
        self.at(base, at::JUMP_PAGES, code_page_slot(va))
    }

    fn write(&self, base: *mut u8, slot: usize, entry: JumpEntry) {
        // SAFETY: `base` is a view's start and the slot lies in this cache, which lies in every view; translated code of
        // this vCPU does not run meanwhile.
        unsafe { self.entry(base, slot).write(entry) };
    }

    pub(crate) fn clear_slot(&self, base: *mut u8, slot: usize) {
        self.write(base, slot, JumpEntry::empty(slot));
    }

    pub(crate) fn clear(&mut self, base: *mut u8) {
        if self.pages.is_empty() {
            return;
        }
        for eight in (0..GROUPS).step_by(8) {
            // SAFETY: as in `write`, for the bytes of eight groups, which begin at a multiple of eight.
            let used = unsafe { self.group(base, eight).cast::<u64>().replace(0) }.to_le_bytes();
            for (number, _) in (eight..).zip(used).filter(|&(_, used)| used != 0) {
                (number * JUMP_GROUP..(number + 1) * JUMP_GROUP).for_each(|slot| self.clear_slot(base, slot));
            }
        }
        for &page in self.pages.keys() {
            // SAFETY: as in `write`, for the page's entry.
            unsafe { self.code_page(base, page << 12).write(CodePage::default()) };
        }
        *self = Self { mode: self.mode, ..Self::new(self.table) };
    }

    pub(crate) fn insert(&mut self, base: *mut u8, va: u64, code: u64) {
        let slot = jump_slot(va);
        self.write(base, slot, JumpEntry { address: va, code });
        // SAFETY: as in `write`, for the group's byte.
        unsafe { self.group(base, slot / JUMP_GROUP).write(1) };
        if self.pages.len() >= MOST_PAGES {
            self.clear(base);
        }
    }

    /// Code in the page of `va` is cached, or may be found by the key of the page's first byte.
    pub(crate) fn note_page(&mut self, base: *mut u8, va: u64, key: Option<u64>, resolved: &Resolved) {
        self.pages.insert(va >> 12, ());
        if !matches!(resolved.page_size, PageSize::Kib4) {
            self.large.insert(va >> 30);
        }
        self.private |= !resolved.global;
        if let Some(key) = key.filter(|_| va > PAGE_MASK) {
            let page = CodePage { page: va & !PAGE_MASK, key };
            // SAFETY: as in `write`, for the page's entry.
            unsafe { self.code_page(base, va).write(page) };
        }
    }

    pub(crate) fn look_up(&self, base: *mut u8, va: u64) -> Option<u64> {
        // SAFETY: as in `write`.
        let entry = unsafe { self.entry(base, jump_slot(va)).read() };
        (entry.address == va && entry.code != 0).then_some(entry.code)
    }

    pub(crate) fn forget(&self, base: *mut u8, va: u64) {
        self.clear_slot(base, jump_slot(va));
    }

    /// Drops everything if any of it may lie in the page of `va`. True if so.
    pub(crate) fn invalidate(&mut self, base: *mut u8, va: u64) -> bool {
        let hit = self.pages.contains_key(&(va >> 12)) || self.large.may_contain(va >> 30);
        if hit {
            self.clear(base);
        }
        hit
    }
}
