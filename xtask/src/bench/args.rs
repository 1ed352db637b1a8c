//! What was typed, and what it means for how long things take.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};

use super::engine::Engine;
use super::results::Statistic;
use super::{boot, interp, io, latency, mmu};

/// Below the help.
const EXAMPLES: &str = "\
Examples:
  cargo xtask bench --quick
  cargo xtask bench --classes integer,kernel --engines native,umbra,qemu
  cargo xtask bench --programs sort,syscall --engines native,umbra-bt,umbra-interp --rounds 9 --best
  cargo xtask bench mmu
  cargo xtask bench io --size 256M --rounds 3
  cargo xtask bench interp
  cargo xtask bench latency --engines bt

Classes:
  integer, vector, memory, kernel, code (made at run time), real (Debian's programs with work for some
  hundred milliseconds), short (the same with so little that half of it is to be started), boot

Files:
  $XDG_CACHE_HOME/umbra/bench, or ~/.cache/umbra/bench: QEMU, User-Mode Linux and Debian's programs,
  fetched by this machine's apt and not installed; can be deleted at any time

Exit status:
  0, or 1 if the benchmark cannot run or checksums differ; an engine that fails says so in its cell";

/// Run the same programs natively, in Umbra, in QEMU and in User-Mode Linux, and compare
///
/// Figures are what the host's clock says for one unit of each program's work, measured on all engines in turn.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(super) kind: Option<Kind>,
    /// Only these classes of programs
    #[arg(long, value_delimiter = ',', value_name = "CLASS,…")]
    pub(super) classes: Vec<String>,
    /// Only these programs
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub(super) programs: Vec<String>,
    /// What to compare
    #[arg(long, value_delimiter = ',', value_name = "ENGINE,…", default_value = "native,umbra,qemu,uml")]
    pub(super) engines: Vec<Engine>,
    #[command(flatten)]
    pub(super) setup: SetupArgs,
}

/// How to measure, and with what.
#[derive(Clone, Debug, Args)]
pub(super) struct SetupArgs {
    /// How often each program is measured [default: 5, or 1 with --quick]
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// How long a measurement should take at least [default: 200, or 40 with --quick]
    #[arg(long, value_name = "MS")]
    milliseconds: Option<u64>,
    /// Let the best sample count instead of the median: for a host that has other things to do
    #[arg(long)]
    best: bool,
    /// One short round, without a look at idle guests
    #[arg(long)]
    quick: bool,
    /// When to give up a program or a boot
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// The kernel for Umbra and QEMU [default: what `umbra run` boots]
    #[arg(long, value_name = "FILE")]
    pub(super) kernel: Option<PathBuf>,
    /// The umbra to measure [default: built from this source]
    #[arg(long, value_name = "FILE")]
    pub(super) umbra: Option<PathBuf>,
    /// Fetch the newest peers and programs, whatever is in the cache
    #[arg(long)]
    pub(super) refresh: bool,
    /// Write every sample here
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

/// Other things that can be measured.
#[derive(Debug, Subcommand)]
pub(super) enum Kind {
    /// Measure how many guest instructions a second the interpreter executes, on loops of one kind each
    Interp(interp::InterpArgs),
    Latency(latency::LatencyArgs),
    Mmu(mmu::MmuArgs),
    Io(io::IoArgs),
}

impl BenchArgs {
    /// Whether a program is asked for.
    pub(super) fn wants(&self, class: &str, name: &str) -> bool {
        let listed =
            |list: &[String], item: &str| list.is_empty() || list.iter().any(|wanted| wanted == item);
        listed(&self.classes, class) && listed(&self.programs, name)
    }

    /// Whether booting is.
    pub(super) fn wants_boot(&self) -> bool {
        self.wants(boot::CLASS, boot::PROGRAM)
    }
}

impl SetupArgs {
    /// One of two figures: that for a quick look, or the other.
    pub(super) fn by_thoroughness(&self, quick: u64, thorough: u64) -> u64 {
        if self.quick { quick } else { thorough }
    }

    /// What is made of samples.
    pub(super) fn statistic(&self) -> Statistic {
        if self.best { Statistic::Best } else { Statistic::Median }
    }
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Measurements of each program.
    pub(super) rounds: usize,
    /// What a measurement should take at least.
    pub(super) target: Duration,
    /// What nothing may take.
    pub(super) timeout: Duration,
    /// Whether to look at idle guests.
    pub(super) idle: bool,
}

impl Limits {
    /// What the arguments say.
    ///
    /// # Errors
    /// If nothing could be measured.
    pub(super) fn new(args: &SetupArgs) -> Result<Self> {
        let rounds = args.rounds.unwrap_or(if args.quick { 1 } else { 5 });
        let milliseconds = args.milliseconds.unwrap_or_else(|| args.by_thoroughness(40, 200));
        ensure!(rounds > 0 && milliseconds > 0 && args.timeout > 0, "a benchmark needs rounds and time");
        let target = Duration::from_millis(milliseconds);
        Ok(Self { rounds, target, timeout: Duration::from_secs(args.timeout), idle: !args.quick })
    }
}
