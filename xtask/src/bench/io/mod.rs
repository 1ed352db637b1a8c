//! `cargo xtask bench io`: data on every road between a guest and its host, in Umbra and in QEMU.
//!
//! Two things are measured. Copies: so many bytes into the guest and out of it, through its page cache and until
//! they are durable, with a checksum that both ends compute and that has to be the same. Requests to disks: in order and at random, past the
//! page cache, one or many at a time, where each block tells whether it is the one that was asked for, and is read again
//! after it was written.
//!
//! Both engines of a road run side by side, and work in turn, round by round. The images are new for each road. Copying
//! also makes or sums the data, which is the processor's time: how much of it, says the row `nothing`.

mod content;
mod peer;
mod road;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use spec::ByteSize;

use self::road::{Ground, Road};
use super::apt::Cache;
use super::args::{Limits, SetupArgs};
use super::engine::{Engine, Hosts};
use super::guest::{Driver, Program};
use super::measure::{CORRECTIONS, repetitions, status};
use super::report;
use super::results::Results;
use super::session::{Failure, Sample, Session};
use super::stage::Stage;

/// Measure copies into and out of the guest and requests to disks, beside QEMU
#[derive(Debug, Args)]
pub(super) struct IoArgs {
    /// How much is copied, and how large disks are [default: 1G, or 64M with --quick]
    #[arg(long, value_name = "SIZE")]
    size: Option<ByteSize>,
    /// Only these roads
    #[arg(long, value_delimiter = ',', value_name = "ROAD,…")]
    roads: Vec<Road>,
    /// Only copies, or only requests to disks
    #[arg(long, value_name = "WHAT")]
    only: Option<Part>,
    /// What to compare
    #[arg(long, value_delimiter = ',', value_name = "ENGINE,…", default_value = "umbra,qemu")]
    engines: Vec<Engine>,
    /// Where images and files go for the time being [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    setup: SetupArgs,
}

/// A half of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Copies,
    Requests,
}

// The copies, as `bench/guest/io.c` names them.
const IN: &str = "in";
const OUT: &str = "out";
const NOTHING: &str = "nothing";

/// For so many MiB the time is as long as for anything else.
const MIB_FOR_TIMEOUT: u64 = 128;

/// Where and with what everything runs.
struct Site<'a> {
    hosts: Hosts,
    stage: Stage,
    base: PathBuf,
    mib: u64,
    limits: Limits,
    engines: &'a [Engine],
}

/// An engine upon a road.
struct Machine {
    ground: Ground,
    session: Result<Session, Failure>,
    /// What is on its disk.
    expected: String,
}

/// Measures and prints.
///
/// # Errors
/// If something cannot be run, or data was damaged.
pub(super) fn task(root: &Path, args: &IoArgs) -> Result<()> {
    let known = |engine: &Engine| *engine == Engine::Qemu || engine.umbra_choice().is_some();
    ensure!(
        !args.engines.is_empty() && args.engines.iter().all(known),
        "only engines with devices of their own can be compared: umbra, umbra-bt, umbra-interp, qemu"
    );
    let bytes = args.size.map_or_else(|| args.setup.by_thoroughness(64 << 20, 1 << 30), ByteSize::bytes);
    ensure!(bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20), "--size must be a whole number of MiB");
    let cache = Cache::of_user(args.setup.refresh)?;
    // Not where another benchmark puts its own meanwhile: this one is started from there again and again.
    let driver = Driver::build(root, &cache.dir().join("io-driver"))?;
    let hosts = Hosts::find(root, &cache, &args.engines, &args.setup)?;
    let kernel = hosts.kernel_file().map_err(anyhow::Error::msg)?;
    let site = Site {
        stage: Stage::with_devices(&cache, &driver, kernel)?,
        hosts,
        base: args.dir.clone().unwrap_or_else(std::env::temp_dir),
        mib: bytes >> 20,
        limits: Limits::new(&args.setup)?,
        engines: &args.engines,
    };
    let roads: Vec<Road> = Road::value_variants().iter().copied().filter(|road| args.wants(*road)).collect();
    let mut results = Results::new(&args.engines, args.setup.statistic());
    if args.only != Some(Part::Requests) {
        for &road in &roads {
            site.copies(road, &mut results)?;
        }
    }
    if args.only != Some(Part::Copies) {
        for &road in roads.iter().filter(|road| road.is_disk()) {
            site.requests(road, &mut results)?;
        }
    }
    status("");
    report::print_engines(&site.hosts, &results);
    table::print(&results, site.mib);
    report::print_failures(&results);
    if let Some(path) = &args.setup.json {
        report::write_json(path, &site.hosts, &results)?;
    }
    Ok(())
}

impl IoArgs {
    fn wants(&self, road: Road) -> bool {
        self.roads.is_empty() || self.roads.contains(&road)
    }
}

impl Site<'_> {
    /// Lays a road for each engine, and starts those that can be.
    fn machines(&self, road: Road) -> Result<Vec<Machine>> {
        let machine = |&engine: &Engine| {
            status(&format!("{}: starting {}", road.name(), engine.name()));
            let ground = Ground::lay(road, &self.base, self.mib, &self.hosts)?;
            let command = ground.command(engine, &self.hosts, &self.stage).map_err(Failure::Refused);
            let log = self.stage.initrd.with_file_name(format!("{}.log", engine.name()));
            let session =
                command.and_then(|command| Session::start(command, &log, None, self.limits.timeout));
            Ok(Machine { expected: ground.first_sum().to_owned(), ground, session })
        };
        self.engines.iter().map(machine).collect()
    }

    /// Copies in both directions, in every round.
    fn copies(&self, road: Road, results: &mut Results) -> Result<()> {
        let mut machines = self.machines(road)?;
        let mut row = |name: String| results.row(&Program { class: table::COPIES.to_owned(), name });
        let nothing = (road == Road::Raw).then(|| (NOTHING, row(NOTHING.to_owned())));
        let [into, out] = [IN, OUT].map(|way| (way, row(format!("{} {way}", road.name()))));
        let ways: Vec<_> = nothing.into_iter().chain([into, out]).collect();
        for round in 1..=self.limits.rounds {
            for &(way, row) in &ways {
                status(&format!("round {round} of {}: {} {way}", self.limits.rounds, road.name()));
                for (cell, machine) in results.rows[row].cells.iter_mut().zip(&mut machines) {
                    if cell.failure.is_some() {
                        continue;
                    }
                    match machine.copy(way, self.mib, self.limits.timeout) {
                        Ok(sample) => cell.add(&sample, self.mib),
                        Err(failure) => cell.failure = Some(failure.to_string()),
                    }
                }
            }
        }
        for (cell, machine) in results.rows[out.1].cells.iter_mut().zip(machines) {
            if let Err(why) = machine.close(&self.hosts, true) {
                cell.failure = Some(why.to_string());
            }
        }
        Ok(())
    }

    /// Every load on a disk, in every round.
    fn requests(&self, road: Road, results: &mut Results) -> Result<()> {
        let mut machines = self.machines(road)?;
        let mut counts = Vec::new();
        for load in &table::LOADS {
            status(&format!("how often: {} {}", road.name(), load.name));
            let name = format!("{} {}", road.name(), load.name);
            let row = results.row(&Program { class: table::REQUESTS.to_owned(), name });
            let count = |(machine, cell): (&mut Machine, &mut super::results::Cell)| {
                let count = machine.calibrate(load.name, &self.limits);
                count.inspect_err(|failure| cell.failure = Some(failure.to_string())).unwrap_or(1)
            };
            let cells = results.rows[row].cells.iter_mut();
            counts.push((load.name, row, machines.iter_mut().zip(cells).map(count).collect::<Vec<_>>()));
        }
        for round in 1..=self.limits.rounds {
            for (load, row, counts) in &counts {
                status(&format!("round {round} of {}: {} {load}", self.limits.rounds, road.name()));
                let cells = results.rows[*row].cells.iter_mut();
                for ((cell, machine), &count) in cells.zip(&mut machines).zip(counts) {
                    if cell.failure.is_some() {
                        continue;
                    }
                    match machine.order(load, count, true, self.limits.timeout) {
                        Ok(sample) => cell.add(&sample, count),
                        Err(failure) => cell.failure = Some(failure.to_string()),
                    }
                }
            }
        }
        let Some((_, last, _)) = counts.last() else { return Ok(()) };
        for (cell, machine) in results.rows[*last].cells.iter_mut().zip(machines) {
            if let Err(why) = machine.close(&self.hosts, false) {
                cell.failure = Some(why.to_string());
            }
        }
        Ok(())
    }
}

impl Machine {
    fn order(&mut self, way: &str, count: u64, out: bool, timeout: Duration) -> Result<Sample, Failure> {
        let order = format!("io {way} {count} {}", self.ground.place(out));
        let session = self.session.as_mut().map_err(|failure| failure.clone())?;
        let result = session.obey(&order, timeout);
        if let Err(failure) = result.as_ref().map_err(Clone::clone)
            && !failure.leaves_engine()
        {
            self.session = Err(failure);
        }
        result
    }

    /// Copies, and compares the sums of both ends. What went to a disk is compared by the next that reads it.
    fn copy(&mut self, way: &str, mib: u64, timeout: Duration) -> Result<Sample, Failure> {
        let out = way == OUT;
        let timeout = timeout * u32::try_from(mib.div_ceil(MIB_FOR_TIMEOUT)).unwrap_or(u32::MAX);
        let sample = self.order(way, mib, out, timeout)?;
        if way == NOTHING {
            return Ok(sample);
        }
        if out && self.ground.is_disk() {
            // It is in place of what was there before.
            self.expected = sample.sum.clone();
        }
        let host = match self.ground.peer() {
            Some(peer) => peer.sum(),
            None if out && !self.ground.is_disk() => self.ground.sum_of_file().ok(),
            None => Some(self.expected.clone()),
        };
        if host.as_ref() != Some(&sample.sum) {
            let host = host.unwrap_or_else(|| "none".to_owned());
            return Err(Failure::Refused(format!("checksum {}, the host has {host}", sample.sum)));
        }
        Ok(sample)
    }

    /// How many requests take as long as a measurement should.
    fn calibrate(&mut self, load: &str, limits: &Limits) -> Result<u64, Failure> {
        let mut count = 32;
        for _ in 0..CORRECTIONS {
            let seconds = self.order(load, count, true, limits.timeout)?.seconds;
            let better = repetitions(count, seconds, limits.target);
            if better <= count {
                break;
            }
            count = better;
        }
        Ok(count)
    }

    /// Ends the engine, and looks at what it leaves on the host: on a disk every block, and what was copied there last.
    fn close(self, hosts: &Hosts, copied: bool) -> Result<()> {
        let has_run = self.session.is_ok();
        drop(self.session);
        if !has_run || !self.ground.is_disk() {
            return Ok(());
        }
        let sum = self.ground.sum_of_disk(hosts)?;
        ensure!(!copied || sum == self.expected, "checksum {}, the host has {sum}", self.expected);
        Ok(())
    }
}
