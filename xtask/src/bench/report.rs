//! The tables, and the same as JSON.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::engine::{Engine, Hosts};
use super::results::{Cell, Results, Row};

/// The width of a program's name and of each figure.
pub(super) const NAME: usize = 20;
pub(super) const FIGURE: usize = 13;

/// A column of ratios: two engines' indices, and the title.
struct Ratio {
    engine: usize,
    reference: usize,
    title: String,
}

/// Prints what is compared.
pub(super) fn print_engines(hosts: &Hosts, results: &Results) {
    for engine in &results.engines {
        println!("{:<NAME$}{}", engine.name(), hosts.describe(*engine));
    }
    if results.engines.iter().any(|&engine| engine == Engine::Qemu || engine.umbra_choice().is_some()) {
        println!("{:<NAME$}{}", "kernel", hosts.kernel());
    }
}

/// Prints everything.
pub(super) fn print(hosts: &Hosts, results: &Results) {
    print_engines(hosts, results);
    let ratios = columns(&results.engines);
    let statistic = results.statistic.name();
    println!(
        "
The time for a unit of work, {statistic}; x: how many times {}'s; a/b: a's over b's.",
        base(results)
    );
    for class in results.classes() {
        println!("\n{}", header(class, results, &ratios));
        for row in results.rows.iter().filter(|row| row.program.class == class) {
            println!("{}", line(row, &ratios, results));
        }
        println!("{}", means("geometric mean", Some(class), &ratios, results));
    }
    if results.classes().len() > 1 {
        println!("\n{}", header("all classes", results, &ratios));
        println!("{}", means("geometric mean", None, &ratios, results));
    }
    print_failures(results);
    print_costs(results);
}

/// The engine that all others are compared with.
fn base(results: &Results) -> &'static str {
    results.engines.first().map_or("nothing", |engine| engine.name())
}

/// Every engine over the first, then Umbra over each peer.
fn columns(engines: &[Engine]) -> Vec<Ratio> {
    let over_first = (1..engines.len()).map(|engine| Ratio {
        engine,
        reference: 0,
        title: format!("{} x", short(engines[engine])),
    });
    let umbras = (0..engines.len()).filter(|&at| engines[at].umbra_choice().is_some());
    let over_peers = umbras.flat_map(|engine| {
        let peers = (1..engines.len()).filter(|&at| engines[at].is_peer());
        peers.map(move |reference| Ratio {
            engine,
            reference,
            title: format!("{}/{}", short(engines[engine]), short(engines[reference])),
        })
    });
    over_first.chain(over_peers).collect()
}

/// An engine's name, as it fits above a column.
fn short(engine: Engine) -> &'static str {
    engine.name().trim_start_matches("umbra-")
}

fn header(class: &str, results: &Results, ratios: &[Ratio]) -> String {
    let titles = ratios.iter().map(|ratio| format!("{:>FIGURE$}", ratio.title));
    format!("{class:<NAME$}{:>FIGURE$}{}", base(results), titles.collect::<String>())
}

fn line(row: &Row, ratios: &[Ratio], results: &Results) -> String {
    let first = results.time(row, 0);
    let mut text =
        format!("{:<NAME$}{:>FIGURE$}", row.program.name, first.map_or_else(|| "-".to_owned(), time));
    for ratio in ratios {
        let figure = match (results.ratio(row, ratio.engine, ratio.reference), &row.cells[ratio.engine]) {
            (Some(value), _) => factor(value),
            // With nothing to compare it with, the time itself says more than nothing.
            (None, cell) if ratio.reference == 0 => match (&cell.failure, results.time(row, ratio.engine)) {
                (Some(failure), _) => failure.split([':', ' ']).next().unwrap_or("failed").to_owned(),
                (None, seconds) => seconds.map_or_else(|| "-".to_owned(), time),
            },
            (None, _) => "-".to_owned(),
        };
        text += &format!("{figure:>FIGURE$}");
    }
    text
}

fn means(name: &str, class: Option<&str>, ratios: &[Ratio], results: &Results) -> String {
    let figure = |ratio: &Ratio| {
        let mean = results.mean(class, ratio.engine, ratio.reference);
        format!("{:>FIGURE$}", mean.map_or_else(|| "-".to_owned(), factor))
    };
    format!("{name:<NAME$}{:>FIGURE$}{}", "", ratios.iter().map(figure).collect::<String>())
}

/// Prints why cells have no figures.
pub(super) fn print_failures(results: &Results) {
    let failures = results.rows.iter().flat_map(|row| {
        let cells = row.cells.iter().zip(&results.engines);
        cells.filter_map(|(cell, engine)| {
            Some(format!("{} on {}: {}", row.program.name, engine.name(), cell.failure.as_ref()?))
        })
    });
    let failures: Vec<String> = failures.collect();
    if !failures.is_empty() {
        println!("\nFailures\n{}", failures.join("\n"));
    }
}

fn print_costs(results: &Results) {
    let guests =
        || results.engines.iter().zip(&results.costs).filter(|(engine, _)| **engine != Engine::Native);
    if guests().all(|(_, cost)| cost.memory.is_none()) {
        return;
    }
    let titles = ["idle CPU %", "busy CPU %", "own MiB", "guest MiB"];
    println!("\n{:<NAME$}{}", "cost", titles.map(|title| format!("{title:>FIGURE$}")).concat());
    for (engine, cost) in guests() {
        let busy = (cost.busy_seconds > 0.0).then(|| 100.0 * cost.cpu_seconds / cost.busy_seconds);
        let figures = [
            cost.idle_percent,
            busy,
            cost.memory.map(|memory| memory.own_mib),
            cost.memory.map(|m| m.guest_mib),
        ];
        let text =
            figures.map(|figure| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.1}")));
        println!("{:<NAME$}{}", engine.name(), text.map(|text| format!("{text:>FIGURE$}")).concat());
    }
}

/// A time with a unit.
fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    format!("{} {unit}", factor(value))
}

/// A number with three digits that count.
pub(super) fn factor(value: f64) -> String {
    let decimals = match value {
        v if v < 0.1 => 3,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

/// Writes every sample.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn write_json(path: &Path, hosts: &Hosts, results: &Results) -> Result<()> {
    let cell = |cell: &Cell, engine: &Engine| {
        let fields = json!({ "seconds": cell.seconds, "checksum": cell.sum, "failure": cell.failure,
            "units": cell.units, "counters": cell.counters });
        (engine.name().to_owned(), fields)
    };
    let row = |row: &Row| {
        let cells: serde_json::Map<String, Value> =
            row.cells.iter().zip(&results.engines).map(|(c, engine)| cell(c, engine)).collect();
        json!({ "class": row.program.class, "program": row.program.name, "engines": cells })
    };
    let engine = |(engine, cost): (&Engine, &super::results::Cost)| {
        json!({
            "name": engine.name(),
            "description": hosts.describe(*engine),
            "idle_percent": cost.idle_percent,
            "busy_seconds": cost.busy_seconds,
            "cpu_seconds": cost.cpu_seconds,
            "own_mib": cost.memory.map(|memory| memory.own_mib),
            "guest_mib": cost.memory.map(|memory| memory.guest_mib),
        })
    };
    let all = json!({
        "kernel": hosts.kernel(),
        "engines": results.engines.iter().zip(&results.costs).map(engine).collect::<Vec<_>>(),
        "programs": results.rows.iter().map(row).collect::<Vec<_>>(),
    });
    fs::write(path, format!("{all:#}\n")).with_context(|| format!("cannot write '{}'", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(time(0.000_123_4), "123 µs");
        assert_eq!(time(0.0123), "12.3 ms");
        assert_eq!(time(2.5), "2.50 s");
        assert_eq!(factor(0.012), "0.012");
    }

    #[test]
    fn umbra_is_compared_with_each_peer() {
        let ratios = columns(&[Engine::Native, Engine::UmbraBt, Engine::Qemu, Engine::Uml]);
        let titles: Vec<&str> = ratios.iter().map(|ratio| ratio.title.as_str()).collect();
        assert_eq!(titles, ["bt x", "qemu x", "uml x", "bt/qemu", "bt/uml"]);
    }
}
