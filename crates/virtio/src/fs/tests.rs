//! A shared directory through its rings.

#![allow(clippy::cast_possible_truncation)]

use std::fs;

use backend::share::Access;
use bus::Lifecycle;
use proptest::prelude::*;
use x86::Gpa;
use zerocopy::{FromBytes, IntoBytes};

use super::wire::*;
use super::*;
use crate::queue::tests::driver::Driver;
use crate::transport::tests::rig::*;

const REQUEST: u64 = 0x8000;
const ANSWER: u64 = 0x2_0000;
const ROOM: u32 = 0x1000;
const ROOT: u64 = backend::share::ROOT;

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const EBADF: i32 = 9;
const EINVAL: i32 = 22;
const EROFS: i32 = 30;
const ERANGE: i32 = 34;
const ENOSYS: i32 = 38;

struct Bench {
    rig: Rig,
    dir: tempfile::TempDir,
}

fn bench(access: Access, validity: Validity) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let rig = rig_of(&dir, access, validity);
    Bench { rig, dir }
}

fn rig_of(dir: &tempfile::TempDir, access: Access, validity: Validity) -> Rig {
    let share = Share::open(dir.path(), access, 1).unwrap();
    let rig = Rig::new(Box::new(Fs::new(share, "tag", validity, 1)));
    rig.enable(true);
    rig
}

/// The guest's end: a driver that makes requests and waits for answers.
struct Guest<'a> {
    rig: &'a Rig,
    driver: Driver<'a>,
}

impl<'a> Guest<'a> {
    fn new(rig: &'a Rig) -> Self {
        let mut guest = Self { rig, driver: rig.start(0) };
        let init = guest.ask::<InitOut>(
            26,
            0,
            InitIn { major: 7, minor: 36, max_readahead: 1 << 17, flags: !0 }.as_bytes(),
        );
        assert_eq!(init.unwrap().major, 7);
        guest
    }

    /// The answer's data, or its error.
    fn raw(&mut self, operation: u32, node: u64, arguments: &[u8], room: u32) -> Result<Vec<u8>, i32> {
        let header = InHeader { operation, unique: 77, node, uid: 1, gid: 2, ..InHeader::default() };
        let bytes = [header.as_bytes(), arguments].concat();
        self.rig.memory.write(Gpa(REQUEST), &bytes).unwrap();
        // Cut where no structure ends.
        let (first, second) = (13, bytes.len() as u32 - 13);
        let buffers = [
            (REQUEST, first, false),
            (REQUEST + 13, second, false),
            (ANSWER, 7, true),
            (ANSWER + 7, 9 + room, true),
        ];
        let written = self.rig.round(&mut self.driver, &buffers).expect("an answer");
        let mut answer = vec![0; written as usize];
        self.rig.memory.read(Gpa(ANSWER), &mut answer).unwrap();
        let (header, data) = OutHeader::read_from_prefix(&answer).unwrap();
        assert_eq!((header.len, header.unique), (written, 77));
        if header.error == 0 { Ok(data.to_vec()) } else { Err(-header.error) }
    }

    fn ask<T: FromBytes>(&mut self, operation: u32, node: u64, arguments: &[u8]) -> Result<T, i32> {
        let data = self.raw(operation, node, arguments, ROOM)?;
        Ok(T::read_from_bytes(&data).map_err(|_| data.len()).expect("an answer of this size"))
    }

    fn lookup(&mut self, node: u64, name: &str) -> Result<EntryOut, i32> {
        self.ask(1, node, format!("{name}\0").as_bytes())
    }

    fn open(&mut self, node: u64, flags: u32) -> Result<OpenOut, i32> {
        self.ask(14, node, OpenIn { flags, open_flags: 0 }.as_bytes())
    }
}

#[test]
fn the_configuration_has_tag_and_queues() {
    let bench = bench(Access::ReadOnly, Validity::Settled);
    let config: [u8; 40] = std::array::from_fn(|at| bench.rig.read::<1>(0x2000 + at as u64)[0]);
    assert_eq!(&config[..4], b"tag\0");
    assert_eq!(config[36..], [1, 0, 0, 0]);
    assert_eq!(bench.rig.workers.len(), 2);
}

#[test]
fn a_file_is_made_written_read_and_listed() {
    let bench = bench(Access::ReadWrite, Validity::Changing);
    let mut guest = Guest::new(&bench.rig);
    let create = CreateIn { flags: 0o102, mode: 0o644, umask: 0, open_flags: 0 };
    let made: CreateOut = guest.ask(35, ROOT, &[create.as_bytes(), b"file\0"].concat()).unwrap();
    assert_eq!((made.entry.attr.mode, made.entry.attr_valid), (0o100_644, 1));
    let handle = made.open.handle;
    let write = WriteIn { handle, offset: 3, size: 5, ..WriteIn::default() };
    let written: WriteOut = guest.ask(16, made.entry.node, &[write.as_bytes(), b"hello"].concat()).unwrap();
    assert_eq!(written.size, 5);
    assert_eq!(fs::read(bench.dir.path().join("file")).unwrap(), b"\0\0\0hello");
    let read = |offset, size| ReadIn { handle, offset, size, ..ReadIn::default() };
    assert_eq!(guest.raw(15, made.entry.node, read(4, 100).as_bytes(), ROOM).unwrap(), b"ello");
    assert_eq!(
        guest.raw(15, made.entry.node, read(4, 100).as_bytes(), 2).unwrap(),
        b"el",
        "no more than there is room"
    );
    assert_eq!(guest.raw(15, made.entry.node, read(100, 100).as_bytes(), ROOM).unwrap(), b"");
    let attributes: AttrOut = guest.ask(3, made.entry.node, GetAttrIn::default().as_bytes()).unwrap();
    assert_eq!(attributes.attr.size, 8);

    fs::create_dir(bench.dir.path().join("dir")).unwrap();
    let open: OpenOut = guest.ask(27, ROOT, OpenIn::default().as_bytes()).unwrap();
    let list = ReadIn { handle: open.handle, size: ROOM, ..ReadIn::default() };
    let mut rest = guest.raw(44, ROOT, list.as_bytes(), ROOM).unwrap();
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let (entry, tail) = EntryOut::read_from_prefix(&rest).unwrap();
        let (dirent, tail) = DirEntry::read_from_prefix(tail).unwrap();
        let name = String::from_utf8(tail[..dirent.name_len as usize].to_vec()).unwrap();
        let len = (dirent.name_len as usize).next_multiple_of(8);
        if !name.starts_with('.') {
            assert_eq!(entry.attr.mode >> 12, dirent.kind);
            seen.push((name, entry.node));
        }
        rest = tail[len..].to_vec();
    }
    seen.sort();
    let dir = guest.lookup(ROOT, "dir").unwrap().node;
    assert_eq!(seen, [("dir".to_owned(), dir), ("file".to_owned(), made.entry.node)]);
    assert_eq!(guest.raw(28, ROOT, list.as_bytes(), 31).unwrap(), b"", "not even one fits");
    assert_eq!(guest.raw(18, ROOT, ReleaseIn { handle, ..ReleaseIn::default() }.as_bytes(), 0).unwrap(), b"");
    assert_eq!(guest.raw(15, made.entry.node, read(0, 1).as_bytes(), ROOM), Err(EBADF));
}

/// A chain may name the same memory over and over, and a request may say any size.
#[test]
fn one_request_moves_a_mebibyte_at_most() {
    const PIECE: u32 = 0x8_0000;
    let bench = bench(Access::ReadWrite, Validity::Changing);
    let path = bench.dir.path().join("file");
    fs::File::create(&path).unwrap().set_len(8 << 20).unwrap();
    let mut guest = Guest::new(&bench.rig);
    let file = guest.lookup(ROOT, "file").unwrap().node;
    let handle = guest.open(file, 2).unwrap().handle;
    let mut ask = |operation, arguments: &[u8], in_pieces: bool| {
        let header = InHeader { operation, node: file, ..InHeader::default() };
        let bytes = [header.as_bytes(), arguments].concat();
        bench.rig.memory.write(Gpa(REQUEST), &bytes).unwrap();
        let pieces = [(0x4_0000, PIECE, in_pieces); 4];
        let (request, answer) = ((REQUEST, bytes.len() as u32, false), (ANSWER, 16, true));
        let buffers = match in_pieces {
            true => [&[request, answer][..], &pieces].concat(),
            false => [&[request][..], &pieces, &[answer]].concat(),
        };
        let written = bench.rig.round(&mut guest.driver, &buffers).expect("an answer");
        let mut answer = [0; size_of::<OutHeader>()];
        bench.rig.memory.read(Gpa(ANSWER), &mut answer).unwrap();
        (written, OutHeader::read_from_bytes(&answer).unwrap().error)
    };
    let read = ReadIn { handle, size: u32::MAX, ..ReadIn::default() };
    assert_eq!(ask(15, read.as_bytes(), true), (16 + (1 << 20), 0));
    let write = |size| WriteIn { handle, offset: 8 << 20, size, ..WriteIn::default() };
    assert_eq!(ask(16, write((1 << 20) + 1).as_bytes(), false), (16, -EINVAL));
    assert_eq!(fs::metadata(&path).unwrap().len(), 8 << 20);
    assert_eq!(ask(16, write(1 << 20).as_bytes(), false).1, -EIO, "no room for what was written");
    assert_eq!(fs::metadata(&path).unwrap().len(), 9 << 20);
}

#[test]
fn names_change() {
    let bench = bench(Access::ReadWrite, Validity::Changing);
    let at = |name: &str| bench.dir.path().join(name);
    let mut guest = Guest::new(&bench.rig);
    let dir: EntryOut =
        guest.ask(9, ROOT, &[MkDirIn { mode: 0o755, umask: 0 }.as_bytes(), b"dir\0"].concat()).unwrap();
    let file = MkNodIn { mode: 0o100_600, ..MkNodIn::default() };
    let file: EntryOut = guest.ask(8, dir.node, &[file.as_bytes(), b"a\0"].concat()).unwrap();
    let link: EntryOut = guest.ask(6, ROOT, b"link\0dir/a\0").unwrap();
    assert_eq!(guest.raw(5, link.node, b"", ROOM).unwrap(), b"dir/a");
    let second: EntryOut =
        guest.ask(13, ROOT, &[LinkIn { node: file.node }.as_bytes(), b"b\0"].concat()).unwrap();
    assert_eq!((second.node, second.attr.links), (file.node, 2));
    guest.raw(12, ROOT, &[RenameIn { directory: dir.node }.as_bytes(), b"b\0c\0"].concat(), 0).unwrap();
    let swap = Rename2In { directory: dir.node, flags: 2, padding: 0 };
    guest.raw(45, ROOT, &[swap.as_bytes(), b"link\0c\0"].concat(), 0).unwrap();
    assert_eq!(fs::read_link(at("dir/c")).unwrap().to_str(), Some("dir/a"));
    guest.raw(10, dir.node, b"c\0", 0).unwrap();
    guest.raw(10, dir.node, b"a\0", 0).unwrap();
    guest.raw(11, ROOT, b"dir\0", 0).unwrap();
    let set = SetAttrIn { valid: set::SIZE | set::MTIME, size: 9, mtime: 1000, ..SetAttrIn::default() };
    let attributes: AttrOut = guest.ask(4, file.node, set.as_bytes()).unwrap();
    assert_eq!((attributes.attr.size, attributes.attr.mtime), (9, 1000));
    assert!(fs::exists(at("link")).unwrap() && !fs::exists(at("dir")).unwrap());
    assert!(guest.ask::<StatFsOut>(17, ROOT, b"").unwrap().blocks > 0);
}

#[test]
fn what_is_not_expected_to_change_may_be_kept_and_refuses_change() {
    let bench = bench(Access::ReadOnly, Validity::Settled);
    fs::write(bench.dir.path().join("file"), "x").unwrap();
    let mut guest = Guest::new(&bench.rig);
    let absent = guest.lookup(ROOT, "none").unwrap();
    assert_eq!((absent.node, absent.entry_valid), (0, 3600));
    let file = guest.lookup(ROOT, "file").unwrap().node;
    assert_eq!(guest.open(file, 0).unwrap().flags, KEEP_CACHE | CACHE_DIR);
    assert_eq!(guest.open(file, 2).unwrap_err(), EROFS);
    assert_eq!(
        guest.raw(22, file, &[GetXAttrIn::default().as_bytes(), b"user.a\0"].concat(), ROOM),
        Err(ENOSYS)
    );
    assert_eq!(guest.raw(9, ROOT, &[MkDirIn::default().as_bytes(), b"d\0"].concat(), ROOM), Err(EROFS));
}

#[test]
fn requests_that_make_no_sense_are_errors_and_no_more() {
    let bench = bench(Access::ReadWrite, Validity::Changing);
    fs::write(bench.dir.path().join("file"), "contents").unwrap();
    let mut guest = Guest::new(&bench.rig);
    assert_eq!(guest.lookup(ROOT, "none").unwrap_err(), ENOENT);
    for bad in ["..", ".", "", "a/b", "../x"] {
        assert_eq!(guest.lookup(ROOT, bad).unwrap_err(), EINVAL, "{bad}");
    }
    assert_eq!(guest.raw(1, ROOT, b"file", ROOM), Err(EINVAL), "no end");
    assert_eq!(guest.raw(1, ROOT, b"file\0", 5), Err(EIO), "no room");
    for operation in [0, 7, 25, 31, 39, 48, 999, u32::MAX] {
        assert_eq!(guest.raw(operation, ROOT, &[0; 64], ROOM), Err(ENOSYS), "{operation}");
    }
    let file = guest.lookup(ROOT, "file").unwrap().node;
    let handle = guest.open(file, 2).unwrap().handle;
    let write = WriteIn { handle, size: u32::MAX, ..WriteIn::default() };
    assert_eq!(guest.raw(16, file, write.as_bytes(), ROOM), Err(EINVAL), "less data than it says");
    let write = WriteIn { handle, offset: u64::MAX, size: 1, ..WriteIn::default() };
    assert!(guest.raw(16, file, &[write.as_bytes(), b"x"].concat(), ROOM).is_err());
    let names = GetXAttrIn { size: 0, padding: 0 };
    let value = SetXAttrIn { size: 7, flags: 0 };
    if guest.raw(21, file, &[value.as_bytes(), b"user.a\0", b"1234567"].concat(), 0).is_ok() {
        assert_eq!(guest.ask::<GetXAttrOut>(23, file, names.as_bytes()).unwrap().size, 7);
        let small = GetXAttrIn { size: 3, padding: 0 };
        assert_eq!(guest.raw(22, file, &[small.as_bytes(), b"user.a\0"].concat(), ROOM), Err(ERANGE));
    }
    // Fewer than announced. There were two look-ups: the one whose answer had no room counts.
    let (announced, one) =
        (BatchForgetIn { count: u32::MAX, padding: 0 }, ForgetOne { node: file, count: 2 });
    let header = InHeader { operation: 42, ..InHeader::default() };
    bench
        .rig
        .memory
        .write(Gpa(REQUEST), &[header.as_bytes(), announced.as_bytes(), one.as_bytes()].concat())
        .unwrap();
    let len = (40 + 8 + 16) as u32;
    assert_eq!(bench.rig.round(&mut guest.driver, &[(REQUEST, len, false)]), Some(0), "no answer");
    assert!(guest.raw(3, file, GetAttrIn::default().as_bytes(), ROOM).is_err());
    assert_eq!(bench.rig.status() & NEEDS_RESET, 0);
    // No room for as much as an answer's header.
    assert_eq!(bench.rig.round(&mut guest.driver, &[(REQUEST, 39, false)]), None);
    assert_ne!(bench.rig.status() & NEEDS_RESET, 0);
}

#[test]
fn nothing_works_before_the_beginning_and_old_drivers_are_refused() {
    let bench = bench(Access::ReadWrite, Validity::Changing);
    let mut guest = Guest { rig: &bench.rig, driver: bench.rig.start(0) };
    assert_eq!(guest.lookup(ROOT, "x").unwrap_err(), EIO);
    let init = |major, minor| InitIn { major, minor, max_readahead: 0, flags: 0 };
    assert!(guest.raw(26, 0, init(7, 12).as_bytes(), ROOM).is_err());
    assert_eq!(guest.ask::<InitOut>(26, 0, init(8, 0).as_bytes()).unwrap().major, 7);
    assert_eq!(guest.lookup(ROOT, "x").unwrap_err(), EIO, "it has to ask again");
    assert_eq!(guest.ask::<InitOut>(26, 0, init(7, 31).as_bytes()).unwrap().flags, 0);
    assert_eq!(guest.lookup(ROOT, "x").unwrap_err(), ENOENT);
}

#[test]
fn a_device_goes_on_elsewhere() {
    let bench = bench(Access::ReadWrite, Validity::Changing);
    fs::write(bench.dir.path().join("file"), "contents").unwrap();
    let mut guest = Guest::new(&bench.rig);
    let file = guest.lookup(ROOT, "file").unwrap().node;
    let handle = guest.open(file, 0).unwrap().handle;
    bench.rig.device.lock().unwrap().pause();
    let record = bench.rig.device.lock().unwrap().save();
    let next = rig_of(&bench.dir, Access::ReadWrite, Validity::Changing);
    next.device.lock().unwrap().restore(&record).unwrap();
    assert_eq!(next.device.lock().unwrap().save(), record);
    // The same session on rings of its own.
    let mut guest = Guest { rig: &next, driver: next.start(0) };
    let read = ReadIn { handle, size: 4, ..ReadIn::default() };
    assert_eq!(guest.raw(15, file, read.as_bytes(), ROOM).unwrap(), b"cont");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn anything_may_be_asked(requests in proptest::collection::vec(
        (0..52_u32, 0..4_u64, proptest::collection::vec(prop_oneof![3 => Just(0), 1 => 0..8_u8, 1 => any::<u8>()], 0..120)), 1..20))
    {
        let bench = bench(Access::ReadWrite, Validity::Changing);
        fs::create_dir(bench.dir.path().join("a")).unwrap();
        let mut guest = Guest::new(&bench.rig);
        guest.lookup(ROOT, "a").unwrap();
        for (operation, node, arguments) in requests {
            if !matches!(operation, 2 | 36 | 42) {
                let _ = guest.raw(operation, node, &arguments, 256);
            }
        }
        prop_assert_eq!(bench.rig.status() & NEEDS_RESET, 0);
    }
}
