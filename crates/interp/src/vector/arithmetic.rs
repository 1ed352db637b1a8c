//! Instructions that the processor computes: operands in, one thunk, results out.

use native::{Operand, Outcome, Plan};
use x86::control::cr4;
use x86::exception::vector;
use x86::{Exception, rflags};

use super::environment::Environment;
use super::guard::{check_alignment, natural};
use super::mmx;
use crate::op::Mem;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;

/// Executes `plan`. Memory is read before anything else happens and written before any register is.
pub(crate) fn execute<E: Environment>(
    env: &mut E,
    plan: &Plan,
    alignment: u64,
    mem: &Mem,
) -> Result<(), E::Break> {
    let memory = plan.memory();
    if let Some(operand) = memory {
        check_alignment(env, mem, alignment, operand.bytes, operand.written)?;
        if operand.read {
            let mut buffer = [0; native::MEMORY_BYTES];
            let offset = env.offset(mem);
            env.load(mem.seg, offset, natural(operand.bytes), &mut buffer[..operand.bytes])?;
            env.units().processor.operands().memory.0 = buffer;
        }
    }
    gather_operands(env, plan);
    let units = env.units();
    let mxcsr = units.vector.mxcsr;
    let outcome = units.processor.run_vector(plan, units.vector);
    if let Some(operand) = memory.filter(|operand| operand.written) {
        // A page fault comes before a numeric exception, and leaves MXCSR as it was.
        let offset = env.offset(mem);
        let stored = if matches!(outcome, Ok(Outcome::Done)) {
            let bytes = env.units().processor.operands().memory.0;
            env.store(mem.seg, offset, natural(operand.bytes), &bytes[..operand.bytes])
        } else {
            env.probe_write(mem.seg, offset, natural(operand.bytes), operand.bytes as u64)
        };
        if stored.is_err() {
            env.units().vector.mxcsr = mxcsr;
        }
        stored?;
    }
    match outcome {
        Ok(Outcome::Done) => {
            scatter_results(env, plan);
            Ok(())
        }
        Ok(_) => {
            // SDM vol. 3, 2.5: without CR4.OSXMMEXCPT an unmasked SIMD exception is an undefined opcode.
            let handled = env.control().cr4 & cr4::OSXMMEXCPT != 0;
            Err(env.raise(if handled { Exception::plain(vector::XM) } else { Exception::ud() }))
        }
        // The host cannot execute it after all.
        Err(_) => Err(env.raise(Exception::ud())),
    }
}

fn gather_operands<E: Environment>(env: &mut E, plan: &Plan) {
    for (slot, operand) in plan.operands().iter().enumerate() {
        match *operand {
            Operand::Gpr { register, .. } => {
                let value = env.gpr(number(register));
                env.units().processor.operands().gpr[slot] = value;
            }
            Operand::Mmx { number, .. } => {
                let units = env.units();
                units.processor.operands().mm[slot] = mmx::read(units.fpu, number);
            }
            Operand::Vector { .. } | Operand::None => {}
        }
    }
    let implicit = plan.implicit();
    if implicit.rax_read || implicit.rdx_read {
        let (rax, rdx) = (env.gpr(RAX), env.gpr(RDX));
        let operands = env.units().processor.operands();
        (operands.rax, operands.rdx) = (rax, rdx);
    }
    if plan.reads_flags() || plan.writes_flags() {
        let flags = env.flags() & rflags::STATUS;
        env.units().processor.operands().flags = flags;
    }
}

fn scatter_results<E: Environment>(env: &mut E, plan: &Plan) {
    if plan.is_mmx() {
        mmx::enter(env.units().fpu);
    }
    for (slot, operand) in plan.operands().iter().enumerate() {
        match *operand {
            Operand::Gpr { register, written: true } => {
                let value = env.units().processor.operands().gpr[slot];
                env.set_gpr(number(register), value);
            }
            Operand::Mmx { number, written: true } => {
                let units = env.units();
                mmx::write(units.fpu, number, units.processor.operands().mm[slot]);
            }
            _ => {}
        }
    }
    if plan.implicit().rcx_written {
        let value = env.units().processor.operands().rcx;
        env.set_gpr(RCX, value);
    }
    if plan.writes_flags() {
        let flags = env.units().processor.operands().flags;
        env.set_status_flags(flags & rflags::STATUS);
    }
}

/// The encoding number of a 32- or 64-bit general-purpose register.
pub(crate) fn number(register: iced_x86::Register) -> u8 {
    u8::try_from(register.number()).unwrap_or(0) & 15
}
