//! The TLB against the walk: what is allowed to be cached, what each invalidation drops, and a random machine in which
//! every cached answer is compared with a fresh walk.

use memory::RamRange;
use proptest::prelude::*;
use proptest::strategy::Strategy;
use x86::control::{cr0, cr4, efer};
use x86::paging::pte;

use super::*;
use crate::{Mmu, PagingFeatures, Technique, walk};

const ALL: u64 = pte::P | pte::RW | pte::US;
const HIGH: u64 = 0xffff_8000_0000_0000;
const TOP: u64 = 0xffff_ff80_0000_0000;
const FRAMES: u64 = 64;
const ROOTS: u64 = 3;

/// Tables: a root per address space, and below it a PDPT, a PD and a PT for each of three parts: the lower half; the
/// upper half's beginning, common to all roots; its end, each root's own again. In each part, PD entries 0 and 2 refer to the PT, PD entry 1 is a 2 MiB page, PDPT entry 1 a 1 GiB
/// page, and the PT's first entries are pages.
mod at {
    pub(super) fn root(r: u64) -> u64 {
        (1 + r) << 12
    }
    /// The table of level 3, 2 or 1 of a part.
    pub(super) fn table(level: u64, part: Part) -> u64 {
        let which = match part {
            Part::Low(r) => r,
            Part::High => super::ROOTS,
            Part::Top(r) => super::ROOTS + 1 + r,
        };
        (8 + (3 - level) * 8 + which) << 12
    }

    /// A part of the address space of a root, or of all.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(super) enum Part {
        Low(u64),
        High,
        Top(u64),
    }

    impl Part {
        pub(super) fn new(which: u8, root: u64) -> Self {
            match which {
                0 => Self::Low(root),
                1 => Self::High,
                _ => Self::Top(root),
            }
        }

        pub(super) fn base(self) -> u64 {
            match self {
                Self::Low(_) => 0,
                Self::High => super::HIGH,
                Self::Top(_) => super::TOP,
            }
        }

        pub(super) fn seen_by(self, root: u64) -> bool {
            match self {
                Self::Low(r) | Self::Top(r) => r == root,
                Self::High => true,
            }
        }
    }
}
use at::Part;

struct Machine {
    memory: Arc<GuestMemory>,
    tlb: Tlb,
    cr4: u64,
    context: PagingContext,
    root: u64,
}

const FEATURES: PagingFeatures = PagingFeatures { phys_bits: 46, gib_pages: true, pse36: true, pat: true };

impl Machine {
    fn new(cr4: u64) -> Self {
        Self::with(cr4, Technique::Walk)
    }

    fn with(cr4: u64, technique: Technique) -> Self {
        let memory = Arc::new(GuestMemory::new(&[RamRange::from_bytes(Gpa(0), FRAMES << 12)]).unwrap());
        let context = Self::context(cr4, 0);
        let mut machine =
            Self { tlb: Mmu::new(memory.clone(), technique).tlb(), memory, cr4, context, root: 0 };
        for r in 0..ROOTS {
            machine.store(at::root(r), at::table(3, Part::Low(r)) | ALL);
            machine.store(at::root(r) + 256 * 8, at::table(3, Part::High) | ALL);
            machine.store(at::root(r) + 511 * 8, at::table(3, Part::Top(r)) | ALL);
        }
        let own = (0..ROOTS).flat_map(|r| [Part::Low(r), Part::Top(r)]);
        for part in own.chain([Part::High]) {
            machine.store(at::table(3, part), at::table(2, part) | ALL);
            machine.store(at::table(3, part) + 8, ALL | pte::PS);
            machine.store(at::table(2, part), at::table(1, part) | ALL);
            machine.store(at::table(2, part) + 8, ALL | pte::PS);
            machine.store(at::table(2, part) + 16, at::table(1, part) | ALL);
            for page in 0..8 {
                machine.store(at::table(1, part) + page * 8, (48 + page) << 12 | ALL);
            }
        }
        machine.tlb.set_regime(&context);
        machine
    }

    fn context(cr4: u64, root: u64) -> PagingContext {
        let cr3 = at::root(root) | if cr4 & cr4::PCIDE != 0 { root + 1 } else { 0 };
        let efer = efer::LMA | efer::LME | efer::NXE;
        PagingContext::new(cr0::PE | cr0::PG | cr0::WP, cr3, cr4 | cr4::PAE, efer, [0; 4], &FEATURES)
    }

    fn store(&self, at: u64, entry: u64) {
        self.memory.write_word(Gpa(at), entry).unwrap();
    }

    fn pcid(&self, root: u64) -> u16 {
        Self::context(self.cr4, root).pcid()
    }

    fn switch(&mut self, root: u64, keep: bool) {
        self.root = root;
        self.context = Self::context(self.cr4, root);
        self.tlb.switch_root(&self.context, keep);
    }

    fn lookup(&mut self, va: u64, access: Access, privilege: Privilege) -> Option<Mfn> {
        match access {
            Access::Read => self.tlb.lookup_read(Gva(va), privilege),
            Access::Write => self.tlb.lookup_write(Gva(va), privilege),
            Access::Execute => self.tlb.lookup_exec(Gva(va), privilege),
        }
    }

    fn hits(&mut self, va: u64) -> bool {
        self.lookup(va, Access::Read, Privilege::Supervisor).is_some()
    }

    fn fill(&mut self, va: u64, access: Access) -> Result<Target, PageFault> {
        self.tlb.fill(&self.context, Gva(va), access, Privilege::Supervisor)
    }

    fn touch(&mut self, va: u64) {
        self.fill(va, Access::Read).unwrap();
        assert!(self.hits(va), "{va:#x} is cached");
    }
}

const PCIDS_AND_GLOBALS: u64 = cr4::PGE | cr4::PCIDE;

#[test]
fn a_first_write_misses_and_marks() {
    let mut m = Machine::new(0);
    m.touch(0x2000);
    assert_eq!(m.lookup(0x2000, Access::Execute, Privilege::Supervisor), Some(Mfn(50)));
    assert_eq!(m.lookup(0x2000, Access::Write, Privilege::Supervisor), None, "D is clear");
    let target = m.fill(0x2000, Access::Write).unwrap();
    assert_eq!(target, Target::Ram { mfn: Mfn(50), gfn: Gfn(50), cached: true });
    assert_eq!(m.lookup(0x2000, Access::Write, Privilege::Supervisor), Some(Mfn(50)));
    let entry: u64 = m.memory.read_word(Gpa(at::table(1, Part::Low(0)) + 16)).unwrap();
    assert_eq!(entry & (pte::A | pte::D), pte::A | pte::D);
    assert_eq!(m.lookup(0x2000, Access::Read, Privilege::User), None, "privileges do not share entries");
    let stats = m.tlb.stats();
    assert_eq!((stats.hits, stats.fills, stats.faults, stats.flushes), (2, 2, 0, 1));
}

#[test]
fn targets_by_kind_of_frame() {
    let mut m = Machine::new(0);
    m.memory.set_kind(Gfn(48), FrameKind::ReadOnly).unwrap();
    m.memory.set_kind(Gfn(49), FrameKind::Mmio).unwrap();
    m.memory.set_kind(Gfn(50), FrameKind::Absent).unwrap();
    m.memory.set_kind(Gfn(51), FrameKind::Ballooned).unwrap();
    m.touch(0);
    assert_eq!(m.fill(0x10, Access::Write), Ok(Target::Ignore), "ROM");
    assert_eq!(m.lookup(0, Access::Write, Privilege::Supervisor), None);
    for access in [Access::Read, Access::Write, Access::Execute] {
        assert_eq!(m.fill(0x1010, access), Ok(Target::Mmio(Gpa(0x31010))));
        assert_eq!(m.fill(0x2010, access), Ok(Target::Ignore));
    }
    assert!(!m.hits(0x1010) && !m.hits(0x2010));
    assert_eq!(m.fill(0x3000, Access::Read), Ok(Target::Ram { mfn: Mfn(51), gfn: Gfn(51), cached: true }));
    assert_eq!(m.memory.entry(Gfn(51)).kind, FrameKind::Ram, "taken back from the balloon");
}

#[test]
fn writes_to_code_are_not_cached() {
    let mut m = Machine::new(0);
    let watch = m.memory.watch_code(Mfn(48));
    let target = m.fill(0, Access::Write).unwrap();
    assert_eq!(target, Target::Ram { mfn: Mfn(48), gfn: Gfn(48), cached: false });
    assert_eq!(m.lookup(0, Access::Write, Privilege::Supervisor), None);
    assert!(m.hits(0), "reads are");
    assert_eq!(
        m.memory.code_version(Mfn(48)),
        watch.version,
        "the engine notes the write after it has written"
    );
}

#[test]
fn writes_through_cached_translations_are_not_lost() {
    let mut m = Machine::new(0);
    m.fill(0, Access::Write).unwrap();
    // Another thread decodes the frame; a write that goes through the cached translation still raises the version.
    let watch = m.memory.watch_code(Mfn(48));
    m.memory.frames().write(Mfn(48), 0, 0x90u8);
    m.tlb.flush_all();
    assert_ne!(m.memory.code_version(Mfn(48)), watch.version);
    assert_eq!(m.tlb.stats().epochs, 1);

    m.memory.start_dirty_log();
    m.fill(0x1000, Access::Write).unwrap();
    assert!(m.memory.take_dirty().contains(&Gfn(49)));
    m.memory.frames().write(Mfn(49), 0, 1u8);
    assert!(m.tlb.sync_epoch());
    assert_eq!(m.lookup(0x1000, Access::Write, Privilege::Supervisor), None);
    assert!(m.hits(0x1000), "reads need no log");
    assert!(m.memory.take_dirty().contains(&Gfn(49)), "the write after the harvest is in the next");
}

#[test]
fn switching_roots_keeps_pcids_and_globals() {
    let mut m = Machine::new(PCIDS_AND_GLOBALS);
    m.store(at::table(1, Part::High), 48 << 12 | ALL | pte::G);
    m.touch(0);
    m.touch(HIGH);
    m.switch(1, true);
    assert!(!m.hits(0), "another address space");
    assert!(m.hits(HIGH), "global");
    m.touch(0);
    m.switch(0, true);
    assert!(m.hits(0), "kept");
    m.switch(0, false);
    assert!(!m.hits(0) && m.hits(HIGH), "not kept, but for the global page");
    m.switch(1, true);
    assert!(m.hits(0), "the other PCID's was not touched");
    m.tlb.flush_non_global();
    assert!(!m.hits(0) && m.hits(HIGH));
    m.tlb.flush_all();
    assert!(!m.hits(HIGH));
}

#[test]
fn upper_pages_that_are_not_global_stay_in_their_address_space() {
    let mut m = Machine::new(PCIDS_AND_GLOBALS);
    m.store(at::table(1, Part::High), 48 << 12 | ALL | pte::G);
    m.touch(HIGH);
    m.touch(HIGH + 0x1000);
    m.switch(1, true);
    assert!(m.hits(HIGH), "this address space still shares its upper half");
    assert!(!m.hits(HIGH + 0x1000));
    m.switch(0, true);
    assert!(m.hits(HIGH + 0x1000));
    assert!(!m.hits(HIGH), "it went private, so its global pages are cached anew");
    m.touch(HIGH);
    m.switch(1, true);
    m.tlb.invalidate_page(Gva(HIGH));
    assert!(!m.hits(HIGH));
    m.switch(0, true);
    assert!(!m.hits(HIGH), "INVLPG drops global pages in all address spaces (SDM vol. 3, 4.10.4.1)");
}

#[test]
fn invlpg_drops_shared_pages_from_an_address_space_that_does_not_share() {
    let mut m = Machine::new(PCIDS_AND_GLOBALS);
    m.store(at::table(1, Part::High), 48 << 12 | ALL | pte::G);
    m.switch(1, true);
    m.touch(HIGH);
    m.switch(0, true);
    m.touch(HIGH + 0x1000);
    m.tlb.invalidate_page(Gva(HIGH));
    m.switch(1, true);
    assert!(!m.hits(HIGH));
}

#[test]
fn invlpg_drops_whole_pages() {
    let mut m = Machine::new(cr4::PGE);
    let gib = |offset: u64| 0x4000_0000 + offset;
    for va in [0x20_0000, 0x20_5000, 0x3f_f000, gib(0), gib(0x3000), gib(0x20_1000)] {
        m.fill(va, Access::Read).unwrap();
    }
    m.touch(0x1000);
    m.touch(0x20_5000);
    m.touch(0x20_3000);
    m.tlb.invalidate_page(Gva(0x3f_f123));
    assert!(!m.hits(0x20_5000) && !m.hits(0x20_3000), "both pieces of the 2 MiB page");
    m.touch(0x1000);
    m.touch(gib(0x3000));
    m.touch(gib(0x5000));
    m.tlb.invalidate_page(Gva(gib(0x3fff_ffff)));
    assert!(!m.hits(gib(0x3000)) && !m.hits(gib(0x5000)), "both pieces of the 1 GiB page");
    assert!(m.hits(0x1000), "and nothing else");
    m.tlb.invalidate_page(Gva(0x1fff));
    assert!(!m.hits(0x1000));
}

#[test]
fn invpcid_kinds() {
    let mut m = Machine::new(PCIDS_AND_GLOBALS);
    let reset = |m: &mut Machine| {
        for root in [1, 0] {
            m.switch(root, true);
            m.touch(0x1000);
            m.touch(0x2000);
        }
    };
    let survivors = |m: &mut Machine| {
        [(0, 0x1000), (0, 0x2000), (1, 0x1000), (1, 0x2000)].map(|(root, va)| {
            m.switch(root, true);
            m.hits(va)
        })
    };
    reset(&mut m);
    m.tlb.invpcid(Invpcid::Address { pcid: 2, va: Gva(0x1004) });
    assert_eq!(survivors(&mut m), [true, true, false, true]);
    reset(&mut m);
    m.tlb.invpcid(Invpcid::Single { pcid: 2 });
    assert_eq!(survivors(&mut m), [true, true, false, false]);
    reset(&mut m);
    m.tlb.invpcid(Invpcid::AllNonGlobal);
    assert_eq!(survivors(&mut m), [false; 4]);
    reset(&mut m);
    m.tlb.invpcid(Invpcid::All);
    assert_eq!(survivors(&mut m), [false; 4]);
    m.tlb.invpcid(Invpcid::Single { pcid: 0xffff });
}

#[test]
fn ids_run_out_safely() {
    let mut m = Machine::new(PCIDS_AND_GLOBALS);
    m.switch(1, true);
    m.touch(0x1000);
    for _ in 0..3 * u32::from(LAST_ID) {
        m.switch(0, false);
        assert!(!m.hits(0x1000));
        m.touch(0x1000);
    }
    m.switch(1, true);
    assert!(!m.hits(0x1000), "its id was reused");
    m.touch(0x1000);
    m.store(at::table(1, Part::High), 48 << 12 | ALL | pte::G);
    for _ in 0..3 * u32::from(LAST_ID) {
        m.touch(HIGH);
        m.tlb.flush_all();
        assert!(!m.hits(0x1000) && !m.hits(HIGH));
    }
}

#[test]
fn a_change_of_rules_drops_everything_and_nothing_else_does() {
    let mut m = Machine::new(cr4::PGE);
    m.touch(0x1000);
    m.tlb.set_regime(&Machine::context(cr4::PGE, 0));
    assert!(m.hits(0x1000));
    m.tlb.set_regime(&Machine::context(cr4::PGE | cr4::SMAP, 0));
    assert!(!m.hits(0x1000));
}

#[test]
fn a_new_state_brings_its_pcid() {
    let mut m = Machine::new(cr4::PCIDE);
    m.tlb.flush_all();
    m.context = Machine::context(cr4::PCIDE, 1);
    m.tlb.set_regime(&m.context);
    m.touch(0x1000);
    m.switch(0, true);
    assert!(!m.hits(0x1000));
    m.switch(1, true);
    assert!(m.hits(0x1000));
}

#[test]
fn unlike_programs_laid_out_alike_do_not_evict_each_other() {
    let mut m = Machine::new(cr4::PCIDE);
    for root in 0..ROOTS {
        m.switch(root, true);
        (0..8).for_each(|page| m.touch(page << 12));
    }
    for root in 0..ROOTS {
        m.switch(root, true);
        assert!((0..8).all(|page| m.hits(page << 12)));
    }
}

// ---- the random machine ------------------------------------------------------------------------------------------

/// The addresses that are accessed, as offsets in a half, by page: any one of a page's is as good as another for INVLPG.
const PAGES: &[&[u64]] = &[
    &[0x0],
    &[0x1000],
    &[0x2008],
    &[0x3ff8],
    &[0x40_0000],
    &[0x40_1000],
    &[0x40_2000],
    &[0x40_3000],
    &[0x20_0000, 0x20_1000, 0x23_0000, 0x23_f000, 0x30_0000],
    &[0x4000_0000, 0x4000_1000, 0x4003_0000, 0x4040_0000, 0x4050_0000],
];

#[derive(Clone, Debug)]
enum Op {
    Access {
        part: u8,
        page: usize,
        piece: usize,
        access: Access,
        privilege: Privilege,
    },
    /// Changes an entry of a part of a root, and invalidates as software has to, one of several ways.
    Change {
        part: u8,
        root: u64,
        entry: usize,
        flags: u64,
        frame: u64,
        how: u8,
    },
    Switch {
        root: u64,
        keep: bool,
    },
    Kind {
        frame: u64,
        kind: FrameKind,
    },
    Watch {
        frame: u64,
    },
    /// An invalidation that nothing asked for.
    Drop(u8),
}

fn op() -> impl Strategy<Value = Op> {
    use prop::sample::select;
    let access = || select(vec![Access::Read, Access::Write, Access::Execute]);
    let kind = || select(vec![FrameKind::Ram, FrameKind::ReadOnly, FrameKind::Mmio, FrameKind::Ballooned]);
    prop_oneof![
        8 => (0..3u8, 0..PAGES.len(), 0..5usize, access(), select(Privilege::ALL.to_vec())).prop_map(
            |(part, page, piece, access, privilege)| Op::Access { part, page, piece, access, privilege }
        ),
        4 => (0..3u8, 0..ROOTS, 0..9usize, any::<u64>(), 40..FRAMES + 2, any::<u8>()).prop_map(
            |(part, root, entry, flags, frame, how)| Op::Change { part, root, entry, flags, frame, how }
        ),
        2 => (0..ROOTS, any::<bool>()).prop_map(|(root, keep)| Op::Switch { root, keep }),
        1 => (40..FRAMES, kind()).prop_map(|(frame, kind)| Op::Kind { frame, kind }),
        1 => (40..FRAMES).prop_map(|frame| Op::Watch { frame }),
        1 => (0..4u8).prop_map(Op::Drop),
    ]
}

impl Machine {
    fn address(part: Part, page: usize, piece: usize) -> u64 {
        let pieces = PAGES[page];
        pieces[piece % pieces.len()] | part.base()
    }

    /// True if the entry mapped a global page until now.
    fn change(&mut self, part: Part, entry: usize, flags: u64, frame: u64) -> bool {
        // The first pages of the PT, the entries of the PD and PDPT that are used.
        let (level, index, large) = match entry {
            0..=3 => (1, entry as u64, false),
            4 => (2, 0, false),
            5 => (2, 1, true),
            6 => (2, 2, false),
            7 => (3, 0, false),
            _ => (3, 1, true),
        };
        let leaf = level == 1 || large;
        let address = match (leaf, large) {
            (false, _) => at::table(level - 1, part),
            (true, false) => frame << 12,
            (true, true) => pte::PS,
        };
        let kept = pte::RW | pte::US | pte::NX | pte::A | pte::D;
        // Mostly global in the part that is the same in all address spaces.
        let global = if leaf && part == Part::High && flags >> 24 & 15 != 0 { pte::G } else { 0 };
        // Mostly present.
        let present = if flags >> 20 & 7 == 0 { 0 } else { pte::P };
        let at = at::table(level, part) + index * 8;
        let was_global = leaf && self.memory.read_word::<u64>(Gpa(at)).unwrap() & pte::G != 0;
        self.store(at, address | flags & kept | global | present);
        was_global && self.cr4 & cr4::PGE != 0
    }

    /// What software must do after a change of a part, by `how`: one way of several.
    fn invalidate(&mut self, part: Part, was_global: bool, how: u8) {
        let pcids = self.cr4 & cr4::PCIDE != 0;
        match (how & 7, part) {
            (0, _) => self.tlb.flush_all(),
            (1, Part::Low(_) | Part::Top(_)) => self.tlb.flush_non_global(),
            (2, Part::Low(root) | Part::Top(root)) if pcids => {
                self.tlb.invpcid(Invpcid::Single { pcid: self.pcid(root) });
            }
            (3, Part::Low(root) | Part::Top(root)) if root == self.root => self.switch(root, false),
            _ => {
                // Page by page: in the current address space and globally, then in the others if need be.
                let piece = usize::from(how >> 4);
                let pages = (0..PAGES.len()).map(|page| Gva(Self::address(part, page, piece)));
                if part.seen_by(self.root) {
                    pages.clone().for_each(|va| self.tlb.invalidate_page(va));
                }
                for root in (0..ROOTS).filter(|&r| pcids && r != self.root && part.seen_by(r) && !was_global)
                {
                    let pcid = self.pcid(root);
                    pages.clone().for_each(|va| self.tlb.invpcid(Invpcid::Address { pcid, va }));
                }
            }
        }
    }

    /// Checks a part in all address spaces whose entries survive a switch.
    fn check_everywhere(&mut self, part: Part, access: Access, privilege: Privilege) {
        let home = self.root;
        let kept = self.cr4 & cr4::PCIDE != 0;
        for root in std::iter::once(home).chain((0..ROOTS).filter(|&r| kept && r != home)) {
            if root != self.root {
                self.switch(root, true);
            }
            for (page, pieces) in PAGES.iter().enumerate() {
                for piece in 0..pieces.len() {
                    self.check(Self::address(part, page, piece), access, privilege);
                }
            }
        }
        if self.root != home {
            self.switch(home, true);
        }
    }

    /// One access at a block boundary: the cached answer, if any, must be a fresh walk's.
    fn check(&mut self, va: u64, access: Access, privilege: Privilege) {
        self.tlb.sync_epoch();
        let hit = self.lookup(va, access, privilege);
        let filled =
            if hit.is_none() { Some(self.tlb.fill(&self.context, Gva(va), access, privilege)) } else { None };
        let fresh = walk(&self.memory, &self.context, Gva(va), access, privilege);
        let place = fresh.map(|t| (t.gpa, self.memory.entry(t.gpa.frame())));
        if let Some(mfn) = hit {
            let (_, entry) = place.unwrap();
            assert_eq!(mfn, entry.mfn);
            let free = !self.memory.is_code(mfn) && !self.memory.is_traced(mfn);
            let writable = entry.kind == FrameKind::Ram && free;
            assert!(writable || access != Access::Write && entry.kind != FrameKind::Mmio);
            return;
        }
        let expected = place.map(|(gpa, entry)| match (entry.kind, access) {
            (FrameKind::Ram, Access::Write) => {
                let cached = !self.memory.is_code(entry.mfn) && !self.memory.is_traced(entry.mfn);
                Target::Ram { mfn: entry.mfn, gfn: gpa.frame(), cached }
            }
            (FrameKind::ReadOnly, Access::Write) => Target::Ignore,
            (FrameKind::Ram | FrameKind::ReadOnly, _) => {
                Target::Ram { mfn: entry.mfn, gfn: gpa.frame(), cached: true }
            }
            _ => Target::Mmio(gpa),
        });
        assert_eq!(filled, Some(expected));
        if let Some(Ok(Target::Ram { mfn, cached: true, .. })) = filled {
            assert_eq!(self.lookup(va, access, privilege), Some(mfn), "what is said to be cached is");
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Access { part, page, piece, access, privilege } => {
                self.check(Self::address(Part::new(part, self.root), page, piece), access, privilege);
            }
            Op::Change { part, root, entry, flags, frame, how } => {
                let part = Part::new(part, root);
                let privilege = if how & 8 == 0 { Privilege::Supervisor } else { Privilege::User };
                let access = if flags >> 30 & 1 == 0 { Access::Read } else { Access::Write };
                self.check_everywhere(part, access, privilege);
                let was_global = self.change(part, entry, flags, frame);
                self.invalidate(part, was_global, how);
                self.check_everywhere(part, access, privilege);
            }
            Op::Switch { root, keep } => {
                // Without PCIDs every load of CR3 drops what is not global.
                self.switch(root, keep && self.cr4 & cr4::PCIDE != 0);
            }
            Op::Kind { frame, kind } => {
                self.memory.set_kind(Gfn(frame), kind).unwrap();
            }
            Op::Watch { frame } => {
                self.memory.watch_code(self.memory.entry(Gfn(frame)).mfn);
            }
            Op::Drop(0) => self.tlb.flush_all(),
            Op::Drop(1) => self.tlb.flush_non_global(),
            Op::Drop(2) => self.tlb.invpcid(Invpcid::Single { pcid: self.pcid(1) }),
            Op::Drop(_) => self.tlb.invalidate_page(Gva(0x1234)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1200))]

    #[test]
    fn cached_answers_are_the_walk_s(
        pge in any::<bool>(),
        pcide in any::<bool>(),
        smap in any::<bool>(),
        smep in any::<bool>(),
        technique in prop::sample::select(crate::strategy::ALL.to_vec()),
        ops in prop::collection::vec(op(), 1..150),
    ) {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        let cr4 = bit(pge, cr4::PGE) | bit(pcide, cr4::PCIDE) | bit(smap, cr4::SMAP) | bit(smep, cr4::SMEP);
        let mut machine = Machine::with(cr4, technique);
        for entry in [0, 1, 2, 3, 5, 8] {
            machine.change(Part::High, entry, !0, 48);
        }
        for op in &ops {
            machine.apply(op);
        }
    }
}
