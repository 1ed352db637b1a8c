//! Limits of the process (getrlimit(2)): files, memory, and no copy of its memory on disk.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the process may take beyond what it has when it is shut: translations' tables and caches, nodes of shared
/// directories, connections. All of these have bounds of their own, which together stay far below.
const OWN_BYTES: u64 = 4 << 30;

/// Limits the calling process.
pub(super) fn apply(ram_bytes: u64) -> io::Result<()> {
    // A process that crashes leaves its guest's memory to nobody.
    set(Resource::Core, 0)?;
    // As many files as it has provided for, and no more.
    if let Some(files) = getrlimit(Resource::Nofile).current {
        set(Resource::Nofile, files)?;
    }
    // Guest memory is a file in memory, of a size that does not change, and not counted in this.
    set(Resource::Data, data_bytes().saturating_add(OWN_BYTES).saturating_add(ram_bytes))
}

/// At most `most`, and never more again.
fn set(resource: Resource, most: u64) -> io::Result<()> {
    let before = getrlimit(resource);
    let most = most.min(before.current.unwrap_or(most)).min(before.maximum.unwrap_or(most));
    Ok(setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// What the limit of data has counted so far (proc_pid_status(5), VmData), where that can be known.
fn data_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}
