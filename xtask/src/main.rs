//! Repository tasks: `cargo xtask <task>`.

mod bench;
mod check;
mod fuzz;
mod litmus;
mod oracle;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Repository tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Task {
    /// Check everything that does not need to run: format, lints, and the rules of this repository
    Check {
        /// Only these checks
        names: Vec<String>,
    },
    Bench(Box<bench::BenchArgs>),
    /// Search for inputs that break a promise, with libFuzzer
    Fuzz(fuzz::FuzzArgs),
    /// Count what vCPUs see of each other, against the memory model of the processor
    Litmus(litmus::LitmusArgs),
    /// Compare random instructions on an engine with the processor itself
    Oracle(oracle::OracleArgs),
}

fn main() -> ExitCode {
    let result = root().and_then(|root| match Args::parse().task {
        Task::Check { names } => check::run(&root, &names),
        Task::Bench(args) => bench::task(&root, &args),
        Task::Fuzz(args) => fuzz::task(&root, &args),
        Task::Litmus(args) => litmus::task(&args),
        Task::Oracle(args) => oracle::task(&args),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The top of the repository.
fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_owned).context("xtask has no parent directory")
}
