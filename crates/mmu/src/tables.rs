//! The tables that techniques compose translations in: trees of pages of entries, with the ways back.
//!
//! The format is ours, since nobody but [`Tables::walk`] reads it, and close to the processor's:
//!
//! ```text
//!   63              12 11  10    9    8   7     6   5       4       3       2    1    0
//!  | NX | frame/page  | –  | size   | G | leaf | D | – | P2M-write | whole | U/S | R/W | P |
//! ```
//!
//! A *leaf* leads to a run of machine frames in ascending order, as long as its page's entries span; others lead to the
//! next page. *Whole* marks a link to pages that together stand for one large page of the guest, which the P2M does not let
//! be one; *size* is the size of the guest's page, in leaves and in such links. What a walk finds is what all entries on the
//! way allow together: rights, and D and G of leaves and whole links.
//!
//! # The ways back
//! Every present entry is in one doubly linked list: a leaf in that of the guest frame it leads to (by size of the run), a
//! link in that of the page it leads to. So what leads to a frame that changed, or to a page that is given up, is found
//! without a search and is exactly what is dropped. *Owned* pages have one parent and go with the link to them.
//!
//! # Bounds
//! There are at most `limit` pages. Who is going to build makes room first ([`Tables::make_room`]): pages that no walk has
//! passed through since the clock's hand last came by are given up. What depended on them is built again when it is missed.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use x86::bits::index;
use x86::paging::pte;
use x86::{Gfn, Gva, Mfn, PAGE_SHIFT};

use crate::context::Rights;
use crate::walk::PageSize;

/// Bits of an entry.
pub(crate) mod word {
    use x86::paging::pte;

    pub(crate) const P: u64 = pte::P;
    pub(crate) const RW: u64 = pte::RW;
    pub(crate) const US: u64 = pte::US;
    pub(crate) const WHOLE: u64 = 1 << 3;
    pub(crate) const P2M_WRITE: u64 = 1 << 4;
    pub(crate) const D: u64 = pte::D;
    pub(crate) const LEAF: u64 = pte::PS;
    pub(crate) const G: u64 = pte::G;
    pub(crate) const NX: u64 = pte::NX;
    pub(crate) const SIZE_SHIFT: u32 = 9;
    /// What a link that takes nothing away has.
    pub(crate) const ALL: u64 = P | RW | US | D | G;
}

const NONE: u32 = u32::MAX;
const INDEX_BITS: u32 = 10;
/// Pages that slot numbers can name.
const MOST_PAGES: usize = 1 << 21;
/// A page table has no more levels.
const LEVELS: usize = 5;

/// The place of an entry: page number and index.
pub(crate) type Slot = u32;

/// The slot of an entry of a page.
pub(crate) fn slot(page: u32, index: u64) -> Slot {
    page << INDEX_BITS | x86::bits::low32(index) & ((1 << INDEX_BITS) - 1)
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    word: u64,
    /// Of a leaf or a whole link: the first guest frame.
    gfn: u32,
    prev: Slot,
    next: Slot,
}

const ABSENT: Entry = Entry { word: 0, gfn: 0, prev: NONE, next: NONE };

#[derive(Debug)]
struct Page<W> {
    what: W,
    /// log2 of what an entry spans.
    shift: u32,
    entries: Box<[Entry]>,
    /// The first of the links to this page.
    parents: Slot,
    owned: bool,
    /// A walk has passed since the hand came by.
    used: bool,
    /// A walk has passed since the owner last asked.
    walked: bool,
}

/// A multiplicative hash of one number.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

/// A map by numbers that a guest may choose, but not so that it gains: collisions cost it its own time.
pub(crate) type NumberMap<T> = HashMap<u64, T, BuildHasherDefault<NumberHasher>>;

impl<W> Page<W> {
    /// The index by which an address goes on from here.
    fn index_of(&self, va: u64) -> u64 {
        va >> self.shift & (self.entries.len() as u64 - 1)
    }
}

/// What a walk found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) rights: Rights,
    pub(crate) dirty: bool,
    pub(crate) global: bool,
    pub(crate) size: PageSize,
    pub(crate) gfn: Gfn,
    pub(crate) mfn: Mfn,
    pub(crate) p2m_write: bool,
    /// Entries looked at.
    pub(crate) references: u64,
}

/// Pages, and the ways back. `W` is what the owner needs to know when a page is gone.
#[derive(Debug)]
pub(crate) struct Tables<W> {
    pages: Vec<Option<Page<W>>>,
    free: Vec<u32>,
    live: usize,
    limit: usize,
    hand: usize,
    /// By size of the run and first frame: the first of the leaves that lead there.
    frames: NumberMap<Slot>,
    removed: Vec<W>,
    bytes: u64,
    evictions: u64,
}

/// The sizes of runs.
const SHIFTS: [u32; 4] = [PAGE_SHIFT, 21, 22, 30];

fn frame_key(shift: u32, gfn: u64) -> u64 {
    gfn >> (shift - PAGE_SHIFT) | u64::from(shift) << 56
}

const fn size_code(size: PageSize) -> u64 {
    match size {
        PageSize::Kib4 | PageSize::Everything => 0,
        PageSize::Mib2 => 1,
        PageSize::Mib4 => 2,
        PageSize::Gib1 => 3,
    }
}

/// The size bits of a word.
pub(crate) const fn size_bits(size: PageSize) -> u64 {
    size_code(size) << word::SIZE_SHIFT
}

const fn size_of_word(word: u64) -> PageSize {
    match word >> word::SIZE_SHIFT & 3 {
        0 => PageSize::Kib4,
        1 => PageSize::Mib2,
        2 => PageSize::Mib4,
        _ => PageSize::Gib1,
    }
}

/// A word's frame field.
const fn frame_bits(number: u64) -> u64 {
    number << PAGE_SHIFT & pte::ADDRESS
}

/// The machine frame or page in a word.
const fn target(word: u64) -> u64 {
    (word & pte::ADDRESS) >> PAGE_SHIFT
}

/// The rights of an entry of the guest's.
pub(crate) const fn rights_bits(rights: Rights) -> u64 {
    (if rights.user { word::US } else { 0 })
        | (if rights.writable { word::RW } else { 0 })
        | (if rights.no_execute { word::NX } else { 0 })
}

impl<W> Tables<W> {
    /// None yet, and never more than `limit`.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            pages: Vec::new(),
            free: Vec::new(),
            live: 0,
            limit: limit.min(MOST_PAGES),
            hand: 0,
            frames: NumberMap::default(),
            removed: Vec::new(),
            bytes: 0,
            evictions: 0,
        }
    }

    /// The number of pages, what they take in bytes, and how many were given up for want of room.
    pub(crate) const fn figures(&self) -> (u64, u64, u64) {
        (self.live as u64, self.bytes, self.evictions)
    }

    // ---- pages ---------------------------------------------------------------------------------------------------

    /// A new page of `entries` entries, at most 1024, that span `1 << shift` bytes each.
    pub(crate) fn add(&mut self, what: W, shift: u32, entries: u64) -> u32 {
        self.add_page(what, shift, entries, false)
    }

    /// A new page of `1 << bits` entries, owned by an entry that becomes the link to it.
    pub(crate) fn add_below(&mut self, slot: Slot, what: W, bits: u32, flags: u64, gfn: Gfn) -> u32 {
        let shift = self.shift(slot >> INDEX_BITS) - bits;
        let child = self.add_page(what, shift, 1 << bits, true);
        self.set_link(slot, flags, child, gfn);
        child
    }

    fn add_page(&mut self, what: W, shift: u32, entries: u64, owned: bool) -> u32 {
        let entries = vec![ABSENT; index(entries.min(1 << INDEX_BITS))].into_boxed_slice();
        self.live += 1;
        self.bytes += size_of_val(&*entries) as u64;
        let page = Some(Page { what, shift, entries, parents: NONE, owned, used: true, walked: true });
        if let Some(number) = self.free.pop()
            && let Some(place) = self.pages.get_mut(number as usize)
        {
            *place = page;
            return number;
        }
        self.pages.push(page);
        u32::try_from(self.pages.len() - 1).unwrap_or(NONE)
    }

    fn page(&self, number: u32) -> Option<&Page<W>> {
        self.pages.get(number as usize)?.as_ref()
    }

    fn page_mut(&mut self, number: u32) -> Option<&mut Page<W>> {
        self.pages.get_mut(number as usize)?.as_mut()
    }

    /// What a page is.
    pub(crate) fn what(&self, number: u32) -> Option<&W> {
        self.page(number).map(|page| &page.what)
    }

    /// Whether a walk has come through a page since this was last asked.
    pub(crate) fn take_walked(&mut self, number: u32) -> bool {
        self.page_mut(number).is_some_and(|page| std::mem::take(&mut page.walked))
    }

    /// Gives a page up: what leads to it, what it leads to, and the pages it owns.
    pub(crate) fn remove(&mut self, number: u32) {
        let Some(page) = self.page_mut(number) else { return };
        let mut parent = std::mem::replace(&mut page.parents, NONE);
        let (len, first) = (page.entries.len() as u64, slot(number, 0));
        while parent != NONE {
            let Some(entry) = self.entry_mut(parent) else { break };
            parent = std::mem::replace(entry, ABSENT).next;
        }
        for index in 0..len {
            self.clear(first + x86::bits::low32(index));
        }
        if let Some(page) = self.pages.get_mut(number as usize).and_then(Option::take) {
            self.live -= 1;
            self.bytes -= size_of_val(&*page.entries) as u64;
            self.free.push(number);
            if !page.owned {
                self.removed.push(page.what);
            }
        }
    }

    /// Gives everything up.
    pub(crate) fn remove_all(&mut self) {
        for number in 0..self.pages.len() {
            self.remove(u32::try_from(number).unwrap_or(NONE));
        }
    }

    /// Pages that are gone, owned ones excepted, since this was last called.
    pub(crate) fn take_removed(&mut self) -> Vec<W> {
        std::mem::take(&mut self.removed)
    }

    /// Sees to it that `count` pages can be added.
    pub(crate) fn make_room(&mut self, count: usize) {
        // Each turn of the hand gives up at least one page.
        while self.live != 0 && self.live + count > self.limit {
            self.hand = (self.hand + 1) % self.pages.len().max(1);
            let number = u32::try_from(self.hand).unwrap_or(0);
            match self.page_mut(number) {
                Some(page) if page.used => page.used = false,
                Some(_) => {
                    self.evictions += 1;
                    self.remove(number);
                }
                None => {}
            }
        }
    }

    // ---- entries -------------------------------------------------------------------------------------------------

    fn entry(&self, slot: Slot) -> Entry {
        let entries = self.page(slot >> INDEX_BITS).map(|page| &page.entries);
        entries.and_then(|entries| entries.get(Self::index(slot))).copied().unwrap_or(ABSENT)
    }

    fn entry_mut(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.page_mut(slot >> INDEX_BITS)?.entries.get_mut(Self::index(slot))
    }

    const fn index(slot: Slot) -> usize {
        (slot & ((1 << INDEX_BITS) - 1)) as usize
    }

    /// The slot by which an address goes on from a page.
    pub(crate) fn slot_of(&self, page: u32, va: u64) -> Option<Slot> {
        let known = self.page(page)?;
        Some(slot(page, known.index_of(va)))
    }

    /// log2 of what an entry of a page spans.
    pub(crate) fn shift(&self, page: u32) -> u32 {
        self.page(page).map_or(PAGE_SHIFT, |page| page.shift)
    }

    /// The word of an entry, and the guest frame of a leaf or whole link.
    pub(crate) fn get(&self, slot: Slot) -> (u64, Gfn) {
        let entry = self.entry(slot);
        (entry.word, Gfn(entry.gfn.into()))
    }

    /// The page that a link leads to.
    pub(crate) fn child(&self, slot: Slot) -> Option<u32> {
        let word = self.entry(slot).word;
        (word & (word::P | word::LEAF) == word::P).then(|| u32::try_from(target(word)).ok()).flatten()
    }

    /// Makes an entry a leaf, or a link, with these flags. `gfn` is of use in leaves and whole links.
    fn set(&mut self, slot: Slot, flags: u64, target: u64, gfn: Gfn) {
        self.clear(slot);
        let Ok(gfn) = u32::try_from(gfn.0) else { return };
        let word = flags | word::P | frame_bits(target);
        let next = self.head(slot, word, gfn).map_or(NONE, |head| std::mem::replace(head, slot));
        let Some(entry) = self.entry_mut(slot) else { return };
        *entry = Entry { word, gfn, prev: NONE, next };
        if let Some(next) = self.entry_mut(next) {
            next.prev = slot;
        }
    }

    /// Leads to a run of machine frames.
    pub(crate) fn set_leaf(&mut self, slot: Slot, flags: u64, gfn: Gfn, mfn: Mfn) {
        self.set(slot, flags | word::LEAF, mfn.0, gfn);
    }

    /// Leads to a page.
    pub(crate) fn set_link(&mut self, slot: Slot, flags: u64, child: u32, gfn: Gfn) {
        self.set(slot, flags & !word::LEAF, child.into(), gfn);
    }

    /// Changes the flags of an entry that leads where it did.
    pub(crate) fn set_flags(&mut self, slot: Slot, flags: u64) {
        if let Some(entry) = self.entry_mut(slot) {
            let kept = entry.word & (pte::ADDRESS | word::LEAF);
            entry.word = flags & !(pte::ADDRESS | word::LEAF) | word::P | kept;
        }
    }

    /// The head of the list that an entry with this word belongs to.
    fn head(&mut self, slot: Slot, word: u64, gfn: u32) -> Option<&mut Slot> {
        if word & word::LEAF == 0 {
            let child = u32::try_from(target(word)).ok()?;
            return self.page_mut(child).map(|page| &mut page.parents);
        }
        let shift = self.shift(slot >> INDEX_BITS);
        Some(self.frames.entry(frame_key(shift, gfn.into())).or_insert(NONE))
    }

    /// Makes an entry absent, with the page it owns.
    pub(crate) fn clear(&mut self, slot: Slot) {
        let entry = self.entry(slot);
        if entry.word & word::P == 0 {
            return;
        }
        let child = self.child(slot);
        if let Some(next) = self.entry_mut(entry.next) {
            next.prev = entry.prev;
        }
        if let Some(prev) = self.entry_mut(entry.prev) {
            prev.next = entry.next;
        } else if entry.next == NONE && entry.word & word::LEAF != 0 {
            let shift = self.shift(slot >> INDEX_BITS);
            self.frames.remove(&frame_key(shift, entry.gfn.into()));
        } else if let Some(head) = self.head(slot, entry.word, entry.gfn) {
            *head = entry.next;
        }
        if let Some(entry) = self.entry_mut(slot) {
            *entry = ABSENT;
        }
        if let Some(child) = child
            && self.page(child).is_some_and(|page| page.owned)
        {
            self.remove(child);
        }
    }

    /// Drops exactly the leaves that lead to a guest frame.
    pub(crate) fn drop_frame(&mut self, gfn: Gfn) {
        for shift in SHIFTS {
            while let Some(&slot) = self.frames.get(&frame_key(shift, gfn.0)) {
                if self.entry(slot).word & word::P == 0 {
                    break;
                }
                self.clear(slot);
            }
        }
    }

    // ---- walks ---------------------------------------------------------------------------------------------------

    /// Where an address leads from a page on, if everything on the way is present.
    pub(crate) fn walk(&mut self, root: u32, va: u64) -> Option<Found> {
        let mut rights = Rights::ALL;
        let (mut dirty, mut global, mut size) = (true, true, None);
        let mut number = root;
        for references in 1..=LEVELS as u64 {
            let page = self.page_mut(number)?;
            (page.used, page.walked) = (true, true);
            let &Entry { word, gfn, .. } = page.entries.get(index(page.index_of(va)))?;
            if word & word::P == 0 {
                return None;
            }
            rights.restrict(word);
            if word & (word::LEAF | word::WHOLE) != 0 {
                dirty &= word & word::D != 0;
                global &= word & word::G != 0;
                size = size.or(Some(size_of_word(word)));
            }
            if word & word::LEAF != 0 {
                let into = (va & ((1 << page.shift) - 1)) >> PAGE_SHIFT;
                return Some(Found {
                    rights,
                    dirty,
                    global,
                    size: size.unwrap_or(PageSize::Kib4),
                    gfn: Gfn(u64::from(gfn) + into),
                    mfn: Mfn(target(word) + into),
                    p2m_write: word & word::P2M_WRITE != 0,
                    references,
                });
            }
            number = u32::try_from(target(word)).ok()?;
        }
        None
    }
}

/// The guest-physical address of `va`, which was found.
pub(crate) fn address(found: &Found, va: Gva) -> x86::Gpa {
    x86::Gpa(found.gfn.0 << PAGE_SHIFT | va.offset())
}

/// How many tables a guest's memory may have shadows of: one for every 64 frames, and a few.
pub(crate) fn table_limit(memory: &memory::GuestMemory) -> usize {
    index(memory.ram_bytes() >> PAGE_SHIFT) / 64 + 256
}
