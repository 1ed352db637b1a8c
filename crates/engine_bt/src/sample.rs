//! How often accesses find their page in the TLBs that translated code looks into, by sample.
//!
//! Translated code leaves at a miss, so all misses are counted; where it finds what it looks for it counts nothing, because that
//! would cost as much as the look. So hits are sampled. Every [`PERIOD_NS`] of time, at the next turn of the vCPU's loop, the
//! interpreter takes over: first for [`SKIPPED`] blocks, since a turn often begins behind a miss or an interrupt, then for
//! [`LOOKED_AT`] instructions, whose accesses are looked up on the side. The interpreter does not fill these TLBs; a page that
//! is found missing counts once, as if translated code had met it.
//!
//! Accesses are counted, not the checks that translated code makes: one check may do for several accesses.

use iced_x86::{Instruction, InstructionInfoFactory, OpAccess, Register, UsedMemory};
use interp::{Registers, SystemRegisters};
use x86::PAGE_MASK;

/// How often a sample is taken at most.
const PERIOD_NS: u64 = 20_000_000;
/// How many turns pass between two looks at the clock.
const TURNS: u32 = 64;
/// Blocks interpreted before a sample.
const SKIPPED: u32 = 64;
/// Instructions in a sample.
const LOOKED_AT: u32 = 128;

/// What the vCPU's loop is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// What it always does.
    Usual,
    /// Interpret a block.
    Skip,
    /// Interpret an instruction, and look up its accesses first.
    Look,
}

/// An access of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Touch {
    /// Where.
    pub(crate) va: u64,
    /// It writes.
    pub(crate) write: bool,
}

/// Takes samples, and counts.
pub(crate) struct Sampler {
    turns: u32,
    next_ns: u64,
    skip: u32,
    look: u32,
    /// Pages that this sample has found missing.
    missing: Vec<Touch>,
    factory: InstructionInfoFactory,
    touches: Vec<Touch>,
    hits: u64,
    misses: u64,
}

impl Sampler {
    /// Nothing has been sampled.
    pub(crate) fn new() -> Self {
        Self {
            turns: 0,
            next_ns: 0,
            skip: 0,
            look: 0,
            missing: Vec::new(),
            factory: InstructionInfoFactory::new(),
            touches: Vec::new(),
            hits: 0,
            misses: 0,
        }
    }

    /// Hits and misses among the accesses sampled.
    pub(crate) const fn counts(&self) -> (u64, u64) {
        (self.hits, self.misses)
    }

    /// What the next turn is for; `now` is asked for the time in nanoseconds, rarely.
    #[inline]
    pub(crate) fn turn(&mut self, now: impl FnOnce() -> u64) -> Turn {
        if self.skip > 0 {
            self.skip -= 1;
            return Turn::Skip;
        }
        if self.look > 0 {
            self.look -= 1;
            return Turn::Look;
        }
        self.turns += 1;
        if self.turns >= TURNS {
            self.turns = 0;
            self.begin(now());
        }
        Turn::Usual
    }

    fn begin(&mut self, now: u64) {
        if now >= self.next_ns {
            self.next_ns = now.saturating_add(PERIOD_NS);
            (self.skip, self.look) = (SKIPPED, LOOKED_AT);
            self.missing.clear();
        }
    }

    /// The accesses that an instruction is about to make, as far as they can be told beforehand.
    pub(crate) fn touches(
        &mut self,
        insn: &Instruction,
        registers: &Registers,
        system: &SystemRegisters,
    ) -> Vec<Touch> {
        let mut touches = std::mem::take(&mut self.touches);
        touches.clear();
        let value = |register: Register, _, _| value_of(register, registers, system);
        for used in self.factory.info(insn).used_memory() {
            if let (Some(write), Some(va)) = (writes(used), used.virtual_address(0, value)) {
                touches.push(Touch { va, write });
            }
        }
        touches
    }

    /// Counts accesses; `holds` says whether a TLB has what one needs.
    pub(crate) fn count(&mut self, touches: Vec<Touch>, mut holds: impl FnMut(Touch) -> bool) {
        for &touch in &touches {
            let page = Touch { va: touch.va & !PAGE_MASK, ..touch };
            if self.missing.contains(&page) || holds(touch) {
                self.hits += 1;
            } else {
                self.misses += 1;
                self.missing.push(page);
            }
        }
        self.touches = touches;
    }
}

/// Whether an access writes; none if nothing is accessed.
fn writes(used: &UsedMemory) -> Option<bool> {
    match used.access() {
        OpAccess::None | OpAccess::NoMemAccess => None,
        OpAccess::Read | OpAccess::CondRead => Some(false),
        _ => Some(true),
    }
}

/// A register as part of an address, a segment register as its base.
fn value_of(register: Register, registers: &Registers, system: &SystemRegisters) -> Option<u64> {
    match register {
        Register::FS => Some(system.fs_base),
        Register::GS => Some(system.gs_base),
        // Flat, where code is translated.
        Register::CS | Register::SS | Register::DS | Register::ES => Some(0),
        _ if register.is_gpr64() => registers.gpr.get(register.number()).copied(),
        _ if register.is_gpr32() => registers.gpr.get(register.number()).map(|value| value & 0xffff_ffff),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn touches(code: &[u8]) -> Vec<Touch> {
        let insn = Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE).decode();
        let mut gpr = [0; 16];
        (gpr[0], gpr[4], gpr[3]) = (0x1_0000_5000, 0x9000, 2);
        let system = SystemRegisters { gs_base: 0x7000, ..SystemRegisters::default() };
        Sampler::new().touches(&insn, &Registers { gpr, ..Registers::default() }, &system)
    }

    #[test]
    fn accesses_are_told_beforehand() {
        let (read, write) = (|va| Touch { va, write: false }, |va| Touch { va, write: true });
        // mov eax, [rax+rbx*4+8]; add [rax], ecx; push rax; mov rax, gs:[eax]; mov eax, [rip+0]; lea rax, [rax]
        assert_eq!(touches(&[0x8b, 0x44, 0x98, 8]), [read(0x1_0000_5010)]);
        assert_eq!(touches(&[0x01, 0x08]), [write(0x1_0000_5000)]);
        assert_eq!(touches(&[0x50]), [write(0x8ff8)]);
        assert_eq!(touches(&[0x65, 0x67, 0x48, 0x8b, 0x00]), [read(0xc000)]);
        assert_eq!(touches(&[0x8b, 0x05, 0, 0, 0, 0]), [read(0x1006)]);
        assert_eq!(touches(&[0x48, 0x8d, 0x00]), []);
    }

    #[test]
    fn a_missing_page_is_missed_once() {
        let mut sampler = Sampler::new();
        let touch = |va| Touch { va, write: false };
        sampler.count(vec![touch(0x1000), touch(0x1008), touch(0x2000)], |touch| touch.va >= 0x2000);
        assert_eq!(sampler.counts(), (2, 1));
        // To be written is another matter.
        sampler.count(vec![Touch { va: 0x1000, write: true }], |_| false);
        assert_eq!(sampler.counts(), (2, 2));
    }

    #[test]
    fn a_sample_comes_once_in_a_period() {
        let mut sampler = Sampler::new();
        let mut turns = |now: u64, count| {
            let turns: Vec<Turn> = (0..count).map(|_| sampler.turn(|| now)).collect();
            [Turn::Usual, Turn::Skip, Turn::Look]
                .map(|kind| turns.iter().filter(|&&turn| turn == kind).count())
        };
        assert_eq!(turns(1, TURNS), [64, 0, 0]);
        assert_eq!(turns(1, SKIPPED + LOOKED_AT), [0, 64, 128]);
        assert_eq!(turns(PERIOD_NS, 4 * TURNS), [256, 0, 0]);
        assert_eq!(turns(PERIOD_NS + 1, TURNS + 1), [64, 1, 0]);
    }
}
