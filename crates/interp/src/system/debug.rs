//! Debug registers, breakpoints and single step (SDM vol. 3, chapter 18).
//!
//! Instruction breakpoints are looked for before an instruction (then they are faults), data and I/O breakpoints and
//! single step after it (traps). While any breakpoint is enabled, the engine executes one instruction at a time and
//! every data access takes the careful road, so nothing here costs a guest that does not debug.

use x86::control::{cr4, dr6, dr7};
use x86::rflags::{RF, TF};
use x86::{Exception, bits::high32};

use crate::cpu::Cpu;
use crate::op::{Break, Op, Step};
use crate::system::control::{read_register, write_register};
use crate::system::misc::drain_stores;

/// What a breakpoint register watches (the R/W field of DR7).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    Execute = 0,
    Write = 1,
    Io = 2,
    ReadWrite = 3,
}

impl Cpu {
    fn breakpoint(&self, index: usize) -> Option<(Watch, u64, u64)> {
        if self.dr7 >> (index * 2) & 3 == 0 {
            return None;
        }
        let field = self.dr7 >> (16 + index * 4);
        let watch = match field & 3 {
            0 => Watch::Execute,
            1 => Watch::Write,
            2 if self.cr4 & cr4::DE != 0 => Watch::Io,
            2 => return None,
            _ => Watch::ReadWrite,
        };
        let length = match field >> 2 & 3 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        };
        Some((watch, self.dr[index] & !(length - 1), length))
    }

    /// DR6 bits of the enabled breakpoints that `matches`; none if no breakpoint is enabled.
    fn matching(&self, matches: impl Fn(Watch, u64, u64) -> bool) -> u64 {
        if self.dr7 & dr7::ENABLES == 0 {
            return 0;
        }
        (0..4)
            .filter(|&i| self.breakpoint(i).is_some_and(|(watch, base, length)| matches(watch, base, length)))
            .fold(0, |hits, i| hits | 1 << i)
    }

    /// Notes data breakpoints that an access meets; they are reported after the instruction.
    pub(crate) fn note_breakpoints(&mut self, va: u64, size: u64, write: bool) {
        let last = va.wrapping_add(size - 1);
        self.watch_hits |= self.matching(|watch, base, length| {
            let kind = watch == Watch::ReadWrite || watch == Watch::Write && write;
            kind && base <= last && va <= base.wrapping_add(length - 1)
        });
    }

    /// Notes I/O breakpoints.
    pub(crate) fn note_io_breakpoints(&mut self, port: u64, size: u64) {
        self.watch_hits |= self.matching(|watch, base, length| {
            watch == Watch::Io && base < port + size && port < base.wrapping_add(length)
        });
    }

    /// The fault of an instruction breakpoint at the current instruction, unless RF holds it off.
    pub(crate) fn instruction_breakpoint(&self) -> Option<Exception> {
        if self.flags & RF != 0 {
            return None;
        }
        let va = self.rip().wrapping_add(self.bases[1]);
        let hits = self.matching(|watch, base, _| watch == Watch::Execute && base == va);
        (hits != 0).then(|| Exception::debug(hits))
    }

    /// The debug trap due after an instruction that began with `stepping` (RFLAGS.TF).
    pub(crate) fn debug_trap(&mut self, stepping: bool) -> Option<Exception> {
        let mut hits = self.watch_hits;
        self.watch_hits = 0;
        if self.pending.mov_ss_shadow {
            // Data breakpoints of the MOV SS itself wait for the next instruction; its single step is lost.
            self.pending.debug |= hits;
            return None;
        }
        hits |= self.pending.debug;
        self.pending.debug = 0;
        if stepping {
            hits |= dr6::BS;
        }
        (hits != 0).then(|| Exception::debug(hits))
    }

    /// Whether instructions have to be executed one at a time.
    #[inline]
    pub(crate) fn stepping(&self) -> bool {
        self.flags & TF != 0
            || self.dr7 & dr7::ENABLES != 0
            || self.pending.sti_shadow
            || self.pending.mov_ss_shadow
            || self.pending.debug != 0
    }

    fn debug_register(&mut self, number: u8) -> Result<u8, Break> {
        let number = match number {
            4 | 5 if self.cr4 & cr4::DE == 0 => number + 2,
            0..=3 | 6 | 7 => number,
            _ => return Err(self.ud()),
        };
        self.require_cpl0()?;
        if self.dr7 & dr7::GD != 0 {
            // Unlike other debug exceptions that the exception's class knows of, this one is a fault.
            self.flags |= RF;
            return Err(self.raise(Exception::debug(dr6::BD)));
        }
        Ok(number)
    }
}

/// MOV from a debug register.
pub(crate) fn read(cpu: &mut Cpu, op: &Op) -> Step {
    let value = match cpu.debug_register(op.src)? {
        6 => cpu.dr6,
        7 => cpu.dr7,
        n => cpu.dr[n as usize % 4],
    };
    write_register(cpu, op, value);
    Ok(())
}

/// MOV to a debug register.
pub(crate) fn write(cpu: &mut Cpu, op: &Op) -> Step {
    drain_stores();
    let number = cpu.debug_register(op.dst)?;
    let value = read_register(cpu, op);
    if number >= 6 && high32(value) != 0 {
        return Err(cpu.gp0());
    }
    match number {
        6 => cpu.dr6 = value & 0xe00f | dr6::FIXED,
        7 => cpu.dr7 = value & 0xffff_2bff | dr7::FIXED,
        n => cpu.dr[n as usize % 4] = value,
    }
    cpu.look = true;
    cpu.refresh_access();
    Ok(())
}
