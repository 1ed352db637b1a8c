//! x87: what is around the arithmetic that the processor does for us, and the control instructions by hand
//! (SDM vol. 1, chapter 8).
//!
//! An unmasked exception is not raised by the instruction that met it but by the next *waiting* one. So a waiting
//! instruction first looks whether one is pending ([`mmx::is_pending`]); what runs on the host's processor never has one.
//!
//! # Last-instruction pointers
//!
//! Every non-control instruction leaves its address in FIP. Processors differ in the rest. With CPUID's
//! FDP_EXCPTN_ONLY, operand pointer and opcode are written only by instructions that meet an unmasked exception; else
//! by every one. With ZERO_FCS_FDS the selectors are always zero. We do as the CPUID we show says.

mod control;
mod image;

use iced_x86::Instruction;
use native::Plan;
use x86::control::cr0;
use x86::cpuid::Feature;
use x86::fpu::fsw;
use x86::{Exception, FpuState, SegmentIndex, rflags};

use crate::op::Mem;
use crate::vector::{Environment, mmx, natural};

/// The 80 bits of a register.
pub(crate) const REGISTER: u128 = (1 << 80) - 1;
/// The control word's bits that can be written; bit 6 reads as one.
const FCW_WRITABLE: u16 = 0x1f3f;
const FCW_FIXED: u16 = 0x40;

/// An x87 instruction.
#[derive(Clone, Debug)]
pub(crate) enum X87 {
    /// Computed by the processor; with the 11 opcode bits.
    Arithmetic { plan: Box<Plan>, opcode: u16 },
    /// By hand.
    Control(control::Control),
}

/// Loads control and status word: fixed bits, and the exception summary that follows from flags and masks.
pub(crate) fn load_words(fpu: &mut FpuState, fcw: u16, status: u16) {
    fpu.fcw = fcw & FCW_WRITABLE | FCW_FIXED;
    fpu.fsw = status;
    summarise(fpu);
}

/// Sets ES and B by the exception flags and their masks.
fn summarise(fpu: &mut FpuState) {
    if mmx::is_pending(fpu) {
        fpu.fsw |= fsw::ES | fsw::B;
    } else {
        fpu.fsw &= !(fsw::ES | fsw::B);
    }
}

/// The last-opcode field: three bits of the first opcode byte, and the second one.
fn opcode(bytes: &[u8]) -> u16 {
    // No prefix lies among the escape opcodes.
    let Some(at) = bytes.iter().position(|byte| matches!(byte, 0xd8..=0xdf)) else { return 0 };
    let second = bytes.get(at + 1).copied().unwrap_or(0);
    u16::from(bytes[at] & 7) << 8 | u16::from(second)
}

impl X87 {
    /// Plans an instruction, which `bytes` are the encoding of; `None` if it is not x87.
    pub(crate) fn plan(instruction: &Instruction, bytes: &[u8]) -> Option<Self> {
        if let Some(op) = control::plan(instruction) {
            return Some(Self::Control(op));
        }
        let plan = Plan::new(instruction).ok().filter(Plan::is_x87)?;
        Some(Self::Arithmetic { plan: Box::new(plan), opcode: opcode(bytes) })
    }

    /// Executes it.
    pub(crate) fn execute<E: Environment>(&self, env: &mut E, mem: &Mem) -> Result<(), E::Break> {
        match self {
            Self::Control(op) => op.execute(env, mem),
            Self::Arithmetic { plan, opcode } => {
                check_available(env)?;
                check_pending(env)?;
                arithmetic(env, plan, *opcode, mem)
            }
        }
    }
}

/// #NM with CR0.EM or CR0.TS (SDM vol. 3, 2.5).
fn check_available<E: Environment>(env: &mut E) -> Result<(), E::Break> {
    if env.control().cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(env.raise(Exception::nm()));
    }
    Ok(())
}

/// Waiting instructions raise what is pending.
fn check_pending<E: Environment>(env: &mut E) -> Result<(), E::Break> {
    if mmx::is_pending(env.units().fpu) {
        return Err(env.x87_error());
    }
    Ok(())
}

fn arithmetic<E: Environment>(env: &mut E, plan: &Plan, opcode: u16, mem: &Mem) -> Result<(), E::Break> {
    let memory = plan.memory();
    if let Some(operand) = memory.filter(|operand| operand.read) {
        let mut buffer = [0; native::MEMORY_BYTES];
        let offset = env.offset(mem);
        env.load(mem.seg, offset, natural(operand.bytes).into(), &mut buffer[..operand.bytes])?;
        env.units().processor.operands().memory.0 = buffer;
    }
    if plan.reads_flags() || plan.writes_flags() {
        let flags = env.flags() & rflags::STATUS;
        env.units().processor.operands().flags = flags;
    }
    let units = env.units();
    let mut fpu = units.fpu.clone();
    if units.processor.run_x87(plan, &mut fpu).is_err() {
        // The host cannot execute it after all.
        return Err(env.raise(Exception::ud()));
    }
    let unmasked = fpu.fsw & !fpu.fcw & fsw::EXCEPTIONS;
    if let Some(operand) = memory.filter(|operand| operand.written) {
        let bytes = units.processor.operands().memory.0;
        let offset = env.offset(mem);
        // Of the unmasked exceptions only inexactness comes with a result (SDM vol. 1, 8.5); for the others memory is
        // not even looked at.
        if unmasked & !PRECISION == 0 {
            env.store(mem.seg, offset, natural(operand.bytes).into(), &bytes[..operand.bytes])?;
        }
    }
    note_pointers(env, &mut fpu, opcode, memory.is_some().then_some(mem), unmasked != 0);
    let units = env.units();
    *units.fpu = fpu;
    if plan.writes_flags() {
        let flags = units.processor.operands().flags;
        env.set_status_flags(flags & rflags::STATUS);
    }
    Ok(())
}

/// The PE flag.
const PRECISION: u16 = 1 << 5;

fn note_pointers<E: Environment>(
    env: &mut E,
    fpu: &mut FpuState,
    opcode: u16,
    mem: Option<&Mem>,
    excepted: bool,
) {
    let selectors = !env.has(Feature::ZeroFcsFds);
    fpu.fip = env.instruction_pointer();
    fpu.fcs = if selectors { env.selector(SegmentIndex::Cs) } else { 0 };
    if excepted || !env.has(Feature::FdpExcptnOnly) {
        fpu.fop = opcode;
        if let Some(mem) = mem {
            fpu.fdp = env.offset(mem);
            let segment = SegmentIndex::ALL.get(usize::from(mem.seg)).copied().unwrap_or(SegmentIndex::Ds);
            fpu.fds = if selectors { env.selector(segment) } else { 0 };
        }
    }
}
