//! What umbra refuses: status 125, one sentence that says what to do, and nothing left behind.

mod common;

use common::{HANG, Place, complaint, kernel};

/// Runs and expects one sentence with all of `words` in it.
#[track_caller]
fn refuses(place: &Place, args: &[&str], words: &[&str]) {
    let output = place.umbra(args).output().unwrap();
    let text = complaint(&output);
    assert_eq!(output.status.code(), Some(125), "{args:?}: {text}");
    assert!(output.stdout.is_empty());
    let sentences: Vec<&str> = text.lines().collect();
    assert_eq!(sentences.len(), 1, "{args:?}: {text}");
    assert!(sentences[0].starts_with("umbra: "), "{text}");
    for word in words {
        assert!(text.contains(word), "{args:?}: no '{word}' in: {text}");
    }
}

#[test]
fn files_that_are_no_kernels() {
    let place = Place::new();
    place.file("text", b"#!/bin/sh\necho hello\n");
    place.file("empty", b"");
    place.file("noise", &[0xa5; 4096]);
    refuses(&place, &["run", "nowhere"], &["'nowhere'", "does not exist", "after '--'"]);
    refuses(&place, &["run", "text"], &["text"]);
    refuses(&place, &["run", "empty"], &["'empty'", "is empty"]);
    refuses(&place, &["run", "noise"], &["noise"]);
}

#[test]
fn kernels_that_cannot_be_loaded() {
    let place = Place::new();
    place.file("guest", &kernel(HANG));
    place.file("half", &kernel(HANG)[..24]);
    place.file("huge", &vec![0; 17 << 20]);
    refuses(&place, &["run", "half"], &["half"]);
    refuses(&place, &["run", "huge", "-m", "16M"], &["'huge'", "larger than", "--memory"]);
    refuses(
        &place,
        &["run", "guest", "-m", "16M", "--initrd", "huge"],
        &["'huge'", "larger than", "--memory"],
    );
    refuses(&place, &["run", "guest", "--initrd", "none"], &["initrd 'none' does not exist"]);
}

#[test]
fn options_that_make_no_sense() {
    let place = Place::new();
    place.file("guest", &kernel(HANG));
    refuses(&place, &["run", "-m", "1M"], &["--memory", "1 MiB", "too little", "at least 2 MiB"]);
    refuses(&place, &["run", "-m", "512"], &["--memory", "no unit", "512M"]);
    refuses(&place, &["run", "-c", "0"], &["--cpus", "from 1 to 64 CPUs"]);
    refuses(&place, &["run", "-c", "65"], &["--cpus", "from 1 to 64 CPUs"]);
    refuses(&place, &["run", "--cpu", "pentium"], &["--cpu", "pentium", "v2, v3, max or host"]);
    refuses(&place, &["run", "--engine", "kvm"], &["--engine", "auto, bt, interp or lockstep"]);
    refuses(&place, &["run", "--code-cache", "4K"], &["--code-cache", "4 KiB", "1 MiB to 1 GiB"]);
    refuses(&place, &["run", "--stats=xml"], &["--stats", "xml"]);
    refuses(&place, &["debug", "block", "4x"], &["pairs of hexadecimal digits"]);
    refuses(&place, &["debug", "block", "--file", "none"], &["cannot read 'none'"]);
    refuses(&place, &["debug", "block", "--at", "0x401fff", "48", "8b"], &["in its page"]);
    refuses(&place, &["run", "--timeout", "soon"], &["--timeout", "90s"]);
    refuses(&place, &["run", "--name", "a b"], &["--name", "hyphens"]);
    refuses(&place, &["run", "--nonsense"], &["--nonsense", "--help"]);
    refuses(&place, &["run", "guest", "--", "ls"], &["CMD", "--kernel"]);
    refuses(&place, &["run", "guest", "--kernel", "guest"], &["--kernel"]);
    refuses(&place, &["fetch", "--", "-o=x"], &["not a package name"]);
    refuses(&place, &["frobnicate"], &["frobnicate"]);
}

/// No package manager, so nothing can be fetched, and there is nothing in the cache.
#[test]
fn no_cache_and_no_way_to_fill_it() {
    let place = Place::new();
    let mut command = place.umbra(&["run", "--", "true"]);
    let output = command.env("PATH", place.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let text = complaint(&output);
    assert!(text.contains("newest cloud kernel") && text.contains("SOURCE"), "{text}");
    assert_eq!(files_below(place.path()), 0, "something was left behind");
}

/// No network: every package mirror is a port where nobody listens.
#[test]
fn no_cache_and_no_network() {
    let place = Place::new();
    let mut command = place.umbra(&["run", "--", "true"]);
    command.env("http_proxy", "http://127.0.0.1:9").env("https_proxy", "http://127.0.0.1:9");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let text = complaint(&output);
    let last = text.lines().last().unwrap_or_default();
    assert!(last.starts_with("umbra: cannot get Debian's newest cloud kernel"), "{text}");
    let debian = place.path().join("cache/umbra/debian");
    assert_eq!(files_below(&debian), 0, "something was left behind");
}

fn files_below(path: &std::path::Path) -> usize {
    let Ok(items) = std::fs::read_dir(path) else { return 0 };
    items
        .map(|item| item.unwrap().path())
        .map(|path| if path.is_dir() { files_below(&path) } else { 1 })
        .sum()
}
