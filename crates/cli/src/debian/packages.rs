//! The packages that a root is made of: which they are, by apt's own reckoning, and their files.
//!
//! apt is shown a machine on which nothing is installed, and one suite. So it names all that the wished packages need, and
//! fetches exactly those files, with their hashes checked.

use std::fs;
use std::path::{Path, PathBuf};

use spec::PackageName;

use super::apt::{Apt, AptError, directory};
use super::suite::Suite;
use crate::progress::Progress;

/// What has to be unpacked before a package can be installed as packages are.
const ESSENTIAL: &str = "?essential";
/// What every Debian has, then what makes it a machine of its own, that is reached by its network.
const USUAL: [&str; 13] = [
    ESSENTIAL,
    "?priority(required)",
    "apt",
    "ca-certificates",
    "dbus",
    "iproute2",
    "iputils-ping",
    "less",
    "libpam-systemd",
    "openssh-server",
    "procps",
    "systemd-sysv",
    "udev",
];
/// Says that directories of programs are merged, where a suite has it; what says so otherwise needs all of Perl.
const MERGED: &str = "usr-is-merged";

/// A package's file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Deb {
    name: String,
    bytes: u64,
}

/// The files of a root's packages, in a directory.
pub(super) struct Packages {
    apt: Apt,
    directory: PathBuf,
    wishes: Vec<String>,
    essential: Vec<Deb>,
    all: Vec<Deb>,
}

impl Packages {
    /// Asks which packages of a suite make a root, with some more that are wished.
    ///
    /// # Errors
    /// If a package is not there, or they do not fit together.
    pub(super) fn resolve(
        apt: &Apt,
        suite: &Suite,
        more: &[PackageName],
        directory: PathBuf,
    ) -> Result<Self, AptError> {
        let apt = alone(apt, suite, &directory)?;
        let merged = apt.output("apt-cache", &["pkgnames", MERGED])?.stdout;
        let merged =
            merged.split(|byte| *byte == b'\n').any(|name| name == MERGED.as_bytes()).then_some(MERGED);
        let words =
            |names: &[&str]| names.iter().copied().chain(merged).map(str::to_owned).collect::<Vec<_>>();
        let mut wishes = words(&USUAL);
        wishes.extend(more.iter().map(|name| name.as_str().to_owned()));
        let (essential, all) = (needed(&apt, &words(&[ESSENTIAL]))?, needed(&apt, &wishes)?);
        Ok(Self { apt, directory, wishes, essential, all })
    }

    /// Fetches the files.
    ///
    /// # Errors
    /// If one cannot be had.
    pub(super) fn fetch(&self, progress: &Progress) -> Result<(), AptError> {
        let total = self.all.iter().map(|deb| deb.bytes).sum();
        progress.download(&format!("{} packages", self.all.len()), total);
        let words: Vec<&str> = ["--yes", "--download-only", "install"]
            .into_iter()
            .chain(self.wishes.iter().map(String::as_str))
            .collect();
        let partial = self.directory.join("partial");
        let show = |progress: &Progress| progress.position(bytes_in(&self.directory) + bytes_in(&partial));
        let good = self.apt.get(&words, self.apt.work(), progress, &show)?;
        let is_there = |deb: &Deb| {
            let status = self.directory.join(&deb.name).metadata();
            status.is_ok_and(|status| status.len() == deb.bytes)
        };
        if good && self.all.iter().all(is_there) { Ok(()) } else { Err(self.apt.failure()) }
    }

    /// How many they are.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// The names of the files without which nothing can be installed, a line each.
    pub(super) fn essential(&self) -> String {
        self.essential.iter().map(|deb| format!("{}\n", deb.name)).collect()
    }
}

/// apt on a machine with nothing on it, and one suite to take from; files go to a directory.
fn alone(apt: &Apt, suite: &Suite, archives: &Path) -> Result<Apt, AptError> {
    let work = apt.work();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| AptError::File { path, source }
    };
    let partial = archives.join("partial");
    fs::create_dir_all(&partial).map_err(failed(&partial))?;
    let mut settings = directory("Cache::archives", archives)?;
    for (setting, name, text) in [
        ("State::status", "status", String::new()),
        ("State::extended_states", "extended_states", String::new()),
        ("Etc::preferences", "preferences", suite.preferences()),
    ] {
        let path = work.join(name);
        fs::write(&path, text).map_err(failed(&path))?;
        settings += &directory(setting, &path)?;
    }
    let nothing = work.join("preferences.d");
    fs::create_dir_all(&nothing).map_err(failed(&nothing))?;
    settings += &directory("Etc::preferencesparts", &nothing)?;
    apt.with(
        "root.conf",
        &format!("{settings}APT::Install-Recommends \"false\";\nAPT::Install-Suggests \"false\";\n"),
    )
}

/// The files that these packages and all that they need have.
fn needed(apt: &Apt, wishes: &[String]) -> Result<Vec<Deb>, AptError> {
    let words: Vec<&str> = ["-q", "--yes", "--print-uris", "install"]
        .into_iter()
        .chain(wishes.iter().map(String::as_str))
        .collect();
    let output = apt.output("apt-get", &words)?;
    let debs: Option<Vec<Deb>> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.starts_with('\''))
        .map(parse)
        .collect();
    match debs {
        Some(debs) if output.status.success() && !debs.is_empty() => Ok(debs),
        _ => Err(AptError::NotTogether(super::apt::complaint(&String::from_utf8_lossy(&output.stderr)))),
    }
}

/// A line of `--print-uris`: where the file is, in quotation marks, its name, its size, its hash.
fn parse(line: &str) -> Option<Deb> {
    let mut words = line.rsplit_once("' ")?.1.split(' ');
    let (name, bytes) = (words.next()?, words.next()?);
    let is_file = name.ends_with(".deb") && !name.starts_with(['-', '.']) && !name.contains('/');
    is_file.then_some(Deb { name: name.to_owned(), bytes: bytes.parse().ok()? })
}

fn bytes_in(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    files
        .filter_map(|file| file.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|status| status.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_files_and_nothing_else() {
        let deb = |line: &str| parse(line).map(|deb| (deb.name, deb.bytes));
        let line = "'http://mirror/pool/main/d/dpkg/dpkg_1.21.23_amd64.deb' dpkg_1.21.23_amd64.deb 1565872 SHA256:22";
        assert_eq!(deb(line), Some(("dpkg_1.21.23_amd64.deb".into(), 1_565_872)));
        for bad in ["", "'x'", "'x' ../a.deb 1 ", "'x' -o.deb 1 ", "'x' a.txt 1 ", "'x' a.deb many "] {
            assert_eq!(deb(bad), None, "{bad}");
        }
    }
}
