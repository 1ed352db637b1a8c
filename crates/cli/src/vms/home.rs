//! The directories of all VMs of this user, `$XDG_RUNTIME_DIR/umbra/NAME`, or where there is no such variable,
//! `/tmp/umbra-UID/NAME`; for nobody else to enter.
//!
//! | file | what |
//! |---|---|
//! | `lock` | locked (flock(2)) by the VM's process for as long as it lives |
//! | `vm.json` | who it is ([`Description`]) |
//! | `control` | its socket |
//! | `log`, `log.old` | what it printed, if it runs in the background |
//! | `messages` | what umbra itself had to say then |
//! | `ended.json` | how it ended ([`Ended`]) |
//!
//! Whether a VM lives is asked of the lock, which goes with its process however that ends; a number of a process may be
//! another's by now. A directory is put together under a name that nobody looks at and gets its own in one step, which
//! fails if another VM has it: so whoever sees a directory sees a whole one, and locked.
//!
//! The directory of a dead VM that was to leave none is removed by the first who notices. A dead VM that did not say how it
//! ended was killed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use super::record::{self, Description, Ended};
use crate::status::Status;

const LOCK: &str = "lock";
const DESCRIPTION: &str = "vm.json";
const SOCKET: &str = "control";
const ENDED: &str = "ended.json";
/// What is still put together.
const UNFINISHED: &str = ".new-";
/// The most VMs without a name of their own.
const MOST_UNNAMED: u32 = 100_000;

/// All VMs of this user.
pub(crate) struct Registry {
    root: PathBuf,
}

impl Registry {
    /// The place where they are, made if need be.
    ///
    /// # Errors
    /// If it cannot be made, or others could enter it.
    pub(crate) fn of_user() -> Result<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let root = match std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()) {
            Some(runtime) => PathBuf::from(runtime).join("umbra"),
            None => PathBuf::from(format!("/tmp/umbra-{uid}")),
        };
        Self::at(root, uid)
    }

    fn at(root: PathBuf, uid: u32) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .with_context(|| format!("cannot make '{}', where running VMs are noted", root.display()))?;
        let found =
            fs::symlink_metadata(&root).with_context(|| format!("cannot use '{}'", root.display()))?;
        ensure!(
            found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0,
            "'{}' is not a directory that only you can enter, so VMs cannot be noted there: remove it, or set XDG_RUNTIME_DIR",
            root.display()
        );
        Ok(Self { root })
    }

    /// Makes the directory of this process's VM, under the name that it has or the first free one, and listens there.
    ///
    /// # Errors
    /// If the name is another VM's, or the directory cannot be made.
    pub(crate) fn create(
        &self,
        name: Option<&str>,
        mut description: Description,
    ) -> Result<(Home, UnixListener)> {
        let path = self.root.join(format!("{UNFINISHED}{}", description.pid));
        let failed = || format!("cannot note the VM in '{}'", self.root.display());
        // Left behind by a process of this number, long ago.
        let _ = fs::remove_dir_all(&path);
        DirBuilder::new().mode(0o700).create(&path).with_context(failed)?;
        let lock = File::create(path.join(LOCK)).with_context(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).with_context(failed)?;
        let listener = UnixListener::bind(reach(&File::open(&path)?)).with_context(failed)?;
        let mut home = Home { path, _lock: lock, has_started: false, remove: description.remove };
        let names = match name {
            Some(name) => vec![name.to_owned()],
            None => (1..=MOST_UNNAMED).map(|number| format!("vm{number}")).collect(),
        };
        for candidate in names {
            // The dead do not keep names that nobody gave them.
            if name.is_none() && self.look(&candidate).is_some() {
                continue;
            }
            description.name.clone_from(&candidate);
            record::write(&home.path.join(DESCRIPTION), &description)?;
            let path = self.root.join(&candidate);
            match renameat_with(CWD, &home.path, CWD, &path, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    home.path = path;
                    return Ok((home, listener));
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error).with_context(failed),
            }
        }
        let name = name.unwrap_or_default();
        bail!("there is a VM '{name}' already: give another --name, or remove it with 'umbra rm {name}'")
    }

    /// All VMs, oldest first.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub(crate) fn all(&self) -> Result<Vec<Vm>> {
        let items =
            fs::read_dir(&self.root).with_context(|| format!("cannot read '{}'", self.root.display()))?;
        let names = items.flatten().filter_map(|item| item.file_name().into_string().ok());
        let mut vms: Vec<Vm> =
            names.filter(|name| !name.starts_with('.')).filter_map(|name| self.look(&name)).collect();
        vms.sort_by(|a, b| {
            (a.description.created, &a.description.name).cmp(&(b.description.created, &b.description.name))
        });
        Ok(vms)
    }

    /// The VM of this name.
    ///
    /// # Errors
    /// If there is none; the sentence names one that is spelt alike.
    pub(crate) fn find(&self, name: &str) -> Result<Vm> {
        // A name is one word of a path, or nobody's.
        if let Some(vm) = name.parse::<spec::Name>().ok().and_then(|name| self.look(name.as_str())) {
            return Ok(vm);
        }
        let names = self.all().unwrap_or_default().into_iter().map(|vm| vm.description.name);
        match nearest(name, names) {
            Some(near) => bail!("there is no VM '{name}': did you mean '{near}'?"),
            None => bail!("there is no VM '{name}': 'umbra ps -a' lists all"),
        }
    }

    /// Whether no VM has this name.
    pub(crate) fn is_free(&self, name: &spec::Name) -> bool {
        self.look(name.as_str()).is_none()
    }

    /// Looks at a directory, and cleans up after a dead VM.
    fn look(&self, name: &str) -> Option<Vm> {
        let path = self.root.join(name);
        let description: Description = record::read(&path.join(DESCRIPTION))?;
        let lock = File::open(path.join(LOCK)).ok()?;
        let alive = flock(&lock, FlockOperation::NonBlockingLockShared).is_err();
        let mut ended = record::read::<Ended>(&path.join(ENDED));
        if alive {
            ended = None;
        } else if description.remove {
            let _ = fs::remove_dir_all(&path);
            return None;
        } else if ended.is_none() {
            let killed = Ended::now(Status::KILLED.0);
            let _ = record::write(&path.join(ENDED), &killed);
            ended = Some(killed);
        }
        Some(Vm { path, description, ended, lock })
    }
}

/// The name that is spelt most like this one, if any is alike.
fn nearest(name: &str, names: impl Iterator<Item = String>) -> Option<String> {
    /// How many letters may be wrong.
    const WRONG: usize = 2;
    names
        .map(|candidate| (strsim::damerau_levenshtein(name, &candidate), candidate))
        .filter(|(distance, candidate)| *distance <= WRONG && *distance < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// A socket's path is at most 108 bytes long (unix(7)); by its directory's descriptor it always is.
fn reach(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))
}

/// The directory of this process's VM.
pub(crate) struct Home {
    path: PathBuf,
    /// Locked until the process ends.
    _lock: File,
    /// One that has not started leaves nothing.
    has_started: bool,
    /// It goes at the end.
    remove: bool,
}

impl Home {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The VM's name.
    pub(crate) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The VM runs.
    pub(crate) fn start(&mut self) {
        self.has_started = true;
    }

    /// The VM has ended.
    pub(crate) fn end(&self, status: Status) {
        if self.has_started && !self.remove {
            // Whoever looks for it and finds none takes the VM for killed.
            let _ = record::write(&self.path.join(ENDED), &Ended::now(status.0));
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.remove || !self.has_started {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// A VM that was found.
#[derive(Debug)]
pub(crate) struct Vm {
    /// Its directory.
    pub(crate) path: PathBuf,
    /// Who it is.
    pub(crate) description: Description,
    /// How it ended, if it has.
    pub(crate) ended: Option<Ended>,
    /// The lock's file, which its process holds.
    lock: File,
}

impl Vm {
    /// Connects to its socket.
    ///
    /// # Errors
    /// If it has ended.
    pub(crate) fn connect(&self) -> Result<UnixStream> {
        let name = &self.description.name;
        ensure!(self.ended.is_none(), "the VM '{name}' has ended");
        File::open(&self.path)
            .and_then(|directory| UnixStream::connect(reach(&directory)))
            .with_context(|| format!("the VM '{name}' does not answer"))
    }

    /// Whether its process has gone.
    pub(crate) fn is_gone(&self) -> bool {
        flock(&self.lock, FlockOperation::NonBlockingLockShared).is_ok()
    }

    /// Removes what it left.
    ///
    /// # Errors
    /// If it lives, or its directory cannot be removed.
    pub(crate) fn remove(&self) -> Result<()> {
        let name = &self.description.name;
        ensure!(self.is_gone(), "the VM '{name}' runs: stop it first, or remove it with --force");
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove the VM '{name}'"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::vms) fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let registry = Registry::at(dir.path().join("umbra"), uid).unwrap();
        (dir, registry)
    }

    pub(in crate::vms) fn description(remove: bool) -> Description {
        serde_json::from_value(serde_json::json!({
            "name": "", "pid": std::process::id(), "created": 1, "remove": remove, "detached": false, "source": "",
            "command": [], "kernel": "", "command_line": "", "cpus": 1, "memory_bytes": 1, "disks": [], "shares": [],
            "net": "none", "ports": []
        }))
        .unwrap()
    }

    #[test]
    fn a_vm_is_found_while_it_lives_and_named_once() {
        let (_dir, registry) = registry();
        let (home, _listener) = registry.create(Some("web"), description(true)).unwrap();
        let vm = registry.find("web").unwrap();
        assert!(vm.connect().is_ok() && !vm.is_gone() && vm.ended.is_none() && vm.remove().is_err());
        let again = registry.create(Some("web"), description(true)).err().unwrap().to_string();
        assert!(again.contains("'web' already"), "{again}");
        drop(home);
        assert!(registry.find("web").is_err() && registry.all().unwrap().is_empty());
        assert_eq!(fs::read_dir(&registry.root).unwrap().count(), 0);
    }

    #[test]
    fn those_without_a_name_get_the_first_that_is_free() {
        let (_dir, registry) = registry();
        // One VM to a process: directories are put together under its number.
        let (first, _a) = registry.create(None, description(true)).unwrap();
        let (second, _b) = registry.create(None, description(true)).unwrap();
        assert_eq!((first.name(), second.name()), ("vm1".into(), "vm2".into()));
        drop(first);
        assert_eq!(registry.create(None, description(true)).unwrap().0.name(), "vm1");
    }

    #[test]
    fn the_dead_are_noticed_and_cleaned_up_after() {
        let (_dir, registry) = registry();
        for (name, remove) in [("kept", false), ("gone", true)] {
            let (mut home, _listener) = registry.create(Some(name), description(remove)).unwrap();
            // As if killed: its lock goes, its directory stays.
            (home.remove, home.has_started) = (false, true);
        }
        let all = registry.all().unwrap();
        let seen: Vec<_> =
            all.iter().map(|vm| (vm.description.name.as_str(), vm.ended.unwrap().status)).collect();
        assert_eq!(seen, [("kept", 137)]);
        assert!(all[0].connect().unwrap_err().to_string().contains("has ended"));
        assert!(!registry.root.join("gone").exists());
        all[0].remove().unwrap();
        assert!(registry.all().unwrap().is_empty());
    }

    #[test]
    fn what_it_said_of_its_end_is_kept() {
        let (_dir, registry) = registry();
        drop(registry.create(Some("a"), description(false)).unwrap());
        assert!(registry.find("a").is_err(), "it never ran");
        let (mut home, _listener) = registry.create(Some("a"), description(false)).unwrap();
        home.start();
        home.end(Status(7));
        assert!(registry.find("a").unwrap().ended.is_none(), "it still lives");
        drop(home);
        assert_eq!(registry.find("a").unwrap().ended.unwrap().status, 7);
    }

    #[test]
    fn names_that_are_alike_are_suggested() {
        let (_dir, registry) = registry();
        let _home = registry.create(Some("database"), description(true)).unwrap();
        let why = |name: &str| registry.find(name).unwrap_err().to_string();
        assert!(why("databse").contains("did you mean 'database'"), "{}", why("databse"));
        for far in ["web", "../x", "", "a/b", ".."] {
            assert!(why(far).contains("umbra ps -a"), "{}", why(far));
        }
    }

    #[test]
    fn a_place_that_others_can_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("/root", dir.path().join("link")).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        for place in [open, dir.path().join("link")] {
            assert!(Registry::at(place, uid).err().unwrap().to_string().contains("only you"));
        }
    }
}
