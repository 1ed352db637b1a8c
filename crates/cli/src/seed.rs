//! What cloud-init reads when a system boots first (`--cloud-init`): its data source NoCloud, a small volume with the label `cidata`.
//!
//! The volume is made in memory and is a disk that can only be read.

mod iso;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use spec::{DiskChanges, DiskFormat, DiskSpec};

/// What cloud-init looks for.
const LABEL: &str = "cidata";
/// The files that there may be; the first two have to be.
const NAMES: [&str; 4] = ["meta-data", "user-data", "network-config", "vendor-data"];
/// A file is not larger.
const LARGEST: u64 = 1 << 20;

/// The volume. It is there as long as this is.
pub(crate) struct Seed(File);

impl Seed {
    /// From user data in a file, or from a directory with any of the files. What is not there says that the guest is called `name`.
    ///
    /// # Errors
    /// If a file cannot be read, or there is none.
    pub(crate) fn new(from: &Path, name: &str) -> Result<Self> {
        let image = iso::volume(
            LABEL,
            &collect(from, name)?.iter().map(|(name, text)| (*name, &text[..])).collect::<Vec<_>>(),
        );
        let make = || {
            let mut file = File::from(memfd_create("cidata", MemfdFlags::CLOEXEC)?);
            file.write_all(&image)?;
            io::Result::Ok(file)
        };
        Ok(Self(make().context("the host gives no memory for the volume of --cloud-init")?))
    }

    /// The volume as a disk.
    pub(crate) fn disk(&self) -> DiskSpec {
        let file = PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        DiskSpec { changes: DiskChanges::Refused, format: Some(DiskFormat::Raw), ..DiskSpec::new(file) }
    }
}

/// The files and what is in them.
fn collect(from: &Path, name: &str) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut files = Vec::new();
    if from.is_dir() {
        for name in NAMES {
            let path = from.join(name);
            if path.exists() {
                files.push((name, read(&path)?));
            }
        }
        ensure!(
            !files.is_empty(),
            "'{}' has none of the files {}: name a file with user data, or a directory with these",
            from.display(),
            NAMES.join(", ")
        );
    } else {
        files.push(("user-data", read(from)?));
    }
    let has = |name| files.iter().any(|(file, _)| *file == name);
    let (meta, user) = (!has("meta-data"), !has("user-data"));
    if meta {
        files.push(("meta-data", format!("instance-id: {name}\nlocal-hostname: {name}\n").into_bytes()));
    }
    if user {
        files.push(("user-data", b"#cloud-config\n{}\n".to_vec()));
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let shown = path.display();
    let file = fs::File::open(path).with_context(|| format!("cannot read '{shown}' for --cloud-init"))?;
    file.take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read '{shown}' for --cloud-init"))?;
    ensure!(bytes.len() as u64 <= LARGEST, "'{shown}' is larger than 1 MiB, and no data for cloud-init");
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(from: &Path) -> Vec<&'static str> {
        collect(from, "box").unwrap().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_file_is_user_data_and_a_directory_has_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        assert!(collect(dir.path(), "box").unwrap_err().to_string().contains("user-data"));
        fs::write(dir.path().join("network-config"), "version: 2\n").unwrap();
        fs::write(dir.path().join("other"), "x").unwrap();
        assert_eq!(names(dir.path()), ["network-config", "meta-data", "user-data"]);
        let file = dir.path().join("other");
        assert_eq!(names(&file), ["user-data", "meta-data"]);
        assert_eq!(collect(&file, "box").unwrap()[1].1, b"instance-id: box\nlocal-hostname: box\n");
        fs::write(&file, vec![0; LARGEST as usize + 1]).unwrap();
        assert!(collect(&file, "box").is_err() && collect(&dir.path().join("absent"), "box").is_err());
    }

    #[test]
    fn the_volume_is_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("u");
        fs::write(&file, "#cloud-config\n").unwrap();
        let seed = Seed::new(&file, "box").unwrap();
        let image = fs::read(seed.disk().file).unwrap();
        assert!(image.len().is_multiple_of(2048) && image[16 * 2048 + 1..].starts_with(b"CD001"));
    }
}
