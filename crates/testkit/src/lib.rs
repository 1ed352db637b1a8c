//! Engine-parametrised runner, instruction generators and oracles.
//!
//! ⚠ The oracle executes generated instructions on the processor itself, in a child process; that takes `unsafe`, which is
//! confined to `oracle::child`. This is a side crate: nothing that serves a guest depends on it.

#![allow(unsafe_code)]

pub mod engines;
pub mod flat;
pub mod fuzzing;
pub mod litmus;
pub mod lockstep;
pub mod oracle;
pub mod system;
pub mod techniques;
