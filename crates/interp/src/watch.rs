//! The interpreter as the reference that another engine is checked against, instruction by instruction.
//!
//! The other engine needs to know what an instruction wrote, wants repeated string instructions in single turns (it may
//! have stopped after any of them), and takes back what it has tried itself. The first costs nothing where nobody watches:
//! a watched instruction takes the careful road to memory.

use engine::Kick;
use x86::rflags::{AC, RF, VM};
use x86::{CpuState, Mfn};

use crate::vcpu::InterpVcpu;

/// What a number of watched instructions did besides changing registers.
#[derive(Debug)]
pub struct Watch {
    written: Vec<Mfn>,
    /// Raised for ever: string instructions look at it after each turn.
    kick: Kick,
}

impl Watch {
    /// Nothing has been done yet.
    pub fn new() -> Self {
        let kick = Kick::polled();
        kick.kick();
        Self { written: Vec::new(), kick }
    }

    /// The frames that were written, some of them several times.
    pub fn written(&self) -> &[Mfn] {
        &self.written
    }

    /// Forgets what was done.
    pub fn clear(&mut self) {
        self.written.clear();
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

impl InterpVcpu {
    /// Executes one instruction, or one turn of a repeated one, whatever it raises included.
    pub fn execute_watched(&mut self, watch: &mut Watch) {
        std::mem::swap(&mut self.cpu.kick, &mut watch.kick);
        self.cpu.written = Some(std::mem::take(&mut watch.written));
        self.cpu.careful = true;
        let rf = self.cpu.flags & RF;
        self.execute_one();
        // Between turns of one instruction the next look at events clears it, and none comes here.
        self.cpu.flags = self.cpu.flags & !RF | self.cpu.flags & rf;
        self.cpu.refresh_access();
        watch.written = self.cpu.written.take().unwrap_or_default();
        std::mem::swap(&mut self.cpu.kick, &mut watch.kick);
    }

    /// Goes back to a state that differs from this one in nothing that address translation depends on, but for the
    /// privilege level.
    pub fn put_back(&mut self, state: &CpuState) {
        let cpu = &mut self.cpu;
        cpu.regs[..16].copy_from_slice(&state.gpr);
        cpu.set_rip(state.rip);
        let derived = cpu.seg != state.seg || (cpu.flags ^ state.rflags) & (AC | VM) != 0;
        cpu.flags = state.rflags;
        cpu.seg = state.seg;
        cpu.msrs = state.msrs.clone();
        cpu.fpu = state.fpu.clone();
        cpu.vector = state.vector.clone();
        cpu.pending = state.pending.clone();
        if derived {
            cpu.refresh();
        }
    }
}
