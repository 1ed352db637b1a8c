//! A Debian kernel and busybox, without installing them, and a Debian root ([`root`]).
//!
//! The machine's own package manager finds, fetches and verifies ([`apt`]); one file is taken out of each package
//! ([`archive`]) and kept ([`cache`]). What is in the cache is used without asking anybody, so a second run needs
//! neither network nor package manager; `umbra fetch` asks for newer versions.

mod apt;
mod archive;
mod cache;
mod control;
mod modules;
mod packages;
mod root;
mod suite;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::progress::Progress;
use apt::{Apt, AptError};
pub(crate) use cache::Cache;
use cache::Staging;
use control::Control;
pub(crate) use modules::{Module, Set, select};
pub(crate) use root::{can_format, link as root_link, root};

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted<'a> {
    /// The newest of Debian's cloud kernels that the machine's apt offers.
    NewestKernel,
    /// A package, or the kernel image that it depends on.
    Package(&'a str),
}

impl Wanted<'_> {
    /// A busybox that needs no libraries.
    pub(crate) const BUSYBOX: Self = Self::Package("busybox-static");

    /// The name of the link in the cache.
    pub(crate) fn link(&self) -> &str {
        match self {
            Self::NewestKernel => "newest-cloud-kernel",
            Self::Package(name) => name,
        }
    }
}

impl fmt::Display for Wanted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewestKernel => f.write_str("Debian's newest cloud kernel"),
            Self::Package(name) => write!(f, "package {name}"),
        }
    }
}

/// The kernel's name in its cache entry.
const VMLINUZ: &str = "vmlinuz";
/// Busybox's.
const BUSYBOX_FILE: &str = "busybox";
/// The list of busybox's applets, beside it.
const APPLETS_FILE: &str = "applets";

/// A root file system's worth of programs.
pub(crate) struct Busybox {
    /// The program.
    pub(crate) program: PathBuf,
    /// The applets' paths from the root: `bin/ls`, `usr/bin/awk`.
    pub(crate) applets: Vec<String>,
}

/// Whether a cached file will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// Whatever is in the cache.
    Cached,
    /// The newest that the package manager knows.
    Newest,
}

/// The kernel image that is wanted.
///
/// # Errors
/// If it is not in the cache and cannot be fetched.
pub(crate) fn kernel(cache: &Cache, wanted: Wanted<'_>, freshness: Freshness) -> Result<PathBuf> {
    let entry = obtain(cache, wanted, freshness, &|deb, staging| {
        archive::take_file(deb, "./boot/vmlinuz-*", &staging.entry().join(VMLINUZ))
            .with_context(|| format!("{wanted} holds no kernel"))?;
        modules::take(deb, &staging.work(), &staging.entry(), &Set::ALL)
    })?;
    Ok(entry.join(VMLINUZ))
}

/// The directory of a set of modules that belong to a kernel from the cache, fetched if it came there without them. `None` for
/// any other kernel.
///
/// # Errors
/// If they cannot be fetched.
pub(crate) fn modules_of(cache: &Cache, kernel: &Path, set: Set) -> Result<Option<PathBuf>> {
    let Some((entry, name)) = cache.entry_around(kernel) else { return Ok(None) };
    let Some((package, version)) = control::of_entry_name(&name) else { return Ok(None) };
    let modules = entry.join(set.directory());
    if modules.is_dir() {
        return Ok(Some(modules));
    }
    let lock = cache.lock()?;
    if !modules.is_dir() {
        let staging = cache.stage(&lock)?;
        let what = format!("the modules of {package}");
        let find = |apt: &Apt| apt.exactly(&package, &version);
        let (_, deb) = fetch(cache, &staging, &what, &find, &|_| false).with_context(|| {
            format!("cannot get {what} {version}, which are not in the cache: 'umbra fetch' gets a newer kernel with its own")
        })?;
        if let Some(deb) = deb {
            modules::take(&deb, &staging.work(), &staging.entry(), &[set])?;
            cache.complete(&lock, &staging, set.directory(), &entry)?;
        }
    }
    Ok(Some(modules))
}

/// Busybox and what it can do.
///
/// # Errors
/// If it is not in the cache and cannot be fetched.
pub(crate) fn busybox(cache: &Cache, freshness: Freshness) -> Result<Busybox> {
    let entry = obtain(cache, Wanted::BUSYBOX, freshness, &|deb, staging| {
        let program = staging.entry().join(BUSYBOX_FILE);
        archive::take_file(deb, "*bin/busybox", &program)?;
        archive::write_applets(&program, &staging.entry().join(APPLETS_FILE))
    })?;
    let list = entry.join(APPLETS_FILE);
    let applets =
        std::fs::read_to_string(&list).with_context(|| format!("cannot read '{}'", list.display()))?;
    Ok(Busybox { program: entry.join(BUSYBOX_FILE), applets: applets.lines().map(str::to_owned).collect() })
}

/// Takes what is wanted of a package file into the staging directory.
type Unpack<'a> = &'a dyn Fn(&Path, &Staging) -> Result<()>;

/// The cache entry of what is wanted, made if need be.
fn obtain(cache: &Cache, wanted: Wanted<'_>, freshness: Freshness, unpack: Unpack<'_>) -> Result<PathBuf> {
    let cached = || cache.entry(wanted.link()).filter(|_| freshness == Freshness::Cached);
    if let Some(entry) = cached() {
        return Ok(entry);
    }
    let name = wanted.link();
    ensure!(control::is_package_name(name), "'{name}' is not a package name");
    let lock = cache.lock()?;
    // Whoever held the lock may have been fetching the same.
    if let Some(entry) = cached() {
        return Ok(entry);
    }
    let staging = cache.stage(&lock)?;
    let find = |apt: &Apt| apt.resolve(wanted);
    let (found, deb) = fetch(cache, &staging, &wanted, &find, &|found| cache.has(found))
        .with_context(|| format!("cannot get {wanted}, which is not in the cache"))?;
    match deb {
        Some(deb) => {
            unpack(&deb, &staging)?;
            cache.commit(&lock, staging, name, &found.entry_name())
        }
        None => cache.link(&lock, name, &found.entry_name()),
    }
}

/// Finds and downloads a package. The file is `None` if what is found `is_there` already.
fn fetch(
    cache: &Cache,
    staging: &Staging,
    what: &dyn fmt::Display,
    find: &dyn Fn(&Apt) -> Result<Control, AptError>,
    is_there: &dyn Fn(&Control) -> bool,
) -> Result<(Control, Option<PathBuf>)> {
    let progress = Progress::start(&format!("looking for {what}"));
    let work = staging.work();
    with_lists(cache, &work, &progress, &|apt| {
        let found = find(apt)?;
        if is_there(&found) {
            return Ok((found, None));
        }
        let deb = apt.download(&found, &work, &progress)?;
        Ok((found, Some(deb)))
    })
}

/// Does something with apt: on the machine's package lists, or where those are missing, or older than what the mirror has, on
/// some of our own.
fn with_lists<T>(
    cache: &Cache,
    work: &Path,
    progress: &Progress,
    attempt: &dyn Fn(&Apt) -> Result<T, AptError>,
) -> Result<T> {
    match attempt(&Apt::with_system_lists(work)?) {
        Ok(done) => Ok(done),
        Err(AptError::NotListed { .. } | AptError::NoSuite { .. } | AptError::Gone { .. }) => {
            let apt = Apt::with_private_lists(work, &cache.lists()?)?;
            apt.update(progress)?;
            Ok(attempt(&apt)?)
        }
        Err(error) => Err(error.into()),
    }
}
