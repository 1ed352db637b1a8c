//! The interpreter follows a trial and says whether it agrees.

use interp::Registers;
use x86::rflags::STATUS;
use x86::state::Pending;
use x86::{CpuState, FpuState, Mfn};

use super::pages::Lane;
use super::undefined::Undefined;
use super::{LockstepVcpu, Outcome, TRIALS, target};

/// Instructions in a block at the most: a steady loop goes on from page to page until it has to leave, and may fill some MiB
/// byte by byte.
const BLOCK: usize = 1 << 24;
/// Instructions in a chain.
const CHAIN: usize = 1 << 14;
/// Turns of repeated string instructions.
const REPEATS: u64 = 1 << 26;

/// Where they came apart.
#[derive(Debug)]
pub(super) struct Difference {
    /// In one sentence.
    pub(super) what: String,
    /// Which trial's outcome was not met.
    pub(super) trial: usize,
    /// The interpreter's state that came closest.
    pub(super) state: Box<CpuState>,
    /// What of memory differs then.
    pub(super) lanes: Vec<Lane>,
}

impl LockstepVcpu {
    /// Executes with the interpreter until it has got to where each of the trials did.
    pub(super) fn follow(&mut self, outcomes: &[Outcome]) -> Result<(), Box<Difference>> {
        let most = if self.engine.closeness.chained { CHAIN } else { BLOCK };
        let mut met = [false; TRIALS];
        let mut closest = None;
        let mut repeats = 0;
        self.trace.clear();
        self.watch.clear();
        loop {
            let rip = self.bt.slow.rip();
            let mut ahead = false;
            for (trial, (Outcome { goal, .. }, met)) in outcomes.iter().zip(&mut met).enumerate() {
                if !*met && goal.rip == rip {
                    match self.judge(goal, trial) {
                        None => *met = true,
                        Some(difference) => closest = Some(difference),
                    }
                }
                ahead |= !*met;
            }
            if !ahead {
                return Ok(());
            }
            if self.trace.len() >= most || repeats >= REPEATS {
                break;
            }
            if self.trace.last() == Some(&rip) {
                repeats += 1;
            } else {
                self.trace.push(rip);
            }
            let exceptions = engine::Vcpu::stats(&self.bt.slow).exceptions;
            self.bt.slow.execute_watched(&mut self.watch);
            if engine::Vcpu::stats(&self.bt.slow).exceptions != exceptions {
                break;
            }
        }
        if self.undefined().was_read {
            self.engine.ledger.be_unclear();
            return Ok(());
        }
        let trial = met.iter().position(|met| !met).unwrap_or_default();
        Err(closest.filter(|difference| difference.trial == trial).unwrap_or_else(|| self.lost(trial)))
    }

    /// The interpreter went elsewhere.
    fn lost(&self, trial: usize) -> Box<Difference> {
        let what = "the interpreter does not get to where the translation left".to_owned();
        let state = Box::new(engine::Vcpu::state(&self.bt.slow));
        Box::new(Difference { what, trial, state, lanes: Vec::new() })
    }

    /// What differs here and now from a trial's outcome.
    fn judge(&mut self, goal: &CpuState, trial: usize) -> Option<Box<Difference>> {
        let now = engine::Vcpu::state(&self.bt.slow);
        let lanes = self.pages.differences(self.bt.slow.memory(), trial);
        let strange = self.strange_write();
        if equal(&now, goal) && lanes.is_empty() && strange.is_none() && self.accept_flags(&now, goal) {
            return None;
        }
        let what = strange.map_or_else(
            || "the translation and the interpreter differ".to_owned(),
            |mfn| format!("the interpreter wrote to frame {:#x}, the translation did not", mfn.0),
        );
        Some(Box::new(Difference { what, trial, state: Box::new(now), lanes }))
    }

    /// Whether the flags agree. Where CMPS or SCAS is left between two turns, those before the instruction will do, as
    /// for a processor that meets a page fault there (SDM vol. 2, REP), and are taken over.
    fn accept_flags(&mut self, now: &CpuState, goal: &CpuState) -> bool {
        let different = now.rflags ^ goal.rflags;
        if different == 0 || different & !STATUS != 0 {
            return different == 0;
        }
        if self.trace.last() == Some(&goal.rip)
            && target::instruction(&mut self.bt, goal.rip)
                .is_some_and(|insn| insn.has_rep_prefix() || insn.has_repne_prefix())
        {
            let registers = self.bt.slow.registers();
            self.bt.slow.set_registers(&Registers { rflags: goal.rflags, ..registers });
            return true;
        }
        different & !self.undefined().flags == 0
    }

    /// A frame that was written by the interpreter only.
    fn strange_write(&self) -> Option<Mfn> {
        self.watch.written().iter().copied().find(|&mfn| !self.pages.holds(mfn))
    }

    /// The flags that are undefined after what was executed.
    fn undefined(&mut self) -> Undefined {
        let bt = &mut self.bt;
        self.trace.iter().fold(Undefined::default(), |undefined, &rip| {
            target::instruction(bt, rip).map_or(undefined, |insn| undefined.after(&insn))
        })
    }
}

/// Whether states are the same, flags apart, and but for what translated code does not keep: the shadow of STI, because it
/// lets events in between blocks only; the x87 unit's last operand and the selectors of its last instruction.
fn equal(a: &CpuState, b: &CpuState) -> bool {
    a.gpr == b.gpr
        && a.rip == b.rip
        && a.vector == b.vector
        && FpuState { fdp: b.fpu.fdp, fcs: b.fpu.fcs, fds: b.fpu.fds, ..a.fpu.clone() } == b.fpu
        && a.seg == b.seg
        && a.msrs == b.msrs
        && Pending { sti_shadow: b.pending.sti_shadow, ..a.pending.clone() } == b.pending
}
