//! Vector, MMX, x87 and state-saving instructions.
//!
//! Arithmetic is done by the processor itself (crate `native`); this module does what is around it: whether the
//! instruction may execute at all ([`guard`]), operands in memory and general-purpose registers, exceptions, the MMX view of the
//! x87 registers. By hand are the plain moves, for speed ([`moves`]); what touches memory in its own way ([`masked`],
//! [`gather`]); and what handles the units' state ([`control`], [`fxsave`], [`xsave`], [`crate::x87`]).
//!
//! [`plan`] looks at an instruction once, when it is decoded; [`VectorOp::execute`] runs it. Whether CPUID offers the
//! instruction is for the decoder to know.
//!
//! An instruction that faults has changed nothing, except where the architecture says so (gathers; MXCSR flags with #XM).

mod arithmetic;
mod control;
mod environment;
mod fxsave;
mod gather;
mod guard;
mod masked;
pub(crate) mod mmx;
mod moves;
pub(crate) mod state_image;
mod xsave;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use environment::{Control, Environment, Units};

use iced_x86::Instruction;
use native::Plan;

use crate::op::Mem;
use crate::x87::X87;
use guard::Guard;
pub(crate) use guard::natural;

/// An instruction of this wing, ready to execute.
#[derive(Clone, Debug)]
pub(crate) enum VectorOp {
    /// Computed by the processor.
    Arithmetic(Guard, Box<Plan>),
    /// A plain move.
    Move(Guard, moves::Move),
    /// Elements picked by a mask.
    Masked(Guard, masked::Masked),
    /// Elements from scattered addresses.
    Gather(gather::Gather),
    /// MXCSR, VZEROUPPER and their like.
    Control(Guard, control::Control),
    /// FXSAVE and FXRSTOR.
    Fxsave(fxsave::Fxsave),
    /// XSAVE and its kin, XGETBV, XSETBV.
    Xsave(xsave::Xsave),
    /// The x87 unit.
    X87(X87),
}

/// Plans an instruction, whose encoding begins with `bytes`; `None` if it is not of this wing (or this host lacks it).
pub(crate) fn plan(instruction: &Instruction, bytes: &[u8]) -> Option<VectorOp> {
    let guard = Guard::of(instruction);
    if let Some(op) = moves::plan(instruction) {
        return Some(VectorOp::Move(guard, op));
    }
    if let Some(op) = control::plan(instruction) {
        return Some(VectorOp::Control(guard, op));
    }
    if let Some(op) = masked::plan(instruction) {
        return Some(VectorOp::Masked(guard, op));
    }
    if instruction.is_vsib() {
        return gather::plan(instruction).map(VectorOp::Gather);
    }
    if let Some(op) = fxsave::plan(instruction) {
        return Some(VectorOp::Fxsave(op));
    }
    if let Some(op) = xsave::plan(instruction) {
        return Some(VectorOp::Xsave(op));
    }
    if let Some(op) = X87::plan(instruction, bytes) {
        return Some(VectorOp::X87(op));
    }
    match Plan::new(instruction) {
        Ok(plan) if !plan.is_x87() => Some(VectorOp::Arithmetic(guard, Box::new(plan))),
        _ => None,
    }
}

impl VectorOp {
    /// Executes the instruction, whose memory operand is `mem`.
    pub(crate) fn execute<E: Environment>(&self, env: &mut E, mem: &Mem) -> Result<(), E::Break> {
        match self {
            Self::Arithmetic(guard, plan) => {
                guard.check(env)?;
                arithmetic::execute(env, *guard, plan, mem)
            }
            Self::Move(guard, op) => {
                guard.check(env)?;
                op.execute(env, *guard, mem)
            }
            Self::Masked(guard, op) => {
                guard.check(env)?;
                op.execute(env, mem)
            }
            Self::Gather(op) => op.execute(env, mem),
            Self::Control(guard, op) => {
                guard.check(env)?;
                op.execute(env, mem)
            }
            Self::Fxsave(op) => op.execute(env, mem),
            Self::Xsave(op) => op.execute(env, mem),
            Self::X87(op) => op.execute(env, mem),
        }
    }
}
