//! The only crate that talks to Linux (bar `/dev/kvm`): anonymous files and mappings, clocks, CPU identification,
//! code memory, files, sockets, signals, threads, profilers, the jail.
//!
//! Everything here is safe to call unless marked otherwise; the reasons why the unsafe blocks inside are right stand
//! beside each of them. Nothing here knows what a guest is.

#![allow(unsafe_code)]

pub mod code;
pub mod cpu;
pub mod io;
pub mod jail;
pub mod mem;
pub mod perf;
pub mod poll;
pub mod random;
mod shelter;
pub mod signal;
pub mod socket;
pub mod stub;
pub mod tap;
pub mod thread;
pub mod time;

pub use code::CodeMemory;
pub use mem::{Mapping, Memfd, Protection};
pub use shelter::Shelter;
pub use stub::Stub;

/// What the host refused.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No anonymous file could be made or sized.
    #[error("cannot create {len} bytes of anonymous memory")]
    Create {
        /// The size asked for, in bytes.
        len: u64,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A range of an anonymous file could not be mapped.
    #[error("cannot map {len} bytes of anonymous memory")]
    Map {
        /// The size asked for, in bytes.
        len: u64,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// An offset or length is not page-aligned, is empty or lies outside the file.
    #[error("range {offset:#x}+{len:#x} does not lie on whole pages inside the file")]
    Range {
        /// Where the range starts, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
    },
    /// The kernel could not say what a file costs, or not take pages back.
    #[error("cannot {what} of anonymous memory")]
    Usage {
        /// What was asked.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A signal handler could not be installed.
    #[error("cannot handle signal {signal}")]
    Signal {
        /// The signal's number.
        signal: i32,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A stub process could not be made or used.
    #[error("the stub process cannot {what}")]
    Stub {
        /// What it was to do.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The profiler's map could not be made.
    #[error("cannot write '{path}'")]
    PerfMap {
        /// Where it would have been.
        path: std::path::PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The jail lacks something that it cannot be without.
    #[error("the kernel does not let this process {what}")]
    Jail {
        /// What the process wanted to do to itself.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The jail was to be shut around threads that would not all be in it.
    #[error("the process has more than one thread already")]
    Crowded,
    /// More code ranges were registered than there are slots.
    #[error("no slot left for another range of code with a fix-up")]
    TooManyFixups,
}
