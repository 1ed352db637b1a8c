//! Steps that go straight on: the single oracle's instructions, with what they need around them.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};
use x86::rflags;

use super::super::build::{self, Builder, RSP, Setting};
use super::super::case::{Registers, STACK, STACK_BYTES};
use super::super::forms::Form;
use super::super::undefined;
use super::generate::Maker;
use super::ledger::{load, writes};
use super::program::{Body, Op, Step};

/// Where the stack pointer begins.
pub(super) const STACK_TOP: u64 = STACK + STACK_BYTES as u64 / 4 * 3;

/// Whether a form can be in a sequence at all.
pub(super) fn fits(form: &Form) -> bool {
    use Mnemonic as M;
    matches!(form.bits, 64 | 32)
        && matches!(form.code.flow_control(), FlowControl::Next | FlowControl::Exception)
        && !matches!(
            form.code.mnemonic(),
            // Which components are in use is the implementation's own, and would be read back.
            M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64
            // A way to the child's own memory.
            | M::Rdfsbase
            // Any flags at all: comes with a value of its own instead.
            | M::Popf | M::Popfd | M::Popfq
        )
}

/// Whether what the instruction leaves behind is told, so that others may read it.
fn leaves_told(instruction: &Instruction, bits: u32) -> bool {
    let wide_shift = matches!(instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) && {
        let narrow = instruction.op1_register().size() == 2;
        let last = instruction.op_count() - 1;
        narrow && (instruction.op_kind(last) == OpKind::Register || instruction.immediate(last) & 31 > 16)
    };
    let half_counted = bits == 64 && (0..16).any(|n| undefined::register_mask(instruction, n) != u64::MAX);
    let foreign = bits == 64 && instruction.segment_prefix() == Register::FS;
    !wide_shift && !half_counted && !foreign
}

/// Whether it leaves told things behind even if it faults.
fn faults_cleanly(instruction: &Instruction) -> bool {
    !undefined::is_in_parts(instruction) && !undefined::pops_in_parts(instruction)
}

impl Maker<'_> {
    /// A step around an instruction of any form. `reserved` may not be written; a subroutine keeps the stack as it is.
    pub(super) fn plain(&mut self, reserved: u32) -> Option<Step> {
        if self.random.one_in(24) {
            return self.flags_from_stack(reserved);
        }
        (0..16).find_map(|_| self.try_plain(reserved))
    }

    fn try_plain(&mut self, reserved: u32) -> Option<Step> {
        let index = self.forms.plain_index(self.ledger.bits, &mut self.random);
        let form = self.forms.all[index];
        if form.code.flow_control() == FlowControl::Exception && !self.random.one_in(8) {
            return None;
        }
        let setting =
            Setting { registers: self.ledger.registers, bases: &self.ledger.bases(), calm: self.calm };
        let mut random = self.random.clone();
        let mut draft = build::draft(&mut random, form, self.world, &setting)?;
        let parts = Parts::of(&mut draft, &setting);
        self.random = random;
        if !self.is_welcome(&parts.instruction) {
            return None;
        }
        let step = self.settle(parts, reserved)?;
        self.used.push(index);
        Some(step)
    }

    fn is_welcome(&self, instruction: &Instruction) -> bool {
        let host = self.world.host;
        let resumable = faults_cleanly(instruction) && host.agrees_in_fault(instruction);
        leaves_told(instruction, self.ledger.bits)
            && host.agrees(instruction)
            && (self.resumes == 0 || resumable)
            // What cannot be encoded may be found out now.
            && super::program::bytes_of(self.ledger.bits, instruction, self.start).is_some()
    }

    /// Adds the moves that a drafted instruction needs.
    fn settle(&mut self, mut parts: Parts, reserved: u32) -> Option<Step> {
        let [written, vectors] = writes(&parts.instruction);
        let stack = parts.instruction.is_stack_instruction();
        let moved = written >> RSP & 1 != 0;
        let quiet_stack = reserved >> RSP & 1 != 0;
        // Pushes and pops go where the stack is, mostly.
        if stack && parts.pinned >> RSP & 1 != 0 && (quiet_stack || !self.random.one_in(4)) {
            parts.pinned &= !(1 << RSP);
            parts.memory = None;
        }
        if !self.ledger.allows(written & !(1 << RSP), reserved) || moved && quiet_stack {
            return None;
        }
        let away = parts.pinned >> RSP & 1 != 0 || moved && !is_push_or_pop(&parts.instruction);
        if away && quiet_stack {
            return None;
        }
        // What the ledger would not let happen must leave no trace in it.
        let mut ledger = self.ledger.clone();
        let mut ops: Vec<Op> = Vec::new();
        for n in (0..ledger.names()).filter(|n| parts.pinned >> n & 1 != 0) {
            let moves = ledger.hold(n, parts.wanted.gpr[n], written, reserved)?;
            ops.extend(moves.into_iter().map(Op::from));
        }
        for n in (0..ledger.names()).filter(|n| parts.pinned >> n & 1 == 0 && *n != RSP) {
            if parts.wanted.gpr[n] != self.ledger.registers.gpr[n] {
                ledger.suggest(n, parts.wanted.gpr[n]);
            }
        }
        ledger.take_vectors(&parts.wanted);
        ledger.write(written);
        ledger.write_vectors(vectors);
        self.ledger = ledger;
        ops.push(parts.instruction.into());
        if away {
            ops.push(load(self.ledger.bits, RSP, STACK_TOP).into());
        }
        self.memory.extend(parts.memory);
        Some(Step::new(self.label(), Body::Ops(ops)))
    }

    /// POPF of a value with nothing in it that Linux and the guest see differently.
    fn flags_from_stack(&mut self, reserved: u32) -> Option<Step> {
        use iced_x86::Code;
        if reserved >> RSP & 1 != 0 {
            return None;
        }
        // Linux does not bring ID back when a signal handler returns.
        let lost = if self.resumes > 0 { rflags::ID } else { 0 };
        let refused = rflags::TF | rflags::NT | lost | self.world.host.refused_flags();
        let rare = if self.random.one_in(8) { rflags::AC } else { 0 };
        let value = self.random.bits() & (rflags::STATUS | rflags::DF | rflags::ID | rare) & !refused;
        let (push, pop) = if self.ledger.bits == 64 {
            (Code::Pushq_imm32, Code::Popfq)
        } else {
            (Code::Pushd_imm32, Code::Popfd)
        };
        let push = Instruction::with1(push, value as i32).ok()?;
        let ops = vec![push.into(), Instruction::with(pop).into()];
        Some(Step::new(self.label(), Body::Ops(ops)))
    }
}

/// What is left of a draft.
struct Parts {
    instruction: Instruction,
    /// Registers that lead its operands where they are to go.
    pinned: u32,
    wanted: Registers,
    memory: Option<(u64, Vec<u8>)>,
}

impl Parts {
    fn of(draft: &mut Builder<'_>, setting: &Setting<'_>) -> Self {
        let memory = draft.take_patch();
        let changed = (0..16).filter(|&n| draft.registers.gpr[n] != setting.registers.gpr[n]);
        // A stack pointer that is wanted is needed.
        let pinned = changed.filter(|n| *n == RSP).fold(draft.pinned, |bits, n| bits | 1 << n);
        let mut wanted = draft.registers;
        if draft.bits != 64 {
            wanted.gpr.iter_mut().for_each(|gpr| *gpr &= 0xffff_ffff);
        }
        Self { instruction: draft.instruction, pinned, wanted, memory }
    }
}

/// Whether the stack pointer moves by a little, and memory at it is pushed or popped.
fn is_push_or_pop(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Pop => instruction.op0_register().full_register() != Register::RSP,
        M::Push | M::Pushf | M::Pushfd | M::Pushfq | M::Pusha | M::Pushad | M::Popa | M::Popad => true,
        _ => false,
    }
}
