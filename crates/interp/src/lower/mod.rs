//! From the decoder's instruction to an [`Op`].
//!
//! Three steps: the feature check (an instruction of a feature that the CPU model lacks is #UD, as on a processor
//! without it), the operands, and the handler, chosen by mnemonic and operand width. Mnemonics of the integer set are
//! in [`integer`], those that touch system state in [`system`], everything vector and x87 goes to [`crate::vector`]
//! and [`crate::x87`].

mod feature;
mod integer;
mod system;

pub(crate) use feature::offered;
use iced_x86::{CodeSize, Instruction, Mnemonic, OpKind, Register};
use x86::cpuid::FeatureSet;

use crate::cpu::Cpu;
use crate::op::{Handler, IMMEDIATE, MEMORY, Mem, NONE, Op, Step, ZERO, prefix};

/// An operation, and whether the block ends with it.
pub(crate) struct Lowered {
    pub(crate) op: Op,
    pub(crate) ends: bool,
}

/// The handler of what is not an instruction.
pub(crate) fn undefined(cpu: &mut Cpu, _: &Op) -> Step {
    Err(cpu.ud())
}

/// The handler of an instruction longer than 15 bytes (SDM vol. 2, 2.3.11).
pub(crate) fn too_long(cpu: &mut Cpu, _: &Op) -> Step {
    Err(cpu.gp0())
}

/// Lowers one instruction, encoded in `bytes`.
pub(crate) fn lower(insn: &Instruction, bytes: &[u8], features: &FeatureSet) -> Lowered {
    let mut op = operands(insn);
    let offered = offered(insn, features);
    let handler = if offered {
        integer::select(insn, &mut op, features).or_else(|| system::select(insn, &mut op))
    } else {
        Some((undefined as Handler, true))
    };
    let (run, ends) = handler.unwrap_or_else(|| vector(insn, bytes, &mut op));
    op.run = run;
    Lowered { op, ends }
}

/// What is left is vector, x87, or nothing.
fn vector(insn: &Instruction, bytes: &[u8], op: &mut Op) -> (Handler, bool) {
    op.vector = crate::vector::plan(insn, bytes).map(Box::new);
    if op.vector.is_some() { (execute_vector, false) } else { (undefined, true) }
}

fn execute_vector(cpu: &mut Cpu, op: &Op) -> Step {
    match &op.vector {
        Some(planned) => {
            cpu.vector_rip = cpu.rip().wrapping_sub(u64::from(op.len));
            planned.execute(cpu, &op.mem)
        }
        None => Err(cpu.ud()),
    }
}

/// An operation that raises an exception whatever the state, of a given length.
pub(crate) fn raising(run: Handler, len: u8) -> Lowered {
    let mut op = operands(&Instruction::default());
    op.run = run;
    op.len = len;
    Lowered { op, ends: true }
}

fn operands(insn: &Instruction) -> Op {
    let mut op = Op {
        run: undefined,
        imm: 0,
        mem: memory_operand(insn),
        dst: NONE,
        src: NONE,
        src2: NONE,
        len: u8::try_from(insn.len()).unwrap_or(15),
        prefix: prefixes(insn),
        size: 0,
        vector: None,
    };
    let mut codes = [NONE; 3];
    for i in 0..insn.op_count().min(3) {
        codes[i as usize] = operand(insn, i, &mut op);
    }
    [op.dst, op.src, op.src2] = codes;
    op.size = operand_size(insn);
    op
}

fn prefixes(insn: &Instruction) -> u8 {
    let mut bits = 0;
    if insn.has_lock_prefix() {
        bits |= prefix::LOCK;
    }
    if insn.has_rep_prefix() {
        bits |= prefix::REP;
    }
    if insn.has_repne_prefix() {
        bits |= prefix::REPNE;
    }
    bits
}

fn operand(insn: &Instruction, i: u32, op: &mut Op) -> u8 {
    match insn.op_kind(i) {
        OpKind::Register => register(insn.op_register(i)),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            op.imm = insn.near_branch_target().wrapping_sub(insn.next_ip());
            IMMEDIATE
        }
        OpKind::FarBranch16 | OpKind::FarBranch32 => {
            let offset = match insn.op_kind(i) {
                OpKind::FarBranch16 => u64::from(insn.far_branch16()),
                _ => u64::from(insn.far_branch32()),
            };
            op.imm = offset | u64::from(insn.far_branch_selector()) << 32;
            IMMEDIATE
        }
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => {
            op.imm = insn.immediate(i);
            IMMEDIATE
        }
        OpKind::Immediate8_2nd => {
            op.imm |= u64::from(insn.immediate8_2nd()) << 16;
            IMMEDIATE
        }
        _ => MEMORY,
    }
}

/// The operand code of a register; its number within its own file for those that are not general.
fn register(register: Register) -> u8 {
    let high = match register {
        Register::AH => 0,
        Register::CH => 1,
        Register::DH => 2,
        Register::BH => 3,
        // The byte registers are numbered apart from the others.
        _ if register.is_gpr8() => return u8::try_from(register.full_register().number()).unwrap_or(NONE),
        _ => return u8::try_from(register.number()).unwrap_or(NONE),
    };
    crate::op::HIGH_BYTE | high
}

/// The width in bytes of the first operand that has one: what most mnemonics mean by operand size.
fn operand_size(insn: &Instruction) -> u8 {
    if insn.op_count() > 0 && insn.op0_kind() == OpKind::Register {
        return u8::try_from(insn.op0_register().size()).unwrap_or(0);
    }
    u8::try_from(insn.memory_size().size()).unwrap_or(0)
}

/// The memory operand, explicit or implied by a string instruction.
fn memory_operand(insn: &Instruction) -> Mem {
    let seg = segment_number(segment_in_force(insn));
    let mut mem = Mem { disp: 0, base: ZERO, index: ZERO, scale: 0, seg, cut: 0 };
    for i in 0..insn.op_count() {
        match insn.op_kind(i) {
            OpKind::Memory => return explicit(insn, mem),
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => mem.cut = 48,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => mem.cut = 32,
            _ => {}
        }
    }
    mem
}

/// The segment of the memory operand. In 64-bit mode only FS and GS prefixes count (SDM vol. 2, 2.1.1); what the
/// base register implies decides whether a bad address is #SS or #GP.
fn segment_in_force(insn: &Instruction) -> Register {
    let named = insn.memory_segment();
    if insn.code_size() != CodeSize::Code64 || matches!(named, Register::FS | Register::GS) {
        return named;
    }
    match insn.memory_base() {
        Register::RSP | Register::RBP | Register::ESP | Register::EBP => Register::SS,
        _ => Register::DS,
    }
}

fn segment_number(segment: Register) -> u8 {
    match segment {
        Register::None => 3,
        other => u8::try_from(other.number()).unwrap_or(3),
    }
}

fn explicit(insn: &Instruction, mem: Mem) -> Mem {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let disp = insn.memory_displacement64();
    let relative = matches!(base, Register::RIP | Register::EIP);
    let address_register = if base == Register::None { index } else { base };
    let bytes = match address_register {
        Register::None => insn.memory_displ_size().max(2),
        other => u32::try_from(other.size()).unwrap_or(8),
    };
    Mem {
        disp: if relative { disp.wrapping_sub(insn.next_ip()) } else { disp },
        base: if relative { 17 } else { address_slot(base) },
        index: address_slot(index),
        scale: u8::try_from(insn.memory_index_scale().trailing_zeros()).unwrap_or(0),
        cut: u8::try_from(64 - bytes.min(8) * 8).unwrap_or(0),
        ..mem
    }
}

/// The slot of a base or index register. Vector indices are looked up by the gather instructions themselves.
fn address_slot(register: Register) -> u8 {
    if register.is_gpr() { u8::try_from(register.number()).unwrap_or(ZERO) } else { ZERO }
}

/// Whether the mnemonic is the string instruction and not its SSE namesake.
fn is_string(insn: &Instruction, mnemonic: Mnemonic) -> bool {
    insn.mnemonic() == mnemonic && insn.is_string_instruction()
}
