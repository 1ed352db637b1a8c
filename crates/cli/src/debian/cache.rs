//! Files kept from one run to the next, under `$XDG_CACHE_HOME/umbra`.
//!
//! ```text
//! debian/linux-image-6.1.0-56-cloud-amd64_6.1.192-2/vmlinuz   an entry: one package in one version
//! debian/linux-image-6.1.0-56-cloud-amd64_6.1.192-2/drivers/   of a kernel: its modules for virtual machines
//! debian/root-bookworm_1795309200/disk.raw                    an entry: a root, by when it was made (seconds since 1970)
//! debian/newest-cloud-kernel -> linux-image-6.1.0-56-…         a link: what a wish led to when it was uttered
//! debian/.stage-XXXX/                                         an entry in the making
//! lists/                                                      package lists, where the machine has none
//! ```
//!
//! # Why nothing is ever half-written
//! An entry is made in a staging directory and renamed into place when all its files are on disk; a link is made under
//! another name and renamed over the old one. Both renames are atomic (rename(2)), so a reader, which takes no
//! lock, sees an entry whole or not at all. Staging directories are made and removed under an exclusive lock
//! on the directory itself, which the kernel drops when its holder dies; whatever staging directory the next holder
//! finds was left by a process that was killed, and is removed.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{FlockOperation, flock};

use super::control::Control;

/// The cache.
pub(crate) struct Cache {
    root: PathBuf,
}

/// The right to change the cache, until dropped.
pub(super) struct Lock {
    _dir: File,
}

/// A directory in which an entry is made; removed when dropped.
pub(super) struct Staging {
    path: PathBuf,
}

/// The part of a staging directory that becomes the entry.
pub(super) const ENTRY: &str = "entry";
/// The part that is left behind.
const WORK: &str = "work";

/// What the names of staging directories and links in the making start with.
const STAGE: &str = ".stage-";

impl Cache {
    /// The user's cache.
    ///
    /// # Errors
    /// If there is no home directory.
    pub(crate) fn of_user() -> Result<Self> {
        // The XDG Base Directory Specification says to ignore a relative path.
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .ok_or_else(|| anyhow!("there is no cache directory: set HOME or XDG_CACHE_HOME to one"))?;
        Ok(Self { root: base.join("umbra") })
    }

    /// Where it is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where entries are.
    pub(crate) fn debian(&self) -> PathBuf {
        self.root.join("debian")
    }

    /// A place for package lists of our own.
    pub(super) fn lists(&self) -> Result<PathBuf> {
        let lists = self.root.join("lists");
        make_dir(&lists)?;
        Ok(lists)
    }

    /// The entry that a name leads to.
    pub(crate) fn entry(&self, package: &str) -> Option<PathBuf> {
        fs::canonicalize(self.debian().join(package)).ok().filter(|entry| entry.is_dir())
    }

    /// The entry that a file is in, and the entry's name.
    pub(super) fn entry_around(&self, file: &Path) -> Option<(PathBuf, String)> {
        let entry = fs::canonicalize(file.parent()?).ok()?;
        let name = entry.file_name()?.to_str()?.to_owned();
        (fs::canonicalize(self.debian()).ok()? == entry.parent()?).then_some((entry, name))
    }

    /// Adds a staged directory to an entry that was made without it.
    pub(super) fn complete(&self, _lock: &Lock, staging: &Staging, part: &str, entry: &Path) -> Result<()> {
        let to = entry.join(part);
        fs::rename(staging.entry().join(part), &to).with_context(|| format!("cannot make '{}'", to.display()))
    }

    /// Whether there is an entry for exactly this package.
    pub(super) fn has(&self, control: &Control) -> bool {
        self.debian().join(control.entry_name()).is_dir()
    }

    /// Waits for the right to change the cache.
    pub(super) fn lock(&self) -> Result<Lock> {
        let path = self.debian();
        make_dir(&path)?;
        let dir = File::open(&path).with_context(|| format!("cannot open '{}'", path.display()))?;
        if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err() {
            crate::message::note("waiting for another umbra that is filling the cache");
            flock(&dir, FlockOperation::LockExclusive)
                .with_context(|| format!("cannot lock '{}'", path.display()))?;
        }
        Ok(Lock { _dir: dir })
    }

    /// A fresh staging directory.
    pub(super) fn stage(&self, _lock: &Lock) -> Result<Staging> {
        let debian = self.debian();
        for item in fs::read_dir(&debian).into_iter().flatten().flatten() {
            if item.file_name().to_string_lossy().starts_with(STAGE) {
                remove(&item.path());
            }
        }
        let path = debian.join(format!("{STAGE}{}", std::process::id()));
        let staging = Staging { path };
        for part in [staging.entry(), staging.work()] {
            fs::create_dir_all(&part).with_context(|| format!("cannot make '{}'", part.display()))?;
        }
        Ok(staging)
    }

    /// Makes the staging directory the entry of this name, and a wish lead to it.
    pub(super) fn commit(&self, lock: &Lock, staging: Staging, wish: &str, name: &str) -> Result<PathBuf> {
        let entry = self.debian().join(name);
        fs::rename(staging.entry(), &entry).with_context(|| format!("cannot make '{}'", entry.display()))?;
        drop(staging);
        self.link(lock, wish, name)
    }

    /// Makes a wish lead to the entry of this name.
    pub(super) fn link(&self, _lock: &Lock, wish: &str, name: &str) -> Result<PathBuf> {
        let debian = self.debian();
        let link = debian.join(wish);
        let new = debian.join(format!("{STAGE}link-{}", std::process::id()));
        let make = || {
            symlink(name, &new)?;
            fs::rename(&new, &link)
        };
        make().with_context(|| format!("cannot make '{}'", link.display()))?;
        Ok(debian.join(name))
    }
}

impl Staging {
    /// Where the entry's files go.
    pub(super) fn entry(&self) -> PathBuf {
        self.path.join(ENTRY)
    }

    /// Where everything else goes.
    pub(super) fn work(&self) -> PathBuf {
        self.path.join(WORK)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes what is left of something; it may be gone already, and what stays is removed by the next run.
fn remove(path: &Path) {
    let _ = fs::remove_dir_all(path).or_else(|_| fs::remove_file(path));
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| {
        format!("cannot make the directory '{}' (XDG_CACHE_HOME can name another place)", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("umbra");
        (dir, Cache { root })
    }

    fn control(version: &str) -> Control {
        Control { package: "image".into(), version: version.into(), size: 1, depends: Vec::new() }
    }

    fn names(cache: &Cache) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(cache.debian())
            .unwrap()
            .map(|item| item.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_entry_appears_whole_and_moves_on() {
        let (_dir, cache) = cache();
        assert_eq!(cache.entry("meta"), None);
        let lock = cache.lock().unwrap();
        for version in ["1:1-1", "2-1"] {
            let staging = cache.stage(&lock).unwrap();
            fs::write(staging.entry().join("vmlinuz"), version).unwrap();
            let before = cache.entry("meta");
            let entry = cache.commit(&lock, staging, "meta", &control(version).entry_name()).unwrap();
            assert_ne!(before, Some(entry.clone()));
            assert_eq!(cache.entry("meta"), Some(fs::canonicalize(&entry).unwrap()));
            assert_eq!(fs::read_to_string(entry.join("vmlinuz")).unwrap(), version);
        }
        let entry = cache.entry("meta").unwrap();
        assert_eq!(cache.entry_around(&entry.join("vmlinuz")), Some((entry.clone(), "image_2-1".to_owned())));
        assert_eq!(cache.entry_around(Path::new("/etc/passwd")), None);
        let staging = cache.stage(&lock).unwrap();
        fs::create_dir(staging.entry().join("modules")).unwrap();
        cache.complete(&lock, &staging, "modules", &entry).unwrap();
        drop(staging);
        assert!(entry.join("modules").is_dir());
        assert!(cache.has(&control("2-1")) && !cache.has(&control("3-1")));
        assert_eq!(names(&cache), ["image_1%3a1-1", "image_2-1", "meta"]);
    }

    #[test]
    fn failures_and_deaths_leave_nothing() {
        let (_dir, cache) = cache();
        let lock = cache.lock().unwrap();
        let staging = cache.stage(&lock).unwrap();
        fs::write(staging.entry().join("half"), "h").unwrap();
        drop(staging);
        assert!(names(&cache).is_empty());
        fs::create_dir(cache.debian().join(".stage-of-the-dead")).unwrap();
        symlink("x", cache.debian().join(".stage-link-of-the-dead")).unwrap();
        drop(cache.stage(&lock).unwrap());
        assert!(names(&cache).is_empty());
    }
}
