//! Programs on all engines, in turn.

use std::io::{IsTerminal, Write};
use std::thread;
use std::time::Duration;

use super::args::Limits;
use super::counters::Control;
use super::engine::{Engine, Hosts};
use super::guest::Program;
use super::results::{Cell, Cost, Results};
use super::session::{Failure, Sample, Session};
use super::stage::Stage;
use super::usage;

/// How long a guest that has booted is left alone before it is called idle.
const SETTLE: Duration = Duration::from_secs(2);
/// How long it is watched then.
const WATCH: Duration = Duration::from_secs(4);

/// How often the number of repetitions is corrected, and by how much at most: the first run also pays for what is cold, and
/// marks that are close together may arrive at once.
pub(super) const CORRECTIONS: usize = 6;
const LARGEST_CORRECTION: f64 = 30.0;
/// More than this would not be a program's time but the loop's.
const MOST: u64 = 1_000_000;

/// An engine that is kept running.
struct Machine<'a> {
    engine: Engine,
    hosts: &'a Hosts,
    stage: &'a Stage,
    timeout: Duration,
    session: Option<Session>,
    /// Why it cannot be started at all.
    hopeless: Option<Failure>,
}

/// What is measured in every round.
struct Order<'a> {
    /// The program.
    name: &'a str,
    /// Its row in the results.
    row: usize,
    /// How many units each engine does.
    counts: Vec<u64>,
}

/// Measures the programs.
pub(super) fn run(
    hosts: &Hosts,
    stage: &Stage,
    programs: &[Program],
    limits: &Limits,
    results: &mut Results,
) {
    let mut machines: Vec<Machine<'_>> =
        results.engines.iter().map(|&engine| Machine::new(engine, hosts, stage, limits.timeout)).collect();
    for machine in &mut machines {
        status(&format!("starting {}", machine.engine.name()));
        let _ = machine.session();
    }
    if limits.idle {
        watch_idle(&machines, &mut results.costs);
    }
    let orders = calibrate(programs, &mut machines, limits, results);
    for round in 1..=limits.rounds {
        for order in &orders {
            status(&format!("round {round} of {}: {}", limits.rounds, order.name));
            for (at, machine) in machines.iter_mut().enumerate() {
                // Memory once: in other rounds the same programs run.
                measure(order, at, machine, round == limits.rounds, results);
            }
        }
    }
    status("");
}

/// Finds out how often each program has to be repeated on each engine.
fn calibrate<'a>(
    programs: &'a [Program],
    machines: &mut [Machine<'_>],
    limits: &Limits,
    results: &mut Results,
) -> Vec<Order<'a>> {
    let order = |program: &'a Program| {
        status(&format!("how often: {}", program.name));
        let row = results.row(program);
        let cells = results.rows[row].cells.iter_mut();
        let count = |(machine, cell): (&mut Machine<'_>, &mut Cell)| {
            let count = machine.calibrate(&program.name, limits.target);
            count.inspect_err(|failure| cell.failure = Some(failure.to_string())).unwrap_or(1)
        };
        Order { name: &program.name, row, counts: machines.iter_mut().zip(cells).map(count).collect() }
    };
    programs.iter().map(order).collect()
}

/// Measures a program on one engine, unless it has failed there.
fn measure(order: &Order<'_>, at: usize, machine: &mut Machine<'_>, weigh: bool, results: &mut Results) {
    let (cell, cost) = (&mut results.rows[order.row].cells[at], &mut results.costs[at]);
    if cell.failure.is_some() {
        return;
    }
    match machine.run(order.name, order.counts[at]) {
        Ok(sample) => {
            cell.add(&sample, order.counts[at]);
            cost.busy_seconds += sample.busy_seconds;
            cost.cpu_seconds += sample.cpu_seconds;
        }
        Err(failure) => cell.failure = Some(failure.to_string()),
    }
    if let Some(memory) = machine.memory().filter(|_| weigh) {
        cost.saw_memory(memory);
    }
}

/// What engines do when their guests have nothing to do.
fn watch_idle(machines: &[Machine<'_>], costs: &mut [Cost]) {
    let running: Vec<Option<u32>> =
        machines.iter().map(|machine| Some(machine.session.as_ref()?.pid())).collect();
    status("watching idle guests");
    thread::sleep(SETTLE);
    let before: Vec<f64> = running.iter().map(|pid| pid.map_or(0.0, usage::cpu_seconds)).collect();
    thread::sleep(WATCH);
    for (at, pid) in running.into_iter().enumerate() {
        if let Some(pid) = pid.filter(|_| machines[at].engine != Engine::Native) {
            let used = usage::cpu_seconds(pid) - before[at];
            costs[at].idle_percent = Some(100.0 * used / WATCH.as_secs_f64());
        }
    }
}

impl<'a> Machine<'a> {
    fn new(engine: Engine, hosts: &'a Hosts, stage: &'a Stage, timeout: Duration) -> Self {
        Self { engine, hosts, stage, timeout, session: None, hopeless: None }
    }

    /// The running engine, started if need be.
    fn session(&mut self) -> Result<&mut Session, Failure> {
        if let Some(failure) = &self.hopeless {
            return Err(failure.clone());
        }
        let session = match self.session.take() {
            Some(session) => session,
            None => start(self.engine, self.hosts, self.stage, self.timeout)
                .inspect_err(|failure| self.hopeless = Some(failure.clone()))?,
        };
        Ok(self.session.insert(session))
    }

    fn run(&mut self, name: &str, count: u64) -> Result<Sample, Failure> {
        let timeout = self.timeout;
        let result = self.session()?.run(name, count, timeout);
        if result.as_ref().is_err_and(|failure| !failure.leaves_engine()) {
            self.session = None;
        }
        result
    }

    /// The memory that it uses, unless it is the host.
    fn memory(&self) -> Option<usage::Memory> {
        let session = self.session.as_ref().filter(|_| self.engine != Engine::Native)?;
        Some(usage::memory(session.pid(), self.stage.memory_mib))
    }

    /// How often a program has to be repeated to take as long as a measurement should.
    fn calibrate(&mut self, name: &str, target: Duration) -> Result<u64, Failure> {
        let mut count = 1;
        for _ in 0..CORRECTIONS {
            let seconds = self.run(name, count)?.seconds;
            let better = repetitions(count, seconds, target);
            if better <= count {
                break;
            }
            count = better;
        }
        Ok(count)
    }
}

/// Starts an engine in a stage.
///
/// # Errors
/// If it does not come up.
pub(super) fn start(
    engine: Engine,
    hosts: &Hosts,
    stage: &Stage,
    timeout: Duration,
) -> Result<Session, Failure> {
    let mut command = hosts.command(engine, stage).map_err(Failure::Gone)?;
    let control = engine.technique().map(|_| Control::new(&mut command)).transpose();
    let control = control.map_err(|error| Failure::Gone(format!("{error:#}")))?;
    let log = stage.initrd.with_file_name(format!("{}.log", engine.name()));
    Session::start(command, &log, control, timeout)
}

/// How often, if `count` times took `seconds`. A twentieth more or less is not worth another try.
pub(super) fn repetitions(count: u64, seconds: f64, target: Duration) -> u64 {
    let wanted = target.as_secs_f64() * 0.95;
    if seconds >= wanted {
        return count;
    }
    let factor = (target.as_secs_f64() / seconds).min(LARGEST_CORRECTION);
    (count as f64 * factor).ceil().min(MOST as f64) as u64
}

/// Says what is going on, on a terminal only, in place of what it said before.
pub(super) fn status(text: &str) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let _ = write!(out, "\r\x1b[K{text}").and_then(|()| out.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_things_run_once_and_fast_ones_often() {
        let target = Duration::from_millis(200);
        assert_eq!(repetitions(1, 3.0, target), 1);
        assert_eq!(repetitions(1, 0.05, target), 4);
        assert_eq!(repetitions(10, 0.195, target), 10);
        assert_eq!(repetitions(10, 0.0, target), 300);
        assert_eq!(repetitions(MOST, 0.0, target), MOST);
    }
}
