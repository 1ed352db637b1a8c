//! `cargo xtask bench mmu`: what is hard for the virtualization of memory, under each technique of it, natively and in QEMU;
//! and what each technique counted meanwhile.
//!
//! Processes that are made, ended and switched between, page faults, mappings that come and go, a shell script that starts
//! programs, the boot of a Debian kernel. Figures are for one operation: a fork, a page, a switch. What is counted
//! is counted around each measurement, so the beginning and end of the process that does the work is in it.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use clap::Args;
use spec::MmuChoice;

use super::apt::Cache;
use super::args::{Limits, SetupArgs};
use super::counters::{self, Counters};
use super::engine::{Engine, Hosts};
use super::guest::Driver;
use super::report::{FIGURE, NAME, factor};
use super::results::{Cell, Results, Row};
use super::stage::Stage;
use super::{boot, measure, report};

/// Measure techniques of memory virtualization, and show what each of them counts
#[derive(Debug, Args)]
pub(super) struct MmuArgs {
    /// The techniques
    #[arg(long, value_delimiter = ',', value_name = "TECHNIQUE,…")]
    #[arg(default_value = "walk,vtlb,lazy,eager,nested,nested-4k")]
    techniques: Vec<MmuChoice>,
    /// Only these programs
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    programs: Vec<String>,
    /// Leave QEMU out
    #[arg(long)]
    no_qemu: bool,
    #[command(flatten)]
    setup: SetupArgs,
}

/// A program, and what a unit of it consists of.
struct Subject {
    name: &'static str,
    /// How many operations.
    operations: u32,
    operation: &'static str,
    /// The most that an operation may take, as a multiple of the native time, where something is promised.
    target: Option<f64>,
}

const fn subject(
    name: &'static str,
    operations: u32,
    operation: &'static str,
    target: Option<f64>,
) -> Subject {
    Subject { name, operations, operation, target }
}

/// What is measured. The rings of processes hand on a byte, and each hand-over is a switch.
const SUBJECTS: [Subject; 10] = [
    subject("fork", 8, "fork, exit and wait", Some(4.0)),
    subject("fork-exec", 4, "fork, exec, exit and wait", None),
    subject("page-fault", 1000, "page touched", Some(3.0)),
    subject("mmap", 500, "mmap, touch and munmap", None),
    subject("mprotect", 2000, "mprotect", None),
    subject("pipe", 200, "round trip of two processes", Some(3.0)),
    subject("switch-8", 400, "switch among 8 processes", None),
    subject("switch-64", 384, "switch among 64 processes", None),
    subject("shell-1000", 1000, "program started by a shell", None),
    subject(boot::PROGRAM, 1, "boot", None),
];

/// A switch among 64 may take this many times as long as one among two: half of a round trip.
const MANY_TARGET: f64 = 1.5;

/// The counters that are shown, with a title.
const SHOWN: [(&str, &str); 19] = [
    ("tlb.fills", "TLB misses"),
    ("exits.miss", "of translated code"),
    ("tlb.faults", "true faults"),
    ("mmu.hidden.fill", "hidden: filled"),
    ("mmu.hidden.dirty", "hidden: A and D"),
    ("mmu.hidden.trace", "hidden: traced"),
    ("mmu.hidden.p2m", "hidden: P2M"),
    ("mmu.hits", "found in shadow"),
    ("mmu.traced_writes", "traced writes"),
    ("mmu.lost_traces", "traces lost"),
    ("mmu.resyncs", "resynchronised"),
    ("tlb.flushes", "flushes"),
    ("tlb.invalidations", "pages invalidated"),
    ("tlb.switches", "switches"),
    ("tlb.epochs", "memory changed"),
    ("mmu.guest_refs", "guest references"),
    ("mmu.host_refs", "host references"),
    ("mmu.tables", "tables held"),
    ("mmu.table_bytes", "bytes of them"),
];

/// Measures and prints.
///
/// # Errors
/// If something cannot be run, or checksums differ.
pub(super) fn task(root: &Path, args: &MmuArgs) -> Result<()> {
    ensure!(!args.techniques.is_empty(), "a benchmark needs a technique");
    if let Some(name) = args.programs.iter().find(|name| !SUBJECTS.iter().any(|s| s.name == **name)) {
        let names: Vec<&str> = SUBJECTS.iter().map(|subject| subject.name).collect();
        bail!("there is no program '{name}'; there are {}", names.join(", "));
    }
    let limits = Limits::new(&args.setup)?;
    let cache = Cache::of_user(args.setup.refresh)?;
    let driver = Driver::build(root, &cache.dir().join("driver"))?;
    let wanted = |name: &str| args.programs.is_empty() || args.programs.iter().any(|wanted| wanted == name);
    let mut programs = driver.programs()?;
    programs.retain(|program| SUBJECTS.iter().any(|s| s.name == program.name) && wanted(&program.name));
    let engines = engines(args);
    let hosts = Hosts::find(root, &cache, &engines, &args.setup)?;
    let mut results = Results::new(&engines, args.setup.statistic());
    let stage = Stage::own(&cache, &driver)?;
    measure::run(&hosts, &stage, &programs, &limits, &mut results);
    if wanted(boot::PROGRAM) {
        boot::run(&hosts, &stage, &limits, &mut results);
    }
    let mismatches = results.compare_checksums();
    report::print(&hosts, &results);
    print_operations(&results);
    print_targets(&results);
    results.rows.iter().for_each(|row| print_counters(row, &results));
    print_dimensions(&results);
    if let Some(path) = &args.setup.json {
        report::write_json(path, &hosts, &results)?;
    }
    ensure!(mismatches == 0, "{mismatches} checksums differ");
    Ok(())
}

/// The host, Umbra under each technique, QEMU.
fn engines(args: &MmuArgs) -> Vec<Engine> {
    let techniques = args.techniques.iter().map(|&technique| Engine::Mmu(technique));
    let qemu = (!args.no_qemu).then_some(Engine::Qemu);
    [Engine::Native].into_iter().chain(techniques).chain(qemu).collect()
}

fn subject_of(row: &Row) -> Option<&'static Subject> {
    SUBJECTS.iter().find(|subject| subject.name == row.program.name)
}

/// How long one operation takes, in seconds.
fn operation_time(results: &Results, row: &Row, engine: usize) -> Option<f64> {
    Some(results.time(row, engine)? / f64::from(subject_of(row)?.operations))
}

fn titles(results: &Results) -> String {
    results.engines.iter().map(|engine| format!("{:>FIGURE$}", engine.name())).collect()
}

/// A line of figures, one for each engine.
fn line(title: &str, figures: impl Iterator<Item = Option<f64>>) {
    let text = |figure: Option<f64>| format!("{:>FIGURE$}", figure.map_or_else(|| "-".to_owned(), factor));
    println!("{title:<NAME$}{}", figures.map(text).collect::<String>());
}

fn print_operations(results: &Results) {
    println!("\n{:<NAME$}{}", "µs an operation", titles(results));
    for row in &results.rows {
        let times = (0..results.engines.len())
            .map(|engine| operation_time(results, row, engine).map(|seconds| seconds * 1e6));
        line(&row.program.name, times);
    }
}

/// What is promised of the default technique.
fn print_targets(results: &Results) {
    let default = Engine::Mmu(MmuChoice::default());
    let Some(engine) = results.engines.iter().position(|&engine| engine == default) else { return };
    println!("\n{:<NAME$}{:>FIGURE$}{:>FIGURE$}{:>FIGURE$}", "target", default.name(), "at most", "native");
    for row in &results.rows {
        let target = subject_of(row).and_then(|subject| subject.target);
        if let (Some(target), Some(ratio)) = (target, results.ratio(row, engine, 0)) {
            line(&row.program.name, [ratio, target, 1.0].map(Some).into_iter());
        }
    }
    let time = |name: &str, engine| {
        let row = results.rows.iter().find(|row| row.program.name == name)?;
        operation_time(results, row, engine)
    };
    let many_over_two = |engine| Some(time("switch-64", engine)? / (time("pipe", engine)? / 2.0));
    if let Some(ratio) = many_over_two(engine) {
        line("64 over 2", [Some(ratio), Some(MANY_TARGET), many_over_two(0)].into_iter());
    }
}

/// How many of a counter, for each operation; of a level, how much there was.
fn counted(cell: &Cell, name: &str, subject: &Subject) -> Option<f64> {
    let value = *cell.counters.get(name)? as f64;
    let operations = cell.units as f64 * f64::from(subject.operations);
    Some(if counters::is_level(name) { value } else { value / operations })
}

fn print_counters(row: &Row, results: &Results) {
    let Some(subject) = subject_of(row) else { return };
    println!("\n{:<NAME$}{}   for each {}", row.program.name, titles(results), subject.operation);
    for (name, title) in SHOWN {
        line(title, row.cells.iter().map(|cell| counted(cell, name, subject)));
    }
    line("TLB hits %, sampled", row.cells.iter().map(|cell| hit_percent(&cell.counters)));
}

/// How many accesses found their page in the TLB: of translated code of those that samples looked at, else of all.
fn hit_percent(counters: &Counters) -> Option<f64> {
    let of = |name| counters.get(name).map(|&value| value as f64);
    let sample = of("sample.hits").zip(of("sample.misses"));
    let (hits, misses) = sample.or_else(|| of("tlb.hits").zip(Some(of("tlb.fills")? + of("tlb.faults")?)))?;
    (hits + misses > 0.0).then_some(100.0 * hits / (hits + misses))
}

/// What the two dimensions of nested paging cost: references for each miss as counted, and as (n + 1)·m has it.
fn print_dimensions(results: &Results) {
    let nested = results.engines.iter().enumerate().filter_map(|(at, engine)| {
        let levels = host_levels(engine.technique()?)?;
        Some((at, engine.name(), levels))
    });
    for (at, name, m) in nested {
        println!(
            "\n{name:<NAME$}{:>FIGURE$}{:>FIGURE$}{:>FIGURE$}{:>FIGURE$}   for each TLB miss, m = {m}",
            "guest refs n", "host refs", "(n+1)m", "off by %"
        );
        for row in &results.rows {
            let Some((n, host)) = row.cells.get(at).and_then(|cell| references(&cell.counters)) else {
                continue;
            };
            let predicted = (n + 1.0) * f64::from(m);
            let off = (host / predicted - 1.0) * 100.0;
            line(&row.program.name, [n, host, predicted, off].map(Some).into_iter());
        }
    }
}

/// References to guest and to host tables for each miss that was resolved.
fn references(counters: &Counters) -> Option<(f64, f64)> {
    let of = |name| counters.get(name).map(|&value| value as f64);
    let misses = of("tlb.fills")?;
    (misses > 0.0).then_some((of("mmu.guest_refs")? / misses, of("mmu.host_refs")? / misses))
}

/// Levels of the host's table down to its usual pages.
fn host_levels(technique: MmuChoice) -> Option<u32> {
    match technique {
        // The guests' memory has no whole GiB that one page could map.
        MmuChoice::Nested | MmuChoice::Nested2M => Some(3),
        MmuChoice::Nested4K => Some(4),
        MmuChoice::Walk | MmuChoice::Vtlb | MmuChoice::Lazy | MmuChoice::Eager => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_for_one_operation() {
        let counters = Counters::from([("tlb.fills".into(), 800), ("mmu.tables".into(), 5)]);
        let cell = Cell { units: 10, counters, ..Cell::default() };
        let fork = &SUBJECTS[0];
        assert_eq!(counted(&cell, "tlb.fills", fork), Some(10.0));
        assert_eq!(counted(&cell, "mmu.tables", fork), Some(5.0));
        assert_eq!(counted(&cell, "tlb.faults", fork), None);
    }

    #[test]
    fn references_are_for_one_miss() {
        let names = ["tlb.fills", "mmu.guest_refs", "mmu.host_refs"];
        let counters: Counters = names.map(str::to_owned).into_iter().zip([10, 40, 200]).collect();
        assert_eq!(references(&counters), Some((4.0, 20.0)));
        assert_eq!(references(&Counters::new()), None);
        let sampled = Counters::from([("sample.hits".into(), 98), ("sample.misses".into(), 2)]);
        assert_eq!(hit_percent(&sampled), Some(98.0));
        let interpreted =
            Counters::from([("tlb.hits".into(), 97), ("tlb.fills".into(), 2), ("tlb.faults".into(), 1)]);
        assert_eq!(hit_percent(&interpreted), Some(97.0));
    }
}
