//! Instructions that the processor computes: operands in, one thunk, results out.

use native::{Operand, Outcome, Plan};
use x86::control::cr4;
use x86::exception::vector;
use x86::{Exception, rflags};

use super::environment::Environment;
use super::guard::{Guard, check_alignment};
use super::mmx;
use crate::op::Mem;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;

/// Executes `plan`, in the order that processors do: memory is read; numeric exceptions are raised; memory is written;
/// registers are. When a store faults, MXCSR has its new flags already and an MMX instruction has set TOP; a numeric
/// exception comes after the whole transition from x87 to MMX.
pub(crate) fn execute<E: Environment>(
    env: &mut E,
    guard: Guard,
    plan: &Plan,
    mem: &Mem,
) -> Result<(), E::Break> {
    let memory = plan.memory();
    let align = guard.checked_alignment();
    if let Some(operand) = memory {
        check_alignment(env, mem, guard.alignment(), operand.bytes, operand.written)?;
        if operand.read {
            let mut buffer = [0; native::MEMORY_BYTES];
            let offset = env.offset(mem);
            env.load(mem.seg, offset, align, &mut buffer[..operand.bytes])?;
            env.units().processor.operands().memory.0 = buffer;
        }
    }
    gather_operands(env, plan);
    let units = env.units();
    match units.processor.run_vector(plan, units.vector) {
        Ok(Outcome::Done) => {}
        Ok(_) => {
            if plan.is_mmx() {
                mmx::enter(env.units().fpu);
            }
            // SDM vol. 3, 2.5: without CR4.OSXMMEXCPT an unmasked SIMD exception is an undefined opcode.
            let handled = env.control().cr4 & cr4::OSXMMEXCPT != 0;
            return Err(env.raise(if handled { Exception::plain(vector::XM) } else { Exception::ud() }));
        }
        // The host cannot execute it after all.
        Err(_) => return Err(env.raise(Exception::ud())),
    }
    if let Some(operand) = memory.filter(|operand| operand.written) {
        if plan.is_mmx() {
            mmx::set_top(env.units().fpu, 0);
        }
        let bytes = env.units().processor.operands().memory.0;
        let offset = env.offset(mem);
        env.store(mem.seg, offset, align, &bytes[..operand.bytes])?;
    }
    scatter_results(env, plan);
    Ok(())
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
