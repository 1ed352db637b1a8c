//! What `--stats` prints: every counter of every vCPU, under the engine's own names.

use serde_json::{Map, Value, json};
use vm::{BalloonFigures, Counter, Statistic, Stats, VcpuFigures};

use crate::args::StatsFormat;

/// The text, without a line break at its end.
pub(crate) fn text(stats: &Stats, format: StatsFormat) -> String {
    match format {
        StatsFormat::Table => table(stats),
        StatsFormat::Json => json(stats).to_string(),
    }
}

/// A line: name, number, what it counts.
fn line(name: &str, value: u64, help: &str) -> String {
    format!("  {name:<22} {value:>16}  {help}\n")
}

fn table(stats: &Stats) -> String {
    let mut text = String::new();
    for (number, vcpu) in stats.vcpus.iter().enumerate() {
        text += &format!("vCPU {number}, engine {}\n", stats.engine);
        let common = &vcpu.common;
        if let Some(instructions) = common.instructions {
            text += &line("instructions", instructions, "guest instructions executed");
        }
        text += &line("interrupts", common.interrupts, "interrupts delivered");
        text += &line("exceptions", common.exceptions, "exceptions delivered");
        text += &line("io_accesses", common.io_accesses, "accesses to ports and memory-mapped registers");
        for counter in &vcpu.counters {
            text += &line(&counter.name, counter.value, counter.help);
        }
    }
    text += "VM\n";
    text += &line("guest_time_ns", stats.guest_time_ns, "time that the guest saw pass");
    text += &line("resets", stats.resets, "resets by the guest");
    for counter in &stats.mmu {
        text += &line(&counter.name, counter.value, counter.help);
    }
    text += &line("ram_bytes", stats.ram_bytes, "guest memory");
    text += &line("ram_resident_bytes", stats.ram_resident_bytes, "what of it the host had to provide");
    text += &line("ram_ballooned_bytes", stats.ram_ballooned_bytes, "what of it is in the balloon");
    if let Some(balloon) = &stats.balloon {
        text += &line("balloon_target_bytes", balloon.target_bytes, "how large the balloon is to be");
        text += &line("reported_bytes", balloon.reported_bytes, "free memory that the guest has given back");
        for Statistic { name, value } in balloon.statistics.iter() {
            text += &line(&format!("guest_{name}"), value, "as the guest says");
        }
    }
    text.trim_end().to_owned()
}

/// Everything that was counted.
pub(crate) fn json(stats: &Stats) -> Value {
    json!({
        "engine": stats.engine,
        "guest_time_ns": stats.guest_time_ns,
        "resets": stats.resets,
        "mmu": map(&stats.mmu),
        "ram_bytes": stats.ram_bytes,
        "ram_resident_bytes": stats.ram_resident_bytes,
        "ram_ballooned_bytes": stats.ram_ballooned_bytes,
        "balloon": stats.balloon.as_ref().map(balloon),
        "vcpus": stats.vcpus.iter().map(vcpu).collect::<Vec<_>>(),
    })
}

/// Null where there is none. What the guest says of itself is what it said when it was last asked.
fn balloon(figures: &BalloonFigures) -> Value {
    let guest: Map<_, _> =
        figures.statistics.iter().map(|Statistic { name, value }| (name.to_owned(), value.into())).collect();
    json!({
        "target_bytes": figures.target_bytes,
        "actual_bytes": figures.actual_bytes,
        "reported_bytes": figures.reported_bytes,
        "driven": figures.driven,
        "guest": guest,
    })
}

/// `instructions` is null where the engine does not count them.
fn vcpu(figures: &VcpuFigures) -> Value {
    json!({
        "instructions": figures.common.instructions,
        "interrupts": figures.common.interrupts,
        "exceptions": figures.common.exceptions,
        "io_accesses": figures.common.io_accesses,
        "counters": map(&figures.counters),
    })
}

fn map(counters: &[Counter]) -> Map<String, Value> {
    counters.iter().map(|counter| (counter.name.clone().into_owned(), counter.value.into())).collect()
}
