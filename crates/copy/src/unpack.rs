//! From an archive to files.
//!
//! Every name is taken apart, and followed from the directory that all is unpacked in, one directory after the other and never through a
//! symbolic link (openat(2) with `O_NOFOLLOW`). So no name leads elsewhere, also not by a link that the archive itself has brought.
//! Files are new ones, which get their names when they are whole: what has the name before is replaced then, and never written through.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, futimens, linkat, mkdirat, open, openat,
    renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::CopyError;
use crate::pack::CONTENTS;
use crate::tar::{Entry, Kind, Reader};

/// Where an archive goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// To this name, as docker understands it: into it if it is a directory, else it is the new name of what the archive
    /// has, which is one thing. It is called so if a name is given ([`crate::name_of`] what was asked for): without one, the sender
    /// chooses what in a directory is replaced.
    Named(Option<&'a OsStr>),
    /// Into this directory, with all names that the archive has.
    Inside,
}

/// Makes files of an archive. Of their permissions only these bits are kept.
///
/// # Errors
/// If there is no such place, the archive is none or leads elsewhere, or a file cannot be made.
pub fn unpack(from: impl Read, target: &Path, place: Place<'_>, permissions: u32) -> Result<(), CopyError> {
    let mut reader = Reader::new(from);
    let mut next = reader.entry()?;
    let (tree, names) = match (place, &next) {
        (Place::Named(asked), Some(first)) => named(target, first, asked)?,
        (Place::Named(_), None) => return Ok(()),
        (Place::Inside, _) => (Tree::open(target)?, Names { top: None, instead: Vec::new() }),
    };
    while let Some(entry) = next {
        tree.make(&entry, &names, &mut reader, permissions)?;
        next = reader.entry()?;
    }
    Ok(())
}

/// Where names of an archive lead.
struct Names {
    /// What each begins with, if they are those of one thing.
    top: Option<OsString>,
    /// What stands for that.
    instead: Vec<OsString>,
}

impl Names {
    /// The way from the top directory.
    fn way(&self, path: &Path) -> Result<Vec<OsString>, CopyError> {
        let mut words = words(path)?;
        if let Some(top) = &self.top {
            if top != CONTENTS {
                if words.first() != Some(top) {
                    return Err(CopyError::Damaged("it has several things in it instead of one"));
                }
                words.remove(0);
            }
            words.splice(0..0, self.instead.iter().cloned());
        }
        Ok(words)
    }
}

/// The names in a path, without those that lead nowhere.
fn words(path: &Path) -> Result<Vec<OsString>, CopyError> {
    let mut words = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(word) => words.push(word.to_owned()),
            // tar(1), too, takes a root for the place where it unpacks.
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            Component::ParentDir => return Err(CopyError::Elsewhere(path.to_owned())),
        }
    }
    Ok(words)
}

/// Docker's rules: where the one thing goes that begins with this entry, and what it is called there.
fn named(target: &Path, first: &Entry, asked: Option<&OsStr>) -> Result<(Tree, Names), CopyError> {
    let top = words(&first.path)?.into_iter().next().unwrap_or_else(|| CONTENTS.into());
    if let Some(asked) = asked.filter(|asked| *asked != top) {
        return Err(CopyError::Unasked { name: top, asked: asked.to_owned() });
    }
    let is_directory = first.kind == Kind::Directory;
    let names = |instead| Names { top: Some(top.clone()), instead };
    match fs::metadata(target) {
        Ok(status) if status.is_dir() => {
            let instead = if top == CONTENTS { Vec::new() } else { vec![top.clone()] };
            return Ok((Tree::open(target)?, names(instead)));
        }
        Ok(_) if is_directory => return Err(CopyError::OverFile(target.to_owned())),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(CopyError::make(target)(error)),
        _ => {}
    }
    let wants_directory = target.as_os_str().as_bytes().ends_with(b"/");
    let (Some(name), false) = (target.file_name(), wants_directory && !is_directory) else {
        return Err(CopyError::NoDirectory(target.to_owned()));
    };
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((Tree::open(parent)?, names(vec![name.to_owned()])))
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directory that all is unpacked in.
struct Tree {
    top: OwnedFd,
    path: PathBuf,
}

impl Tree {
    fn open(path: &Path) -> Result<Self, CopyError> {
        match open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(top) => Ok(Self { top, path: path.to_owned() }),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(CopyError::NoDirectory(path.to_owned())),
            Err(error) => Err(CopyError::make(path)(error)),
        }
    }

    /// The directory at the end of a way, made if need be.
    fn directory(&self, way: &[OsString]) -> Result<OwnedFd, CopyError> {
        let failed = |error: Errno| CopyError::make(&self.path.join(way.iter().collect::<PathBuf>()))(error);
        let mut directory = self.top.try_clone().map_err(CopyError::make(&self.path))?;
        for word in way {
            let step = match openat(&directory, word, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) => {
                    mkdirat(&directory, word, Mode::from_raw_mode(0o755)).map_err(failed)?;
                    openat(&directory, word, DIRECTORY, Mode::empty())
                }
                other => other,
            };
            directory = step.map_err(failed)?;
        }
        Ok(directory)
    }

    /// Makes what an entry says.
    fn make(
        &self,
        entry: &Entry,
        names: &Names,
        reader: &mut Reader<impl Read>,
        permissions: u32,
    ) -> Result<(), CopyError> {
        let way = names.way(&entry.path)?;
        // The top itself is there.
        let Some((name, above)) = way.split_last() else { return Ok(()) };
        let shown = self.path.join(way.iter().collect::<PathBuf>());
        let failed = |error: Errno| CopyError::make(&shown)(error);
        let directory = self.directory(above)?;
        if entry.kind == Kind::Directory {
            return make_directory(&directory, name, entry.mode & permissions).map_err(failed);
        }
        if entry.kind == Kind::File {
            return make_file(&directory, name, entry, reader, permissions).map_err(CopyError::make(&shown));
        }
        if entry.kind == Kind::Special {
            return Err(CopyError::Special(entry.path.clone()));
        }
        match unlinkat(&directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        if entry.kind == Kind::Symlink {
            return symlinkat(&entry.link, &directory, name).map_err(failed);
        }
        let other = names.way(&entry.link)?;
        let (other, beside) = other.split_last().ok_or(CopyError::Damaged("a link leads to the top"))?;
        linkat(self.directory(beside)?, other, &directory, name, AtFlags::empty()).map_err(failed)
    }
}

/// Makes a file under another name and gives it its own when it is whole, in place of what has that.
fn make_file(
    directory: &OwnedFd,
    name: &OsStr,
    entry: &Entry,
    reader: &mut Reader<impl Read>,
    permissions: u32,
) -> io::Result<()> {
    let (beside, mut file) = new_file(directory)?;
    let made = io::copy(&mut reader.contents(), &mut file)
        .and_then(|_| Ok(finish(&file, entry, permissions)?))
        .and_then(|()| Ok(renameat(directory, &beside, directory, name)?));
    if made.is_err() {
        // What cannot be removed either says no more.
        let _ = unlinkat(directory, &beside, AtFlags::empty());
    }
    made
}

/// A file of a name that nobody has.
fn new_file(directory: &OwnedFd) -> Result<(String, File), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let process = std::process::id();
    for number in 0..u32::MAX {
        let name = format!(".umbra-{process}-{number}");
        match openat(directory, &name, flags, Mode::from_raw_mode(0o600)) {
            Err(Errno::EXIST) => {}
            opened => return Ok((name, File::from(opened?))),
        }
    }
    Err(Errno::EXIST)
}

/// Makes a directory that its owner can fill, unless there is one.
fn make_directory(parent: &OwnedFd, name: &OsStr, mode: u32) -> Result<(), Errno> {
    match mkdirat(parent, name, Mode::from_raw_mode(mode | 0o700)) {
        // Not through a link.
        Err(Errno::EXIST) => openat(parent, name, DIRECTORY, Mode::empty()).map(drop),
        other => other,
    }
}

fn finish(file: &File, entry: &Entry, permissions: u32) -> Result<(), Errno> {
    fchmod(file, Mode::from_raw_mode(entry.mode & permissions))?;
    let changed = Timespec { tv_sec: i64::try_from(entry.time).unwrap_or(0), tv_nsec: 0 };
    let times =
        Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: changed };
    futimens(file.as_fd(), &times)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::pack;
    use crate::tar::Writer;

    fn packed(source: &Path) -> Vec<u8> {
        let mut archive = Vec::new();
        pack(source, &mut archive, &mut |path| panic!("{}", path.display())).unwrap();
        archive
    }

    fn archive(entries: &[(&str, Kind, &str)]) -> Vec<u8> {
        let mut archive = Vec::new();
        let mut writer = Writer::new(&mut archive);
        for (path, kind, rest) in entries {
            let bytes = if *kind == Kind::File { rest.len() as u64 } else { 0 };
            let entry =
                Entry { path: path.into(), kind: *kind, mode: 0o4755, time: 1, bytes, link: rest.into() };
            writer.entry(&entry).unwrap();
            writer.contents(&mut rest.as_bytes(), bytes).unwrap();
        }
        writer.finish().unwrap();
        archive
    }

    fn place() -> (tempfile::TempDir, impl Fn(&str) -> PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        (dir, move |name: &str| PathBuf::from(format!("{}/{name}", path.display())))
    }

    fn copy(source: &Path, target: &Path) -> Result<(), CopyError> {
        unpack(packed(source).as_slice(), target, Place::Named(Some(pack::name_of(source))), 0o777)
    }

    #[test]
    fn files_and_directories_go_where_docker_puts_them() {
        let (_dir, at) = place();
        fs::create_dir_all(at("src/deep")).unwrap();
        fs::write(at("src/deep/file"), "hello").unwrap();
        fs::set_permissions(at("src/deep/file"), fs::Permissions::from_mode(0o751)).unwrap();
        symlink("deep/file", at("src/link")).unwrap();
        let file = at("src/deep/file");
        let read = |name: &str| fs::read_to_string(at(name)).unwrap();

        copy(&file, &at("new")).unwrap();
        assert_eq!(
            (read("new").as_str(), fs::metadata(at("new")).unwrap().permissions().mode() & 0o7777),
            ("hello", 0o751)
        );
        fs::write(at("new"), "something longer than hello").unwrap();
        copy(&file, &at("new")).unwrap();
        assert_eq!(read("new"), "hello");
        assert!(matches!(copy(&file, &at("absent/")), Err(CopyError::NoDirectory(_))));
        assert!(matches!(copy(&file, &at("absent/new")), Err(CopyError::NoDirectory(_))));
        assert!(matches!(copy(&at("src"), &at("new")), Err(CopyError::OverFile(_))));

        fs::create_dir(at("to")).unwrap();
        copy(&file, &at("to/")).unwrap();
        copy(&at("src"), &at("to")).unwrap();
        copy(&at("src/."), &at("to")).unwrap();
        copy(&at("src"), &at("made")).unwrap();
        copy(&at("src/."), &at("made2")).unwrap();
        copy(&at("src/"), &at("to2/")).unwrap();
        for name in
            ["to/file", "to/src/deep/file", "to/deep/file", "made/deep/file", "made2/link", "to2/deep/file"]
        {
            assert_eq!(read(name), "hello", "{name}");
        }
        assert_eq!(fs::read_link(at("made/link")).unwrap(), Path::new("deep/file"));
    }

    #[test]
    fn nothing_is_made_elsewhere() {
        let out = tempfile::tempdir().unwrap();
        let elsewhere = out.path().to_str().unwrap();
        for entries in [
            &[("../x", Kind::File, "bad")][..],
            &[("a", Kind::Directory, ""), ("a/../../x", Kind::File, "bad")],
            &[("a", Kind::Symlink, elsewhere), ("a/x", Kind::File, "bad")],
            &[("a", Kind::Symlink, elsewhere), ("a", Kind::Directory, ""), ("a/x", Kind::File, "bad")],
            &[
                ("d", Kind::Directory, ""),
                ("d/a", Kind::Symlink, elsewhere),
                ("d/a/b/x", Kind::Directory, ""),
            ],
            &[("a", Kind::Symlink, elsewhere), ("b", Kind::HardLink, "a/x")],
            &[("b", Kind::HardLink, "../x")],
            &[("dev", Kind::File, ""), ("dev/x", Kind::File, "")],
        ] {
            for how in [Place::Named(None), Place::Inside] {
                let (dir, at) = place();
                let target = if how == Place::Named(None) { at("new") } else { dir.path().to_owned() };
                assert!(unpack(archive(entries).as_slice(), &target, how, 0o777).is_err(), "{entries:?}");
                assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "{entries:?}");
            }
        }
    }

    #[test]
    fn a_link_that_is_there_is_replaced_and_not_written_through() {
        let (_dir, at) = place();
        fs::write(at("precious"), "mine").unwrap();
        symlink(at("precious"), at("a")).unwrap();
        let inside = |entries: &[_]| unpack(archive(entries).as_slice(), &at(""), Place::Inside, 0o777);
        inside(&[("a", Kind::File, "new"), ("/b", Kind::HardLink, "a"), ("c/d", Kind::File, "deep")])
            .unwrap();
        let read = |name: &str| fs::read_to_string(at(name)).unwrap();
        assert_eq!([read("precious"), read("a"), read("b"), read("c/d")], ["mine", "new", "new", "deep"]);
        assert_eq!(
            fs::metadata(at("a")).unwrap().permissions().mode() & 0o7777,
            0o755,
            "nobody gets a set-user-ID program"
        );
    }

    #[test]
    fn only_what_was_asked_for_is_replaced() {
        let (_dir, at) = place();
        fs::write(at(".profile"), "mine").unwrap();
        for (asked, entries) in [
            ("data", &[(".profile", Kind::File, "bad")][..]),
            ("data", &[("data", Kind::File, "good"), (".profile", Kind::File, "bad")]),
            ("data", &[(".", Kind::Directory, ""), (".profile", Kind::File, "bad")]),
            (".", &[(".profile", Kind::File, "bad")]),
        ] {
            let place = Place::Named(Some(OsStr::new(asked)));
            assert!(unpack(archive(entries).as_slice(), &at(""), place, 0o777).is_err(), "{entries:?}");
            assert_eq!(fs::read_to_string(at(".profile")).unwrap(), "mine");
        }
    }

    #[test]
    fn a_file_is_replaced_when_the_new_one_is_whole() {
        let (dir, at) = place();
        fs::write(at("a"), "old").unwrap();
        let inside = |archive: &[u8]| unpack(archive, &at(""), Place::Inside, 0o777);
        assert!(inside(&archive(&[("a", Kind::File, "a long text")])[..518]).is_err());
        fs::create_dir(at("d")).unwrap();
        assert!(inside(&archive(&[("d", Kind::File, "x")])).is_err());
        assert_eq!(fs::read_to_string(at("a")).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left of what was not whole");
    }

    #[test]
    fn what_is_cut_short_is_no_success() {
        let (_dir, at) = place();
        let whole = archive(&[("a", Kind::File, "hello"), ("b", Kind::File, "hello")]);
        for len in [0, 511, 514, 1024, 2048] {
            let cut = unpack(&whole[..len], &at(""), Place::Inside, 0o777);
            assert!(cut.is_err(), "{len}");
        }
    }
}
