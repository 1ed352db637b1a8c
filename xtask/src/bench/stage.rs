//! What a group of programs runs in: a root file system, as an archive for guests and as a directory for the host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use initramfs::Archive;

use super::apt::{Cache, Closure, Wanted};
use super::guest::Driver;

/// Debian's programs of the classes `real` and `short`; they bring their libraries.
const PACKAGES: [&str; 8] =
    ["python3-minimal", "perl-base", "lua5.4", "sqlite3", "xz-utils", "zstd", "openssl", "cpp"];

/// A shell that needs no libraries, beside the driver.
const SHELL: Wanted<'static> =
    Wanted { name: "shell", packages: &["busybox-static"], closure: Closure::Missing, backports: false };
const SHELL_NAME: &str = "busybox";

/// The modules of virtio's devices, each after those that it needs.
const MODULES: [&str; 12] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
];

/// Where the host runs programs in a root directory: in namespaces of its own, which need no privileges.
const ENTER: &str =
    "mount --rbind /dev \"$0/dev\" && mount --rbind /proc \"$0/proc\" && exec chroot \"$0\" /init";

/// Directories that mounts go to.
const DIRECTORIES: [&str; 4] = ["dev", "proc", "sys", "tmp"];

/// The place for a group of programs.
pub(super) struct Stage {
    /// The guests' root file system.
    pub(super) initrd: PathBuf,
    /// The guests' memory.
    pub(super) memory_mib: u64,
    /// The driver, on the host.
    driver: PathBuf,
    /// The same root for the host; none if the programs are in the driver.
    root: Option<PathBuf>,
}

impl Stage {
    /// For the programs that the driver holds.
    ///
    /// # Errors
    /// If the archive cannot be made.
    pub(super) fn own(cache: &Cache, driver: &Driver) -> Result<Self> {
        Self::make(cache, driver, "own.cpio", &[])
    }

    /// The same with the modules that this kernel has beside it for the devices of guests.
    ///
    /// # Errors
    /// If the archive cannot be made.
    pub(super) fn with_devices(cache: &Cache, driver: &Driver, kernel: &Path) -> Result<Self> {
        let path = |name: &&str| kernel.with_file_name("drivers").join(format!("{name}.ko"));
        // What there is none of is built in.
        let modules: Vec<PathBuf> = MODULES.iter().map(path).filter(|path| path.is_file()).collect();
        Self::make(cache, driver, "io.cpio", &modules)
    }

    fn make(cache: &Cache, driver: &Driver, name: &str, modules: &[PathBuf]) -> Result<Self> {
        let mut archive = Archive::default();
        for directory in DIRECTORIES {
            archive.directory(directory);
        }
        // What the driver's first words go to, before devtmpfs is there.
        archive.character_device("dev/console", 5, 1);
        archive.program("init", &read(driver.path())?);
        // Without a shell the programs that need one say so.
        if let Ok(tree) = cache.tree(&SHELL) {
            let shell = driver.path().with_file_name(SHELL_NAME);
            copy(&tree.root.join("bin/busybox"), &shell)?;
            archive.program(SHELL_NAME, &read(&shell)?);
        }
        archive.directory("modules");
        for (number, module) in modules.iter().enumerate() {
            archive.program(&format!("modules/{number:02}"), &read(module)?);
        }
        let initrd = write(&cache.dir().join(name), archive)?;
        Ok(Self { initrd, memory_mib: 512, driver: driver.path().to_owned(), root: None })
    }

    /// For Debian's programs, with their inputs from `bench/guest/real`.
    ///
    /// # Errors
    /// If the packages cannot be had.
    pub(super) fn real(source: &Path, cache: &Cache, driver: &Driver) -> Result<Self> {
        let wanted = Wanted { name: "real", packages: &PACKAGES, closure: Closure::Whole, backports: false };
        let root = cache.tree(&wanted)?.root;
        for directory in DIRECTORIES.into_iter().chain(["bench"]) {
            fs::create_dir_all(root.join(directory)).context("cannot make a root directory")?;
        }
        copy(driver.path(), &root.join("init"))?;
        let inputs = source.join("bench/guest/real");
        for item in fs::read_dir(&inputs).with_context(|| format!("cannot read '{}'", inputs.display()))? {
            let item = item?;
            copy(&item.path(), &root.join("bench").join(item.file_name()))?;
        }
        let mut archive = Archive::default();
        archive.tree(&root)?;
        archive.character_device("dev/console", 5, 1);
        let initrd = write(&cache.dir().join("real.cpio"), archive)?;
        Ok(Self { initrd, memory_mib: 1024, driver: driver.path().to_owned(), root: Some(root) })
    }

    /// The driver, on the host.
    pub(super) fn driver(&self) -> &Path {
        &self.driver
    }

    /// How the driver is started on the host.
    pub(super) fn native(&self) -> Command {
        let Some(root) = &self.root else { return Command::new(&self.driver) };
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", ENTER]).arg(root);
        command
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read '{}'", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    replace(to, |new| fs::copy(from, new).map(drop))
}

fn write(path: &Path, archive: Archive) -> Result<PathBuf> {
    let bytes = archive.finish();
    replace(path, |new| fs::write(new, bytes))?;
    Ok(path.to_owned())
}

/// Makes a file under another name first: another benchmark may be using the one that is there.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let new = path.with_extension(format!("new-{}", std::process::id()));
    make(&new)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot make '{}'", path.display()))
}
