//! Drivers that Debian's kernel has as modules.
//!
//! Those for virtio and what goes with it are kept beside the kernel, each a plain `name.ko`. What a module depends on stands in itself
//! (`depends=` among the NUL-terminated strings of its `.modinfo` section); what is not in the package is built in.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::archive;

/// A kernel module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name, with underscores.
    pub(crate) name: String,
    /// The object file.
    pub(crate) bytes: Vec<u8>,
}

/// Where a package has its modules.
const PATTERN: &str = "*/lib/modules/*.ko*";
/// What is kept of them: whatever has this in its name,
const FAMILY: &str = "virtio";
/// and these.
const OTHERS: [&str; 5] = ["failover", "fuse", "net_failover", "overlay", "vsock"];
/// What a volume of ISO 9660 takes.
const VOLUME: [&str; 2] = ["cdrom", "isofs"];
/// How a module may be compressed, and what undoes it.
const COMPRESSIONS: [(&str, &str); 3] = [(".xz", "xz"), (".zst", "zstd"), (".gz", "gzip")];

/// Modules that are kept together, in a directory beside the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// Those for virtual machines.
    Drivers,
    /// Those for the volume that cloud-init reads.
    Volume,
}

impl Set {
    pub(super) const ALL: [Self; 2] = [Self::Drivers, Self::Volume];

    /// The directory's name. Versions that kept fewer of the drivers called it otherwise.
    pub(super) fn directory(self) -> &'static str {
        match self {
            Self::Drivers => "drivers",
            Self::Volume => "volume",
        }
    }

    fn holds(self, file: &str) -> bool {
        let name = file.split('.').next().unwrap_or_default().replace('-', "_");
        match self {
            Self::Drivers => name.contains(FAMILY) || OTHERS.contains(&name.as_str()),
            Self::Volume => VOLUME.contains(&name.as_str()),
        }
    }
}

/// Takes sets of modules out of a package into new directories below `target`, using `work` meanwhile.
///
/// # Errors
/// If the package has none, or cannot be unpacked here.
pub(super) fn take(deb: &Path, work: &Path, target: &Path, sets: &[Set]) -> Result<()> {
    for set in sets {
        let target = target.join(set.directory());
        fs::create_dir(&target).with_context(|| format!("cannot make '{}'", target.display()))?;
    }
    for file in archive::take_files(deb, PATTERN, &work.join("modules"))? {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(set) = sets.iter().find(|set| set.holds(&name)) else { continue };
        let target = target.join(set.directory());
        let compression = COMPRESSIONS.iter().find(|(suffix, _)| name.ends_with(suffix));
        let plain = compression.map_or(name.as_str(), |(suffix, _)| name.trim_end_matches(suffix));
        let to = target.join(plain.replace('-', "_"));
        match compression {
            None => {
                fs::rename(&file, &to).with_context(|| format!("cannot move '{}'", file.display()))?;
            }
            Some((_, program)) => decompress(program, &file, &to)?,
        }
        archive::sync(&to)?;
    }
    Ok(())
}

fn decompress(program: &str, from: &Path, to: &Path) -> Result<()> {
    let target = File::create(to).with_context(|| format!("cannot make '{}'", to.display()))?;
    let status = Command::new(program)
        .arg("-dc")
        .arg(from)
        .stdin(Stdio::null())
        .stdout(target)
        .stderr(Stdio::null())
        .status()
        .with_context(|| {
            format!("cannot run {program}, which the kernel's modules are compressed with: install it")
        })?;
    ensure!(status.success(), "'{}' is damaged", from.display());
    Ok(())
}

/// The modules that these drivers need, themselves included, each after those that it depends on. What is not in `dir` is
/// left out: it is part of the kernel.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn select(dir: &Path, drivers: &[&str]) -> Result<Vec<Module>> {
    let mut selection = Selection { dir, seen: BTreeSet::new(), modules: Vec::new() };
    for driver in drivers {
        selection.add(driver)?;
    }
    Ok(selection.modules)
}

struct Selection<'a> {
    dir: &'a Path,
    seen: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Selection<'_> {
    fn add(&mut self, name: &str) -> Result<()> {
        let name = name.replace('-', "_");
        // Seen before it is done: modules that depend on each other would be no modules, but must not hang us.
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let path = self.dir.join(format!("{name}.ko"));
        if !path.is_file() {
            return Ok(());
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read '{}'", path.display()))?;
        for needed in depends(&bytes) {
            self.add(&needed)?;
        }
        self.modules.push(Module { name, bytes });
        Ok(())
    }
}

/// What a module says that it depends on.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let list = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(list);
    let good = |name: &&str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    names.split(',').filter(good).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, depends) in modules {
            let text = format!("ELF\0license=GPL\0depends={depends}\0name={name}\0");
            fs::write(dir.path().join(format!("{name}.ko")), text).unwrap();
        }
        dir
    }

    fn names(dir: &Path, drivers: &[&str]) -> Vec<String> {
        select(dir, drivers).unwrap().into_iter().map(|module| module.name).collect()
    }

    #[test]
    fn a_module_comes_after_what_it_needs_and_once() {
        let dir = place(&[
            ("virtio_pci", "virtio_pci_modern_dev,virtio,virtio_ring"),
            ("virtio_pci_modern_dev", ""),
            ("virtio_ring", "virtio"),
            ("virtio_blk", "virtio_ring,virtio"),
            ("virtio", ""),
        ]);
        let order = ["virtio_pci_modern_dev", "virtio", "virtio_ring", "virtio_pci", "virtio_blk"];
        assert_eq!(names(dir.path(), &["virtio_pci", "virtio-blk", "built_in"]), order);
    }

    #[test]
    fn circles_and_odd_names_are_survived() {
        let dir = place(&[("a", "b,../../etc/passwd,,"), ("b", "a")]);
        assert_eq!(names(dir.path(), &["a"]), ["b", "a"]);
        assert!(names(dir.path(), &[]).is_empty());
    }
}
