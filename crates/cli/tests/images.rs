//! `umbra disk`, with QEMU's tool as a judge where there is one.

mod common;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Place, complaint, is_installed};

const QEMU_IMG: &str = "qemu-img";

/// Runs `umbra disk` in a place: its status, and all it said.
fn disk(place: &Place, args: &[&str]) -> (Option<i32>, String) {
    let output = place.umbra(&[&["disk"], args].concat()).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), out + &complaint(&output))
}

/// The same, which is to succeed.
fn done(place: &Place, args: &[&str]) -> String {
    let (status, said) = disk(place, args);
    assert_eq!(status, Some(0), "{args:?}: {said}");
    said
}

fn qemu_img(place: &Place, args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(QEMU_IMG).args(args).current_dir(place.path()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// A disk with something here and there.
fn sparse(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(300 << 20).unwrap();
    for at in [0, 77 << 20, (200 << 20) + 12_345 * 512, (300 << 20) - 4096] {
        file.write_all_at(&(at..at + 4096).map(|n| (n % 251) as u8 + 1).collect::<Vec<_>>(), at).unwrap();
    }
}

/// Files in a place, by name.
fn files(place: &Place) -> Vec<String> {
    let items = std::fs::read_dir(place.path()).unwrap();
    let mut names: Vec<_> =
        items.map(|item| item.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn images_are_made_looked_at_and_made_upon_others() {
    let place = Place::new();
    done(&place, &["create", "a.img", "10M"]);
    done(&place, &["create", "b.qcow2", "1.5G"]);
    done(&place, &["create", "c", "64K", "--format=qcow2"]);
    done(&place, &["create", "up.qcow2", "--backing", "b.qcow2"]);
    done(&place, &["create", "larger.img", "2G", "--backing", "a.img"]);
    let info = |image: &str| done(&place, &["info", image]);
    assert_eq!(std::fs::metadata(place.path().join("a.img")).unwrap().size(), 10 << 20);
    assert!(
        info("a.img").contains("format    raw\ndisk      10 MiB (10485760 bytes)\n"),
        "{}",
        info("a.img")
    );
    assert!(info("b.qcow2").contains("qcow2, version 3, clusters of 64 KiB\ndisk      1536 MiB"));
    assert!(info("up.qcow2").contains("upon      b.qcow2 (qcow2)\n"), "{}", info("up.qcow2"));
    assert!(info("larger.img,format=qcow2").contains("disk      2 GiB"));
    let mode = std::fs::metadata(place.path().join("a.img")).unwrap().mode();
    assert_eq!(mode & 0o600, 0o600);
    for (args, says) in [
        (&["create", "a.img", "1M"][..], "exists already"),
        (&["create", "d.img", "512"], "unit"),
        (&["create", "d.img", "0K"], "not 0"),
        (&["create", "d.qcow2", "4000T"], "no image in this format"),
        (&["create", "d.img", "--format=raw", "--backing", "a.img"], "only qcow2"),
        (&["create", "d.img", "--backing", "none"], "none"),
        (&["create", "d.img"], "<SIZE> (see 'umbra disk create --help')"),
        (&["create", "no/d.img", "1M"], "cannot make 'no/d.img': there is no directory 'no'"),
        (&["info", "c"], "format=qcow2"),
        (&["info", "a.img,ro"], "only ',format="),
        (&["convert", "none", "d.img"], "none"),
        (&["convert", "a.img", "b.qcow2"], "exists already"),
    ] {
        let (status, said) = disk(&place, args);
        assert!(status == Some(125) && said.contains(says) && said.lines().count() == 1, "{args:?}: {said}");
    }
    assert_eq!(files(&place), ["a.img", "b.qcow2", "c", "larger.img", "up.qcow2"], "nothing is left behind");
    if is_installed(QEMU_IMG) {
        for image in ["b.qcow2", "c", "up.qcow2", "larger.img"] {
            let (status, said) = qemu_img(&place, &["check", "-f", "qcow2", image]);
            assert_eq!(status, Some(0), "{image}: {said}");
        }
        let (_, said) = qemu_img(&place, &["info", "--backing-chain", "-f", "qcow2", "larger.img"]);
        assert!(said.contains("backing file: a.img") && said.contains("virtual size: 2 GiB"), "{said}");
    }
}

#[test]
fn what_is_converted_is_the_same_and_zeros_take_no_room() {
    let place = Place::new();
    sparse(&place.path().join("a.img"));
    done(&place, &["convert", "a.img", "b.qcow2"]);
    done(&place, &["create", "up.qcow2", "--backing", "b.qcow2"]);
    done(&place, &["convert", "up.qcow2", "c.img"]);
    done(&place, &["convert", "c.img", "d", "--format=qcow2"]);
    done(&place, &["convert", "d,format=qcow2", "e.img"]);
    for name in ["b.qcow2", "c.img", "d", "e.img"] {
        let room = std::fs::metadata(place.path().join(name)).unwrap().blocks() * 512;
        assert!(room < 2 << 20, "{name}: {room}");
    }
    let bytes = |name: &str| std::fs::read(place.path().join(name)).unwrap();
    let first = bytes("a.img");
    assert!(bytes("c.img") == first && bytes("e.img") == first);
    if is_installed(QEMU_IMG) {
        for image in ["b.qcow2", "d"] {
            let (status, said) = qemu_img(&place, &["compare", "-f", "raw", "-F", "qcow2", "a.img", image]);
            assert_eq!(status, Some(0), "{said}");
        }
        // As images are delivered: compressed.
        qemu_img(&place, &["convert", "-c", "-O", "qcow2", "a.img", "z.qcow2"]);
        done(&place, &["convert", "z.qcow2", "z.img"]);
        assert!(bytes("z.img") == first);
    }
}

/// The count of a cluster, in the first block of counts of images as they are made here and by QEMU.
fn set_count(image: &Path, cluster: u64, count: u16) {
    let file = File::options().write(true).open(image).unwrap();
    file.write_all_at(&count.to_be_bytes(), (2 << 16) + cluster * 2).unwrap();
}

#[test]
fn checks_say_what_qemu_says_and_repair_what_it_repairs() {
    let place = Place::new();
    let judge = is_installed(QEMU_IMG);
    sparse(&place.path().join("a.img"));
    let path = |name: &str| place.path().join(name);
    let mut images = vec!["new.qcow2"];
    done(&place, &["convert", "a.img", "new.qcow2"]);
    if judge {
        // Of version 2, which cannot say that it was not closed.
        qemu_img(&place, &["convert", "-O", "qcow2", "-o", "compat=0.10", "a.img", "old.qcow2"]);
        images.push("old.qcow2");
    }
    let statuses = |image: &str| {
        let (ours, said) = disk(&place, &["check", image]);
        if judge {
            let (theirs, theirs_said) = qemu_img(&place, &["check", "-f", "qcow2", image]);
            assert_eq!(ours, theirs, "{said} {theirs_said}");
        }
        (ours, said)
    };
    for image in images {
        assert_eq!(statuses(image).0, Some(0));
        // A cluster behind all that are used, in a file that has it: lost space.
        let clusters = path(image).metadata().unwrap().size().div_ceil(1 << 16);
        File::options().write(true).open(path(image)).unwrap().set_len((clusters + 1) << 16).unwrap();
        set_count(&path(image), clusters, 1);
        let (status, said) = statuses(image);
        assert!(status == Some(3) && said.starts_with("1 clusters are counted and not used"), "{said}");
        // One that is used is not counted: dangerous.
        set_count(&path(image), 4, 0);
        let before = std::fs::read(path(image)).unwrap();
        assert_eq!(statuses(image).0, Some(2));
        assert!(std::fs::read(path(image)).unwrap() == before, "a check changes nothing");
        let said = done(&place, &["check", "--repair", image]);
        assert!(said.ends_with("the refcounts are right now\n"), "{said}");
        assert_eq!(statuses(image), (Some(0), "the image is in order\n".to_owned()));
        done(&place, &["convert", image, &format!("{image}.img")]);
        let same =
            std::fs::read(path(&format!("{image}.img"))).unwrap() == std::fs::read(path("a.img")).unwrap();
        assert!(same, "{image}");
    }
    // A table that leads out of the file cannot be repaired.
    let l1 = 3 << 16;
    let bad = File::options().write(true).open(path("new.qcow2")).unwrap();
    bad.write_all_at(&(1u64 << 63 | 1 << 40).to_be_bytes(), l1).unwrap();
    assert_eq!(statuses("new.qcow2").0, Some(2));
    let (status, said) = disk(&place, &["check", "--repair", "new.qcow2"]);
    assert!(status == Some(2) && said.contains("umbra disk convert"), "{said}");
    assert_eq!(disk(&place, &["check", "a.img"]).0, Some(63));
    for nothing in ["none", "."] {
        assert_eq!(disk(&place, &["check", nothing]).0, Some(1), "{nothing}");
    }
}

/// A copy that is killed leaves nothing behind.
#[test]
fn nothing_half_written_gets_a_name() {
    let place = Place::new();
    let file = File::create(place.path().join("a.img")).unwrap();
    for piece in 0..200u64 {
        file.write_all_at(&vec![7; 1 << 20], piece << 20).unwrap();
    }
    let mut copy = place.umbra(&["disk", "convert", "a.img", "b.img"]).spawn().unwrap();
    // It is at work then: it makes 200 MiB durable.
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(files(&place), ["a.img"]);
    copy.kill().unwrap();
    if !copy.wait().unwrap().success() {
        assert_eq!(files(&place), ["a.img"]);
    }
    done(&place, &["convert", "a.img", "c.img"]);
}
