//! Guests with several CPUs: Debian's kernels start them all, work on each, take them away and bring them back.
//!
//! Like the other tests with Debian's packages, these say so and pass where those cannot be had.

mod common;

use std::process::Command;

use common::{KERNELS, complaint, debian_kernel, is_installed, umbra};

const CPUS: u32 = 4;

/// What each CPU does alone, bound to it: all must come to the same.
const WORK: &str = r#"
work() {
    for n in 0 1 2 3; do
        taskset $(printf %x $((1 << n))) sh -c 'sha256sum /tmp/data; cut -d " " -f 39 /proc/self/stat' >/tmp/sum$n &
    done
    wait
    head -qn 1 /tmp/sum? | sort -u | wc -l
    tail -qn 1 /tmp/sum?
}
cpu=/sys/devices/system/cpu
dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null
nproc
work
for n in 1 2 3; do echo 0 >$cpu/cpu$n/online; done
cat $cpu/online
for n in 3 1 2; do echo 1 >$cpu/cpu$n/online; done
cat $cpu/online
work
dmesg | grep -ci -e lockup -e stall -e 'not responding' -e 'inconsistent'
"#;

/// One sum of all, and the CPU that each was made on.
const WORKED: &str = "1\n0\n1\n2\n3\n";

#[test]
fn debian_works_on_all_cpus_and_takes_them_away_and_back() {
    for (package, engine) in [(KERNELS[0], "auto"), (KERNELS[0], "interp"), (KERNELS[1], "auto")] {
        let Some(kernel) = debian_kernel(package) else { continue };
        let cpus = CPUS.to_string();
        let options = ["run", "--kernel", &kernel, "--engine", engine, "-c", &cpus, "--timeout", "10m"];
        let output = umbra(&options).args(["--", "sh", "-c", WORK]).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        let expected = format!("{CPUS}\n{WORKED}0\n0-3\n{WORKED}0\n");
        assert_eq!(printed, expected, "{package} on {engine}: {}", complaint(&output));
    }
}

/// All CPUs at work, then what each has lost to others, in hundredths of a second.
const CROWDED: &str = r#"
for n in 0 1; do
    taskset $((1 << n)) sh -c 'end=$(($(cut -d. -f1 /proc/uptime) + 2)); while [ $(cut -d. -f1 /proc/uptime) -lt $end ]; do :; done' &
done
wait
grep '^cpu[01] ' /proc/stat | cut -d ' ' -f 9
"#;

#[test]
fn time_that_the_host_gives_to_others_is_shown_as_stolen() {
    let Some(kernel) = debian_kernel(KERNELS[0]) else { return };
    if !is_installed("taskset") {
        return;
    }
    let mut crowded = Command::new("taskset");
    crowded.args(["-c", "0", env!("CARGO_BIN_EXE_umbra"), "run", "--kernel", &kernel, "-c", "2"]);
    let output = crowded.args(["--timeout", "10m", "--", "sh", "-c", CROWDED]).output().unwrap();
    let stolen: Vec<u32> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| line.parse().unwrap()).collect();
    // Of two CPUs on one processor, each has it for half of the time.
    assert!(stolen.len() == 2 && stolen.iter().all(|&ticks| ticks > 20), "{stolen:?} {}", complaint(&output));
}
