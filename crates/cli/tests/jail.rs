//! What is left to the process of a VM: looked at from outside, while its guest runs.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::{Place, kernel, kernels_that_share, umbra};

/// A running VM, ended with the test.
struct Vm(Child);

impl Vm {
    /// Starts it, and waits until its vCPU is there and has used some time.
    fn start(command: &mut Command) -> Self {
        let vm = Self(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        while !vm.executes() {
            assert!(Instant::now() < deadline, "the guest does not run");
            std::thread::sleep(Duration::from_millis(5));
        }
        vm
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.0.id()))
    }

    /// Whether its vCPU has used more time than it takes to wait for the rest of the process.
    fn executes(&self) -> bool {
        let vcpu = self.threads().remove("vcpu0").and_then(|mut of| of.pop());
        let number = vcpu.map(|status| field(&status, "Pid").to_owned()).unwrap_or_default();
        let times =
            std::fs::read_to_string(self.proc("task").join(number).join("schedstat")).unwrap_or_default();
        let used_ns = times.split(' ').next().and_then(|used| used.parse::<u64>().ok());
        used_ns.is_some_and(|used| used > 30_000_000)
    }

    /// The status of every thread, by name.
    fn threads(&self) -> BTreeMap<String, Vec<String>> {
        let mut threads: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for thread in std::fs::read_dir(self.proc("task")).unwrap().flatten() {
            let Ok(status) = std::fs::read_to_string(thread.path().join("status")) else { continue };
            threads.entry(field(&status, "Name").to_owned()).or_default().push(status);
        }
        threads
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_default().trim()
}

const NONE: &str = "0000000000000000";

/// All threads but those that serve shared directories, whose capabilities are returned.
fn check_confined(vm: &Vm) -> Vec<String> {
    let mut sharing = Vec::new();
    for (name, threads) in vm.threads() {
        for status in threads {
            let seen = |of: &str| field(&status, of).to_owned();
            assert_eq!((seen("Seccomp"), seen("NoNewPrivs")), ("2".into(), "1".into()), "{name}");
            assert_eq!((seen("CapInh"), seen("CapAmb")), (NONE.into(), NONE.into()), "{name}");
            if rustix::process::geteuid().is_root() {
                assert_eq!(seen("CapBnd"), NONE, "{name}");
            }
            if name == "virtio-fs" {
                sharing.push(seen("CapEff"));
            } else {
                assert_eq!((seen("CapEff"), seen("CapPrm")), (NONE.into(), NONE.into()), "{name}");
            }
        }
    }
    sharing
}

/// A guest that never waits: `jmp $`.
const SPIN: &[u8] = &[0xeb, 0xfe];

#[test]
fn no_thread_of_a_vm_has_privileges_or_lacks_a_filter() {
    let place = Place::new();
    place.file("guest", &kernel(SPIN));
    place.file("disk", &[0; 1 << 16]);
    for engine in ["auto", "interp"] {
        let args = ["run", "guest", "-m", "16M", "--engine", engine, "--disk", "disk", "-c", "1"];
        let vm = Vm::start(&mut place.umbra(&args));
        assert!(check_confined(&vm).is_empty());
        let names: Vec<_> = vm.threads().into_keys().collect();
        let expected =
            ["driver", "serial-in", "serial-out", "signals", "timers", "vcpu0", "virtio-blk", "virtio-net"];
        assert!(expected.iter().all(|name| names.iter().any(|there| there == name)), "{names:?}");
    }
}

#[test]
fn limits_hold_while_a_guest_runs() {
    let place = Place::new();
    place.file("guest", &kernel(SPIN));
    let vm = Vm::start(&mut place.umbra(&["run", "guest", "-m", "16M"]));
    let limits = std::fs::read_to_string(vm.proc("limits")).unwrap();
    let hard = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(hard("Max core file size"), "0");
    assert!(hard("Max data size").parse::<u64>().unwrap() < 8 << 30, "{limits}");
    assert_ne!(hard("Max open files"), "unlimited");
}

#[test]
fn without_a_jail_nothing_is_taken_from_the_process() {
    let place = Place::new();
    place.file("guest", &kernel(SPIN));
    let vm = Vm::start(&mut place.umbra(&["run", "guest", "-m", "16M", "--no-jail"]));
    let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    for status in vm.threads().into_values().flatten() {
        for name in ["Seccomp", "NoNewPrivs", "CapEff", "CapBnd"] {
            assert_eq!(field(&status, name), field(&own, name), "{name}");
        }
    }
}

/// A root's VM keeps what serving its directories takes (docs/design/0012), on the threads that do.
#[test]
fn only_threads_that_share_directories_keep_capabilities_and_only_of_root() {
    let place = Place::new();
    std::fs::create_dir(place.path().join("shared")).unwrap();
    let volume = format!("{}:/mnt", place.path().join("shared").display());
    for kernel in kernels_that_share() {
        let args = ["run", "host", "--kernel", kernel, "--volume", &volume, "--", "sleep", "1000"];
        let vm = Vm::start(&mut umbra(&args));
        let mut sharing = check_confined(&vm);
        sharing.sort();
        sharing.dedup();
        let (to_read, to_change) = ("0000000000000004", "000000000000001f");
        let expected =
            if rustix::process::geteuid().is_root() { vec![to_read, to_change] } else { vec![NONE] };
        assert_eq!(sharing, expected);
    }
}

/// What is loaded again at a reset has been open from the start.
#[test]
fn a_guest_resets_the_machine_in_a_jail() {
    // `mov al, 0xfe; out 0x64, al; hlt`: the keyboard controller's reset line.
    let output = Place::new().run(&[0xb0, 0xfe, 0xe6, 0x64, 0xf4], &["--timeout", "2s", "--verbose"]);
    let said = common::complaint(&output);
    assert_eq!(output.status.code(), Some(124), "{said}");
    assert!(!said.contains(" 0 resets"), "{said}");
}

/// The jail is shut around a process that has one thread: whatever the options, none may have been started before.
#[test]
fn a_guest_ends_as_it_does_without_a_jail() {
    let place = Place::new();
    for options in
        [&[][..], &["--no-jail"], &["--verbose", "--stats"], &["--stats=json", "--engine", "interp"]]
    {
        let output = place.run(common::DEBUG_EXIT, &[&["--debug-exit"], options].concat());
        assert_eq!(output.status.code(), Some(7), "{options:?}: {}", common::complaint(&output));
    }
}
