//! Memory that guests give back: an idle one what it has freed, any one what it is told to do without.
//!
//! Like the other tests with Debian's packages, these say so and pass where those cannot be had.

mod common;

use std::time::{Duration, Instant};

use common::{HANG, KERNELS, Vms, debian_kernel_with_modules};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// However busy the host is.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a VM counts.
fn counters(vms: &Vms) -> Value {
    let line = vms.says(&["stats", "--no-stream", "--format", "json", "box"]);
    serde_json::from_str::<Value>(&line).unwrap()["counters"].take()
}

/// Waits until it counts what is expected.
#[track_caller]
fn until(vms: &Vms, expected: impl Fn(&Value) -> bool) -> Value {
    let since = Instant::now();
    loop {
        let counters = counters(vms);
        if expected(&counters) {
            return counters;
        }
        assert!(since.elapsed() < PATIENCE, "{counters}");
    }
}

/// Waits until the guest has printed a word.
#[track_caller]
fn until_it_says(vms: &Vms, word: &str) {
    let since = Instant::now();
    while !vms.says(&["logs", "box"]).contains(word) {
        assert!(since.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn resident(counters: &Value) -> u64 {
    counters["ram_resident_bytes"].as_u64().unwrap()
}

/// Uses 128 MiB, frees them, waits until most of its memory is gone and until it has it back, and looks whether it is all right.
const WORK: &str = "\
fill() {
    for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do cat /tmp/a >>/tmp/big; done
}
available() {
    awk '/MemAvailable/ {print $2}' /proc/meminfo
}
dd if=/dev/urandom of=/tmp/a bs=1M count=8 2>/dev/null
fill
echo full
sleep 3
rm /tmp/big
until [ $(available) -lt 100000 ]; do sleep 1; done
echo small
until [ $(available) -gt 200000 ]; do sleep 1; done
fill
for n in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    dd if=/tmp/big bs=8M skip=$n count=1 2>/dev/null | cmp - /tmp/a || exit 3
done
exit 7
";

#[test]
fn what_debian_frees_or_is_to_do_without_goes_back_to_the_host() {
    let Some(kernel) = debian_kernel_with_modules(KERNELS[0]) else { return };
    let vms = Vms::new();
    let mut args = vec!["run", "-d", "--name", "box", "-m", "384M"];
    args.extend(["--kernel", &kernel, "--timeout", "10m", "--", "sh", "-c", WORK]);
    vms.command(&args).env_remove("XDG_CACHE_HOME").output().unwrap();
    until_it_says(&vms, "full");
    let full = resident(&counters(&vms));
    assert!(full > 136 * MIB, "{full}");
    // Freed, and nobody was asked for it.
    let after = until(&vms, |counters| resident(counters) < full - 100 * MIB);
    assert!(after["balloon"]["reported_bytes"].as_u64().unwrap() > 100 * MIB, "{after}");
    assert_eq!((&after["ram_ballooned_bytes"], &after["balloon"]["driven"]), (&0.into(), &true.into()));
    assert!(after["balloon"]["guest"]["total_bytes"].as_u64().unwrap() > 256 * MIB, "{after}");
    assert!(vms.refuses(&["update", "-m", "1G", "box"], 1).contains("cannot have 1 GiB"));
    vms.says(&["update", "--memory", "128M", "box"]);
    let small = until(&vms, |counters| counters["ram_ballooned_bytes"].as_u64() > Some(240 * MIB));
    assert!(resident(&small) < 150 * MIB, "{small}");
    // It looks once in a while, and is to have seen that.
    until_it_says(&vms, "small");
    vms.says(&["update", "--memory", "384M", "box"]);
    until(&vms, |counters| counters["ram_ballooned_bytes"] == 0);
    assert_eq!(vms.says(&["wait", "box"]), "7\n");
}

#[test]
fn memory_changes_by_a_balloon_that_somebody_fills() {
    let vms = Vms::new();
    vms.start("box", HANG);
    assert!(vms.refuses(&["update", "-m", "8M", "box"], 1).contains("no driver"));
    vms.says(&["kill", "box"]);
    vms.says(&["run", "-d", "--name", "rigid", "guest", "-m", "16M", "--no-balloon"]);
    assert!(vms.refuses(&["update", "-m", "8M", "rigid"], 1).contains("--no-balloon"));
}
