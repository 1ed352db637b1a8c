//! A shared directory beside a secret that must never be reached.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const OWNER: Owner = Owner { uid: 1234, gid: 5678 };
const READ: OpenFlags = OpenFlags(0);
const WRITE: OpenFlags = OpenFlags(2);
const CREATE_NEW: OpenFlags = OpenFlags(0o302);

/// `dir/shared` is shared, `dir/secret` is not.
struct Place {
    dir: tempfile::TempDir,
    share: Share,
}

fn place(access: Access) -> Place {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("shared")).unwrap();
    fs::create_dir(dir.path().join("secrets")).unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    fs::write(dir.path().join("secrets/file"), "secret").unwrap();
    let share = Share::open(&dir.path().join("shared"), access, 1).unwrap();
    Place { dir, share }
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("shared").join(name)
    }

    fn node(&self, path: &str) -> u64 {
        path.split('/').fold(ROOT, |node, part| self.share.lookup(node, &name(part)).unwrap().node)
    }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// A file's contents through the share. Data goes by way of a second file, as guest memory is out of reach here.
fn contents(share: &Share, node: u64) -> Result<Vec<u8>, Errno> {
    let handle = share.open_file(node, READ)?;
    let file = share.handles.file(handle)?;
    let mut bytes = vec![0; 1 << 16];
    let len = rustix::io::pread(file.descriptor(), &mut bytes[..], 0)?;
    bytes.truncate(len);
    share.close(handle);
    Ok(bytes)
}

fn entries(share: &Share, node: u64) -> Result<Vec<String>, Errno> {
    let handle = share.open_directory(node)?;
    let mut names = Vec::new();
    let mut at = 0;
    loop {
        let before = names.len();
        // One at a time: every entry says where the next is.
        share.each_entry(node, handle, at, &mut |entry| {
            if names.len() > before {
                return false;
            }
            at = entry.next;
            names.push(entry.name.to_string_lossy().into_owned());
            true
        })?;
        if names.len() == before {
            break;
        }
    }
    share.close(handle);
    names.sort();
    Ok(names)
}

#[test]
fn a_tree_is_made_changed_and_taken_down() {
    let place = place(Access::ReadWrite);
    let share = &place.share;
    let dir = share.make_directory(ROOT, &name("dir"), 0o750, OWNER).unwrap();
    let (file, handle) = share.create(dir.node, &name("file"), 0o666, CREATE_NEW, OWNER).unwrap();
    assert_eq!(file.attributes.mode, 0o100_666, "the guest's mask counts, not the host's");
    let metadata = fs::metadata(place.path("dir/file")).unwrap();
    assert_eq!(metadata.ino(), file.attributes.inode);
    if share.privileged {
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
    }
    let again = share.create(dir.node, &name("file"), 0o666, CREATE_NEW, OWNER);
    assert_eq!(again.unwrap_err(), Errno::EXIST);
    fs::write(place.path("dir/file"), "hello").unwrap();
    assert_eq!(share.attributes(file.node, Some(handle)).unwrap().size, 5);
    share.sync(handle, false).unwrap();
    share.close(handle);
    assert_eq!(share.sync(handle, true), Err(Errno::BADF));
    let nobodys = SetAttributes { uid: Some(u32::MAX), gid: Some(u32::MAX), ..SetAttributes::default() };
    let owned = share.set_attributes(file.node, None, &nobodys).unwrap();
    assert_eq!((owned.uid, owned.gid), (metadata.uid(), metadata.gid()), "this number changes nothing");
    let made = share.make_node(dir.node, &name("n"), 0o100_644, Owner { uid: u32::MAX, gid: u32::MAX });
    share.remove(dir.node, &name("n"), false).unwrap();
    share.forget(made.unwrap().node, 1);

    let link = share.make_link(ROOT, &name("link"), b"dir/file", OWNER).unwrap();
    assert_eq!(share.read_link(link.node).unwrap(), b"dir/file");
    assert_eq!(share.open_file(link.node, READ), Err(Errno::NXIO));
    let second = share.link(file.node, ROOT, &name("second")).unwrap();
    assert_eq!((second.node, second.attributes.links), (file.node, 2));
    share.rename((ROOT, &name("second")), (dir.node, &name("file")), Rename(1)).unwrap_err();
    share.rename((ROOT, &name("second")), (ROOT, &name("third")), Rename(0)).unwrap();
    let set = SetAttributes {
        mode: Some(0o4755),
        size: Some(3),
        modified: Some(SetTime::At(1_000_000_000, 5)),
        ..SetAttributes::default()
    };
    let attributes = share.set_attributes(file.node, None, &set).unwrap();
    assert_eq!((attributes.mode, attributes.size), (0o100_755, 3), "no set-user-ID bit");
    assert_eq!(attributes.modified, (1_000_000_000, 5));
    assert_eq!(entries(share, ROOT).unwrap(), [".", "..", "dir", "link", "third"]);
    assert_eq!(share.remove(ROOT, &name("dir"), true), Err(Errno::NOTEMPTY));
    share.remove(dir.node, &name("file"), false).unwrap();
    share.remove(ROOT, &name("dir"), true).unwrap();
    assert_eq!(contents(share, file.node).unwrap(), b"hel");
    assert!(share.capacity(ROOT).unwrap().blocks > 0);
}

#[test]
fn symbolic_links_and_special_files_lead_nowhere() {
    let place = place(Access::ReadWrite);
    let share = &place.share;
    symlink(place.dir.path(), place.path("out")).unwrap();
    symlink("../secret", place.path("file")).unwrap();
    share.make_node(ROOT, &name("pipe"), 0o010_644, OWNER).unwrap();
    let out = place.node("out");
    assert_eq!(share.lookup(out, &name("secret")).unwrap_err(), Errno::NOTDIR);
    assert_eq!(share.open_directory(out), Err(Errno::NOTDIR));
    for path in ["file", "pipe"] {
        assert_eq!(share.open_file(place.node(path), WRITE), Err(Errno::NXIO), "{path}");
    }
    let made = share.create(ROOT, &name("file"), 0o644, OpenFlags(0o102), OWNER);
    assert_eq!(made.unwrap_err(), Errno::NXIO, "a link is not followed to create what it leads to");
    let (pipe, made) =
        (place.node("pipe"), share.create(ROOT, &name("pipe"), 0o644, OpenFlags(0o102), OWNER));
    assert_eq!(made.unwrap_err(), Errno::NXIO);
    // Once when it was made, twice by name.
    share.forget(pipe, 3);
    assert_eq!(share.attributes(pipe, None), Err(Errno::STALE), "what fails is no look-up");
    for kind in [0o020_666, 0o060_666] {
        assert_eq!(share.make_node(ROOT, &name("device"), kind, OWNER).unwrap_err(), Errno::PERM);
    }
    let set = SetAttributes { mode: Some(0o777), ..SetAttributes::default() };
    assert_eq!(share.set_attributes(place.node("file"), None, &set), Err(Errno::OPNOTSUPP));
    assert_eq!(share.make_directory(out, &name("dir"), 0o755, OWNER).unwrap_err(), Errno::NOTDIR);
}

/// Somebody swaps a directory for a link to the secrets, as fast as can be, while a guest looks names up in it.
#[test]
fn a_race_for_names_is_never_won() {
    let place = place(Access::ReadWrite);
    let share = &place.share;
    fs::create_dir(place.path("a")).unwrap();
    fs::write(place.path("a/file"), "open").unwrap();
    symlink("../secrets", place.path("b")).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let (a, b) = (place.path("a"), place.path("b"));
                rustix::fs::renameat_with(CWD, a, CWD, b, rustix::fs::RenameFlags::EXCHANGE).unwrap();
            }
        });
        let mut met = [0; 2];
        for _ in 0..20_000 {
            let Ok(found) = share.lookup(ROOT, &name("a")) else { continue };
            match share.lookup(found.node, &name("file")) {
                Ok(file) => {
                    assert_eq!(contents(share, file.node).unwrap(), b"open");
                    met[0] += 1;
                }
                Err(error) => {
                    assert_eq!(error, Errno::NOTDIR);
                    met[1] += 1;
                }
            }
        }
        over.store(true, Ordering::Relaxed);
        assert!(met.iter().all(|count| *count > 0), "no race was run: {met:?}");
    });
}

#[test]
fn what_may_only_be_read_refuses_every_change() {
    let place = place(Access::ReadOnly);
    let share = &place.share;
    fs::write(place.path("file"), "x").unwrap();
    let file = place.node("file");
    let set = SetAttributes { mode: Some(0o777), ..SetAttributes::default() };
    let n = name("new");
    let refusals = [
        share.set_attributes(file, None, &set).map(drop),
        share.set_attributes(file, None, &SetAttributes::default()).map(drop),
        share.open_file(file, WRITE).map(drop),
        share.open_file(file, OpenFlags(1)).map(drop),
        share.open_file(file, OpenFlags(3)).map(drop),
        share.create(ROOT, &n, 0o644, CREATE_NEW, OWNER).map(drop),
        share.create(ROOT, &name("file"), 0o644, READ, OWNER).map(drop),
        share.make_node(ROOT, &n, 0o100_644, OWNER).map(drop),
        share.make_directory(ROOT, &n, 0o755, OWNER).map(drop),
        share.make_link(ROOT, &n, b"x", OWNER).map(drop),
        share.link(file, ROOT, &n).map(drop),
        share.remove(ROOT, &name("file"), false),
        share.rename((ROOT, &name("file")), (ROOT, &n), Rename(0)),
        share.set_extended_attribute(file, c"user.a", b"b", 0),
        share.remove_extended_attribute(file, c"user.a"),
        share.check_access(file, 2),
    ];
    for (number, refusal) in refusals.into_iter().enumerate() {
        assert_eq!(refusal, Err(Errno::ROFS), "{number}");
    }
    // Truncation needs no permission to write where opening forgets to ask for it.
    let handle = share.open_file(file, OpenFlags(0o1000)).unwrap();
    assert_eq!(share.allocate(handle, 0, 0, 100), Err(Errno::BADF));
    assert_eq!(contents(share, file).unwrap(), b"x");
}

#[test]
fn views_of_the_kernel_are_covered() {
    assert!(matches!(Share::open(Path::new("/proc"), Access::ReadOnly, 1), Err(ShareError::Kernel(_))));
    let share = Share::open(Path::new("/"), Access::ReadWrite, 1).unwrap();
    let proc = share.lookup(ROOT, &name("proc")).unwrap().node;
    for hidden in ["self", "1", "version"] {
        assert_eq!(share.lookup(proc, &name(hidden)), Err(Errno::NOENT), "{hidden}");
    }
    assert!(entries(&share, proc).unwrap().is_empty());
    let open = share.open_directory(proc).unwrap();
    assert_eq!(share.each_entry(ROOT, open, 0, &mut |_| true), Err(Errno::BADF));
    assert_eq!(share.make_directory(proc, &name("x"), 0o755, OWNER).unwrap_err(), Errno::ROFS);
    assert_eq!(share.set_attributes(proc, None, &SetAttributes::default()), Err(Errno::ROFS));
    assert_eq!(share.extended_attributes(proc), Ok(Vec::new()));
}

/// A file of proc may be mounted below a directory. It is made covered by hand, since mounting takes privileges.
#[test]
fn a_file_of_the_kernels_is_not_opened() {
    let place = place(Access::ReadWrite);
    fs::write(place.path("file"), "x").unwrap();
    let nodes = &place.share.nodes;
    let root = nodes.get(ROOT).unwrap();
    let path = node::open_child(&*nodes.descriptor(&root).unwrap(), &name("file")).unwrap();
    let status = attributes::status(&path).unwrap();
    let file = nodes.enter(&root, &name("file"), path, &status, true).unwrap();
    assert_eq!(place.share.open_file(file, READ), Err(Errno::NXIO));
}

#[test]
fn a_file_that_is_opened_for_writing_gives_no_rights() {
    let place = place(Access::ReadWrite);
    fs::write(place.path("tool"), "x").unwrap();
    fs::set_permissions(place.path("tool"), fs::Permissions::from_mode(0o6755)).unwrap();
    let tool = place.node("tool");
    assert_eq!(contents(&place.share, tool).unwrap(), b"x");
    let mode = || fs::metadata(place.path("tool")).unwrap().mode() & 0o7777;
    assert_eq!(mode(), 0o6755);
    place.share.open_file(tool, WRITE).unwrap();
    assert_eq!(mode(), 0o755);
    fs::set_permissions(place.path("tool"), fs::Permissions::from_mode(0o6755)).unwrap();
    let set = SetAttributes { size: Some(0), ..SetAttributes::default() };
    place.share.set_attributes(tool, None, &set).unwrap();
    assert_eq!(mode(), 0o755);
}

#[test]
fn descriptors_are_lent_and_nodes_found_again() {
    let mut place = place(Access::ReadWrite);
    let status = attributes::status(fs::File::open(place.path("")).unwrap()).unwrap();
    let root = fs::File::open(place.path("")).unwrap().into();
    place.share.nodes = Nodes::new(root, &status, 8);
    fs::create_dir_all(place.path("deep/er")).unwrap();
    let mut nodes = Vec::new();
    for number in 0..100 {
        let path = format!("deep/er/{number}");
        fs::write(place.path(&path), path.as_bytes()).unwrap();
        nodes.push((place.node(&path), path));
    }
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for _ in 0..2 {
        for (node, path) in &nodes {
            assert_eq!(contents(&place.share, *node).unwrap(), path.as_bytes());
        }
    }
    // Other tests open files, too.
    assert!(open() < before + 60, "{} and {before} descriptors", open());
    // What was moved by us is found, what others replaced is not taken for what it was.
    let (deep, er) = (place.node("deep"), place.node("deep/er"));
    place.share.rename((deep, &name("er")), (ROOT, &name("moved")), Rename(0)).unwrap();
    assert!(nodes.iter().all(|(node, path)| contents(&place.share, *node).unwrap() == path.as_bytes()));
    for (_, path) in &nodes {
        let path = place.path(&path.replace("deep/er", "moved"));
        fs::write(place.path("new"), "another").unwrap();
        fs::rename(place.path("new"), path).unwrap();
    }
    let stale = nodes.iter().filter(|(node, _)| contents(&place.share, *node) == Err(Errno::STALE)).count();
    assert!(stale > 80, "{stale}");
    for (node, _) in &nodes {
        place.share.forget(*node, u64::MAX);
        assert_eq!(place.share.attributes(*node, None), Err(Errno::STALE));
    }
    place.share.forget(er, 1);
    assert!(place.share.attributes(er, None).is_ok(), "looked up more than once");
}

#[test]
fn shares_divide_the_descriptors_among_them() {
    let place = place(Access::ReadOnly);
    fs::write(place.path("file"), "x").unwrap();
    let limit = raise_limit();
    let share = Share::open(&place.path(""), Access::ReadOnly, limit / 4 / 3).unwrap();
    let file = share.lookup(ROOT, &name("file")).unwrap().node;
    let opened = std::iter::repeat_with(|| share.open_file(file, READ)).map_while(Result::ok).count();
    assert_eq!((opened, share.open_file(file, READ)), (3, Err(Errno::NFILE)));
}

#[test]
fn what_a_guest_knows_is_saved_and_found_again() {
    let place = place(Access::ReadWrite);
    fs::create_dir(place.path("dir")).unwrap();
    fs::write(place.path("dir/file"), "hello").unwrap();
    fs::write(place.path("gone"), "x").unwrap();
    let (file, gone) = (place.node("dir/file"), place.node("gone"));
    let (open, lost) =
        (place.share.open_file(file, WRITE).unwrap(), place.share.open_file(gone, READ).unwrap());
    let listing = place.share.open_directory(place.node("dir")).unwrap();
    let saved = place.share.save();
    fs::remove_file(place.path("gone")).unwrap();

    let next = Share::open(&place.path(""), Access::ReadWrite, 1).unwrap();
    next.restore(&saved).unwrap();
    assert_eq!(next.attributes(file, None).unwrap(), place.share.attributes(file, None).unwrap());
    assert_eq!(next.attributes(gone, None), Err(Errno::STALE));
    next.allocate(open, 0, 0, 10).unwrap();
    assert_eq!(fs::metadata(place.path("dir/file")).unwrap().len(), 10);
    assert_eq!(next.sync(lost, false), Err(Errno::BADF));
    next.sync(listing, false).unwrap();
    assert_eq!(next.save().nodes, saved.nodes);
    assert!(next.open_file(file, READ).unwrap() > listing, "numbers are not used again");
    next.restore(&SavedShare::default()).unwrap();
    assert!(next.lookup(ROOT, &name("dir")).unwrap().node > ROOT, "the root's number is nobody else's");
    // A share that may only be read opens nothing for writing, whatever was open before.
    let reader = Share::open(&place.path(""), Access::ReadOnly, 1).unwrap();
    reader.restore(&saved).unwrap();
    assert_eq!(reader.sync(open, false), Err(Errno::BADF));
    next.clear();
    assert_eq!(next.attributes(file, None), Err(Errno::STALE));
    assert!(next.attributes(ROOT, None).is_ok());
}

#[test]
fn attributes_of_users_only() {
    let place = place(Access::ReadWrite);
    fs::write(place.path("file"), "x").unwrap();
    let (share, file) = (&place.share, place.node("file"));
    for other in [c"security.capability", c"trusted.overlay.opaque", c"system.posix_acl_access"] {
        assert_eq!(share.set_extended_attribute(file, other, b"x", 0), Err(Errno::OPNOTSUPP));
        assert_eq!(share.extended_attribute(file, other), Err(Errno::OPNOTSUPP));
    }
    match share.set_extended_attribute(file, c"user.a", b"value", 0) {
        // The host's file system for temporary files has none.
        Err(Errno::OPNOTSUPP) => return,
        set => set.unwrap(),
    }
    assert_eq!(share.extended_attribute(file, c"user.a").unwrap(), b"value");
    assert_eq!(share.extended_attributes(file).unwrap(), b"user.a\0");
    share.remove_extended_attribute(file, c"user.a").unwrap();
    assert_eq!(share.extended_attribute(file, c"user.a"), Err(Errno::NODATA));
}

#[test]
fn what_cannot_be_shared_is_refused_in_a_sentence() {
    let place = place(Access::ReadOnly);
    fs::write(place.path("file"), "x").unwrap();
    let says = |path: &Path| Share::open(path, Access::ReadOnly, 1).unwrap_err().to_string();
    assert!(says(&place.path("file")).contains("not a directory"));
    assert!(says(&place.path("none")).contains("cannot share"));
}
