//! The processor as an arithmetic unit: one vector, MMX or x87 instruction on given operands.
//!
//! An emulator that computes `vfmadd213ps` or `fyl2xp1` by hand is wrong in some corner: a rounding, a NaN's payload, a
//! flag. This crate lets the host's processor compute the guest's instruction on the guest's operands, so that results, flags,
//! MXCSR and x87 status are right by construction.
//!
//! A [`Plan`] says what an instruction needs; [`Processor`] runs it through a small generated function, a *thunk*, one per
//! instruction *form* (`plan.rs` says what that is). The caller brings memory operands and general-purpose registers in
//! [`Operands`], and writes results back; vector registers are used where they are.
//!
//! ```text
//!   Instruction ──Plan::new──▶ Plan ──Processor::run_vector(plan, VectorState)──▶ Outcome
//!                               │                 ▲    │
//!                               └ what to marshal ┘ Operands
//! ```
//!
//! An engine that executes guest code on the host's processor directly keeps the x87 state there between instructions:
//! `lease.rs`.
//!
//! # Unsafe
//!
//! Executing generated code is unsafe; offering it as safe functions rests on admission (`plan.rs`), on the bytes
//! being checked after encoding (`thunk.rs`), and on generations (`processor.rs`).

#![allow(unsafe_code)]

mod context;
mod features;
mod lease;
mod plan;
mod processor;
mod thunk;

#[cfg(test)]
mod tests;

pub use context::{MEMORY_BYTES, Memory, Operands, SLOTS};
pub use plan::{Implicit, MemoryOperand, Operand, Plan};
pub use processor::{Outcome, Processor};

use iced_x86::Code;

/// An instruction cannot be executed here.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// It is not arithmetic on operands.
    #[error("{0:?} is not executed by the arithmetic unit")]
    NotArithmetic(Code),
    /// The host's processor does not have it.
    #[error("this processor does not have {0:?}")]
    NotOffered(Code),
    /// The host refused code memory.
    #[error(transparent)]
    Host(#[from] host::HostError),
}
