//! `cargo xtask fuzz`: the targets of `testkit::fuzzing` under libFuzzer and AddressSanitizer.
//!
//! The bodies run in every test; searching for new inputs needs instrumentation that only a nightly compiler offers, so
//! `fuzz/` is a workspace of its own and this task asks for what it needs. Targets run one after the other. What they learn stays in
//! `fuzz/corpus` and what they find in `fuzz/artifacts`, neither of which is committed; a finding becomes a test, and its
//! input a file in `fuzz/seeds`.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use testkit::fuzzing::{TARGETS, Target, target};

/// Arguments of the task.
#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Which target; all of them, one after the other, if none is named
    target: Option<String>,
    /// How long each of them runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// An input that takes longer, in seconds, hangs.
const TIMEOUT: u32 = 20;
/// What a target may use, in MiB; more is a finding.
const MEMORY_MIB: u32 = 2048;

/// Runs the targets.
pub(crate) fn task(root: &Path, args: &FuzzArgs) -> Result<()> {
    let chosen: Vec<&Target> = match &args.target {
        None => TARGETS.iter().collect(),
        Some(name) => vec![target(name).with_context(|| {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            format!("there is no fuzz target '{name}'; there are {}", names.join(", "))
        })?],
    };
    if !succeeds("rustup", &["run", "nightly", "rustc", "--version"]) {
        bail!("fuzzing needs a nightly compiler: run `rustup toolchain install nightly --profile minimal`");
    }
    if !succeeds("cargo-fuzz", &["--version"]) {
        bail!("fuzzing needs cargo-fuzz: run `cargo install cargo-fuzz`");
    }
    for target in chosen {
        search(root, target, args.seconds)?;
        println!("{}: {} s without a finding", target.name, args.seconds);
    }
    Ok(())
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn search(root: &Path, target: &Target, seconds: u64) -> Result<()> {
    let fuzz = root.join("fuzz");
    let (corpus, seeds) = (fuzz.join("corpus").join(target.name), fuzz.join("seeds").join(target.name));
    for directory in [&corpus, &seeds] {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    // Without --no-trace-compares most of the time goes into looking at comparisons of the interpreter's own loops.
    let status = Command::new("rustup")
        .args(["run", "nightly", "cargo", "fuzz", "run", "--no-trace-compares", "--fuzz-dir"])
        .arg(&fuzz)
        .arg(target.name)
        .args([&corpus, &seeds])
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", target.max_len))
        .arg(format!("-timeout={TIMEOUT}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .current_dir(root)
        .status()
        .context("cannot run rustup")?;
    if !status.success() {
        bail!("{}: a finding; its input is in fuzz/artifacts/{}", target.name, target.name);
    }
    Ok(())
}
