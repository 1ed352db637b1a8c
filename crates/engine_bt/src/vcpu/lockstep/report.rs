//! A difference as text: states, memory, the guest's code and the host's.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter};
use x86::{CpuState, PAGE_MASK, PAGE_SIZE};

use super::judge::Difference;
use super::{LockstepVcpu, Outcome, target};
use crate::cache::Key;

/// Blocks whose host code is shown.
const BLOCKS: usize = 4;
/// Instructions and lanes shown at the most.
const LINES: usize = 100;
const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

impl LockstepVcpu {
    /// All that helps to find the fault.
    pub(super) fn describe(
        &mut self,
        before: &CpuState,
        outcomes: &[Outcome],
        difference: &Difference,
    ) -> String {
        let trial = difference.trial;
        let goal = outcomes.get(trial).map_or(before, |outcome| &outcome.goal);
        let mut text = format!(
            "lockstep: {}\n  from {:#x}, trial {} of {}, {}; the translation left at {:#x}\n",
            difference.what,
            before.rip,
            trial + 1,
            outcomes.len(),
            if self.bt.mode.has(translate::Mode::USER) { "user" } else { "supervisor" },
            goal.rip,
        );
        registers(&mut text, before, goal, &difference.state);
        text += "memory (before, translation, interpreter):\n";
        for lane in difference.lanes.iter().take(LINES) {
            let _ = writeln!(
                text,
                "  {:#x}: {:02x?} {:02x?} {:02x?}",
                lane.gfn.0 * PAGE_SIZE + lane.offset as u64,
                lane.before,
                lane.trial,
                lane.now
            );
        }
        text += "executed by the interpreter:\n";
        for rip in self.trace.clone().into_iter().take(LINES) {
            if let Some(insn) = target::instruction(&mut self.bt, rip) {
                let _ = writeln!(text, "  {}", line(&insn));
            }
        }
        self.host_code(&mut text, before.rip);
        text
    }

    /// The translations of the blocks that were passed.
    fn host_code(&mut self, text: &mut String, first: u64) {
        let mut places = vec![first];
        places.extend(self.trace.iter().skip(1));
        let mut shown = 0;
        for rip in places {
            let Some(mfn) = self.bt.code_frame(rip) else { continue };
            let key = Key { mfn, offset: x86::bits::low16(rip & PAGE_MASK), mode: self.bt.mode };
            let Some(block) = self.bt.cache.find(key).and_then(|number| self.bt.cache.block(number)) else {
                continue;
            };
            let _ = writeln!(text, "translation of {rip:#x}:");
            let code = self.bt.cache.code_of(block);
            let address = self.bt.cache.address(block, 0);
            for insn in &mut Decoder::with_ip(64, &code, address, DecoderOptions::NONE) {
                let _ = writeln!(text, "  {}", line(&insn));
            }
            shown += 1;
            if shown == BLOCKS {
                return;
            }
        }
    }
}

/// Registers, those that differ marked.
fn registers(text: &mut String, before: &CpuState, trial: &CpuState, now: &CpuState) {
    *text += "registers (before, translation, interpreter):\n";
    let mut row = |name: &str, before: u64, trial: u64, now: u64| {
        let mark = if trial == now { ' ' } else { '!' };
        let _ = writeln!(text, "{mark} {name:<7} {before:016x} {trial:016x} {now:016x}");
    };
    for (number, name) in NAMES.iter().enumerate() {
        row(name, before.gpr[number], trial.gpr[number], now.gpr[number]);
    }
    row("rip", before.rip, trial.rip, now.rip);
    row("rflags", before.rflags, trial.rflags, now.rflags);
    row("mxcsr", before.vector.mxcsr.into(), trial.vector.mxcsr.into(), now.vector.mxcsr.into());
    for number in 0..16 {
        let lanes = |state: &CpuState| state.vector.ymm[number];
        if lanes(trial) != lanes(now) {
            let _ = writeln!(
                text,
                "! ymm{number} {:032x?} {:032x?} {:032x?}",
                lanes(before),
                lanes(trial),
                lanes(now)
            );
        }
    }
    if trial.fpu != now.fpu {
        let _ = writeln!(text, "! x87\n  {:x?}\n  {:x?}\n  {:x?}", before.fpu, trial.fpu, now.fpu);
    }
    if trial.seg != now.seg {
        let _ = writeln!(text, "! segments\n  {:x?}\n  {:x?}\n  {:x?}", before.seg, trial.seg, now.seg);
    }
    if trial.msrs != now.msrs {
        let _ = writeln!(text, "! MSRs\n  {:x?}\n  {:x?}\n  {:x?}", before.msrs, trial.msrs, now.msrs);
    }
    if trial.pending != now.pending {
        let _ =
            writeln!(text, "! pending\n  {:?}\n  {:?}\n  {:?}", before.pending, trial.pending, now.pending);
    }
}

fn line(insn: &Instruction) -> String {
    let mut text = format!("{:#x}  ", insn.ip());
    NasmFormatter::new().format(insn, &mut text);
    text
}
