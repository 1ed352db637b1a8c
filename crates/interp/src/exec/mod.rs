//! The unprivileged integer instructions, a family per file.
//!
//! Every handler follows one order: check, read operands (which may fault), compute, write memory (which may fault),
//! then registers and flags (which may not). So a fault leaves the processor as if the instruction had not begun.

pub(crate) mod arith;
pub(crate) mod bits;
pub(crate) mod branch;
pub(crate) mod data;
pub(crate) mod decimal;
pub(crate) mod flags;
pub(crate) mod interlocked;
pub(crate) mod muldiv;
pub(crate) mod shift;
pub(crate) mod stack;
pub(crate) mod string;
