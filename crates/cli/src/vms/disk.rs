//! The disk of a VM whose root Umbra has made: an overlay upon that root, which other VMs use, too.
//!
//! A VM with a name keeps it, in `$XDG_DATA_HOME/umbra/disks/NAME/ROOT.qcow2`, and the next VM of that name and root goes on with it.
//! So it does not lie with what is noted of VMs that run, which is gone when the host has been restarted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use spec::{DiskChanges, DiskFormat, DiskSpec, Name};

/// The directory of a VM's disks.
fn directory(name: &Name) -> Result<PathBuf> {
    // The XDG Base Directory Specification says to ignore a relative path.
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .ok_or_else(|| {
        anyhow!("there is no place for the VM's disk: set HOME or XDG_DATA_HOME to one")
    })?;
    Ok(base.join("umbra/disks").join(name.as_str()))
}

/// The disk upon a root, which `make` makes or finds. It is forgotten, unless it is kept under a name. `roots` is the directory that all
/// roots are in, and `root` what this one is called.
///
/// # Errors
/// If there is no place for it, or no root.
pub(crate) fn upon(
    name: Option<&Name>,
    root: &str,
    roots: &Path,
    make: impl FnOnce() -> Result<PathBuf>,
) -> Result<DiskSpec> {
    let Some(name) = name else {
        return Ok(DiskSpec { changes: DiskChanges::Discarded, ..raw(make()?) });
    };
    let directory = directory(name)?;
    let file = directory.join(format!("{root}.qcow2"));
    if file.exists() {
        // Upon the root that there was then.
        let (format, backing) = (Some(DiskFormat::Qcow2), Some(roots.to_owned()));
        return Ok(DiskSpec { format, backing, ..DiskSpec::new(file) });
    }
    let image = make()?;
    fs::create_dir_all(&directory).with_context(|| format!("cannot make '{}'", directory.display()))?;
    Ok(DiskSpec { changes: DiskChanges::Kept(file), ..raw(image) })
}

fn raw(image: PathBuf) -> DiskSpec {
    DiskSpec { format: Some(DiskFormat::Raw), ..DiskSpec::new(image) }
}

/// Removes the disks that are kept under a name; whether there were any.
///
/// # Errors
/// If they cannot be removed.
pub(crate) fn remove(name: &Name) -> Result<bool> {
    let directory = directory(name)?;
    match fs::remove_dir_all(&directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove '{}'", directory.display())),
    }
}
