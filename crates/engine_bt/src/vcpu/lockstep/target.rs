//! Where the branch at RIP leads, from the registers before it.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};
use memory::Word;
use mmu::{Access, Target};
use translate::Mode;
use translate::context::Table;
use x86::{Gva, PAGE_MASK, PAGE_SIZE};

use crate::vcpu::BtVcpu;

/// The instruction at a linear address, as far as its bytes can be fetched.
pub(super) fn instruction(bt: &mut BtVcpu, rip: u64) -> Option<Instruction> {
    let mut bytes = [0; 15];
    let first = bytes.len().min(x86::bits::index(PAGE_SIZE - (rip & PAGE_MASK)));
    let (low, high) = bytes.split_at_mut(first);
    let mfn = bt.code_frame(rip)?;
    bt.slow.memory().frames().copy_out(mfn, rip & PAGE_MASK, low);
    let mut length = first;
    if let Some(mfn) = (!high.is_empty()).then(|| bt.code_frame(rip + first as u64)).flatten() {
        bt.slow.memory().frames().copy_out(mfn, 0, high);
        length = 15;
    }
    let insn = bt.mode.decoder(&bytes[..length], rip).decode();
    (!insn.is_invalid()).then_some(insn)
}

/// The target and whose code it is, if the instruction is a near branch, SYSCALL, SYSRET or IRETQ, and what it reads can be read.
pub(super) fn predict(bt: &mut BtVcpu, rip: u64) -> Option<(Table, u64)> {
    let insn = instruction(bt, rip)?;
    let system = bt.slow.system_registers();
    let (mode, target) = match insn.mnemonic() {
        Mnemonic::Syscall => (bt.mode.without(Mode::USER), system.lstar),
        Mnemonic::Sysretq => (bt.mode.with(Mode::USER, true).without(Mode::AC), register(bt, Register::RCX)?),
        Mnemonic::Iretq => interrupted(bt)?,
        _ => (bt.mode, near_target(bt, &insn)?),
    };
    Gva(target).is_canonical().then_some((mode.table(), target))
}

/// What the frame at the stack pointer returns to.
fn interrupted(bt: &mut BtVcpu) -> Option<(Mode, u64)> {
    let stack = register(bt, Register::RSP)?;
    let (target, selector) = (read::<u64>(bt, stack)?, read::<u64>(bt, stack.wrapping_add(8))?);
    Some((bt.mode.with(Mode::USER, selector & 3 == 3), target))
}

fn near_target(bt: &mut BtVcpu, insn: &Instruction) -> Option<u64> {
    let word = bt.mode.word();
    let pointer = if word == 4 { Register::ESP } else { Register::RSP };
    match insn.flow_control() {
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::Call => {
            matches!(insn.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32)
                .then(|| insn.near_branch_target())
        }
        FlowControl::Return if insn.mnemonic() == Mnemonic::Ret => {
            let stack = register(bt, pointer)?;
            read_word(bt, stack)
        }
        FlowControl::IndirectBranch | FlowControl::IndirectCall => match insn.op0_kind() {
            OpKind::Register => register(bt, insn.op0_register()),
            OpKind::Memory if insn.memory_size().size() == word => {
                let address = insn.virtual_address(0, 0, |name, _, _| register(bt, name))?;
                read_word(bt, if word == 4 { address & 0xffff_ffff } else { address })
            }
            _ => None,
        },
        _ => None,
    }
}

/// A general-purpose register, or the base of a segment.
fn register(bt: &BtVcpu, name: Register) -> Option<u64> {
    match name {
        Register::FS => Some(bt.slow.system_registers().fs_base),
        Register::GS => Some(bt.slow.system_registers().gs_base),
        Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
        _ if name.is_gpr64() => bt.slow.registers().gpr.get(name.number()).copied(),
        _ if name.is_gpr32() => bt.slow.registers().gpr.get(name.number()).map(|value| value & 0xffff_ffff),
        _ => None,
    }
}

/// A word as wide as the mode's addresses.
fn read_word(bt: &mut BtVcpu, va: u64) -> Option<u64> {
    if bt.mode.word() == 4 { read::<u32>(bt, va).map(u64::from) } else { read::<u64>(bt, va) }
}

fn read<W: Word>(bt: &mut BtVcpu, va: u64) -> Option<W> {
    if !Gva(va).is_canonical() || va & PAGE_MASK > PAGE_SIZE - W::BYTES as u64 {
        return None;
    }
    match bt.slow.resolve(va, Access::Read).ok()?.target {
        Target::Ram { mfn, .. } => Some(bt.slow.memory().frames().read(mfn, va & PAGE_MASK)),
        _ => None,
    }
}
