//! From a file or directory to an archive.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

use crate::CopyError;
use crate::tar::{Entry, Kind, Writer};

/// The name of a directory of which only the contents are meant.
pub(crate) const CONTENTS: &str = ".";

/// What a file, link or directory is called in an archive of it: `.` for a directory of which only the contents are meant.
pub fn name_of(source: &Path) -> &OsStr {
    match source.file_name() {
        Some(name) if !source.as_os_str().as_bytes().ends_with(b"/.") => name,
        _ => OsStr::new(CONTENTS),
    }
}

/// Writes an archive of a file, link or directory, which has its own name there; of a directory named `DIR/.` only the contents. Links
/// are not followed. What is no file, directory or link in a directory is passed to `left_out` and not copied.
///
/// # Errors
/// If something cannot be read, or is none of these itself, or nobody takes the archive.
pub fn pack(source: &Path, to: impl Write, left_out: &mut dyn FnMut(&Path)) -> Result<(), CopyError> {
    let mut writer = Writer::new(to);
    let mut waiting = vec![(source.to_owned(), PathBuf::from(name_of(source)))];
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
    pack_contents(writer, &mut file, entry.bytes, path)
}

/// Writes what a file holds. That it cannot be read is another matter than that nobody takes it.
fn pack_contents(
    writer: &mut Writer<impl Write>,
    from: &mut dyn Read,
    bytes: u64,
    path: &Path,
) -> Result<(), CopyError> {
    let mut source = Source { from, failed: None };
    let written = writer.contents(&mut source, bytes);
    match source.failed {
        Some(error) => Err(CopyError::read(path)(error)),
        None => written.map_err(CopyError::CutShort),
    }
}

/// Remembers why it cannot be read.
struct Source<'a> {
    from: &'a mut dyn Read,
    failed: Option<io::Error>,
}

impl Read for Source<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.from.read(to).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.failed = Some(error);
            }
            kind.into()
        })
    }
}

fn entry(status: &Metadata, path: PathBuf, kind: Kind) -> Entry {
    let time = u64::try_from(status.mtime()).unwrap_or(0);
    Entry { path, kind, mode: status.mode() & 0o7777, time, bytes: 0, link: PathBuf::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_read_says_so_and_who_cannot_write_too() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("a bad sector"))
            }
        }
        let mut archive = Vec::new();
        let path = Path::new("a");
        let unread = pack_contents(&mut Writer::new(&mut archive), &mut Broken, 9, path);
        assert!(
            matches!(unread, Err(CopyError::Read { source, .. }) if source.to_string() == "a bad sector")
        );
        let (mut room, mut zeros) = ([0; 3], io::repeat(0));
        let unsent = pack_contents(&mut Writer::new(&mut room[..]), &mut zeros, 9, path);
        assert!(matches!(unsent, Err(CopyError::CutShort(_))));
    }

    #[test]
    fn names_are_those_of_the_last_part() {
        for (source, name) in
            [("/a/b", "b"), ("a/b/", "b"), ("a/b/.", "."), ("/", "."), (".", "."), ("..", "."), ("a/..", ".")]
        {
            assert_eq!(name_of(Path::new(source)), name, "{source}");
        }
    }
}
