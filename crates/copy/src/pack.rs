//! From a file or directory to an archive.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

use crate::CopyError;
use crate::tar::{Entry, Kind, Writer};

/// The name of a directory of which only the contents are meant.
pub(crate) const CONTENTS: &str = ".";

/// Writes an archive of a file, link or directory, which has its own name there; of a directory named `DIR/.` only the contents. Links
/// are not followed. What is no file, directory or link in a directory is passed to `left_out` and not copied.
///
/// # Errors
/// If something cannot be read, or is none of these itself, or nobody takes the archive.
pub fn pack(source: &Path, to: impl Write, left_out: &mut dyn FnMut(&Path)) -> Result<(), CopyError> {
    let mut writer = Writer::new(to);
    let top = match source.file_name() {
        Some(name) if !source.as_os_str().as_bytes().ends_with(b"/.") => name,
        _ => OsStr::new(CONTENTS),
    };
    let mut waiting = vec![(source.to_owned(), PathBuf::from(top))];
    while let Some((path, name)) = waiting.pop() {
        let status = fs::symlink_metadata(&path).map_err(CopyError::read(&path))?;
        if status.is_dir() {
            writer.entry(&entry(&status, name.clone(), Kind::Directory)).map_err(CopyError::CutShort)?;
            let items = fs::read_dir(&path).map_err(CopyError::read(&path))?;
            let mut names = Vec::new();
            for item in items {
                names.push(item.map_err(CopyError::read(&path))?.file_name());
            }
            // The last is the first to come.
            names.sort_unstable_by(|a, b| b.cmp(a));
            waiting.extend(names.into_iter().map(|item| (path.join(&item), name.join(&item))));
        } else if status.is_symlink() {
            let link = fs::read_link(&path).map_err(CopyError::read(&path))?;
            let entry = Entry { link, ..entry(&status, name, Kind::Symlink) };
            writer.entry(&entry).map_err(CopyError::CutShort)?;
        } else if status.is_file() {
            pack_file(&mut writer, &path, name)?;
        } else if path == source {
            return Err(CopyError::Special(path));
        } else {
            left_out(&path);
        }
    }
    writer.finish().map_err(CopyError::CutShort)
}

fn pack_file(writer: &mut Writer<impl Write>, path: &Path, name: PathBuf) -> Result<(), CopyError> {
    // It may have become something else by now.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let failed = |error: rustix::io::Errno| CopyError::read(path)(error.into());
    let mut file = File::from(open(path, flags, Mode::empty()).map_err(failed)?);
    let status = file.metadata().map_err(CopyError::read(path))?;
    if !status.is_file() {
        return Err(CopyError::Special(path.to_owned()));
    }
    let entry = Entry { bytes: status.len(), ..entry(&status, name, Kind::File) };
    writer.entry(&entry).map_err(CopyError::CutShort)?;
    writer.contents(&mut file, entry.bytes).map_err(CopyError::CutShort)
}

fn entry(status: &Metadata, path: PathBuf, kind: Kind) -> Entry {
    let time = u64::try_from(status.mtime()).unwrap_or(0);
    Entry { path, kind, mode: status.mode() & 0o7777, time, bytes: 0, link: PathBuf::new() }
}
