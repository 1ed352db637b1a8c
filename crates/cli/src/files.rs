//! Boot files, read at the edge.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use vm::Image;

/// Reads a file that has to fit into `limit` bytes of guest memory; `role` says what it is to be.
///
/// # Errors
/// A sentence, if it cannot be read or is too large.
pub(crate) fn read(path: &Path, role: &str, limit: u64) -> Result<Vec<u8>> {
    contents(opened(path, role)?, path, role, limit)
}

fn contents(file: File, path: &Path, role: &str, limit: u64) -> Result<Vec<u8>> {
    let shown = path.display();
    let mut bytes = Vec::new();
    // One byte more than fits tells a file that is too large from one that just fits, also if it has no end.
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {role} '{shown}'"))?;
    check(bytes.len() as u64, path, role, limit)?;
    Ok(bytes)
}

/// The same for a file that is read when the machine is made: one that is regular is only opened.
///
/// # Errors
/// As [`read`].
pub(crate) fn open(path: &Path, role: &str, limit: u64) -> Result<Image> {
    let file = opened(path, role)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(contents(file, path, role, limit)?.into());
    }
    check(metadata.len(), path, role, limit)?;
    Ok(Image::File { file, len: metadata.len() })
}

fn opened(path: &Path, role: &str) -> Result<File> {
    let shown = path.display();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("{role} '{shown}' does not exist: give the path of a file (a command goes after '--')")
        }
        Err(error) => return Err(error).with_context(|| format!("cannot open {role} '{shown}'")),
    };
    ensure!(!file.metadata()?.is_dir(), "{role} '{shown}' is a directory: give the path of a file in it");
    Ok(file)
}

fn check(len: u64, path: &Path, role: &str, limit: u64) -> Result<()> {
    let shown = path.display();
    ensure!(
        len <= limit,
        "{role} '{shown}' is larger than the guest's memory of {} MiB: give it more with --memory",
        limit >> 20
    );
    ensure!(len != 0, "{role} '{shown}' is empty");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, [7; 100]).unwrap();
        assert_eq!(read(&file, "kernel", 100).unwrap(), [7; 100]);
        let says = |path: &Path, limit| format!("{:#}", read(path, "kernel", limit).unwrap_err());
        assert!(says(&file, 99).contains("larger than the guest's memory"));
        assert!(says(dir.path(), 99).contains("is a directory"));
        assert!(says(&dir.path().join("g"), 99).contains("does not exist"));
        assert!(says(Path::new("/dev/zero"), 1 << 20).contains("larger than"));
        assert!(says(Path::new("/dev/null"), 99).contains("is empty"));
        assert!(matches!(open(&file, "kernel", 100), Ok(Image::File { len: 100, .. })));
        assert!(open(&file, "kernel", 99).is_err());
    }
}
