//! Page tables made of anything, and everything that walks them.
//!
//! A guest of a few frames, of which some are no RAM; every frame may be a table of any level, its own among them. Walks, the
//! TLB with all its invalidations, and code run on these tables, while they and the frames change.
//!
//! What is checked beside the implied: a TLB that was just emptied says what a walk says, and what it has cached leads to a
//! frame that exists.

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use memory::{FrameKind, GuestMemory, RamRange};
use mmu::{Access, Invpcid, PagingContext, PagingFeatures, Privilege, Target, Tlb};
use x86::{CpuState, Gfn, Gpa, Gva};

use super::guest::{self, Guest, StartMode};
use super::interp_code;
use crate::oracle::random::Random;

const FRAMES: u64 = 12;
const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Execute];

struct Scene {
    memory: Arc<GuestMemory>,
    tlb: Tlb,
    context: PagingContext,
    features: PagingFeatures,
    state: CpuState,
}

pub(super) fn run(data: &[u8]) {
    let _ = attempt(data);
}

fn attempt(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    let (flags, cpu, seed): (u8, u8, u32) = u.arbitrary()?;
    let mut random = Random::new(seed.into(), 2);
    let ranges = [RamRange { base: Gfn(0), frames: FRAMES }];
    let mut guest = Guest::with_memory(&ranges, cpu, random.bits());
    let mut state = guest::state(u.arbitrary()?, flags & 1 != 0, &mut random);
    roots(&mut u, &mut state)?;
    tables(&mut u, &guest.memory)?;
    let features = PagingFeatures {
        phys_bits: 32 + cpu % 21,
        gib_pages: flags & 2 != 0,
        pse36: flags & 4 != 0,
        pat: flags & 8 != 0,
    };
    let context = PagingContext::of(&state, &features);
    let mut tlb = guest.mmu.tlb();
    tlb.set_regime(&context);
    let mut scene = Scene { memory: guest.memory.clone(), tlb, context, features, state };
    for _ in 0..u.int_in_range(0..=24u8)? {
        scene.step(&mut u)?;
    }
    // The same tables under real code.
    let mut state = CpuState { rip: address(&mut u)?, ..scene.state };
    state.seg[1].base = if flags & 16 != 0 { address(&mut u)? } else { 0 };
    guest.put(u64::from(u.arbitrary::<u16>()?) % (FRAMES << 12), u.take_rest());
    interp_code::execute(&mut guest, &state);
    Ok(())
}

/// Where the tables are and by what rules they are read.
fn roots(u: &mut Unstructured<'_>, s: &mut CpuState) -> Result<()> {
    use x86::control::{cr0, cr4, efer};
    const CR4: u64 = cr4::PSE | cr4::PGE | cr4::SMEP | cr4::SMAP | cr4::PCIDE;
    s.cr3 = root(u)?;
    s.cr4 ^= u.arbitrary::<u64>()? & CR4;
    s.cr0 ^= u.arbitrary::<u64>()? & cr0::WP;
    s.msrs.efer ^= u.arbitrary::<u64>()? & efer::NXE;
    for entry in &mut s.pdpte {
        *entry = root(u)?;
    }
    Ok(())
}

fn root(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(if u.ratio(1, 8)? {
        u.arbitrary()?
    } else {
        u.int_in_range(0..=FRAMES)? << 12 | u64::from(u.arbitrary::<u8>()?)
    })
}

/// An entry of some table: a frame that is there, or just behind, or anything.
fn entry(u: &mut Unstructured<'_>) -> Result<u64> {
    let flags = u64::from(u.arbitrary::<u16>()?);
    let low = flags & 0xfff | if flags & 0x1000 != 0 { 1 } else { 0 };
    Ok(match flags >> 13 {
        0 => u.arbitrary()?,
        1 => u64::from(u.arbitrary::<u32>()?) << 12 | low,
        2 => 1 << 63 | u.int_in_range(0..=FRAMES)? << 12 | low,
        3 => 1 << u.int_in_range(12..=62)? | low,
        _ => u.int_in_range(0..=FRAMES)? << 12 | low,
    })
}

fn place(u: &mut Unstructured<'_>) -> Result<Gpa> {
    let slot = u.arbitrary::<u16>()?;
    // The first and last entries of a table are met most.
    let slot = if slot & 0x8000 != 0 { slot & 0x7c03 } else { slot };
    Ok(Gpa(u64::from(slot) * 8 % (FRAMES << 12)))
}

fn tables(u: &mut Unstructured<'_>, memory: &GuestMemory) -> Result<()> {
    for _ in 0..u.int_in_range(0..=40u8)? {
        let _ = memory.write_word(place(u)?, entry(u)?);
    }
    kinds(u, memory)
}

fn kinds(u: &mut Unstructured<'_>, memory: &GuestMemory) -> Result<()> {
    use FrameKind::{Absent, Ballooned, Mmio, Ram, ReadOnly, Shared, Swapped};
    for _ in 0..u.int_in_range(0..=4u8)? {
        let gfn = Gfn(u.int_in_range(0..=FRAMES)?);
        let kind = *u.choose(&[Absent, Ballooned, Mmio, Ram, ReadOnly, Shared, Swapped])?;
        let _ = memory.set_kind(gfn, kind);
    }
    Ok(())
}

fn address(u: &mut Unstructured<'_>) -> Result<u64> {
    let indices = u.arbitrary::<u32>()?;
    // Few bits per level, so that addresses meet.
    let spread = |level: u32| u64::from(indices >> (3 * level) & 7);
    let short = spread(0) << 39 | spread(1) << 30 | spread(2) << 21 | spread(3) << 12;
    Ok(match indices >> 30 {
        0 => guest::address(u)?,
        1 => short | 0xffff_8000_0000_0000,
        _ => short,
    } ^ u64::from(indices >> 12 & 0xfff))
}

impl Scene {
    fn step(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let va = Gva(address(u)?);
        let privilege = *u.choose(&Privilege::ALL)?;
        let access = *u.choose(&ACCESSES)?;
        match u.int_in_range(0..=15u8)? {
            0..=4 => self.access(va, access, privilege),
            5 => self.fresh(va, access, privilege),
            6 => {
                mmu::probe(&self.memory, &self.context, va);
            }
            7 => self.tlb.invalidate_page(va),
            8 => {
                let pcid = u.arbitrary::<u16>()? & 0xfff;
                self.tlb.invpcid(*u.choose(&[
                    Invpcid::Address { pcid, va },
                    Invpcid::Single { pcid },
                    Invpcid::All,
                    Invpcid::AllNonGlobal,
                ])?);
            }
            9 | 10 => {
                let _ = self.memory.write_word(place(u)?, entry(u)?);
            }
            11 => kinds(u, &self.memory)?,
            12 => {
                self.state.cr3 = root(u)?;
                self.context.set_root(self.state.cr3, self.state.pdpte);
                self.tlb.switch_root(&self.context, u.arbitrary()?);
            }
            13 => {
                roots(u, &mut self.state)?;
                let mode: StartMode = u.arbitrary()?;
                let rules = guest::state(mode, false, &mut Random::new(0, 0));
                (self.state.cr0, self.state.msrs.efer) = (rules.cr0, rules.msrs.efer);
                self.context = PagingContext::of(&self.state, &self.features);
                self.tlb.set_regime(&self.context);
            }
            14 => {
                let _ = mmu::load_pdptes(&self.memory, va.0, &self.features);
                self.memory.start_dirty_log();
            }
            _ => {
                self.memory.take_dirty();
                self.tlb.sync_epoch();
            }
        }
        Ok(())
    }

    /// What an engine does.
    fn access(&mut self, va: Gva, access: Access, privilege: Privilege) {
        self.tlb.sync_epoch();
        let cached = match access {
            Access::Read => self.tlb.lookup_read(va, privilege),
            Access::Write => self.tlb.lookup_write(va, privilege),
            Access::Execute => self.tlb.lookup_exec(va, privilege),
        };
        if let Some(mfn) = cached {
            assert!(mfn.0 < FRAMES, "{va:?} leads to {mfn:?}");
            return;
        }
        if let Ok(Target::Ram { mfn, gfn, .. }) = self.tlb.fill(&self.context, va, access, privilege) {
            assert!(mfn.0 < FRAMES && gfn.0 < FRAMES, "{va:?} leads to {gfn:?}, {mfn:?}");
            if access == Access::Write {
                self.memory.frames().write(mfn, va.offset() & !7, va.0);
                self.memory.note_write(gfn, mfn);
            }
        }
    }

    /// A walk, and an empty TLB.
    fn fresh(&mut self, va: Gva, access: Access, privilege: Privilege) {
        let walked = mmu::walk(&self.memory, &self.context, va, access, privilege);
        self.tlb.flush_all();
        let filled = self.tlb.fill(&self.context, va, access, privilege);
        match (walked, filled) {
            (Err(a), Err(b)) => assert_eq!(a, b),
            (Ok(a), Ok(Target::Mmio(gpa))) => assert_eq!(a.gpa, gpa),
            (Ok(a), Ok(Target::Ram { gfn, .. })) => assert_eq!(a.gpa.frame(), gfn),
            (Ok(_), Ok(Target::Ignore)) => {}
            (a, b) => panic!("{va:?}: walked {a:?}, filled {b:?}"),
        }
    }
}
