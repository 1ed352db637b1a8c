//! `cargo xtask litmus`: what vCPUs of an engine may see of each other's loads and stores, counted.

use anyhow::{Result, anyhow, bail, ensure};
use clap::Args;
use testkit::litmus::{Litmus, Report, all};

/// Arguments of the task.
#[derive(Debug, Args)]
pub(crate) struct LitmusArgs {
    /// The engine
    #[arg(long, default_value = "interp")]
    engine: String,
    /// Rounds of each test
    #[arg(long, default_value_t = 20_000)]
    rounds: u64,
    /// Print each test's name and source, and run none
    #[arg(long)]
    list: bool,
    /// Only tests of these names (SB, IRIW); `counter*` means all that begin so
    tests: Vec<String>,
}

/// Runs the tests and prints each as it ends.
pub(crate) fn task(args: &LitmusArgs) -> Result<()> {
    let engine = testkit::engines::by_name(&args.engine).map_err(|problem| anyhow!(problem))?;
    let tests = all()?;
    let unknown = args.tests.iter().find(|wish| !tests.iter().any(|test| fits(wish, test.name())));
    ensure!(unknown.is_none(), "there is no test '{}'; --list names them", unknown.map_or("", |wish| wish));
    let chosen: Vec<&Litmus> = tests
        .iter()
        .filter(|test| args.tests.is_empty() || args.tests.iter().any(|wish| fits(wish, test.name())))
        .collect();
    if args.list {
        for test in chosen {
            println!("{:<20} {}", test.name(), test.cite());
        }
        return Ok(());
    }
    println!("engine {}\n{}", engine.name(), Report::head());
    let mut failures = Vec::new();
    for test in chosen {
        let result = test.run(&*engine, args.rounds)?;
        println!("{result}");
        if result.is_failure() {
            failures.push(result.name);
        }
    }
    if !failures.is_empty() {
        bail!("the engine breaks the memory model: {}", failures.join(", "));
    }
    Ok(())
}

fn fits(wish: &str, name: &str) -> bool {
    match wish.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => name == wish,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_end() {
        assert!(fits("SB", "SB") && fits("SB*", "SB+mfences") && fits("*", "IRIW"));
        assert!(!fits("SB", "SB+mfences") && !fits("S*B", "SB"));
    }
}
