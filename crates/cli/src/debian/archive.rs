//! Files out of a package, with dpkg-deb(1) and tar(1), which every Debian has.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Extracts the one file that matches `pattern` to `target`, which is on disk when this returns.
///
/// # Errors
/// If there is no such file, or more than one, or the package is damaged.
pub(super) fn take_file(deb: &Path, pattern: &str, target: &Path) -> Result<()> {
    let dir = target.with_extension("extract");
    let files = take_files(deb, pattern, &dir)?;
    match files.as_slice() {
        [file] => fs::rename(file, target).with_context(|| format!("cannot move '{}'", file.display()))?,
        other => bail!("{} has {} files '{pattern}' instead of one", deb.display(), other.len()),
    }
    fs::remove_dir_all(&dir).with_context(|| format!("cannot delete '{}'", dir.display()))?;
    sync(target)
}

/// Extracts all files that match `pattern` into a new directory, and returns where they are.
///
/// # Errors
/// If there are none, or the package is damaged.
pub(super) fn take_files(deb: &Path, pattern: &str, dir: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir(dir).with_context(|| format!("cannot make '{}'", dir.display()))?;
    unpack(deb, pattern, dir)?;
    let mut files = Vec::new();
    list_files(dir, &mut files)?;
    Ok(files)
}

/// Asks busybox for its applets and writes their paths to `target`, one a line.
///
/// # Errors
/// If the program does not run here.
pub(super) fn write_applets(program: &Path, target: &Path) -> Result<()> {
    let output = Command::new(program)
        .arg("--list-full")
        .output()
        .with_context(|| format!("cannot run '{}'", program.display()))?;
    ensure!(output.status.success(), "'{} --list-full' failed", program.display());
    let mut file = File::create(target).with_context(|| format!("cannot make '{}'", target.display()))?;
    file.write_all(&output.stdout).with_context(|| format!("cannot write '{}'", target.display()))?;
    sync(target)
}

fn unpack(deb: &Path, pattern: &str, dir: &Path) -> Result<()> {
    let mut source = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run dpkg-deb: install dpkg")?;
    let Some(stream) = source.stdout.take() else { bail!("dpkg-deb has no output") };
    let sink = Command::new("tar")
        .args(["-x", "--no-same-owner", "--wildcards", "-f", "-", "-C"])
        .arg(dir)
        .arg(pattern)
        .stdin(stream)
        .stderr(Stdio::null())
        .status()
        .context("cannot run tar: install tar")?;
    let source = source.wait().context("cannot wait for dpkg-deb")?;
    ensure!(source.success() && sink.success(), "{} has no '{pattern}', or is damaged", deb.display());
    Ok(())
}

fn list_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for item in fs::read_dir(dir).with_context(|| format!("cannot read '{}'", dir.display()))? {
        let item = item?;
        let kind = item.file_type()?;
        if kind.is_dir() {
            list_files(&item.path(), files)?;
        } else if kind.is_file() {
            files.push(item.path());
        }
    }
    Ok(())
}

/// Puts a file's contents on disk, so that its entry's name never appears before them.
pub(super) fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("cannot sync '{}'", path.display()))
}
