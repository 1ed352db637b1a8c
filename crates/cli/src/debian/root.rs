//! A root file system of Debian's packages, on a disk image: `umbra run debian`.
//!
//! # Problem
//! A root has files of many owners, devices, and packages whose scripts expect to run as root in it. The user is not root, and need not have
//! tools for this (debootstrap, mmdebstrap, fakeroot) or a kernel that lets them work.
//!
//! # Scheme
//! The machine's apt finds, fetches and verifies the packages ([`packages`](super::packages)). A VM of our own is root of its own machine: its root is the host's,
//! whose mkfs.ext4 and dpkg-deb it uses, it is shown the packages and an empty disk, has no network, and carries out [`STAGE`]. So nothing runs
//! with more rights than the user has, and no script of a package runs on the host.
//!
//! # Nothing half-made is used
//! The image is made in a staging directory and becomes an entry of the cache when that VM has said that all went well. An entry never changes:
//! overlays stand upon it. A newer root is another entry.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use spec::{DebianSpec, UserNetSpec};

use super::cache::{Cache, ENTRY, Staging};
use super::packages::Packages;
use super::suite::Suite;
use super::{Freshness, Set, Wanted, archive, kernel, modules_of, with_lists};
use crate::progress::Progress;

/// What happens in the VM.
const STAGE: &str = include_str!("root/stage.sh");
/// How its steps are marked.
const STEP: &str = "==> ";
/// Where it finds the packages.
const PACKAGES: &str = "/run/umbra-packages";

/// The image in its cache entry.
const IMAGE: &str = "disk.raw";
/// How large the disk is, most of which is a hole.
const BYTES: u64 = 16 << 30;
/// What makes the file system, where Debian has it.
const MKFS: [&str; 2] = ["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"];

/// Whether this machine has what makes the root's file system.
pub(crate) fn can_format() -> bool {
    MKFS.iter().any(|path| Path::new(path).exists())
}

/// The name of the link in the cache.
pub(crate) fn link(debian: &DebianSpec) -> String {
    let suite = debian.suite.as_ref().map(|suite| format!("-{suite}")).unwrap_or_default();
    let mut packages: Vec<_> = debian.packages.iter().collect();
    packages.sort();
    packages.dedup();
    let packages: String = packages.into_iter().map(|name| format!("_{}", name.as_str())).collect();
    format!("root{suite}{packages}")
}

/// The image of a root; made if need be.
///
/// # Errors
/// If it is not in the cache and cannot be made.
pub(crate) fn root(cache: &Cache, debian: &DebianSpec, freshness: Freshness) -> Result<PathBuf> {
    let link = link(debian);
    let cached = || cache.entry(&link).filter(|_| freshness == Freshness::Cached);
    if let Some(entry) = cached() {
        return Ok(entry.join(IMAGE));
    }
    // A file's name has 255 bytes, and this one gets the time.
    ensure!(link.len() < 200, "these packages are too many: install some of them in the guest, with apt-get");
    ensure!(
        can_format(),
        "this machine has no mkfs.ext4, which makes the root's file system: install e2fsprogs"
    );
    // For the VM, before the cache is locked.
    let kernel = kernel(cache, Wanted::NewestKernel, Freshness::Cached)?;
    modules_of(cache, &kernel, Set::Drivers)?;
    let lock = cache.lock()?;
    if let Some(entry) = cached() {
        return Ok(entry.join(IMAGE));
    }
    let staging = cache.stage(&lock)?;
    make(cache, debian, &staging, &kernel).with_context(|| format!("cannot make a root of {debian}"))?;
    let made = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    Ok(cache.commit(&lock, staging, &link, &format!("{link}_{made}"))?.join(IMAGE))
}

/// Makes the image in the staging directory.
fn make(cache: &Cache, debian: &DebianSpec, staging: &Staging, kernel: &Path) -> Result<()> {
    let progress = Progress::start(&format!("looking for the packages of {debian}"));
    let work = staging.work();
    let directory = work.join("packages");
    let packages = with_lists(cache, &work, &progress, &|apt| {
        let suite = Suite::find(apt, debian.suite.as_deref())?;
        let packages = Packages::resolve(apt, &suite, &debian.packages, directory.clone())?;
        packages.fetch(&progress)?;
        Ok((suite, packages))
    });
    let (suite, packages) = packages?;
    fs::write(directory.join("essential"), packages.essential())
        .and_then(|()| fs::write(directory.join("sources.list"), suite.sources()))
        .with_context(|| format!("cannot write to '{}'", directory.display()))?;
    let image = staging.entry().join(IMAGE);
    File::create(&image)
        .and_then(|file| file.set_len(BYTES))
        .with_context(|| format!("cannot make '{}'", image.display()))?;
    install(&work, kernel, &Shown { progress, suite: suite.codename(), packages: packages.count() })?;
    archive::sync(&image)
}

/// How the VM's progress is shown.
struct Shown<'a> {
    progress: Progress,
    suite: &'a str,
    packages: usize,
}

impl Shown<'_> {
    fn step(&self, what: &str) {
        let text = format!("{what} {}", self.suite);
        self.progress.step(&text);
        if what == "installing" {
            // Each is unpacked, then set up.
            self.progress.count(&text, 2 * self.packages as u64);
        }
    }
}

/// Runs the VM that installs the packages.
fn install(work: &Path, kernel: &Path, shown: &Shown<'_>) -> Result<()> {
    let complaints = work.join("vm.log");
    let mut vm = Command::new("/proc/self/exe")
        .args(["run", "host", "--net", "none", "--memory", "1G", "--cpus", "2", "--kernel"])
        .arg(kernel)
        // By names without anything in them that options would take for something else.
        .args(["--disk", &format!("../{ENTRY}/{IMAGE},format=raw")])
        .args(["--volume", &format!("packages:{PACKAGES}:ro"), "--workdir", "/"])
        .args(["--", "/bin/sh", "-c", STAGE, "stage", &UserNetSpec::DNS4.to_string()])
        .current_dir(work)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&complaints)?)
        .spawn()
        .context("the host gives no process for a VM")?;
    let mut last = String::new();
    for line in BufReader::new(vm.stdout.take().context("the VM has no output")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        match line.strip_prefix(STEP) {
            Some(step) => shown.step(step),
            None if line.starts_with("Unpacking ") || line.starts_with("Setting up ") => {
                shown.progress.advance();
            }
            None => {}
        }
        // What follows an error of dpkg's only repeats it.
        if !line.is_empty() && !last.starts_with("dpkg: error") {
            last = line;
        }
    }
    if vm.wait()?.success() {
        return Ok(());
    }
    let complaint = fs::read_to_string(&complaints).unwrap_or_default();
    match complaint.lines().rev().find_map(|line| line.strip_prefix("umbra: ")) {
        Some(complaint) => bail!("the VM that installs its packages fails: {complaint}"),
        None => bail!("its packages cannot be installed: {last}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_stage_is_a_script() {
        let mut sh = Command::new("sh").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
        sh.stdin.take().unwrap().write_all(STAGE.as_bytes()).unwrap();
        assert!(sh.wait().unwrap().success());
        assert!(STAGE.contains(&format!("packages={PACKAGES}\n")) && STAGE.contains(STEP));
    }

    #[test]
    fn links_say_what_is_in_a_root() {
        let mut debian = DebianSpec::default();
        assert_eq!(link(&debian), "root");
        debian.suite = Some("bookworm".into());
        debian.packages = ["make", "gcc", "make"].map(|name| name.parse().unwrap()).to_vec();
        assert_eq!(link(&debian), "root-bookworm_gcc_make");
    }
}
