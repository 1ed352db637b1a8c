//! The binary-translation engine: most of the guest runs as a translation of itself.
//!
//! Where things are:
//!
//! - `vcpu`: the loop, exits, and how nothing stale ever runs;
//! - `cache`: translations and how they are found; `heat`: when code is worth one;
//! - `fluid`: which code changes too often to be watched; `variants`: the blocks of such code;
//! - `views`: the TLBs and jump caches behind GS; `shadow`: the return stacks;
//! - `modes`: what of the processor's state translations depend on;
//! - `direct`: user code that is not translated at all, because it computes for long;
//! - `x87`: where the x87 state is;
//! - `enter`: the assembly between Rust and translated code;
//! - `stats` and `left`: what is counted; `sample`: how often the TLBs have what is looked for; `names`: what profilers call translated code;
//! - `vcpu::lockstep`: all of it beside the interpreter, compared.
//!
//! What a translation looks like is the crate `translate`'s business; whatever it does not translate, and everything
//! that happens between instructions, is [`interp`]'s.

#![allow(unsafe_code)]

mod cache;
mod direct;
mod enter;
mod entrances;
mod fluid;
mod heat;
mod jumps;
mod left;
mod modes;
mod names;
mod places;
mod sample;
mod shadow;
mod sites;
mod stats;
mod status;
mod variants;
mod vcpu;
mod views;
mod writers;
mod x87;

pub use direct::Direct;
pub use stats::{BtStats, CacheStats, DirectStats};
pub use vcpu::{BtVcpu, Closeness, Counts, Ledger, Lockstep, LockstepVcpu};

use engine::{Engine, EngineError, Vcpu, VcpuSetup};

/// The name that `--engine` knows.
pub const NAME: &str = "bt";
/// The name of the engine for tests whose blocks all check themselves.
const CHECKING: &str = "bt-checking";
/// The name of the engine for tests that executes all user code directly.
const DIRECT: &str = "bt-direct";

/// How the engine is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of the code cache of each vCPU, its records included.
    pub code_cache: u64,
    /// Whether to tell `perf` what translated code is: see [`host::perf`].
    pub perf_map: bool,
    /// Leave to the interpreter what gives another result each time: clocks and random numbers.
    pub repeatable: bool,
    /// Whether translated code goes on by itself where it can: it finds other code where its jump cache knows none, and all turns
    /// of a loop whose guest registers lodge elsewhere are one stretch of it.
    pub goes_on: bool,
    /// Watch no code: all blocks check themselves.
    pub checking: bool,
    /// When user code runs as it is.
    pub direct: Direct,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            code_cache: 64 << 20,
            perf_map: false,
            repeatable: false,
            goes_on: true,
            checking: false,
            direct: Direct::LongRuns,
        }
    }
}

/// The engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bt {
    options: Options,
}

impl Bt {
    /// An engine set up so.
    pub const fn new(options: Options) -> Self {
        Self { options }
    }

    /// An engine whose blocks all check themselves: what is else reserved for pages that are written too often.
    pub fn checking() -> Self {
        Self::new(Options { checking: true, ..Options::default() })
    }

    /// An engine that executes all user code directly that it can, however short the run.
    pub fn direct() -> Self {
        Self::new(Options { direct: Direct::Always, ..Options::default() })
    }

    /// Whether the host has what the engine needs.
    ///
    /// # Errors
    /// What is missing.
    pub fn check_host() -> Result<(), EngineError> {
        if host::cpu::has_fsgsbase() {
            return Ok(());
        }
        let reason =
            "the kernel does not let programs set the GS base (FSGSBASE, Linux 5.9 and later)".to_owned();
        Err(EngineError::Unavailable { engine: NAME, reason })
    }

    /// A vCPU in the reset state, as what it is.
    ///
    /// # Errors
    /// If the host refuses memory or lacks what the engine needs.
    pub fn vcpu(&self, setup: VcpuSetup) -> Result<BtVcpu, EngineError> {
        Self::check_host()?;
        BtVcpu::new(setup, &self.options)
    }
}

impl Engine for Bt {
    fn name(&self) -> &'static str {
        match self.options {
            Options { checking: true, .. } => CHECKING,
            Options { direct: Direct::Always, .. } => DIRECT,
            _ => NAME,
        }
    }

    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(self.vcpu(setup)?))
    }
}
