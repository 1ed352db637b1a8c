//! The reference engine: every instruction and mode, interpreted.
//!
//! This is the definition of what the guest's processor does. The other engines are checked against it, and it is
//! checked against the processor itself (`testkit::oracle`). It is also the slow path: whatever another engine does not
//! do, this one does.
//!
//! Where things are:
//!
//! - [`vcpu`](self): events between instructions, and the loop; `block`: decoded code;
//! - `lower`: from the decoder's instruction to an `op`, a handler with operands;
//! - `alu`: arithmetic and flags as pure functions; `exec`: the integer instructions, a family per file;
//! - `system`: segments, gates, interrupts, control registers, and all that needs privilege;
//! - `vector`, `x87`: operands and exceptions of what the host's own processor computes;
//! - `slow_path`: what another engine calls when it leaves something to this one; `watch`: when it is checked by it;
//! - `access`: every road to guest memory; `cpu`: the registers and what is derived from them.

#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

mod access;
mod alu;
mod block;
mod cpu;
mod environment;
mod exec;
mod lower;
mod op;
mod operand;
mod returns;
mod slow_path;
mod system;
mod vcpu;
mod vector;
mod watch;
mod width;
mod x87;

pub use returns::{PlainReturn, PlainReturns, PlainSegment};
pub use slow_path::{Flat, Regime, Registers, SystemRegisters, offers};
pub use vcpu::InterpVcpu;
pub use watch::Watch;

use engine::{Engine, EngineError, Vcpu, VcpuSetup};

/// The interpreter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interp;

/// The name that `--engine` knows.
const NAME: &str = "interp";

impl Interp {
    /// A vCPU in the reset state, as what it is.
    ///
    /// # Errors
    /// If the host refuses memory for the arithmetic unit's code.
    pub fn vcpu(&self, setup: VcpuSetup) -> Result<InterpVcpu, EngineError> {
        InterpVcpu::new(setup)
            .map_err(|error| EngineError::Unavailable { engine: NAME, reason: error.to_string() })
    }
}

impl Engine for Interp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(self.vcpu(setup)?))
    }
}
