//! What an engine costs the host, from `/proc`: the processor's time and memory, of a process and all below it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// The unit of times in `/proc/PID/stat`: Linux tells every program 100 Hz, whatever it uses itself.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process in `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    parent: u32,
    /// Its own time and that of the children that it has waited for.
    ticks: u64,
}

/// Where memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Memory {
    /// What the guest has touched, in MiB.
    pub(super) guest_mib: f64,
    /// Everything else, in MiB.
    pub(super) own_mib: f64,
}

impl Memory {
    /// The greater of each part.
    pub(super) fn max(self, other: Self) -> Self {
        Self { guest_mib: self.guest_mib.max(other.guest_mib), own_mib: self.own_mib.max(other.own_mib) }
    }
}

/// The time that a process and its descendants have used.
pub(super) fn cpu_seconds(pid: u32) -> f64 {
    let all = processes();
    let ticks: u64 =
        family(pid, &all).iter().filter_map(|pid| all.get(pid)).map(|process| process.ticks).sum();
    ticks as f64 / TICKS_PER_SECOND
}

/// The memory of a process and its descendants, whose guest has `guest_mib`. A page that several of them map is counted once.
pub(super) fn memory(pid: u32, guest_mib: u64) -> Memory {
    let mut memory = Memory::default();
    for pid in family(pid, &processes()) {
        let text = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/smaps"))).unwrap_or_default();
        add_mappings(&text, guest_mib, &mut memory);
    }
    memory
}

fn processes() -> BTreeMap<u32, Process> {
    let items = fs::read_dir("/proc").into_iter().flatten().flatten();
    let read = |name: std::ffi::OsString| {
        let pid = name.to_str()?.parse().ok()?;
        Some((pid, parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))
    };
    items.filter_map(|item| read(item.file_name())).collect()
}

/// Reads a line of `/proc/PID/stat` (proc_pid_stat(5)). The name, in parentheses, may hold anything.
fn parse_stat(text: &str) -> Option<Process> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // The first field after the name is the third.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = (14..=17).map(number).sum::<Option<u64>>()?;
    Some(Process { parent: u32::try_from(number(4)?).ok()?, ticks })
}

/// A process and all that descend from it.
fn family(pid: u32, all: &BTreeMap<u32, Process>) -> Vec<u32> {
    let mut members = vec![pid];
    let mut next = 0;
    while let Some(&parent) = members.get(next) {
        members.extend(all.iter().filter(|(_, process)| process.parent == parent).map(|(&pid, _)| pid));
        next += 1;
    }
    members
}

/// Adds the mappings of a `/proc/PID/smaps`.
fn add_mappings(text: &str, guest_mib: u64, memory: &mut Memory) {
    let mut is_guest = false;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("Pss:") {
            let kib: f64 = rest.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
            let part = if is_guest { &mut memory.guest_mib } else { &mut memory.own_mib };
            *part += kib / 1024.0;
        } else if let Some(is) = is_guest_memory(line, guest_mib) {
            is_guest = is;
        }
    }
}

/// Whether a line that begins a mapping is of the guest's memory; none for another line. Umbra names it, User-Mode Linux
/// keeps it in a file, and QEMU's is anonymous and exactly as large as the guest was promised.
fn is_guest_memory(line: &str, guest_mib: u64) -> Option<bool> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let size = number(end)?.checked_sub(number(start)?)?;
    let name = rest.split_whitespace().nth(4);
    Some(match name {
        Some(name) => name.contains("umbra-ram") || name.starts_with("/dev/shm/"),
        None => size == guest_mib << 20,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text = "77 (a) b (c) S 12 77 77 0 -1 4194560 1 2 3 4 100 20 3 1 20 0 1";
        assert_eq!(parse_stat(text), Some(Process { parent: 12, ticks: 124 }));
        assert_eq!(parse_stat("77 (x"), None);
    }

    #[test]
    fn descendants_count() {
        let process = |parent| Process { parent, ticks: 1 };
        let all = BTreeMap::from([(1, process(0)), (5, process(1)), (6, process(5)), (7, process(1))]);
        assert_eq!(family(5, &all), [5, 6]);
    }

    #[test]
    fn guest_memory_is_told_apart() {
        let text = "\
7f00000000-7f04000000 rw-p 00000000 00:00 0 \nSize: 65536 kB\nPss: 1024 kB
7f80000000-7f80100000 rw-s 00000000 00:01 12   /memfd:umbra-ram (deleted)\nPss: 2048 kB
7f90000000-7f90001000 rw-p 00000000 00:00 0    [heap]\nPss: 512 kB\n";
        let mut memory = Memory::default();
        add_mappings(text, 64, &mut memory);
        assert_eq!(memory, Memory { guest_mib: 3.0, own_mib: 0.5 });
    }
}
