//! What a VM of Umbra counts, asked of it while it runs, by its control socket.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// Counters by name, those of all vCPUs together.
pub(super) type Counters = BTreeMap<String, u64>;

/// What is no count of events: how much there is now.
const LEVELS: [&str; 2] = ["mmu.tables", "mmu.table_bytes"];
/// How long a VM may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The request, of the protocol's version 1.
const REQUEST: &str = "{\"version\":1,\"do\":\"stats\"}\n";

/// A place where one VM notes that it runs, and so the road to it.
pub(super) struct Control {
    dir: PathBuf,
}

impl Control {
    /// A place of its own for the VM that a command will start.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn new(command: &mut Command) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("umbra-bench-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make '{}'", dir.display()))?;
        command.env("XDG_RUNTIME_DIR", &dir);
        Ok(Self { dir })
    }

    /// What the VM has counted so far.
    ///
    /// # Errors
    /// If it does not say.
    pub(super) fn counters(&self) -> Result<Counters> {
        // The only VM there has the first of the names that are given.
        let mut stream = UnixStream::connect(self.dir.join("umbra/vm1/control"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(REQUEST.as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line)?;
        Ok(flat(&answer["ok"]["counters"]))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // What is left in the directory for temporary files is not worth a word.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The counters of the MMU, and the sums of those of the vCPUs.
fn flat(stats: &Value) -> Counters {
    let mut counters = Counters::new();
    let vcpus = stats["vcpus"].as_array().into_iter().flatten().map(|vcpu| &vcpu["counters"]);
    for (name, value) in vcpus.chain([&stats["mmu"]]).filter_map(Value::as_object).flatten() {
        *counters.entry(name.clone()).or_default() += value.as_u64().unwrap_or(0);
    }
    counters
}

/// What was counted between two looks; of what is no count, the later.
pub(super) fn between(before: &Counters, after: &Counters) -> Counters {
    let difference = |(name, &value): (&String, &u64)| {
        let earlier = before.get(name).filter(|_| !LEVELS.contains(&name.as_str()));
        (name.clone(), value.saturating_sub(earlier.copied().unwrap_or(0)))
    };
    after.iter().map(difference).collect()
}

/// Adds what was counted in another sample.
pub(super) fn add(sum: &mut Counters, sample: &Counters) {
    for (name, &value) in sample {
        let entry = sum.entry(name.clone()).or_default();
        *entry = if LEVELS.contains(&name.as_str()) { value.max(*entry) } else { *entry + value };
    }
}

/// Whether a counter says how much there is now.
pub(super) fn is_level(name: &str) -> bool {
    LEVELS.contains(&name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn vcpus_are_added_up_and_levels_are_not_subtracted() {
        let stats = |fills: u64, tables: u64| {
            flat(&json!({
                "mmu": { "mmu.tables": tables },
                "vcpus": [{ "counters": { "tlb.fills": fills } }, { "counters": { "tlb.fills": 1 } }],
            }))
        };
        let counted = between(&stats(10, 7), &stats(30, 5));
        assert_eq!(counted, Counters::from([("mmu.tables".into(), 5), ("tlb.fills".into(), 20)]));
        let mut sum = counted.clone();
        add(&mut sum, &counted);
        assert_eq!(sum, Counters::from([("mmu.tables".into(), 5), ("tlb.fills".into(), 40)]));
    }
}
