//! The root: what is shared, below a layer in memory that takes every change; or a disk's.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;

use init::{MODULES, Mount, Root, Settings};
use rustix::mount::{MountFlags, mount, mount_move};

use crate::{Failure, disk};

/// Where the shared directory is, before the root is changed.
const LOWER: &str = "/umbra/lower";
/// The layer in memory.
const UPPER: &str = "/umbra/upper";
/// Both together.
const ROOT: &str = "/umbra/root";

/// Loads drivers, makes the root what the settings say, and enters it.
pub(crate) fn enter(settings: &Settings) -> Result<(), Failure> {
    let none = MountFlags::empty();
    make("/proc")?;
    make("/dev")?;
    attach("proc", "/proc", none, "")?;
    attach("devtmpfs", "/dev", none, "mode=0755")?;
    load_modules()?;
    rustix::system::sethostname(settings.hostname.as_bytes())
        .map_err(|error| Failure::new("cannot set the host name", error))?;
    make(ROOT)?;
    match &settings.root {
        Root::Shared(tag) => layered(tag)?,
        Root::Disk { read_only, .. } => {
            make("/sys")?;
            attach("sysfs", "/sys", none, "")?;
            disk::mount_root(ROOT, *read_only)?;
            rustix::mount::unmount("/sys", rustix::mount::UnmountFlags::empty())
                .map_err(|error| Failure::new("cannot unmount /sys", error))?;
        }
    }
    change_root()
}

/// Puts a layer in memory above a shared directory.
fn layered(tag: &str) -> Result<(), Failure> {
    let none = MountFlags::empty();
    for directory in [LOWER, UPPER] {
        make(directory)?;
    }
    share(tag, LOWER, true)?;
    attach("tmpfs", UPPER, none, "mode=0755")?;
    make(format!("{UPPER}/changes"))?;
    make(format!("{UPPER}/work"))?;
    let layers = format!("lowerdir={LOWER},upperdir={UPPER}/changes,workdir={UPPER}/work");
    attach("overlay", ROOT, none, &layers)
}

/// Mounts the other shared directories. What is written to their places from now on is written to the host.
pub(crate) fn add_shares(settings: &Settings) -> Result<(), Failure> {
    for Mount { tag, path, read_only } in &settings.shares {
        make(path)?;
        share(tag, path, *read_only)?;
    }
    read_ahead();
    Ok(())
}

/// Loads the kernel modules that lie ready, in their order, and forgets them.
fn load_modules() -> Result<(), Failure> {
    let Ok(items) = fs::read_dir(MODULES) else { return Ok(()) };
    let mut paths: Vec<_> = items.flatten().map(|item| item.path()).collect();
    paths.sort();
    for path in paths {
        let failed = |error: io::Error| Failure::new(format_args!("cannot load {}", path.display()), error);
        let bytes = fs::read(&path).map_err(failed)?;
        match rustix::system::init_module(&bytes, c"") {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(failed(error.into())),
        }
        fs::remove_file(&path).map_err(failed)?;
    }
    Ok(())
}

fn make(path: impl AsRef<Path>) -> Result<(), Failure> {
    let path = path.as_ref();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|error| Failure::new(format_args!("cannot make the directory '{}'", path.display()), error))
}

/// Mounts a file system that has no source.
fn attach(kind: &str, at: &str, flags: MountFlags, options: &str) -> Result<(), Failure> {
    let options = std::ffi::CString::new(options).map_err(|error| Failure::new("cannot mount", error))?;
    mount(kind, at, kind, flags, Some(options.as_c_str()))
        .map_err(|error| Failure::new(format_args!("cannot mount {kind} on {at}"), error))
}

/// Mounts a shared directory.
fn share(tag: &str, at: impl AsRef<Path>, read_only: bool) -> Result<(), Failure> {
    let at = at.as_ref();
    let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    mount(tag, at, "virtiofs", flags | MountFlags::NODEV, None).map_err(|error| {
        let at = at.display();
        if error == rustix::io::Errno::NODEV {
            Failure(format!("cannot mount a shared directory on '{at}': this kernel has no virtiofs driver; use Debian's, or one with it built in"))
        } else {
            Failure::new(format_args!("cannot mount a shared directory on '{at}'"), error)
        }
    })
}

/// Makes what was put together the root of everything.
fn change_root() -> Result<(), Failure> {
    let failed = |error| Failure::new("cannot change the root", error);
    for moved in ["proc", "dev"] {
        make(format!("{ROOT}/{moved}"))?;
        mount_move(format!("/{moved}"), format!("{ROOT}/{moved}")).map_err(failed)?;
    }
    rustix::process::chdir(ROOT).map_err(failed)?;
    mount_move(".", "/").map_err(failed)?;
    rustix::process::chroot(".").map_err(failed)?;
    rustix::process::chdir("/").map_err(failed)
}

/// What every Linux root has.
pub(crate) fn kernels_file_systems() -> Result<(), Failure> {
    let (none, safe) = (MountFlags::empty(), MountFlags::NOSUID | MountFlags::NODEV);
    for directory in ["/sys", "/run", "/tmp", "/dev/pts", "/dev/shm"] {
        make(directory)?;
    }
    attach("sysfs", "/sys", safe | MountFlags::NOEXEC, "")?;
    attach("tmpfs", "/run", safe, "mode=0755")?;
    attach("devpts", "/dev/pts", none, "gid=5,mode=620,ptmxmode=666")?;
    attach("tmpfs", "/dev/shm", safe, "mode=1777")?;
    make("/run/lock")?;
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (name, target) in links {
        // devtmpfs may have it already.
        let _ = symlink(target, format!("/dev/{name}"));
    }
    Ok(())
}

/// Lets every shared directory be read ahead in large pieces: a request costs more than its data.
fn read_ahead() {
    const KIB: &str = "1024";
    for item in fs::read_dir("/sys/class/bdi").into_iter().flatten().flatten() {
        // Those without a name of their own are file systems without a device.
        if item.file_name().to_string_lossy().starts_with("0:") {
            let _ = fs::write(item.path().join("read_ahead_kb"), KIB);
        }
    }
}
