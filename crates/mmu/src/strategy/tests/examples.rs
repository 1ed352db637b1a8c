//! The examples of `docs/design/0007-memory-virtualization.md`, with its figures.
//!
//! One guest: a four-level table at frames 1 to 4 maps page 0x4000_0000 to frame 16; a second root, frame 5, shares all
//! but the top.

use std::sync::Arc;

use memory::{FrameKind, GuestMemory, RamRange};
use x86::control::{cr0, cr4, efer};
use x86::paging::pte;
use x86::{Gfn, Gpa, Gva, Mfn};

use crate::context::{Access, PagingContext, PagingFeatures, Privilege};
use crate::strategy::{MmuFigures, MmuStats};
use crate::tlb::{Target, Tlb};
use crate::walk::{PageFault, PageSize};
use crate::{Mmu, Technique};

const FEATURES: PagingFeatures = PagingFeatures { phys_bits: 40, gib_pages: true, pse36: true, pat: true };
const ALL: u64 = pte::P | pte::RW | pte::US;
const VA: u64 = 1 << 30;
/// The page-table entry of [`VA`].
const PTE: u64 = 4 << 12;
const PDE: u64 = 3 << 12;
const RAM: Target = ram(16);

const fn ram(frame: u64) -> Target {
    Target::Ram { mfn: Mfn(frame), gfn: Gfn(frame), cached: true }
}

struct Guest {
    memory: Arc<GuestMemory>,
    mmu: Mmu,
    tlb: Tlb,
    context: PagingContext,
    before: MmuStats,
}

fn context(root: u64) -> PagingContext {
    let efer = efer::LMA | efer::LME | efer::NXE;
    let cr0 = cr0::PE | cr0::PG | cr0::WP;
    PagingContext::new(cr0, root << 12, cr4::PAE | cr4::PGE, efer, [0; 4], &FEATURES)
}

impl Guest {
    fn new(technique: Technique) -> Self {
        Self::with_ram(technique, 2 << 30)
    }

    fn with_ram(technique: Technique, bytes: u64) -> Self {
        let memory = Arc::new(GuestMemory::new(&[RamRange::from_bytes(Gpa(0), bytes)]).unwrap());
        let mmu = Mmu::new(memory.clone(), technique);
        let mut tlb = mmu.tlb();
        let context = context(1);
        tlb.set_regime(&context);
        let guest = Self { memory, mmu, tlb, context, before: MmuStats::default() };
        guest.put(1 << 12, 2 << 12 | ALL);
        guest.put(5 << 12, 2 << 12 | ALL);
        guest.put((2 << 12) + 8, 3 << 12 | ALL);
        guest.put(PDE, 4 << 12 | ALL);
        guest.put(PDE + 8, 0x200 << 12 | ALL | pte::PS);
        guest.put(PTE, 16 << 12 | ALL);
        guest
    }

    fn put(&self, at: u64, entry: u64) {
        self.memory.write_word(Gpa(at), entry).unwrap();
    }

    fn entry(&self, at: u64) -> u64 {
        self.memory.read_word(Gpa(at)).unwrap()
    }

    /// An access with an empty TLB.
    fn miss(&mut self, va: u64, access: Access) -> Result<Target, PageFault> {
        self.tlb.empty();
        self.before = self.tlb.stats();
        self.tlb.fill(&self.context, Gva(va), access, Privilege::Supervisor)
    }

    fn read(&mut self, va: u64) -> Result<Target, PageFault> {
        self.miss(va, Access::Read)
    }

    /// Hits in shadow or virtual TLB, and references to the guest's tables, of the last access.
    fn last(&self) -> (u64, u64) {
        let now = self.tlb.stats();
        (now.shadow_hits - self.before.shadow_hits, now.guest_references - self.before.guest_references)
    }

    fn figures(&self) -> MmuFigures {
        self.mmu.figures()
    }

    fn load(&mut self, root: u64) {
        self.context = context(root);
        self.tlb.switch_root(&self.context, false);
    }
}

const HIT: (u64, u64) = (1, 0);
const WALKED: (u64, u64) = (0, 4);

#[test]
fn walk() {
    let mut guest = Guest::new(Technique::Walk);
    for _ in 0..2 {
        assert_eq!((guest.read(VA), guest.last()), (Ok(RAM), WALKED));
    }
    assert_eq!(guest.figures(), MmuFigures::default());
}

#[test]
fn vtlb() {
    let mut guest = Guest::new(Technique::Vtlb);
    assert_eq!((guest.read(VA), guest.last()), (Ok(RAM), WALKED));
    assert_eq!((guest.read(VA), guest.last()), (Ok(RAM), HIT));
    // The guest maps another frame and does not say so; then it does.
    guest.put(PTE, 17 << 12 | ALL);
    assert_eq!((guest.read(VA), guest.last()), (Ok(RAM), HIT), "as a TLB may");
    guest.tlb.invalidate_page(Gva(VA));
    assert_eq!((guest.read(VA), guest.last()), (Ok(ram(17)), WALKED));
    // The first write is a hidden fault, which sets D.
    assert_eq!((guest.miss(VA, Access::Write), guest.last()), (Ok(ram(17)), WALKED));
    assert_eq!((guest.tlb.stats().hidden_dirty, guest.entry(PTE) & pte::D), (1, pte::D));
    assert_eq!((guest.miss(VA, Access::Write), guest.last()), (Ok(ram(17)), HIT));
    // Another root: everything has to be walked again, and again on the way back.
    guest.load(5);
    assert_eq!((guest.read(VA), guest.last()), (Ok(ram(17)), WALKED));
    guest.load(1);
    assert_eq!((guest.read(VA), guest.last()), (Ok(ram(17)), WALKED));
}

#[test]
fn eager() {
    let mut guest = Guest::new(Technique::Eager);
    assert_eq!((guest.read(VA), guest.last()), (Ok(RAM), (0, 4)), "walked, traced, and walked again");
    assert_eq!((guest.read(VA), guest.last()), (Ok(RAM), HIT));
    assert_eq!(guest.figures().tables, 4);
    assert!((1..=4).all(|table| guest.memory.is_traced(Mfn(table))));
    // A second root has a shadow of its own for the top, and shares the others'.
    guest.load(5);
    assert_eq!((guest.read(VA), guest.last()), (Ok(RAM), WALKED));
    guest.load(1);
    assert_eq!((guest.read(VA), guest.last()), (Ok(RAM), HIT), "kept across loads of CR3");
    guest.load(5);
    assert_eq!((guest.read(VA), guest.last(), guest.figures().tables), (Ok(RAM), HIT, 5));
    // Writes are mirrored at once, for both.
    guest.put(PTE, 17 << 12 | ALL | pte::A);
    assert_eq!((guest.read(VA), guest.last()), (Ok(ram(17)), WALKED), "another frame: the old entry went");
    guest.put(PTE + 8, 18 << 12 | ALL | pte::A);
    assert_eq!((guest.read(VA + 0x1000), guest.last()), (Ok(ram(18)), HIT), "nobody had asked yet");
    guest.put(PTE, 17 << 12 | pte::P | pte::A);
    assert!(guest.miss(VA, Access::Write).is_err(), "a demotion needs no invalidation here");
    guest.put(PTE, 17 << 12 | ALL);
    assert_eq!(
        (guest.read(VA), guest.entry(PTE) & pte::A),
        (Ok(ram(17)), pte::A),
        "A cleared is A set again"
    );
    // A page that is written without being used is a table no more.
    let before = guest.figures().traced_writes;
    let clear = |guest: &mut Guest| {
        // The kernel writes through its own map, whose misses do not come through the table.
        let writes = (0..512).take_while(|index| {
            guest.put(PTE + 8 * index, 0);
            guest.read(VA + 0x20_0000).unwrap();
            guest.memory.is_traced(Mfn(4))
        });
        writes.count()
    };
    assert_eq!(clear(&mut guest), 5);
    assert!(guest.read(VA).is_err());
    let figures = guest.figures();
    assert_eq!((figures.tables, figures.lost_traces, figures.traced_writes), (4, 1, before + 6));
}

#[test]
fn lazy() {
    let mut guest = Guest::new(Technique::Lazy);
    guest.read(VA).unwrap();
    assert_eq!((guest.read(VA), guest.last()), (Ok(RAM), HIT));
    // The first write pays for all of them.
    guest.put(PTE, 17 << 12 | ALL);
    (1..512).for_each(|index| guest.put(PTE + 8 * index, 18 << 12 | ALL));
    assert_eq!(guest.figures().traced_writes, 1);
    assert!(!guest.memory.is_traced(Mfn(4)) && guest.memory.is_traced(Mfn(3)));
    assert_eq!((guest.read(VA), guest.last()), (Ok(RAM), HIT), "behind, as a TLB may be");
    assert_eq!(guest.read(VA + 0x1000), Ok(ram(18)), "what was not there is walked for");
    guest.tlb.invalidate_page(Gva(VA));
    assert!(guest.memory.is_traced(Mfn(4)));
    assert_eq!((guest.read(VA), guest.last()), (Ok(ram(17)), WALKED));
    assert_eq!((guest.read(VA + 0x1000), guest.last()), (Ok(ram(18)), HIT));
    assert_eq!((guest.figures().resyncs, guest.figures().lost_traces), (1, 1));
    // A load of CR3 is one more occasion.
    guest.put(PTE, 16 << 12 | ALL);
    guest.load(5);
    assert_eq!(guest.read(VA), Ok(RAM));
    assert_eq!(guest.figures().resyncs, 2);
    // A page that is behind again and again, and not walked through, is a table no more.
    let written = (0..8).take_while(|&index| {
        guest.put(PTE + 8 * (index + 8), index);
        guest.tlb.invalidate_page(Gva(VA));
        guest.memory.is_traced(Mfn(4))
    });
    assert_eq!(written.count(), 1);
    assert_eq!((guest.read(VA), guest.last()), (Ok(RAM), (0, 4)), "it can be one again");
}

/// An upper entry that becomes more permissive, and a lower one that becomes less so, in this order and without
/// invalidation: neither the old tables nor the new ones allow the write.
#[test]
fn new_upper_entries_do_not_meet_old_lower_ones() {
    for technique in super::TECHNIQUES {
        let mut guest = Guest::new(technique);
        guest.put(PDE, 4 << 12 | pte::P | pte::US);
        guest.put(PTE, 16 << 12 | ALL | pte::D);
        guest.read(VA).unwrap();
        guest.read(VA).unwrap();
        guest.put(PTE, 16 << 12 | pte::P | pte::US);
        guest.put(PDE, 4 << 12 | ALL);
        guest.put(PTE + 8, 17 << 12 | ALL);
        assert_eq!(guest.miss(VA + 0x1000, Access::Write), Ok(ram(17)), "{technique:?}");
        assert!(guest.miss(VA, Access::Write).is_err(), "{technique:?}");
    }
}

#[test]
fn large_pages_stay_large_where_the_p2m_lets_them() {
    let large = VA + 0x20_0000;
    for technique in [Technique::Eager, Technique::Lazy, Technique::Vtlb] {
        let mut guest = Guest::new(technique);
        guest.read(large).unwrap();
        guest.read(large).unwrap();
        assert_eq!((guest.read(large + 0x5000), guest.last()), (Ok(ram(0x205)), HIT), "one entry");
        guest.memory.set_kind(Gfn(0x207), FrameKind::ReadOnly).unwrap();
        assert_eq!((guest.read(large), guest.last()), (Ok(ram(0x200)), (0, 3)), "in pieces from now on");
        assert_eq!((guest.read(large), guest.last()), (Ok(ram(0x200)), HIT));
        assert_eq!((guest.read(large + 0x5000), guest.last()), (Ok(ram(0x205)), (0, 3)));
        assert_eq!(guest.read(large + 0x7000), Ok(ram(0x207)));
        assert_eq!(guest.miss(large + 0x7000, Access::Write), Ok(Target::Ignore), "ROM");
        // All pieces are one page of the guest's.
        guest.put(PDE + 8, 0x400 << 12 | ALL | pte::PS);
        guest.tlb.invalidate_page(Gva(large));
        assert_eq!(guest.read(large + 0x5000), Ok(ram(0x405)), "{technique:?}");
        assert_eq!(guest.read(large), Ok(ram(0x400)), "{technique:?}");
        assert_eq!((guest.read(large + 0x9000), guest.last()), (Ok(ram(0x409)), HIT), "one entry again");
    }
}

/// (n + 1)·m references to the host table, and n to the guest's.
#[test]
fn nested() {
    for (largest, m) in [(PageSize::Kib4, 4), (PageSize::Mib2, 3), (PageSize::Gib1, 2)] {
        let mut guest = Guest::new(Technique::Nested(largest));
        for (va, n) in [(VA, 4), (VA + 0x20_0000, 3)] {
            guest.read(va).unwrap();
            let faults = guest.tlb.stats().hidden_p2m;
            guest.read(va).unwrap();
            let (now, before) = (guest.tlb.stats(), guest.before);
            assert_eq!(now.hidden_p2m, faults, "the host table is warm");
            assert_eq!(now.guest_references - before.guest_references, n);
            assert_eq!(now.host_references - before.host_references, (n + 1) * m, "{largest:?}, n = {n}");
        }
        let pages = |small| if largest == PageSize::Kib4 { small } else { 1 };
        // Frames 1 to 4, 16 and 0x200; in one page of 1 GiB, or two of 2 MiB.
        let faults = if largest == PageSize::Mib2 { 2 } else { pages(6) };
        assert_eq!(guest.tlb.stats().hidden_p2m, faults);
        // The P2M changes: only the page that holds the frame goes.
        guest.memory.set_kind(Gfn(16), FrameKind::ReadOnly).unwrap();
        assert_eq!(guest.miss(VA, Access::Write), Ok(Target::Ignore));
        guest.memory.set_kind(Gfn(16), FrameKind::Ballooned).unwrap();
        assert_eq!(guest.read(VA), Ok(RAM), "taken back");
    }
}

#[test]
fn two_levels_and_three() {
    for technique in super::TECHNIQUES {
        for pae in [false, true] {
            let mut guest = Guest::new(technique);
            let (cr4, width) = if pae { (cr4::PAE, 8) } else { (cr4::PSE, 4) };
            let put = |guest: &Guest, table: u64, index: u64, entry: u64| {
                guest.put(((table << 12) + index * width) & !7, 0);
                if pae {
                    guest.put((table << 12) + index * 8, entry);
                } else {
                    guest.memory.write_word(Gpa((table << 12) + index * 4), x86::bits::low32(entry)).unwrap();
                }
            };
            let pdpte = [8 << 12 | pte::P, 0, 0, 8 << 12 | pte::P];
            guest.context = PagingContext::new(cr0::PE | cr0::PG, 8 << 12, cr4, 0, pdpte, &FEATURES);
            guest.tlb.set_regime(&guest.context);
            // The top quarter of the address space, and its last page.
            let (va, table, last) = if pae { (0xc020_0000, 1, 511) } else { (0xc040_0000, 0x301, 1023) };
            put(&guest, 8, table, 9 << 12 | ALL);
            put(&guest, 8, table + 2, 0x400 << 12 | ALL | pte::PS);
            put(&guest, 9, last, 16 << 12 | ALL);
            let (page, size) = if pae { (va + 0x1f_f000, 1 << 21) } else { (va + 0x3f_f000, 1 << 22) };
            for _ in 0..3 {
                assert_eq!(guest.miss(page, Access::Write), Ok(RAM), "{technique:?}");
                assert_eq!(guest.read(va + 2 * size + 0x3000), Ok(ram(0x403)), "{technique:?}");
                assert_eq!(guest.miss(va, Access::Read).unwrap_err().error, 0, "{technique:?}");
            }
            let expected = if technique == Technique::Walk { 0 } else { 1 };
            assert_eq!(
                guest.tlb.stats().shadow_hits > 0,
                expected == 1 && !matches!(technique, Technique::Nested(_))
            );
        }
    }
}

#[test]
fn memory_is_bounded() {
    for technique in super::TECHNIQUES {
        let mut guest = Guest::with_ram(technique, 16 << 20);
        // More tables than there may be shadows of.
        let limit = crate::tables::table_limit(&guest.memory) as u64;
        let (tables, roots, each) = (0x100, 16, 64);
        for index in 0..roots {
            let pdpt = tables + index;
            guest.put((1 << 12) + 8 * (index + 2), pdpt << 12 | ALL);
            for next in 0..each {
                let pd = tables + roots + index * each + next;
                guest.put((pdpt << 12) + next * 8, pd << 12 | ALL);
                guest.put(pd << 12, 4 << 12 | ALL);
            }
        }
        for round in 0..2 {
            for at in 0..roots * each {
                let va = (at / each + 2) << 39 | (at % each) << 30;
                assert_eq!(guest.read(va), Ok(RAM), "{technique:?} {round} {at}");
            }
            assert!(guest.figures().tables <= limit);
        }
        let shadows = matches!(technique, Technique::Eager | Technique::Lazy);
        assert_eq!(guest.figures().evictions > 0, shadows, "{technique:?}");
        assert_eq!(guest.read(VA), Ok(RAM));
    }
}

/// A page directory that is written through a translation from before its trace, of which one hears late.
#[test]
fn links_that_change_late_do_not_meet_old_entries_below() {
    let mut guest = Guest::new(Technique::Lazy);
    guest.put(PDE, 4 << 12 | pte::P | pte::US);
    guest.put(PTE, 16 << 12 | ALL | pte::D);
    let seat = guest.memory.seat(|| {});
    seat.enter(guest.memory.epoch());
    assert!(guest.memory.may_cache_writes(Gfn(3), Mfn(3)));
    guest.read(VA).unwrap();
    assert_eq!((guest.read(VA), guest.last()), (Ok(RAM), HIT));
    guest.put(PTE, 16 << 12 | pte::P | pte::US);
    guest.memory.frames().write(Mfn(3), 0, 4 << 12 | ALL | pte::A);
    guest.memory.note_write(Gfn(3), Mfn(3));
    seat.hear(guest.memory.epoch());
    assert!(guest.miss(VA, Access::Write).is_err());
}

/// While another vCPU may still write a table unnoticed, eager step keeps nothing of it.
#[test]
fn unsettled_tables_are_not_held() {
    let mut guest = Guest::new(Technique::Eager);
    let seat = guest.memory.seat(|| {});
    seat.enter(guest.memory.epoch());
    assert!(guest.memory.may_cache_writes(Gfn(4), Mfn(4)), "the other one caches a writable translation");
    for frame in [16, 17, 18] {
        guest.memory.frames().write(Mfn(4), 0, frame << 12 | ALL | pte::A);
        assert_eq!((guest.read(VA), guest.last()), (Ok(ram(frame)), WALKED));
    }
    // It hears of the trace, says what it may have written, and has lost the translation.
    guest.memory.note_write(Gfn(4), Mfn(4));
    seat.hear(guest.memory.epoch());
    assert_eq!(guest.read(VA), Ok(ram(18)));
    assert_eq!((guest.read(VA), guest.last()), (Ok(ram(18)), HIT));
}
