//! `umbra stats`: what VMs use and do while they run.

use std::io::{IsTerminal, Write, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::args::{ListFormat, StatsArgs};
use super::client;
use super::commands::refused;
use super::home::{Registry, Vm};
use super::list::table;
use crate::status::Status;
use control::Request;

/// How long is looked for what happens in a second.
const PERIOD: Duration = Duration::from_secs(1);

/// Shows what VMs use.
///
/// # Errors
/// If VMs cannot be looked for, or nobody takes the output.
pub(crate) fn run(args: &StatsArgs) -> Result<Status> {
    let registry = Registry::of_user()?;
    loop {
        let mut status = Status::OK;
        let vms = if args.names.is_empty() {
            registry.all()?.into_iter().filter(|vm| vm.ended.is_none()).collect()
        } else {
            let mut found = Vec::new();
            for name in &args.names {
                match registry.find(name) {
                    Ok(vm) => found.push(vm),
                    Err(error) => status = refused(&error),
                }
            }
            found
        };
        let before: Vec<_> = vms.iter().map(Sample::take).collect();
        std::thread::sleep(PERIOD);
        let mut lines = Vec::new();
        for (vm, before) in vms.iter().zip(before) {
            match before.and_then(|before| Ok((before, Sample::take(vm)?))) {
                Ok((before, after)) => lines.push((before, after)),
                // One that has ended meanwhile is no failure where nobody named it.
                Err(error) if !args.names.is_empty() => status = refused(&error),
                Err(_) => {}
            }
        }
        let text = match args.format {
            ListFormat::Json => {
                lines.iter().map(|(before, after)| format!("{}\n", after.json(before))).collect()
            }
            ListFormat::Table => {
                let rows: Vec<_> = lines.iter().map(|(before, after)| after.row(before)).collect();
                table(&HEAD.map(str::to_owned), &rows)
            }
        };
        // On a terminal the table stays where it is.
        let home = if !args.no_stream && args.format == ListFormat::Table && stdout().is_terminal() {
            "\x1b[H\x1b[2J"
        } else {
            ""
        };
        write!(stdout(), "{home}{text}")
            .and_then(|()| stdout().flush())
            .context("cannot write to standard output")?;
        if args.no_stream || (!args.names.is_empty() && status != Status::OK) {
            return Ok(status);
        }
    }
}

const HEAD: [&str; 9] = [
    "NAME",
    "CPU %",
    "MEM USAGE / LIMIT",
    "BALLOON",
    "GUEST USES",
    "INTERRUPTS/s",
    "EXCEPTIONS/s",
    "I/O/s",
    "GUEST TIME",
];

/// What a VM had used and done at a time.
struct Sample {
    name: String,
    at: Instant,
    cpu_ns: u64,
    counters: Value,
}

impl Sample {
    fn take(vm: &Vm) -> Result<Self> {
        let mut answer = client::ask(vm, Request::Stats)?;
        Ok(Self {
            name: vm.description.name.clone(),
            at: Instant::now(),
            cpu_ns: answer["cpu_ns"].as_u64().unwrap_or(0),
            counters: answer["counters"].take(),
        })
    }

    /// A counter of the VM.
    fn counter(&self, name: &str) -> u64 {
        self.counters[name].as_u64().unwrap_or(0)
    }

    /// A counter of all vCPUs together.
    fn of_vcpus(&self, name: &str) -> u64 {
        let vcpus = self.counters["vcpus"].as_array();
        vcpus.into_iter().flatten().filter_map(|vcpu| vcpu[name].as_u64()).sum()
    }

    /// How often in a second.
    fn rate(&self, before: &Self, count: impl Fn(&Self) -> u64) -> u64 {
        let seconds = (self.at - before.at).as_secs_f64().max(1e-3);
        (count(self).saturating_sub(count(before)) as f64 / seconds).round() as u64
    }

    /// The share of one processor of the host, in percent.
    fn cpu_percent(&self, before: &Self) -> f64 {
        let nanoseconds = (self.at - before.at).as_nanos().max(1) as f64;
        self.cpu_ns.saturating_sub(before.cpu_ns) as f64 / nanoseconds * 100.0
    }

    /// What the guest itself uses, caches not counted, if it says so.
    fn guest_uses(&self) -> Option<u64> {
        let guest = &self.counters["balloon"]["guest"];
        guest["total_bytes"].as_u64()?.checked_sub(guest["available_bytes"].as_u64()?)
    }

    fn row(&self, before: &Self) -> [String; 9] {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let target = self.counters["balloon"]["target_bytes"].as_u64().unwrap_or(0);
        let rate = |name: &str| self.rate(before, |sample| sample.of_vcpus(name)).to_string();
        [
            self.name.clone(),
            format!("{:.2}%", self.cpu_percent(before)),
            format!(
                "{:.1}MiB / {:.0}MiB",
                mib(self.counter("ram_resident_bytes")),
                mib(self.counter("ram_bytes").saturating_sub(target))
            ),
            format!("{:.0}MiB", mib(self.counter("ram_ballooned_bytes"))),
            self.guest_uses().map_or("-".to_owned(), |bytes| format!("{:.0}MiB", mib(bytes))),
            rate("interrupts"),
            rate("exceptions"),
            rate("io_accesses"),
            format!("{:.1}s", self.counter("guest_time_ns") as f64 / 1e9),
        ]
    }

    fn json(&self, before: &Self) -> Value {
        json!({
            "name": self.name,
            "cpu_percent": (self.cpu_percent(before) * 100.0).round() / 100.0,
            "cpu_ns": self.cpu_ns,
            "counters": self.counters,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: Instant, cpu_ns: u64, interrupts: u64) -> Sample {
        let counters = json!({
            "ram_bytes": 64 << 20, "ram_resident_bytes": 1 << 20, "guest_time_ns": 1_500_000_000_u64,
            "ram_ballooned_bytes": 3 << 20,
            "balloon": {"target_bytes": 4 << 20, "guest": {"total_bytes": 60 << 20, "available_bytes": 50 << 20}},
            "vcpus": [{"interrupts": interrupts}, {"interrupts": 1}]
        });
        Sample { name: "a".into(), at, cpu_ns, counters }
    }

    #[test]
    fn rates_are_what_happened_between() {
        let now = Instant::now();
        let (before, after) = (sample(now, 1_000, 10), sample(now + PERIOD * 2, 1_000_001_000, 210));
        let row = after.row(&before);
        assert_eq!(row, ["a", "50.00%", "1.0MiB / 60MiB", "3MiB", "10MiB", "100", "0", "0", "1.5s"]);
        assert_eq!(after.json(&before)["cpu_percent"], 50.0);
        // Whatever a VM answers.
        let odd = Sample { counters: json!("x"), ..sample(now, 0, 0) };
        assert_eq!(odd.row(&after)[1], "0.00%");
    }
}
