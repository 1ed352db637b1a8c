//! Packages of the distribution, unpacked side by side and not installed.
//!
//! apt finds and verifies, as `umbra fetch` has it do: with settings of ours after the machine's, package lists of our
//! own, from the machine's sources and, on Debian, its backports. `--download-only` needs no privileges once apt is told
//! not to lock, and brings the packages that are needed beside the one that is wanted.
//!
//! ```text
//! qemu/root/         the files of the packages
//! qemu/versions      a line for each package: name, version
//! .new/              a tree in the making, renamed when it is complete
//! apt/               apt's settings and lists
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};

/// The benchmark's part of the user's cache.
pub(super) struct Cache {
    dir: PathBuf,
    refresh: bool,
}

/// What is unpacked beside the packages that are asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Closure {
    /// What this machine does not have.
    Missing,
    /// Everything down to the C library.
    Whole,
}

/// A set of packages.
pub(super) struct Wanted<'a> {
    /// The directory's name.
    pub(super) name: &'a str,
    /// The packages, the one whose version counts first.
    pub(super) packages: &'a [&'a str],
    /// What they come with.
    pub(super) closure: Closure,
    /// Whether backports are preferred.
    pub(super) backports: bool,
}

/// Unpacked packages.
pub(super) struct Tree {
    /// What would be the root directory.
    pub(super) root: PathBuf,
    /// The first package's version.
    pub(super) version: String,
}

const SETTINGS: &str = "\
APT::Install-Recommends \"false\";
Debug::NoLocking \"true\";
";

/// Debian's keys.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Cache {
    /// The user's, filled anew if `refresh`.
    ///
    /// # Errors
    /// If there is no place for it.
    pub(super) fn of_user(refresh: bool) -> Result<Self> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .ok_or_else(|| anyhow!("there is no cache directory: set HOME or XDG_CACHE_HOME to one"))?;
        let dir = base.join("umbra/bench");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make '{}'", dir.display()))?;
        Ok(Self { dir, refresh })
    }

    /// Its directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The packages that are wanted, from the cache or the distribution.
    ///
    /// # Errors
    /// If they are not in the cache and cannot be fetched.
    pub(super) fn tree(&self, wanted: &Wanted<'_>) -> Result<Tree> {
        let dir = self.dir.join(wanted.name);
        if self.refresh || !dir.is_dir() {
            eprintln!("bench: fetching {}", wanted.packages.join(", "));
            self.fetch(wanted, &dir).with_context(|| format!("cannot get {}", wanted.packages.join(", ")))?;
        }
        let versions = fs::read_to_string(dir.join("versions")).context("the cache lacks 'versions'")?;
        let of_first = |line: &str| Some(line.strip_prefix(wanted.packages.first()?)?.trim().to_owned());
        let version = versions.lines().find_map(of_first).unwrap_or_else(|| "unknown".to_owned());
        Ok(Tree { root: dir.join("root"), version })
    }

    fn fetch(&self, wanted: &Wanted<'_>, dir: &Path) -> Result<()> {
        let apt = Apt::new(&self.dir.join("apt"))?;
        let new = self.dir.join(".new");
        for old in [&new, &apt.archives] {
            let _ = fs::remove_dir_all(old);
        }
        fs::create_dir_all(apt.archives.join("partial"))?;
        fs::create_dir_all(new.join("root"))?;
        apt.download(wanted)?;
        let mut versions = String::new();
        for item in fs::read_dir(&apt.archives)? {
            let deb = item?.path();
            if deb.extension().is_some_and(|extension| extension == "deb") {
                succeed(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(new.join("root")))?;
                let shown = Command::new("dpkg-deb")
                    .args(["-W", "--showformat", "${Package} ${Version}\n"])
                    .arg(&deb)
                    .output();
                versions += &String::from_utf8_lossy(&shown.context("cannot run dpkg-deb")?.stdout);
            }
        }
        ensure!(!versions.is_empty(), "this machine has these packages installed, so apt downloads none");
        fs::write(new.join("versions"), versions)?;
        let _ = fs::remove_dir_all(dir);
        fs::rename(&new, dir).with_context(|| format!("cannot make '{}'", dir.display()))?;
        Ok(())
    }
}

/// apt, with our settings and fresh lists.
struct Apt {
    apt: apt::Apt,
    /// Where packages arrive.
    archives: PathBuf,
    /// A list of installed packages that has none.
    nothing: PathBuf,
    backports: Option<String>,
}

impl Apt {
    fn new(dir: &Path) -> Result<Self> {
        let archives = dir.join("cache/archives");
        for part in [dir.join("lists/partial"), archives.join("partial")] {
            fs::create_dir_all(&part).with_context(|| format!("cannot make '{}'", part.display()))?;
        }
        let paths = [("State::Lists", "lists"), ("Cache", "cache"), ("Etc::SourceList", "sources.list")];
        let directories = paths.iter().map(|(setting, name)| apt::directory(setting, &dir.join(name)));
        let settings = SETTINGS.to_owned() + &directories.collect::<io::Result<String>>()?;
        let mut apt = Self {
            apt: apt::Apt::new(dir.join("apt.conf"), &settings)?,
            archives,
            nothing: dir.join("nothing"),
            backports: backports(),
        };
        fs::write(&apt.nothing, "")?;
        if apt.update(dir).is_err() && apt.backports.take().is_some() {
            // The machine may know the backports itself, with other keys, which apt takes for a contradiction.
            apt.update(dir)?;
        }
        Ok(apt)
    }

    /// Fills the lists, from the machine's sources and the backports.
    fn update(&self, dir: &Path) -> Result<()> {
        let machine = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
        let backports = self.backports.as_ref().map_or_else(String::new, |suite| {
            format!("deb [signed-by={KEYRING}] http://deb.debian.org/debian {suite} main\n")
        });
        fs::write(dir.join("sources.list"), format!("{machine}\n{backports}"))?;
        succeed(self.apt.command("apt-get").args(["-q", "update"]))
    }

    fn download(&self, wanted: &Wanted<'_>) -> Result<()> {
        let mut command = self.apt.command("apt-get");
        command.args(["-q", "-y", "--download-only"]);
        if wanted.closure == Closure::Whole {
            command.arg("-o").arg(format!("Dir::State::status={}", self.nothing.display()));
        }
        if let Some(suite) = self.backports.as_ref().filter(|_| wanted.backports) {
            command.args(["-t", suite]);
        }
        // One that is installed is downloaded nevertheless.
        succeed(command.args(["install", "--reinstall"]).args(wanted.packages))
    }
}

/// The name of this Debian's backports.
fn backports() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    suite_of(&release).filter(|_| Path::new(KEYRING).exists())
}

fn suite_of(release: &str) -> Option<String> {
    let field = |name: &str| release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let codename = field("VERSION_CODENAME").filter(|_| field("ID") == Some("debian"))?;
    Some(format!("{codename}-backports"))
}

/// Runs a command that must succeed; its last words are the reason if it does not.
fn succeed(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let reason = text.lines().find(|line| line.starts_with("E: ")).or(text.lines().last());
        bail!("{program} says: {}", reason.unwrap_or("nothing"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_has_debians_backports() {
        assert_eq!(suite_of("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(), Some("bookworm-backports"));
        assert_eq!(suite_of("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(suite_of("ID=debian\n"), None);
    }
}
