//! Every technique against the architectural walk and the manual's rules for TLBs.
//!
//! A guest of two vCPUs does random things to random tables: any of a pool of frames may be a table of any level, of several
//! roots at once, of itself, and data. Each access is compared with the walk as it would be at that moment, made on the
//! side so that it changes nothing:
//!
//! - A fault must be the walk's, with its error code, and leaves the tables alone.
//! - A translation must be the walk's, or one that the [`oracle`] says a processor's TLB could hold.
//! - Accessed and dirty bits are afterwards either as the walk would have left them, or as before, if the translation is one
//!   that was allowed to be cached with the bits it needs.
//! - Where the access ends is what the P2M says now.
//!
//! Tables are written as engines write memory: through cached translations, of which nobody is told, if the TLB has one; and
//! vCPUs act on changes of memory at block boundaries, not at once. Half of the runs empty the TLB before each access
//! behind the technique's back, so that what is judged is the technique.

mod examples;
mod oracle;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use memory::{FrameKind, RamRange, Seat, Word};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};
use x86::control::{cr0, cr4, efer};
use x86::paging::pte;
use x86::{Gfn, Gpa, Gva, PAGE_SHIFT};

use super::{ALL as TECHNIQUES, Mmu, Technique};
use crate::context::{Access, PagingContext, PagingFeatures, Privilege};
use crate::tlb::{Invalidation, Invpcid, Target, Tlb};
use crate::walk::{Miss, Physical, walk_through};
use oracle::{Oracle, Outcome, Time};

const FEATURES: PagingFeatures = PagingFeatures { phys_bits: 40, gib_pages: true, pse36: true, pat: true };
/// Frames 1 to this may be tables; the first three are the usual roots.
const POOL: u64 = 20;
const ROOTS: u64 = 3;
/// Indices in tables that are used, and so the addresses.
const INDICES: u64 = 4;
/// The slot of every usual root that leads to the map of the pool, in frames behind it that nobody writes.
const DIRECT_SLOT: u64 = 256;
const DIRECT: u64 = 0xffff_8000_0000_0000;
const DIRECT_TABLES: [u64; 3] = [POOL + 1, POOL + 2, POOL + 3];
const DATA: u64 = 32;
const GIB: u64 = 1 << 18;

#[derive(Clone, Debug)]
enum Op {
    Access {
        vcpu: usize,
        va: u16,
        page: u64,
        access: Access,
        privilege: Privilege,
    },
    /// An entry of a table becomes another.
    Write {
        vcpu: usize,
        table: u64,
        index: u64,
        entry: u64,
        dma: bool,
    },
    /// Bits of an entry change.
    Toggle {
        vcpu: usize,
        table: u64,
        index: u64,
        bits: u64,
    },
    /// A table becomes what it was at first.
    Repair {
        vcpu: usize,
        table: u64,
    },
    /// A table is written very often where no address leads, as data are.
    Scribble {
        vcpu: usize,
        table: u64,
    },
    Invlpg {
        vcpu: usize,
        va: u16,
    },
    Invpcid {
        vcpu: usize,
        kind: u8,
        pcid: u16,
        va: u16,
    },
    Cr3 {
        vcpu: usize,
        root: u64,
        pcid: u16,
        keep: bool,
    },
    Rules {
        vcpu: usize,
        bits: u8,
    },
    Kind {
        gfn: u64,
        kind: FrameKind,
    },
    /// The dirty log is harvested, or code is watched.
    Host {
        gfn: u64,
        log: bool,
    },
    /// A vCPU acts on changes of memory.
    Boundary {
        vcpu: usize,
    },
}

/// Addresses by four indices of two bits.
fn address(indices: u16, page: u64) -> Gva {
    let index = |level: u16| u64::from(indices >> (2 * level) & 3);
    let va = index(3) << 39 | index(2) << 30 | index(1) << 21 | index(0) << 12;
    // Within large pages, somewhere else too.
    Gva(va ^ (page & 0x1ff) << 12 & 0x4000)
}

/// A table, an index in it and an entry for it: mostly what belongs at that level, present and allowing everything.
fn entry() -> impl Strategy<Value = (u64, u64, u64)> {
    let any_table = (1..=POOL).prop_map(|gfn| gfn << 12);
    let data = (DATA..DATA + 8).prop_map(|gfn| gfn << 12);
    let large = select(vec![0, 0x200 << 12, 0x400 << 12, GIB << 12, 0x600 << 12]).prop_map(|at| at | pte::PS);
    let strange = select(vec![0xff_ffff_f000, 1 << 45, 0xc000_0000]);
    let anything = prop_oneof![4 => any_table, 4 => data.clone(), 3 => large.clone(), 1 => strange];
    let flags = select(vec![pte::P, pte::RW, pte::US, pte::NX, pte::A, pte::D, pte::G]);
    let flipped = prop_oneof![3 => Just(vec![]), 2 => prop::collection::vec(flags, 1..3)];
    let place = (prop_oneof![8 => 1..13u64, 1 => 13..=POOL], prop_oneof![3 => Just(0), 1 => 0..INDICES]);
    (place, 0..3u64, data, large, anything, flipped, 0..16u8).prop_map(
        |((table, index), which, data, large, anything, flipped, chance)| {
            let below = |level: u64| (1 + 3 * level + which) << 12;
            let usual = match table {
                1..4 => below(1),
                4..10 if chance & 3 == 0 => large,
                4..7 => below(2),
                7..10 => below(3),
                _ => data,
            };
            let target = if chance < 2 { anything } else { usual };
            let accessed = if chance & 4 == 0 { pte::A } else { 0 };
            let flags =
                flipped.into_iter().fold(pte::P | pte::RW | pte::US | accessed, |flags, bit| flags ^ bit);
            (table, index, target | flags)
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let access = || select(vec![Access::Read, Access::Write, Access::Execute]);
    let privilege = || select(Privilege::ALL.to_vec());
    let kinds = [FrameKind::Ram, FrameKind::Ram, FrameKind::ReadOnly, FrameKind::Mmio, FrameKind::Ballooned];
    let frame = || {
        prop_oneof![
            2 => DATA..DATA + 8,
            1 => 4..=POOL,
            1 => select(vec![0x200, 0x2ff, 0x404, GIB, GIB + 4, GIB + 0x204]),
        ]
    };
    // Few addresses, most of them in one corner, so that they meet.
    let va = || prop_oneof![1 => 0..256u16, 6 => select(vec![0u16, 1, 2, 4, 5, 8, 16, 17, 64, 65])];
    let (cpu, index) = (|| 0..2usize, || 0..INDICES);
    prop_oneof![
        24 => (cpu(), va(), any::<u64>(), access(), privilege()).prop_map(
            |(vcpu, va, page, access, privilege)| Op::Access { vcpu, va, page, access, privilege }),
        5 => (cpu(), entry(), any::<bool>()).prop_map(
            |(vcpu, (table, index, entry), dma)| Op::Write { vcpu, table, index, entry, dma }),
        4 => (cpu(), prop_oneof![6 => 1..13u64, 1 => 13..=POOL], index(), select(vec![
                pte::RW, pte::US, pte::P, pte::A, pte::D, pte::A | pte::D, pte::NX, pte::G, pte::PS,
            ])).prop_map(|(vcpu, table, index, bits)| Op::Toggle { vcpu, table, index, bits }),
        4 => (cpu(), prop_oneof![1 => 1..=ROOTS, 1 => 1..13u64]).prop_map(|(vcpu, table)| Op::Repair { vcpu, table }),
        1 => (cpu(), 1..13u64).prop_map(|(vcpu, table)| Op::Scribble { vcpu, table }),
        1 => (cpu(), va()).prop_map(|(vcpu, va)| Op::Invlpg { vcpu, va }),
        1 => (cpu(), 0..4u8, 0..3u16, va()).prop_map(
            |(vcpu, kind, pcid, va)| Op::Invpcid { vcpu, kind, pcid, va }),
        3 => (cpu(), prop_oneof![19 => 1..=ROOTS, 1 => 1..=POOL], 0..3u16, any::<bool>()).prop_map(
            |(vcpu, root, pcid, keep)| Op::Cr3 { vcpu, root, pcid, keep }),
        1 => (cpu(), any::<u8>()).prop_map(|(vcpu, bits)| Op::Rules { vcpu, bits }),
        1 => (frame(), select(kinds.to_vec())).prop_map(|(gfn, kind)| Op::Kind { gfn, kind }),
        1 => (frame(), any::<bool>()).prop_map(|(gfn, log)| Op::Host { gfn, log }),
        3 => cpu().prop_map(|vcpu| Op::Boundary { vcpu }),
    ]
}

/// How outcomes were explained.
#[derive(Debug, Default)]
struct Tally {
    actions: AtomicU64,
    accesses: AtomicU64,
    faults: AtomicU64,
    cached: AtomicU64,
    stale: AtomicU64,
}

struct Vcpu {
    tlb: Tlb,
    seat: Seat,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    context: PagingContext,
}

struct Machine<'a> {
    memory: std::sync::Arc<memory::GuestMemory>,
    technique: Technique,
    vcpus: [Vcpu; 2],
    oracle: Oracle,
    /// What tables were at first.
    first: HashMap<u64, u64>,
    now: Time,
    /// Empties TLBs behind the technique's back.
    bare: bool,
    tally: &'a Tally,
}

/// Memory on the side: walks change the copy.
struct Aside<'a> {
    memory: &'a memory::GuestMemory,
    marks: HashMap<u64, u64>,
}

impl Physical for Aside<'_> {
    fn read<W: Word>(&mut self, at: Gpa) -> u64 {
        self.marks.get(&at.0).copied().unwrap_or_else(|| Physical::read::<W>(&mut { self.memory }, at))
    }

    fn mark<W: Word>(&mut self, at: Gpa, expected: u64, new: u64) -> Option<Result<(), u64>> {
        let kind = self.memory.entry(at.frame()).kind;
        matches!(kind, FrameKind::Ram | FrameKind::Ballooned).then_some(())?;
        let found = self.read::<W>(at);
        if found != expected {
            return Some(Err(found));
        }
        self.marks.insert(at.0, new);
        Some(Ok(()))
    }
}

/// The entries that matter.
fn tracked() -> impl Iterator<Item = u64> {
    let pool =
        (1..=POOL).flat_map(|table| (0..INDICES).chain([DIRECT_SLOT]).map(move |i| (table << 12) + i * 8));
    let direct = DIRECT_TABLES.into_iter().flat_map(|table| (0..=POOL).map(move |i| (table << 12) + i * 8));
    pool.chain(direct)
}

impl<'a> Machine<'a> {
    fn new(technique: Technique, [bare, pieces]: [bool; 2], tally: &'a Tally) -> Self {
        let ranges = [RamRange::from_bytes(Gpa(0), 2 << 30)];
        let memory = std::sync::Arc::new(memory::GuestMemory::new(&ranges).unwrap());
        let mmu = Mmu::new(memory.clone(), technique);
        let vcpu = || {
            let (cr0, cr4) = (cr0::PE | cr0::PG | cr0::WP, cr4::PAE | cr4::PGE | cr4::PCIDE);
            let (cr3, efer) = (1 << 12, efer::LMA | efer::LME | efer::NXE);
            let context = PagingContext::new(cr0, cr3, cr4, efer, [0; 4], &FEATURES);
            let seat = memory.seat(|| {});
            seat.enter(memory.epoch());
            let mut tlb = mmu.tlb();
            tlb.set_regime(&context);
            Vcpu { tlb, seat, cr0, cr3, cr4, efer, context }
        };
        let vcpus = [vcpu(), vcpu()];
        let oracle = Oracle::default();
        let mut machine = Self {
            memory: memory.clone(),
            technique,
            vcpus,
            oracle,
            first: HashMap::new(),
            now: 1,
            bare,
            tally,
        };
        machine.lay_out();
        if pieces {
            for gfn in [3, 0x2ff, 0x5ff, 0x6ff, GIB + 8, GIB + 0x20f] {
                machine.memory.set_kind(Gfn(gfn), FrameKind::ReadOnly).unwrap();
            }
            machine.memory.set_kind(Gfn(3), FrameKind::Ram).unwrap();
            (0..2).for_each(|vcpu| machine.boundary(vcpu));
        }
        machine.first = tracked().zip(machine.snapshot()).collect();
        for vcpu in 0..2 {
            machine.oracle.load(vcpu, 1, 1 << 12, 0);
        }
        machine.look();
        machine
    }

    /// Well-formed tables to begin with: the roots share some of them, and one refers to itself.
    fn lay_out(&self) {
        const ALL: u64 = pte::P | pte::RW | pte::US;
        let put = |table: u64, index: u64, entry: u64| {
            self.memory.write_word(Gpa((table << 12) + index * 8), entry).unwrap();
        };
        for root in 1..=ROOTS {
            put(root, 0, (3 + root) << 12 | ALL);
            put(root, 1, 4 << 12 | ALL);
            put(root, 2, root << 12 | ALL);
            put(root, DIRECT_SLOT, DIRECT_TABLES[0] << 12 | ALL);
        }
        for pdpt in 4..7 {
            put(pdpt, 0, (pdpt + 3) << 12 | ALL);
            put(pdpt, 1, GIB << 12 | ALL | pte::PS);
        }
        for pd in 7..10 {
            put(pd, 0, (pd + 3) << 12 | ALL);
            put(pd, 1, 0x200 << 12 | ALL | pte::PS);
            put(pd, 2, 10 << 12 | ALL);
        }
        for pt in 10..13 {
            (0..INDICES)
                .for_each(|i| put(pt, i, (DATA + pt - 10 + i) << 12 | ALL | if i == 3 { pte::G } else { 0 }));
        }
        put(DIRECT_TABLES[0], 0, DIRECT_TABLES[1] << 12 | ALL);
        put(DIRECT_TABLES[1], 0, DIRECT_TABLES[2] << 12 | ALL);
        (1..=POOL).for_each(|gfn| put(DIRECT_TABLES[2], gfn, gfn << 12 | pte::P | pte::RW));
    }

    /// The oracle sees what the entries are now.
    fn look(&mut self) {
        for at in tracked() {
            let entry = self.memory.read_word(Gpa(at)).unwrap_or(u64::MAX);
            // A processor's marks are lost in ROM, and it caches the translation all the same.
            let rom = self.memory.entry(Gpa(at).frame()).kind == FrameKind::ReadOnly;
            let marks = if rom && entry & pte::P != 0 { pte::A | pte::D } else { 0 };
            self.oracle.see(self.now, at, entry | marks);
        }
    }

    fn snapshot(&self) -> Vec<u64> {
        tracked().map(|at| self.memory.read_word(Gpa(at)).unwrap_or(u64::MAX)).collect()
    }

    fn boundary(&mut self, vcpu: usize) {
        let Vcpu { tlb, seat, .. } = &mut self.vcpus[vcpu];
        tlb.sync_epoch();
        seat.hear(tlb.seen());
    }

    fn tell(&mut self, vcpu: usize, what: Invalidation) {
        let pcid = self.vcpus[vcpu].context.pcid();
        self.oracle.tell(vcpu, self.now, what, pcid);
    }

    /// As an engine does it: the TLB, or a fill. `Err` is the error code.
    fn reach(
        &mut self,
        vcpu: usize,
        va: Gva,
        access: Access,
        privilege: Privilege,
    ) -> Result<(Option<Target>, u64), u32> {
        let Vcpu { tlb, context, .. } = &mut self.vcpus[vcpu];
        if self.bare {
            tlb.empty();
        }
        let hit = match access {
            Access::Read => tlb.lookup_read(va, privilege),
            Access::Write => tlb.lookup_write(va, privilege),
            Access::Execute => tlb.lookup_exec(va, privilege),
        };
        if let Some(mfn) = hit {
            return Ok((None, mfn.0));
        }
        let target = tlb.fill(context, va, access, privilege).map_err(|fault| {
            assert_eq!(fault.address, va);
            fault.error
        })?;
        Ok(match target {
            Target::Ram { mfn, gfn, .. } => {
                assert_eq!(self.memory.entry(gfn).mfn, mfn);
                (Some(target), mfn.0)
            }
            Target::Mmio(gpa) => (Some(target), gpa.0 >> PAGE_SHIFT),
            Target::Ignore => (Some(target), u64::MAX),
        })
    }

    fn access(&mut self, vcpu: usize, va: Gva, access: Access, privilege: Privilege) {
        self.tally.accesses.fetch_add(1, Ordering::Relaxed);
        let before = self.snapshot();
        let mut aside = Aside { memory: &self.memory, marks: HashMap::new() };
        let context = self.vcpus[vcpu].context;
        let expected = walk_through(&mut aside, &Miss { context: &context, va, access, privilege });
        let marks = std::mem::take(&mut aside.marks);
        let outcome = self.reach(vcpu, va, access, privilege);
        let after = self.snapshot();
        self.look();
        let marked: Vec<u64> =
            tracked().zip(&before).map(|(at, &old)| marks.get(&at).copied().unwrap_or(old)).collect();
        let about = || {
            format!("{:?}, {va:?} {access:?} {privilege:?}: {outcome:x?}, walk {expected:x?}", self.technique)
        };
        let (target, frame) = match outcome {
            Err(error) => {
                self.tally.faults.fetch_add(1, Ordering::Relaxed);
                assert_eq!(expected.map(|_| ()).map_err(|fault| fault.error), Err(error), "{}", about());
                assert_eq!(before, after, "a fault leaves the tables alone");
                return;
            }
            Ok(outcome) => outcome,
        };
        self.check_target(target, frame, access);
        let same = expected.is_ok_and(|(t, _)| frame == u64::MAX || t.gpa.0 >> PAGE_SHIFT == frame);
        if same && after == marked {
            return;
        }
        assert_eq!(before, after, "marks that the walk does not make: {}", about());
        // What a processor may have cached.
        let counter = if same { &self.tally.cached } else { &self.tally.stale };
        counter.fetch_add(1, Ordering::Relaxed);
        let frames = if frame == u64::MAX { self.unwritable() } else { vec![frame] };
        let allowed = frames.into_iter().any(|gfn| {
            let outcome = Outcome { context: &context, va, access, privilege, gfn };
            self.oracle.allows(vcpu, self.now, &outcome)
        });
        assert!(allowed, "no processor could: {}", about());
    }

    /// Frames that swallow writes.
    fn unwritable(&self) -> Vec<u64> {
        let frames = (0..2048).chain(GIB..GIB + 2048);
        frames.filter(|&gfn| self.memory.entry(Gfn(gfn)).kind == FrameKind::ReadOnly).collect()
    }

    /// The P2M as it is now; machine frames have their guest frames' numbers here.
    fn check_target(&self, target: Option<Target>, frame: u64, access: Access) {
        let kind = self.memory.entry(Gfn(frame)).kind;
        let write = access == Access::Write;
        match target {
            None => assert!(kind == FrameKind::Ram || kind == FrameKind::ReadOnly && !write, "{kind:?}"),
            Some(Target::Ram { cached, .. }) => {
                assert!(kind == FrameKind::Ram || kind == FrameKind::ReadOnly && !write, "{kind:?}");
                assert!(cached || write);
            }
            Some(Target::Mmio(_)) => assert_eq!(kind, FrameKind::Mmio),
            Some(Target::Ignore) => assert!(write),
        }
    }

    /// Writes a table, by way of the vCPU's own map of it if there is one.
    fn write(&mut self, vcpu: usize, at: u64, entry: u64, dma: bool) {
        if !dma
            && let Ok((target, mfn)) =
                self.reach(vcpu, Gva(DIRECT + at), Access::Write, Privilege::Supervisor)
        {
            let mapped = self.vcpus[vcpu].cr3 >> PAGE_SHIFT <= ROOTS;
            // A root of the pool has anything in its upper half.
            if mapped && mfn == at >> PAGE_SHIFT {
                self.memory.frames().write(x86::Mfn(mfn), at & 0xfff, entry);
                if let Some(Target::Ram { mfn, gfn, .. }) = target {
                    self.memory.note_write_at(gfn, mfn, at & 0xfff, 8);
                }
                return;
            }
        }
        let _ = self.memory.write_word(Gpa(at), entry);
    }

    fn apply(&mut self, op: &Op) {
        self.now += 1;
        self.tally.actions.fetch_add(1, Ordering::Relaxed);
        match *op {
            Op::Access { vcpu, va, page, access, privilege } => {
                self.access(vcpu, address(va, page), access, privilege);
            }
            Op::Write { vcpu, table, index, entry, dma } => {
                self.write(vcpu, (table << 12) + index * 8, entry, dma);
            }
            Op::Toggle { vcpu, table, index, bits } => {
                let at = (table << 12) + index * 8;
                let entry = self.memory.read_word::<u64>(Gpa(at)).unwrap_or(0);
                self.write(vcpu, at, entry ^ bits, false);
            }
            Op::Repair { vcpu, table } => {
                if self.memory.entry(Gfn(table)).kind != FrameKind::Ram {
                    self.memory.set_kind(Gfn(table), FrameKind::Ram).unwrap();
                    (0..2).for_each(|vcpu| self.boundary(vcpu));
                }
                for at in (0..INDICES).map(|index| (table << 12) + index * 8) {
                    self.write(vcpu, at, self.first.get(&at).copied().unwrap_or(0), false);
                }
            }
            Op::Scribble { vcpu, table } => {
                (100..150).for_each(|index| self.write(vcpu, (table << 12) + index * 8, index, false));
            }
            Op::Invlpg { vcpu, va } => {
                let va = address(va, 0);
                self.vcpus[vcpu].tlb.invalidate_page(va);
                self.tell(vcpu, Invalidation::Page(va));
            }
            Op::Invpcid { vcpu, kind, pcid, va } => {
                let va = address(va, 0);
                let (kind, what) = match kind {
                    0 => (Invpcid::Address { pcid, va }, Invalidation::PageOf(pcid, va)),
                    1 => (Invpcid::Single { pcid }, Invalidation::Space(pcid)),
                    2 => (Invpcid::All, Invalidation::All),
                    _ => (Invpcid::AllNonGlobal, Invalidation::NonGlobal),
                };
                self.vcpus[vcpu].tlb.invpcid(kind);
                self.tell(vcpu, what);
            }
            Op::Cr3 { vcpu, root, pcid, keep } => self.load_cr3(vcpu, root, pcid, keep),
            Op::Rules { vcpu, bits } => self.change_rules(vcpu, bits),
            Op::Kind { gfn, kind } => {
                self.memory.set_kind(Gfn(gfn), kind).unwrap();
                (0..2).for_each(|vcpu| self.boundary(vcpu));
            }
            Op::Host { log: true, .. } => {
                self.memory.start_dirty_log();
                self.memory.take_dirty();
            }
            Op::Host { gfn, .. } => {
                let mfn = self.memory.entry(Gfn(gfn)).mfn;
                self.memory.watch_code(mfn);
            }
            Op::Boundary { vcpu } => self.boundary(vcpu),
        }
        self.look();
    }

    fn load_cr3(&mut self, vcpu: usize, root: u64, pcid: u16, keep: bool) {
        let cpu = &mut self.vcpus[vcpu];
        let pcids = cpu.cr4 & cr4::PCIDE != 0;
        let (pcid, keep) = if pcids { (pcid, keep) } else { (0, false) };
        cpu.cr3 = root << 12 | u64::from(pcid);
        cpu.context = PagingContext::new(cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer, [0; 4], &FEATURES);
        cpu.tlb.switch_root(&cpu.context, keep);
        self.oracle.load(vcpu, self.now, root << 12, pcid);
        if !keep {
            self.tell(vcpu, Invalidation::Space(pcid));
        }
    }

    fn change_rules(&mut self, vcpu: usize, bits: u8) {
        let cpu = &mut self.vcpus[vcpu];
        let bit = |n: u8, mask: u64| if bits >> n & 1 != 0 { mask } else { 0 };
        cpu.cr0 = cpu.cr0 & !cr0::WP | bit(0, cr0::WP);
        // Nearly all pages are the user's.
        let smap = if bits >> 5 & 3 == 3 { bit(2, cr4::SMAP) } else { 0 };
        let cr4 = bit(1, cr4::SMEP) | smap | bit(3, cr4::PGE) | bit(4, cr4::PCIDE);
        cpu.cr4 = cr4::PAE | cr4;
        cpu.efer = cpu.efer & !efer::NXE | if bits & 0x60 == 0 { 0 } else { efer::NXE };
        if cpu.cr4 & cr4::PCIDE == 0 {
            cpu.cr3 &= !0xfff;
        }
        cpu.context = PagingContext::new(cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer, [0; 4], &FEATURES);
        cpu.tlb.set_regime(&cpu.context);
        cpu.tlb.flush_all();
        let (root, pcid) = (cpu.cr3 & pte::ADDRESS, cpu.context.pcid());
        self.oracle.load(vcpu, self.now, root, pcid);
        self.tell(vcpu, Invalidation::All);
    }
}

/// Runs `cases` random guests under each technique.
fn run(cases: u32) -> Tally {
    let tally = Tally::default();
    let config = Config { cases: cases * 7, ..Config::default() };
    let guests = (select(TECHNIQUES.to_vec()), any::<[bool; 2]>(), prop::collection::vec(op(), 1..250));
    TestRunner::new(config)
        .run(&guests, |(technique, shape, ops)| {
            let mut machine = Machine::new(technique, shape, &tally);
            ops.iter().for_each(|op| machine.apply(op));
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
    tally
}

#[test]
fn every_access_is_what_a_processor_may_do() {
    // More by `UMBRA_MMU_CASES`.
    let cases = std::env::var("UMBRA_MMU_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(150);
    let tally = run(cases);
    eprintln!("{tally:?}");
    assert!(tally.stale.load(Ordering::Relaxed) > 0, "TLBs do hold what is no more");
}
