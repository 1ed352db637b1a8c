//! The root on a disk: which partition, and what becomes of it.
//!
//! The disk is the machine's first one, which its serial number says, whatever it is called. Its root is what `root=` on the kernel's command line names, or the largest partition (or the
//! disk, if it has none) that holds a Linux system: every file system that the kernel knows is tried, and the first one counts
//! that has `/etc` and a shell or an init. No partition table is read here; the kernel has done that.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::Failure;

/// The serial number of the machine's first disk.
const SERIAL: &str = "disk0";
/// How long the kernel may take to find it: it does that on a thread of its own for some kinds of disks.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked for.
const TICK: Duration = Duration::from_millis(10);
/// What a system's first process may be.
const INITS: [&str; 4] = ["/sbin/init", "/usr/lib/systemd/systemd", "/etc/init", "/bin/init"];
/// What a system's shell is.
const SHELL: &str = "/bin/sh";

/// Mounts the system on the disk at a place.
pub(crate) fn mount_root(at: &str, read_only: bool) -> Result<(), Failure> {
    let failed = |error| Failure::new("cannot look at the disk", error);
    let wanted = fs::read_to_string("/proc/cmdline").map_err(failed)?;
    let candidates = match wanted.split_whitespace().rev().find_map(|word| word.strip_prefix("root=")) {
        Some(device) => vec![PathBuf::from(device)],
        None => partitions().map_err(failed)?,
    };
    let kinds = file_systems().map_err(failed)?;
    for device in &candidates {
        for kind in &kinds {
            if try_mount(device, at, kind, read_only) {
                if holds_a_system(Path::new(at)) {
                    return Ok(());
                }
                // Whatever else it is, it is not the root.
                let _ = unmount(at, UnmountFlags::empty());
            }
        }
    }
    let tried: Vec<_> = candidates.iter().map(|device| device.display().to_string()).collect();
    Err(Failure(format!(
        "no Linux system is on the disk image (looked at {} for {}): name its partition with --append root=DEVICE",
        tried.join(" "),
        kinds.join(" ")
    )))
}

/// The kernel's name for the disk.
fn disk() -> io::Result<String> {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        for item in fs::read_dir("/sys/block")?.flatten() {
            // A virtio disk has its serial number itself, an NVMe disk its controller.
            let serial = ["serial", "device/serial"].map(|file| fs::read_to_string(item.path().join(file)));
            if serial.into_iter().flatten().any(|serial| serial.trim() == SERIAL) {
                return Ok(item.file_name().to_string_lossy().into_owned());
            }
        }
        std::thread::sleep(TICK);
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Where partitions are, the largest first, or the disk, if it has none.
fn partitions() -> io::Result<Vec<PathBuf>> {
    let (mut found, disk) = (Vec::new(), disk()?);
    for item in fs::read_dir(format!("/sys/class/block/{disk}"))?.flatten() {
        let name = item.file_name().to_string_lossy().into_owned();
        if name.starts_with(&disk) {
            let sectors = fs::read_to_string(item.path().join("size"))?;
            found.push((sectors.trim().parse::<u64>().unwrap_or(0), name));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    let names = if found.is_empty() { vec![disk] } else { found.into_iter().map(|it| it.1).collect() };
    Ok(names.into_iter().map(|name| Path::new("/dev").join(name)).collect())
}

/// The file systems on disks that the kernel knows.
fn file_systems() -> io::Result<Vec<String>> {
    let text = fs::read_to_string("/proc/filesystems")?;
    Ok(text.lines().filter(|line| !line.starts_with("nodev")).map(|line| line.trim().to_owned()).collect())
}

fn try_mount(device: &Path, at: &str, kind: &str, read_only: bool) -> bool {
    let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    mount(device, at, kind, flags, None).is_ok()
}

fn holds_a_system(root: &Path) -> bool {
    let has = |path: &str| root.join(path.trim_start_matches('/')).symlink_metadata().is_ok();
    has("/etc") && (has(SHELL) || INITS.into_iter().any(has))
}

/// Becomes the system's own first process.
pub(crate) fn become_init() -> Failure {
    for program in INITS.into_iter().chain([SHELL]) {
        let error = Command::new(program).env_clear().envs([("HOME", "/"), ("TERM", "linux")]).exec();
        if error.kind() != io::ErrorKind::NotFound {
            return Failure::new(format_args!("cannot start {program}"), error);
        }
    }
    Failure("the disk image has no init: give a command, as in 'umbra run IMAGE -- sh'".to_owned())
}

/// Says what failed on the kernel's console, which is all that a system that boots by itself has.
pub(crate) fn complain(Failure(why): &Failure) {
    eprintln!("umbra: in the guest: {why}");
    let _ = rustix::termios::tcdrain(io::stderr());
}

/// Brings what was written to the disk into order; it is as after a loss of power if somebody still writes.
pub(crate) fn settle() {
    rustix::fs::sync();
    let _ = mount_remount("/", MountFlags::RDONLY, c"");
}
