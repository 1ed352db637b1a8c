//! `cargo xtask oracle`: random instructions, or sequences of them, on an engine against the processor itself.
//!
//! The run is cut into slices so that progress shows and each processor of the host can take its share. Every case is made from the
//! seed and its number, so the numbers of a mismatch make it again: `--seed S --first N --cases 1`.

use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use testkit::oracle::{Options, Report, run, sequence};

/// Arguments of the task.
#[derive(Debug, Args)]
pub(crate) struct OracleArgs {
    /// The engine
    #[arg(long, default_value = "interp")]
    engine: String,
    /// Sequences with branches, loops, faults and changing code instead of single instructions
    #[arg(long)]
    sequences: bool,
    /// How many cases; K and M are thousands and millions
    #[arg(long, default_value = "1M", value_parser = count)]
    cases: u64,
    /// The seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of the first case
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Only forms whose name contains this, as the decoder spells it (Add_rm32_r32)
    #[arg(long)]
    only: Option<String>,
    /// How many processes execute at once
    #[arg(long, default_value_t = 1)]
    jobs: u64,
}

fn count(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.chars().last() {
        Some('K' | 'k') => (&text[..text.len() - 1], 1_000),
        Some('M' | 'm') => (&text[..text.len() - 1], 1_000_000),
        _ => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| format!("'{text}' is not a number of cases"))?;
    number.checked_mul(factor).ok_or_else(|| format!("'{text}' is too many"))
}

/// Runs the oracle and prints what differs.
pub(crate) fn task(args: &OracleArgs) -> Result<()> {
    let start = Instant::now();
    let jobs = args.jobs.max(1);
    let share = args.cases.div_ceil(jobs);
    let reports: Vec<Result<Report>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|job| {
                let first = args.first + job * share;
                let cases = share.min(args.cases.saturating_sub(job * share));
                scope.spawn(move || slice(args, first, cases))
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
            .collect()
    });
    let mut reports = reports.into_iter();
    let mut total = reports.next().unwrap_or_else(|| Ok(Report::default()))?;
    for report in reports {
        total.merge(report?);
    }
    println!("{total}");
    let seconds = start.elapsed().as_secs_f64();
    if let Some(entries) = total.counters.get("entries") {
        let [interpreted, direct] =
            ["interpreted", "direct.runs"].map(|name| total.counters.get(name).copied().unwrap_or(0));
        println!(
            "translated code entered {entries} times, {interpreted} instructions interpreted, {direct} times executed directly"
        );
    }
    println!("{seconds:.1} s, {:.0} cases/s", total.cases as f64 / seconds);
    if total.mismatch_count() != 0 {
        bail!("engine and processor differ");
    }
    Ok(())
}

fn slice(args: &OracleArgs, first: u64, cases: u64) -> Result<Report> {
    let options = Options { seed: args.seed, first, cases, only: args.only.clone() };
    let engine = testkit::engines::by_name(&args.engine).map_err(|problem| anyhow!(problem))?;
    let report = if args.sequences { sequence::run(&*engine, &options) } else { run(&*engine, &options) };
    report.context("the oracle cannot run")
}
