//! An idle guest uses no processor time. Alone in its file, since it looks at the whole process.

mod common;

use std::time::Duration;

use common::*;

/// Nanoseconds that the threads of this process have run (Linux, `Documentation/scheduler/sched-stats.rst`).
fn process_ns() -> Option<u64> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let stats = tasks.flatten().map(|task| std::fs::read_to_string(task.path().join("schedstat")));
    stats.map(|stat| stat.ok()?.split(' ').next()?.parse::<u64>().ok()).sum()
}

#[test]
fn a_halted_guest_costs_nothing() {
    let (vm, screen) = start(kernel(|a| {
        print(a, "idle")?;
        hang(a)
    }));
    screen.wait_until(|bytes| bytes == b"idle");
    std::thread::sleep(Duration::from_millis(20));
    let Some(before) = process_ns() else {
        eprintln!("skipped: this kernel keeps no scheduler statistics");
        return;
    };
    let start = std::time::Instant::now();
    std::thread::sleep(Duration::from_millis(500));
    let used = process_ns().unwrap() - before;
    // A ratio, of which a vCPU that spins would have all, and one that polls every millisecond some percent.
    let share = used as f64 / start.elapsed().as_nanos() as f64;
    assert!(share < 0.05, "an idle guest uses {:.1} % of a processor", share * 100.0);
    vm.stop();
}
