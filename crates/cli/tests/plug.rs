//! Devices that are plugged into VMs that run, and taken out.
//!
//! Like the other tests with Debian's packages, these say so and pass where those cannot be had.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Output;
use std::time::{Duration, Instant};

use common::{HANG, KERNELS, Vms, complaint, debian_kernel_with_modules, kernel, kernels_that_share, umbra};
use serde_json::Value;

/// However busy the host is.
const PATIENCE: Duration = Duration::from_secs(120);

/// Writes to the register by which a guest ejects, all slots, for ever: `mov dx, 0x634; mov ax, -1; again: out dx, ax; jmp again`.
const EJECTS: &[u8] = &[0x66, 0xba, 0x34, 0x06, 0x66, 0xb8, 0xff, 0xff, 0x66, 0xef, 0xeb, 0xfc];

/// Waits until something is so.
#[track_caller]
fn until(what: &str, is: impl Fn() -> bool) {
    let since = Instant::now();
    while !is() {
        assert!(since.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A slot of the VM 'box'.
#[track_caller]
fn slot(vms: &Vms, index: usize) -> Value {
    vms.inspect("box")["slots"][index].take()
}

/// A guest whose root is the host's, with slots.
struct Host(Vms);

impl Host {
    fn start(kernel: &str, options: &[&str]) -> Self {
        let host = Self(Vms::new());
        let first =
            ["run", "-d", "--name", "box", "host", "--kernel", kernel, "--timeout", "10m", "--slots", "2"];
        let args = [&first[..], options, &["--", "sleep", "1000"]].concat();
        let output = host.umbra(&args);
        assert_eq!(output.status.code(), Some(0), "{}", complaint(&output));
        until("commands", || host.umbra(&["exec", "box", "true"]).status.code() == Some(0));
        host
    }

    /// The command with the user's cache, where Debian's kernels are.
    fn umbra(&self, args: &[&str]) -> Output {
        let runtime = self.0.0.path().join("runtime");
        umbra(args).env("XDG_RUNTIME_DIR", runtime).current_dir(self.0.0.path()).output().unwrap()
    }

    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let output = self.umbra(&["exec", "box", "sh", "-c", script]);
        assert_eq!(output.status.code(), Some(0), "{script}: {}", complaint(&output));
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn debian_gets_a_disk_while_it_runs_and_gives_it_back() {
    for kernel in kernels_that_share() {
        let host = Host::start(kernel, &[]);
        let vms = &host.0;
        let image = vms.0.file("disk.img", &[0; 1 << 20]);
        for word in ["first", "again"] {
            assert_eq!(vms.says(&["plug", "box", "--disk", "disk.img"]), "slot1\n");
            assert_eq!(host.sh("cat /sys/block/vda/serial /sys/block/vda/size"), "slot12048\n");
            let plugged = slot(vms, 0);
            assert_eq!(
                (&plugged["device"], &plugged["state"]),
                (&"disk.img".into(), &"plugged".into()),
                "{plugged}"
            );
            assert!(vms.refuses(&["plug", "box", "--disk", "disk.img"], 1).contains("in use"));
            host.sh(&format!("echo {word} | dd of=/dev/vda conv=sync,fsync 2>&1"));
            assert_eq!(vms.says(&["unplug", "box", "slot1"]), "slot1\n");
            assert_eq!(host.sh("ls /sys/block"), "");
            assert_eq!(slot(vms, 0)["state"], "free");
            assert!(std::fs::read(&image).unwrap().starts_with(word.as_bytes()));
        }
        assert!(vms.refuses(&["unplug", "box", "slot1"], 1).contains("no device in slot1"));
        assert!(vms.refuses(&["unplug", "box", "slot9"], 1).contains("no device in slot9"));
    }
}

#[test]
fn images_upon_others_and_nvme_disks_are_plugged_in_too() {
    let Some(kernel) = kernels_that_share().last() else { return };
    let host = Host::start(kernel, &[]);
    let vms = &host.0;
    let base = vms.0.file("base.img", &[7; 1 << 20]);
    vms.says(&["disk", "create", "top.qcow2", "--backing", "base.img"]);
    assert_eq!(vms.says(&["plug", "box", "--disk", "top.qcow2"]), "slot1\n");
    assert_eq!(vms.says(&["plug", "box", "--disk", "base.img,overlay,bus=nvme,ops=1000"]), "slot2\n");
    assert_eq!(host.sh("ls /sys/block"), "nvme0n1\nvda\n");
    assert!(vms.refuses(&["plug", "box", "--net", "user"], 1).contains("are taken"));
    let write = |disk: &str| host.sh(&format!("echo {disk} | dd of=/dev/{disk} conv=sync,fsync 2>&1"));
    write("vda");
    write("nvme0n1");
    vms.says(&["unplug", "box", "slot1"]);
    // Taken away under whoever uses it.
    host.sh(
        "(while :; do dd if=/dev/nvme0n1 of=/dev/null iflag=direct bs=4k || exit; done) >/dev/null 2>&1 &",
    );
    vms.says(&["unplug", "--force", "box", "slot2"]);
    until("the guest has taken notice", || slot(vms, 1)["state"] == "free");
    assert_eq!(host.sh("ls /sys/block"), "");
    assert!(std::fs::read(base).unwrap() == [7; 1 << 20]);
    assert_eq!(vms.umbra(&["disk", "check", "top.qcow2"]).status.code(), Some(0), "it was closed");
    vms.says(&["disk", "convert", "top.qcow2", "flat.img"]);
    let flat = std::fs::read(vms.0.path().join("flat.img")).unwrap();
    assert!(flat.starts_with(b"vda\n") && flat.ends_with(&[7; 512]));
    // The guest lets go by itself.
    assert_eq!(vms.says(&["plug", "box", "--disk", "flat.img"]), "slot1\n");
    host.sh("echo 0 >/sys/bus/pci/slots/1/power");
    until("it is out", || slot(vms, 0)["state"] == "free");
    assert_eq!(vms.says(&["plug", "box", "--disk", "flat.img"]), "slot1\n");
}

#[test]
fn a_network_is_plugged_in_with_addresses_of_its_own() {
    let Some(kernel) = debian_kernel_with_modules(KERNELS[0]) else { return };
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let script = format!(
        "echo up; until [ -e /sys/class/net/eth1 ]; do sleep 0.1; done
         ifconfig eth1 10.0.3.15 netmask 255.255.255.0 up; wget -q -O - http://10.0.3.2:{port}/"
    );
    let vms = Vms::new();
    let args = ["run", "-d", "--name", "box", "--slots", "1", "--kernel", &kernel, "--timeout", "10m"];
    let args = [&args[..], &["--", "sh", "-c", &script]].concat();
    assert_eq!(vms.command(&args).env_remove("XDG_CACHE_HOME").output().unwrap().status.code(), Some(0));
    // Also if it has not booted yet.
    assert_eq!(vms.says(&["plug", "box", "--net", "user,rate=10M"]), "slot1\n");
    let (mut stream, _) = server.accept().unwrap();
    let _ = stream.read(&mut [0; 1024]).unwrap();
    stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello").unwrap();
    drop(stream);
    assert_eq!(vms.says(&["wait", "box"]), "0\n");
    assert_eq!(vms.says(&["logs", "box"]), "up\nhello");
}

fn start(vms: &Vms, code: &[u8], options: &[&str]) {
    vms.0.file("guest", &kernel(code));
    vms.0.file("disk.img", &[0; 512]);
    let args = [&["run", "-d", "--name", "box", "guest", "-m", "16M"], options].concat();
    assert_eq!(vms.says(&args), "box\n");
}

#[test]
fn a_guest_that_does_not_listen_is_unplugged_by_force() {
    let vms = Vms::new();
    start(&vms, HANG, &["--slots", "1"]);
    // Nobody waits for a guest that stands still.
    vms.says(&["pause", "box"]);
    assert_eq!(vms.says(&["plug", "box", "--disk", "disk.img"]), "slot1\n");
    assert_eq!(slot(&vms, 0)["state"], "unnoticed");
    vms.says(&["resume", "box"]);
    let run = ["run", "guest", "--disk", "disk.img", "--timeout", "10s"];
    assert!(vms.refuses(&run, 125).contains("in use"));
    assert!(vms.refuses(&["unplug", "-t", "1", "box", "slot1"], 1).contains("--force"));
    assert_eq!(slot(&vms, 0)["state"], "leaving");
    assert_eq!(vms.says(&["unplug", "-f", "box", "slot1"]), "slot1\n");
    assert_eq!(slot(&vms, 0)["state"], "vacated");
    // What it does not know it may still eject.
    assert!(vms.refuses(&["plug", "box", "--disk", "disk.img"], 1).contains("(1) are taken"));
    assert_eq!(
        vms.umbra(&["run", "guest", "--disk", "disk.img", "--timeout", "1s"]).status.code(),
        Some(124)
    );
}

#[test]
fn a_guest_that_ejects_whatever_comes_harms_itself_only() {
    let vms = Vms::new();
    start(&vms, EJECTS, &["--slots", "4"]);
    for _ in 0..20 {
        assert_eq!(vms.says(&["plug", "box", "--disk", "disk.img"]), "slot1\n");
        until("it is out", || slot(&vms, 0)["state"] == "free");
    }
    assert_eq!(vms.inspect("box")["state"], "running");
    vms.says(&["kill", "box"]);
    assert!(vms.refuses(&["plug", "box", "--disk", "disk.img"], 1).contains("has ended"));
}

#[test]
fn there_is_nothing_to_plug_into_without_slots_and_no_way_to_a_network_from_none() {
    let vms = Vms::new();
    start(&vms, HANG, &[]);
    assert!(vms.refuses(&["plug", "box", "--disk", "disk.img"], 1).contains("--slots N"));
    assert!(vms.refuses(&["plug", "box", "--disk", "nowhere.img"], 1).contains("nowhere.img"));
    assert!(vms.refuses(&["unplug", "box", "slot1"], 1).contains("--slots N"));
    assert!(vms.refuses(&["unplug", "box", "vda"], 125).contains("slot1"));
    assert!(vms.refuses(&["plug", "box"], 1).contains("give --disk or --net"));
    assert!(vms.refuses(&["run", "guest", "--slots", "17"], 125).contains("0 to 16"));
    vms.says(&["rm", "-f", "box"]);
    start(&vms, HANG, &["--slots", "1", "--net", "none"]);
    assert!(vms.refuses(&["plug", "box", "--net", "user"], 1).contains("--net none"));
    assert!(vms.refuses(&["plug", "box", "--net", "none"], 1).contains("tap=DEVICE"));
}
