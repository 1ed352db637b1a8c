//! System behaviour: segments, gates, interrupts, control registers and everything else that needs privilege.
//!
//! Far transfers and event deliveries change many registers and may fault at any point; they run inside
//! [`crate::cpu::Cpu::transact`], which puts every register back when they do. Memory they pushed stays pushed, as
//! on a processor.

pub(crate) mod control;
pub(crate) mod debug;
pub(crate) mod far;
pub(crate) mod hypercall;
pub(crate) mod interrupt;
pub(crate) mod io;
pub(crate) mod iret;
pub(crate) mod misc;
pub(crate) mod msr;
pub(crate) mod segment;
pub(crate) mod syscall;
pub(crate) mod tables;
pub(crate) mod task;
pub(crate) mod tss;

use x86::Segment;

use crate::cpu::Cpu;
use crate::op::{Break, RIP};

const RSP: usize = 4;

/// The registers that a far transfer may have changed before it faults.
struct Before {
    seg: [Segment; 6],
    rsp: u64,
    rip: u64,
    flags: u64,
}

impl Cpu {
    /// Runs `work`; if it faults, segments, RSP, RIP and RFLAGS are as if it had not begun.
    pub(crate) fn transact<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, Break>,
    ) -> Result<T, Break> {
        let before = Before { seg: self.seg, rsp: self.regs[RSP], rip: self.regs[RIP], flags: self.flags };
        let result = work(self);
        if result.is_err() {
            self.seg = before.seg;
            self.regs[RSP] = before.rsp;
            self.regs[RIP] = before.rip;
            self.flags = before.flags;
        }
        self.refresh();
        result
    }
}
