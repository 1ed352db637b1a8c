//! The machine's own apt, made to find, fetch and verify one package in a directory of ours.
//!
//! `apt-get download` needs no privileges, runs no maintainer script and touches nothing but its working directory. It
//! checks the file's hash against the package lists, and those carry the archive's signature; what is not
//! signed is refused ([`apt`]).
//!
//! The package lists are the machine's where it has any. Where it has none (a container image), or they name a
//! file that the mirror has replaced, a second set under our cache is filled by `apt-get update`, from the machine's own
//! sources and keys.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use super::Wanted;
use super::control::Control;
use crate::progress::Progress;

/// Why apt did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum AptError {
    /// There is no apt here.
    #[error(
        "this machine has no {program}: install Debian's apt, or give a kernel as SOURCE, or both --kernel and --initrd"
    )]
    NoApt {
        /// The program that could not be started.
        program: &'static str,
    },
    /// The lists do not have the package.
    #[error("this machine's apt sources have no package {package}{}", .complaint.as_ref().map(|text| format!(", and apt says: {text}")).unwrap_or_default())]
    NotListed {
        /// The package asked for.
        package: String,
        /// What went wrong when the lists were updated.
        complaint: Option<String>,
    },
    /// There is no source for a suite of Debian's.
    #[error("this machine's apt sources have no suite{} of Debian's{}", named(.wanted.as_deref()), instead(.offered))]
    NoSuite {
        /// The one asked for.
        wanted: Option<String>,
        /// Those that there are.
        offered: Vec<String>,
    },
    /// Packages that cannot be installed together, or are not there.
    #[error("apt finds no way to install these packages{}", .0.as_ref().map(|text| format!(": {text}")).unwrap_or_default())]
    NotTogether(Option<String>),
    /// The lists have it and the mirror does not: they are old.
    #[error("the package lists are out of date: run 'apt-get update' ({0})")]
    Gone(String),
    /// The package is not signed.
    #[error("the package's source is not signed by a key that this machine trusts: {0}")]
    Unsigned(String),
    /// The mirror does not answer.
    #[error(
        "the package mirror cannot be reached: connect this machine and try again, or give a kernel as SOURCE ({0})"
    )]
    Unreachable(String),
    /// Anything else, in apt's words.
    #[error("apt says: {0}")]
    Failed(String),
    /// A file of ours.
    #[error("cannot use '{}'", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

fn named(suite: Option<&str>) -> String {
    suite.map(|name| format!(" '{name}'")).unwrap_or_default()
}

fn instead(offered: &[String]) -> String {
    match offered {
        [] => ": add a source of Debian's, with its key".to_owned(),
        some => format!(": they have {}", some.join(", ")),
    }
}

/// The package that depends on a suite's own cloud kernel. Later series may be there beside it.
const SUITE_KERNEL: &str = "linux-image-cloud-amd64";

/// How often a download's progress is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Apt, with our settings.
pub(super) struct Apt {
    apt: apt::Apt,
    /// Where settings and log are.
    work: PathBuf,
    /// The settings beyond those for everybody.
    settings: String,
    log: PathBuf,
}

impl Apt {
    /// Apt on the machine's package lists. Settings and log go to `work`.
    pub(super) fn with_system_lists(work: &Path) -> Result<Self, AptError> {
        Self::new(work, "apt.conf", String::new())
    }

    /// Apt on lists of our own in `lists`.
    pub(super) fn with_private_lists(work: &Path, lists: &Path) -> Result<Self, AptError> {
        let partial = lists.join("partial");
        fs::create_dir_all(&partial).map_err(|source| AptError::File { path: partial, source })?;
        Self::new(work, "apt.conf", directory("State::Lists", lists)? + &directory("Cache", work)?)
    }

    fn new(work: &Path, file: &str, settings: String) -> Result<Self, AptError> {
        let path = work.join(file);
        let apt = apt::Apt::new(path.clone(), &settings).map_err(|source| AptError::File { path, source })?;
        Ok(Self { apt, work: work.to_owned(), settings, log: work.join("apt.log") })
    }

    /// The same with more settings, in apt's syntax, which are in a file of this name.
    pub(super) fn with(&self, file: &str, more: &str) -> Result<Self, AptError> {
        Self::new(&self.work, file, format!("{}{more}", self.settings))
    }

    /// Where its settings and its log are.
    pub(super) fn work(&self) -> &Path {
        &self.work
    }

    /// Fills our own lists. What fails shows when a package is looked for.
    pub(super) fn update(&self, progress: &Progress) -> Result<(), AptError> {
        progress.step("updating package lists");
        self.get(&["update"], &self.work, progress, &|_| ()).map(drop)
    }

    /// Lets apt-get do something in a directory, showing progress meanwhile; whether it did.
    pub(super) fn get(
        &self,
        words: &[&str],
        directory: &Path,
        progress: &Progress,
        show: &dyn Fn(&Progress),
    ) -> Result<bool, AptError> {
        let mut child = self
            .apt
            .command("apt-get")
            .arg("-q")
            .args(words)
            .current_dir(directory)
            .stdout(Stdio::null())
            .stderr(self.open_log()?)
            .spawn()
            .map_err(|error| start_error("apt-get", &error))?;
        wait(&mut child, progress, show)
    }

    /// Why it did not.
    pub(super) fn failure(&self) -> AptError {
        classify(&fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// The package with the kernel or program: the one that is wanted, or the image that a kernel's metapackage
    /// depends on.
    pub(super) fn resolve(&self, wanted: Wanted<'_>) -> Result<Control, AptError> {
        let found = match wanted {
            Wanted::Package(name) => self.show(name)?,
            Wanted::NewestKernel => {
                let of_suite = self.show(SUITE_KERNEL)?;
                let newer = |series: &Control| release(&series.version) > release(&of_suite.version);
                self.newest_series().filter(newer).unwrap_or(of_suite)
            }
        };
        match found.depends.iter().find(|name| name.starts_with("linux-image-")) {
            Some(image) => self.show(image),
            None => Ok(found),
        }
    }

    /// A package in exactly one version.
    pub(super) fn exactly(&self, package: &str, version: &str) -> Result<Control, AptError> {
        self.show(&format!("{package}={version}"))
    }

    /// The metapackage of the newest series of cloud kernels, such as linux-image-6.12-cloud-amd64.
    fn newest_series(&self) -> Option<Control> {
        let output = self.output("apt-cache", &["pkgnames", "linux-image-"]).ok()?;
        let names = String::from_utf8_lossy(&output.stdout).into_owned();
        let newest = names.lines().filter(|name| is_series(name)).max_by_key(|name| release(name))?;
        self.show(newest).ok()
    }

    fn show(&self, package: &str) -> Result<Control, AptError> {
        let output = self.output("apt-cache", &["show", "--no-all-versions", package])?;
        let text = String::from_utf8_lossy(&output.stdout);
        Control::parse(&text).filter(|control| control.size > 0).ok_or_else(|| self.not_listed(package))
    }

    /// Why a package is not in the lists, as far as the last update of the lists tells.
    fn not_listed(&self, package: &str) -> AptError {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        match classify(&log) {
            AptError::Unreachable(text) => AptError::Unreachable(text),
            _ => AptError::NotListed { package: package.to_owned(), complaint: complaint(&log) },
        }
    }

    /// Downloads exactly that version into `dir` and checks it.
    pub(super) fn download(
        &self,
        control: &Control,
        dir: &Path,
        progress: &Progress,
    ) -> Result<PathBuf, AptError> {
        let package = format!("{}={}", control.package, control.version);
        progress.download(&format!("{} {}", control.package, control.version), control.size);
        let show = |progress: &Progress| progress.position(deb_in(dir).map_or(0, |deb| deb.1));
        let good = self.get(&["download", &package], dir, progress, &show)?;
        match deb_in(dir) {
            Some((deb, size)) if good && size == control.size => Ok(deb),
            _ => Err(self.failure()),
        }
    }

    /// What one of its programs prints.
    pub(super) fn output(&self, program: &'static str, args: &[&str]) -> Result<Output, AptError> {
        self.apt.command(program).args(args).output().map_err(|error| start_error(program, &error))
    }

    fn open_log(&self) -> Result<File, AptError> {
        File::create(&self.log).map_err(|source| AptError::File { path: self.log.clone(), source })
    }
}

/// Whether a package follows one series of Debian's cloud kernels.
fn is_series(name: &str) -> bool {
    name.strip_prefix("linux-image-").and_then(|rest| rest.strip_suffix("-cloud-amd64")).is_some_and(
        |series| series.starts_with(|c: char| c.is_ascii_digit()) && !series.contains(['-', '+']),
    )
}

/// The numbers of the first version in `text`, to compare by: 6.12.117-1~deb12u1 is [6, 12, 117].
fn release(text: &str) -> Vec<u32> {
    let start = text.find(|c: char| c.is_ascii_digit()).unwrap_or(text.len());
    let end =
        text[start..].find(|c: char| !c.is_ascii_digit() && c != '.').map_or(text.len(), |at| start + at);
    text[start..end].split('.').map_while(|number| number.parse().ok()).collect()
}

/// A directory of apt's.
pub(super) fn directory(name: &str, path: &Path) -> Result<String, AptError> {
    apt::directory(name, path).map_err(|source| AptError::File { path: path.to_owned(), source })
}

/// Waits for a child, showing progress meanwhile; true if it succeeded.
fn wait(
    child: &mut std::process::Child,
    progress: &Progress,
    show: &dyn Fn(&Progress),
) -> Result<bool, AptError> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) => show(progress),
            Err(error) => return Err(AptError::Failed(error.to_string())),
        }
        thread::sleep(POLL);
    }
}

fn start_error(program: &'static str, error: &io::Error) -> AptError {
    match error.kind() {
        io::ErrorKind::NotFound => AptError::NoApt { program },
        _ => AptError::Failed(format!("{program} does not start: {error}")),
    }
}

/// The package file in a directory, with its present size.
fn deb_in(dir: &Path) -> Option<(PathBuf, u64)> {
    let files = fs::read_dir(dir).ok()?.flatten();
    let path =
        files.map(|file| file.path()).find(|path| path.extension().and_then(OsStr::to_str) == Some("deb"))?;
    let size = path.metadata().ok()?.len();
    Some((path, size))
}

/// The first thing that apt complains of.
pub(super) fn complaint(log: &str) -> Option<String> {
    let line = ["E: ", "Err:", "W: "]
        .into_iter()
        .find_map(|mark| log.lines().find_map(|line| line.trim_start().strip_prefix(mark)))?;
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// What apt says when it is the network's fault.
const UNREACHABLE: [&str; 6] =
    ["resolving", "resolve", "connect", "timed out", "Network is unreachable", "Connection failed"];

/// What a failed download's log means.
fn classify(log: &str) -> AptError {
    let text = complaint(log).unwrap_or_else(|| "the download failed without a reason".to_owned());
    if log.contains("authenticated") {
        AptError::Unsigned(text)
    } else if log.contains("404") {
        AptError::Gone(text)
    } else if UNREACHABLE.iter().any(|sign| log.contains(sign)) {
        AptError::Unreachable(text)
    } else {
        AptError::Failed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart() {
        let gone =
            "E: Failed to fetch http://deb.debian.org/x.deb  404  Not Found [IP: 1.2.3.4 80]\nE: Other\n";
        assert!(matches!(classify(gone), AptError::Gone(text) if text.starts_with("Failed to fetch")));
        let unsigned = "WARNING: The following packages cannot be authenticated!\n  x\nE: Some packages could not be authenticated\n";
        assert!(matches!(classify(unsigned), AptError::Unsigned(_)));
        let offline = "E: Failed to fetch http://a/b.deb  Temporary failure resolving 'a'\n";
        assert!(matches!(classify(offline), AptError::Unreachable(_)));
        assert!(matches!(classify(""), AptError::Failed(_)));
    }

    #[test]
    fn the_newest_series_is_the_one_with_the_greatest_numbers() {
        let names = [
            "linux-image-6.9-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.13-amd64",
            "linux-image-cloud-amd64",
            "linux-image-6.14-cloud-amd64-dbg",
        ];
        let newest = names.into_iter().filter(|name| is_series(name)).max_by_key(|name| release(name));
        assert_eq!(newest, Some("linux-image-6.12-cloud-amd64"));
        assert!(release("6.12.117-1~deb12u1") > release("6.1.192-2"));
        assert_eq!(release("no number"), Vec::<u32>::new());
    }

    #[test]
    fn private_lists_are_where_they_should_be() {
        let work = tempfile::tempdir().unwrap();
        let lists = work.path().join("lists");
        Apt::with_private_lists(work.path(), &lists).unwrap();
        let text = fs::read_to_string(work.path().join("apt.conf")).unwrap();
        assert!(text.contains(&format!("Dir::State::Lists \"{}\"", lists.display())));
        assert!(lists.join("partial").is_dir());
    }
}
