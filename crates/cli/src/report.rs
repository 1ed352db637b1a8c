//! What `--verbose` says at the end.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use vm::Stats;

use crate::message;

/// What the kernel will say of this process, from a file that a jailed process could not open any more.
pub(crate) struct OwnFigures(Option<File>);

impl OwnFigures {
    /// Opens it.
    pub(crate) fn open() -> Self {
        Self(File::open("/proc/self/status").ok())
    }

    /// The most memory that this process has had (proc_pid_status(5), VmHWM).
    fn peak_resident_bytes(self) -> Option<u64> {
        let mut status = String::new();
        self.0?.read_to_string(&mut status).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    }
}

/// Prints what was counted; `ready` is how long it took to reach user space, where that is known.
pub(crate) fn print(stats: &Stats, ready: Option<Duration>, figures: OwnFigures) {
    if let Some(ready) = ready {
        message::note(&format!("user space reached after {:.2} s", ready.as_secs_f64()));
    }
    // Not every engine counts them.
    let instructions: Option<u64> = stats.vcpus.iter().map(|vcpu| vcpu.common.instructions).sum();
    let instructions = instructions.map_or_else(String::new, |count| format!("{count} instructions in "));
    let seconds = Duration::from_nanos(stats.guest_time_ns).as_secs_f64();
    message::note(&format!(
        "engine {}: {instructions}{seconds:.2} s of guest time, {} resets",
        stats.engine, stats.resets
    ));
    message::note(&format!(
        "{} MiB of {} MiB guest memory in use, {} MiB by this process at most",
        stats.ram_resident_bytes >> 20,
        stats.ram_bytes >> 20,
        figures.peak_resident_bytes().unwrap_or(0) >> 20
    ));
}
