//! Booting: from the start of an engine to the first line of its guest's first program.

use super::args::Limits;
use super::engine::{Engine, Hosts};
use super::guest::Program;
use super::measure::{start, status};
use super::results::Results;
use super::session::Sample;
use super::stage::Stage;

/// The name of the class.
pub(super) const CLASS: &str = "boot";
/// The name of what is measured.
pub(super) const PROGRAM: &str = "first-line";

/// Boots each engine in turn, round by round.
pub(super) fn run(hosts: &Hosts, stage: &Stage, limits: &Limits, results: &mut Results) {
    let row = results.row(&Program { class: CLASS.to_owned(), name: PROGRAM.to_owned() });
    for round in 1..=limits.rounds {
        for (at, engine) in results.engines.clone().into_iter().enumerate() {
            let cell = &mut results.rows[row].cells[at];
            if cell.failure.is_some() || engine == Engine::Native {
                continue;
            }
            status(&format!("round {round} of {}: booting {}", limits.rounds, engine.name()));
            match start(engine, hosts, stage, limits.timeout) {
                Ok(session) => match session.counters() {
                    Ok(counters) => {
                        let seconds = session.boot.as_secs_f64();
                        cell.add(&Sample { seconds, counters, ..Sample::default() }, 1);
                    }
                    Err(failure) => cell.failure = Some(failure.to_string()),
                },
                Err(failure) => cell.failure = Some(failure.to_string()),
            }
        }
    }
    status("");
}
