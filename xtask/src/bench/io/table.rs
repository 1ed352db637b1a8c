//! The tables: seconds and MiB a second of copies, requests and MiB a second of loads.

use crate::bench::engine::Engine;
use crate::bench::report::{FIGURE, NAME, factor};
use crate::bench::results::{Results, Row};

/// The class of copies; a unit is a MiB.
pub(super) const COPIES: &str = "copies";
/// The class of loads on disks; a unit is a request.
pub(super) const REQUESTS: &str = "requests";

/// A load on a disk, as `bench/guest/io.c` names it.
pub(super) struct Load {
    pub(super) name: &'static str,
    /// The size of a request.
    kib: u32,
    /// How many the disk has at a time.
    depth: u32,
}

/// The loads.
pub(super) const LOADS: [Load; 6] = [
    Load { name: "seq-read", kib: 128, depth: 4 },
    Load { name: "seq-write", kib: 128, depth: 4 },
    Load { name: "rand-read", kib: 4, depth: 1 },
    Load { name: "rand-write", kib: 4, depth: 1 },
    Load { name: "rand-read-32", kib: 4, depth: 32 },
    Load { name: "rand-write-32", kib: 4, depth: 32 },
];

/// The width of a row's name.
const WIDE: usize = NAME + 6;

/// Prints all that was measured, with so many MiB in each copy.
pub(super) fn print(results: &Results, mib: u64) {
    let statistic = results.statistic.name();
    println!("\nFigures are the {statistic}; over: how many times as fast as.");
    print_class(results, COPIES, &format!("copies of {mib} MiB"), ["s", "MiB/s"], |_, seconds| {
        [seconds * mib as f64, 1.0 / seconds]
    });
    print_class(results, REQUESTS, "requests", ["IOPS", "MiB/s"], |row, seconds| {
        let load = LOADS.iter().find(|load| row.program.name.ends_with(&format!(" {}", load.name)));
        [1.0 / seconds, load.map_or(0.0, |load| f64::from(load.kib)) / 1024.0 / seconds]
    });
    if results.classes().contains(&REQUESTS) {
        let line = |load: &Load| format!("{} {} KiB, {} at a time", load.name, load.kib, load.depth);
        println!("\n{}", LOADS.iter().map(line).collect::<Vec<_>>().join("; "));
    }
}

fn print_class(
    results: &Results,
    class: &str,
    title: &str,
    units: [&str; 2],
    figures: impl Fn(&Row, f64) -> [f64; 2],
) {
    let rows = || results.rows.iter().filter(|row| row.program.class == class);
    if rows().next().is_none() {
        return;
    }
    let peer = results.engines.iter().position(|&engine| engine == Engine::Qemu);
    let heads =
        results.engines.iter().flat_map(|engine| units.map(|unit| format!("{} {unit}", engine.name())));
    let over = peer.map(|_| "over qemu".to_owned()).filter(|_| results.engines[0] != Engine::Qemu);
    let heads: String = heads.chain(over.clone()).map(|head| format!("{head:>FIGURE$}")).collect();
    println!("\n{title:<WIDE$}{heads}");
    for row in rows() {
        let of_engine = |engine| match results.time(row, engine) {
            Some(seconds) => figures(row, seconds).map(factor),
            None => ["-".to_owned(), "-".to_owned()],
        };
        let ratio = peer.filter(|_| over.is_some()).map(|peer| results.ratio(row, peer, 0));
        let ratio = ratio.map(|ratio| ratio.map_or_else(|| "-".to_owned(), factor));
        let texts = (0..results.engines.len()).flat_map(of_engine).chain(ratio);
        println!(
            "{:<WIDE$}{}",
            row.program.name,
            texts.map(|text| format!("{text:>FIGURE$}")).collect::<String>()
        );
    }
}
