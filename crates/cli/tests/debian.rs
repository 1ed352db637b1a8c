//! A root of Debian's packages: `umbra run debian`. To make one takes minutes, so what is quick uses the one in the user's cache, if there is one.

mod common;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::{Place, complaint, is_installed, skipped, umbra};

/// How long a system may take to boot on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// VMs that nobody else sees, on a root that others use.
struct Vms(Place);

impl Vms {
    /// None if the user's cache has no root.
    fn with_root() -> Option<Self> {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")))?;
        if cache.join("umbra/debian/root/disk.raw").exists() {
            return Some(Self(Place::new()));
        }
        skipped("no root of Debian's packages is in the cache: 'umbra fetch debian' makes one");
        None
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = umbra(args);
        command
            .env("XDG_RUNTIME_DIR", self.0.path().join("runtime"))
            .env("XDG_DATA_HOME", self.0.path().join("data"))
            .current_dir(self.0.path());
        command
    }

    fn umbra(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What it prints when all goes well.
    #[track_caller]
    fn says(&self, args: &[&str]) -> String {
        let output = self.umbra(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", complaint(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same as soon as it goes well.
    #[track_caller]
    fn says_at_last(&self, mut command: impl FnMut() -> Command) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = command().output().unwrap();
            if output.status.success() {
                return String::from_utf8(output.stdout).unwrap();
            }
            assert!(Instant::now() < deadline, "{}", complaint(&output));
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Vms {
    fn drop(&mut self) {
        let all = self.umbra(&["ps", "-q"]);
        let names = String::from_utf8_lossy(&all.stdout).into_owned();
        let args: Vec<&str> = ["rm", "-f"].into_iter().chain(names.split_whitespace()).collect();
        if args.len() > 2 {
            let _ = self.umbra(&args);
        }
    }
}

/// A port of the host that nobody uses.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

#[test]
fn commands_run_in_a_debian_and_their_changes_are_forgotten() {
    let Some(vms) = Vms::with_root() else { return };
    let script = "cat /etc/debian_version && dpkg --audit && test ! -e /changed && touch /changed; exit 3";
    for _ in 0..2 {
        let output = vms.umbra(&["run", "debian", "--", "sh", "-ec", script]);
        assert_eq!(output.status.code(), Some(3), "{}", complaint(&output));
        assert!(String::from_utf8_lossy(&output.stdout).starts_with(|c: char| c.is_ascii_digit()));
    }
}

#[test]
fn a_debian_boots_lets_its_owner_in_stops_and_keeps_its_disk() {
    let Some(vms) = Vms::with_root() else { return };
    if !is_installed("ssh-keygen") {
        return;
    }
    let key = vms.0.path().join("key");
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().unwrap();
    assert!(made.success());
    let port = free_port().to_string();
    let data = "#cloud-config\n".repeat(300);
    vms.0.file("user-data", data.as_bytes());
    let forwarded = format!("{port}:22");
    let words = ["--ssh-key", "key.pub", "--cloud-init", "user-data", "debian"];
    vms.says(&[&["run", "-d", "--name", "box", "-p", &forwarded], &words[..]].concat());

    let ssh = || {
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "BatchMode=yes",
        ])
        .args(["-o", "ConnectTimeout=10", "-o", "IdentitiesOnly=yes", "-i"])
        .arg(&key)
        .args(["-p", &port, "root@127.0.0.1", "hostname; systemctl is-system-running --wait"]);
        ssh
    };
    assert_eq!(vms.says_at_last(ssh), "box\nrunning\n");
    let mine = "echo kept >/root/kept; getent shadow root | cut -d: -f2; cat /etc/resolv.conf";
    assert_eq!(
        vms.says(&["exec", "box", "sh", "-c", mine]),
        "*\nnameserver 10.0.2.3\n",
        "nobody has a password"
    );

    let seed = "blkid -o export /dev/vdb; mount -r /dev/vdb /mnt; ls /mnt; cat /mnt/meta-data";
    let seen = vms.says(&["exec", "box", "sh", "-ec", seed]);
    for part in [
        "LABEL=cidata\n",
        "TYPE=iso9660\n",
        "meta-data\nuser-data\n",
        "instance-id: box\nlocal-hostname: box\n",
    ] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    assert!(vms.says(&["exec", "box", "cat", "/mnt/user-data"]) == data);

    vms.says(&["stop", "--timeout", "120", "box"]);
    let log = vms.says(&["logs", "box"]);
    assert!(log.contains("box login:") && log.contains("Powering off"), "{log}");
    assert_eq!(vms.says(&["wait", "box"]), "0\n");
    vms.says(&["rm", "box"]);
    assert_eq!(vms.says(&["run", "--name", "box", "debian", "--", "cat", "/root/kept"]), "kept\n");
    vms.says(&["rm", "--disk", "box"]);
    assert!(!vms.0.path().join("data/umbra/disks/box").exists());
}

#[test]
#[ignore = "fetches a kernel and 150 packages, and installs them in a VM: two minutes"]
fn a_root_is_made_with_what_is_asked_for() {
    let place = Place::new();
    let args = ["run", "debian", "--packages", "make", "--", "make", "--version"];
    let output = place.umbra(&args).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", complaint(&output));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("GNU Make"));
    let entries = std::fs::read_dir(place.path().join("cache/umbra/debian")).unwrap();
    let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(
        names.iter().any(|name| name == "root_make") && !names.iter().any(|name| name.starts_with('.')),
        "{names:?}"
    );
}
