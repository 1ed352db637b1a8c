//! `cargo xtask bench`: the same programs natively, in Umbra, and in the peers that also need no hardware virtualization.
//!
//! # How it measures
//! One static driver (`bench/guest`, in C) holds all programs. It runs natively, and as the init of the same kernel in
//! Umbra and in QEMU; User-Mode Linux is its own kernel. All of these run side by side, idle but for one: each is
//! told on its console what to do next ([`session`]), in turn, program by program and round by round, so that
//! whatever else the host is doing befalls them alike. Marker lines around the work are timed by the host's clock as
//! they arrive, since a guest's clock is part of what is judged.
//!
//! A program is a unit of work that can be repeated. How often, is found out per program and engine
//! ([`measure`]), and all figures are for one unit; so an engine that is a hundred times slower than another takes no
//! hundred times longer to measure. Each unit gives the same checksum everywhere, or the report says otherwise.

mod apt;
mod args;
mod boot;
mod counters;
mod engine;
mod guest;
mod interp;
mod io;
mod latency;
mod measure;
mod mmu;
mod report;
mod results;
mod session;
mod stage;
mod usage;

use std::path::Path;

use anyhow::{Result, bail, ensure};

pub(crate) use args::BenchArgs;
use args::{Kind, Limits};
use engine::Hosts;
use guest::{Driver, Program};
use results::Results;
use stage::Stage;

/// The classes of the programs that are Debian's.
const REAL: [&str; 2] = ["real", "short"];

/// Runs the benchmark and prints its tables.
pub(crate) fn task(root: &Path, args: &BenchArgs) -> Result<()> {
    match &args.kind {
        Some(Kind::Interp(args)) => return interp::task(args),
        Some(Kind::Latency(args)) => return latency::task(args),
        Some(Kind::Mmu(args)) => return mmu::task(root, args),
        Some(Kind::Io(args)) => return io::task(root, args),
        None => {}
    }
    ensure!(!args.engines.is_empty(), "a benchmark needs an engine");
    let limits = Limits::new(&args.setup)?;
    let cache = apt::Cache::of_user(args.setup.refresh)?;
    let driver = Driver::build(root, &cache.dir().join("driver"))?;
    let programs = chosen(&driver, args)?;
    let hosts = Hosts::find(root, &cache, &args.engines, &args.setup)?;
    let mut results = Results::new(&args.engines, args.setup.statistic());
    let (real, own): (Vec<_>, Vec<_>) =
        programs.into_iter().partition(|program| REAL.contains(&program.class.as_str()));
    if !own.is_empty() {
        let stage = Stage::own(&cache, &driver)?;
        measure::run(&hosts, &stage, &own, &limits, &mut results);
    }
    if !real.is_empty() {
        let stage = Stage::real(root, &cache, &driver)?;
        measure::run(&hosts, &stage, &real, &limits, &mut results);
    }
    if args.wants_boot() {
        boot::run(&hosts, &Stage::own(&cache, &driver)?, &limits, &mut results);
    }
    let mismatches = results.compare_checksums();
    report::print(&hosts, &results);
    if let Some(path) = &args.setup.json {
        report::write_json(path, &hosts, &results)?;
    }
    if mismatches > 0 {
        bail!("{mismatches} checksums differ");
    }
    Ok(())
}

/// The programs that are asked for.
fn chosen(driver: &Driver, args: &BenchArgs) -> Result<Vec<Program>> {
    let all = driver.programs()?;
    let known_class =
        |class: &String| class == boot::CLASS || all.iter().any(|program| program.class == *class);
    if let Some(class) = args.classes.iter().find(|class| !known_class(class)) {
        let mut classes: Vec<&str> = all.iter().map(|program| program.class.as_str()).collect();
        classes.dedup();
        bail!("there is no class '{class}'; there are {} and {}", classes.join(", "), boot::CLASS);
    }
    let known = |name: &String| name == boot::PROGRAM || all.iter().any(|program| program.name == *name);
    if let Some(name) = args.programs.iter().find(|name| !known(name)) {
        let names: Vec<&str> = all.iter().map(|program| program.name.as_str()).collect();
        bail!("there is no program '{name}'; there are {} and {}", names.join(", "), boot::PROGRAM);
    }
    Ok(all.into_iter().filter(|program| args.wants(&program.class, &program.name)).collect())
}
