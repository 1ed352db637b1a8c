//! What is written of a VM into its directory.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use spec::VmSpec;

/// Who a VM is. Does not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    /// Its name, which no other VM of this user has.
    pub(crate) name: String,
    /// Its process.
    pub(crate) pid: u32,
    /// When it was made, in seconds since 1970.
    pub(crate) created: u64,
    /// Its directory goes when it ends.
    pub(crate) remove: bool,
    /// It runs in the background, with its console to be attached to.
    pub(crate) detached: bool,
    /// What it was made from, as it was named.
    pub(crate) source: String,
    /// The command that runs in it, if there is one.
    pub(crate) command: Vec<String>,
    /// Its kernel's file.
    pub(crate) kernel: String,
    /// Its kernel's command line.
    pub(crate) command_line: String,
    /// Virtual CPUs.
    pub(crate) cpus: u32,
    /// Guest memory.
    pub(crate) memory_bytes: u64,
    /// Disks' files.
    pub(crate) disks: Vec<String>,
    /// Shared directories.
    pub(crate) shares: Vec<String>,
    /// The network.
    pub(crate) net: String,
    /// Ports that lead into it.
    pub(crate) ports: Vec<String>,
}

impl Description {
    /// Of this process's VM, which gets its name later.
    pub(crate) fn new(spec: &VmSpec, source: String, command: Vec<String>) -> Self {
        Self {
            name: String::new(),
            pid: std::process::id(),
            created: now(),
            remove: false,
            detached: false,
            source,
            command,
            kernel: spec.boot.kernel.display().to_string(),
            command_line: spec.boot.command_line.clone(),
            cpus: spec.cpus.get(),
            memory_bytes: spec.memory.bytes(),
            disks: spec.disks.iter().map(|disk| disk.file.display().to_string()).collect(),
            shares: spec.shares.iter().map(|share| share.directory.display().to_string()).collect(),
            net: spec.net.to_string(),
            ports: spec.ports.iter().map(ToString::to_string).collect(),
        }
    }
}

/// How a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// The status that its process exited with.
    pub(crate) status: u8,
    /// When, in seconds since 1970.
    pub(crate) at: u64,
}

impl Ended {
    /// Now.
    pub(crate) fn now(status: u8) -> Self {
        Self { status, at: now() }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Writes a record; a reader sees the old one or the new one, whole.
///
/// # Errors
/// If the directory cannot be written.
pub(crate) fn write(path: &Path, record: &impl Serialize) -> Result<()> {
    let whole = path.with_extension("new");
    let text = serde_json::to_vec(record)?;
    fs::write(&whole, text)
        .and_then(|()| fs::rename(&whole, path))
        .with_context(|| format!("cannot write '{}'", path.display()))
}

/// Reads a record; none if it is not there or is none.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(control::LONGEST_LINE as u64).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_nonsense_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ended.json");
        assert_eq!(read::<Ended>(&path), None);
        let ended = Ended::now(3);
        write(&path, &ended).unwrap();
        assert_eq!(read(&path), Some(ended));
        for nonsense in ["", "{", "[1]", "{\"status\":256,\"at\":1}"] {
            fs::write(&path, nonsense).unwrap();
            assert_eq!(read::<Ended>(&path), None, "{nonsense}");
        }
    }
}
