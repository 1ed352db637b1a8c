//! Direct execution: user code that computes for long runs as it is, in a process of its own.
//!
//! # Scheme
//!
//! User code on one side and the same code in a process of Linux on the other differ in what leaves them and in nothing between. So a
//! vCPU may put the guest's registers into a [stub process](host::stub), whose address space holds the guest's pages where the
//! guest's tables have them, and let the processor run. Whatever leaves stops the stub, and with the registers as they are
//! then the engine goes on: it interprets the instruction that stopped, which does what it does in the guest. So nothing
//! is ever emulated here, and to stop early is always right.
//!
//! - [`space`]: what is mapped in the stub: a cache of translations like a TLB, which hears what TLBs hear;
//! - [`code`]: which pages may be executed, namely those in which all instructions whose results tell host and guest apart are
//!   known, and have breakpoints;
//! - [`policy`]: when it is worth while. To and fro takes some 30 µs, a page that is met for the first time no less.
//!
//! # Why it is right
//!
//! *Addresses.* A page is in the stub only if the guest's tables lead there with at least these rights, with the accessed bits set, and
//! for writes the dirty bit. It leaves at the invalidations at which a TLB's entry does, and at the same changes of memory; the vCPU acts on both
//! before it enters, and is called out when others cause them, as from translated code. A frame that holds code somebody keeps is
//! not writable in the stub.
//!
//! *Code.* A page is executed only while it is watched, like one that has been translated; when it is written it leaves.
//!
//! *State.* Only what [`is_ordinary`](interp::InterpVcpu::is_ordinary) enters; flags and selectors that the code gives itself come back.
//!
//! *The host.* What runs in the stub can make no system call, and sees the guest's pages and nothing else ([`host::stub`]).

mod code;
mod policy;
mod space;

pub(crate) use code::{AHEAD, Code, Verdict, Verdicts, is_ordinary_seam};
pub(crate) use policy::{Identity, Policy};
pub(crate) use space::{Space, View};

/// What a page that is met is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    Data,
    Write,
    Code,
}

/// When user code runs as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// Never.
    Never,
    /// When it computes for long.
    LongRuns,
    /// Always: for tests.
    Always,
}

impl Direct {
    /// As the variable `UMBRA_DIRECT` says, for who looks for a fault; usually when it computes for long.
    ///
    /// # Errors
    /// A sentence about what it says instead.
    pub fn from_environment() -> Result<Self, String> {
        match std::env::var("UMBRA_DIRECT").as_deref() {
            Err(_) => Ok(Self::LongRuns),
            Ok("never") => Ok(Self::Never),
            Ok("always") => Ok(Self::Always),
            Ok(other) => Err(format!("UMBRA_DIRECT is '{other}'; it can be 'never' or 'always'")),
        }
    }
}
