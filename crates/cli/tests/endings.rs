//! How a VM can end, and what umbra exits with.

mod common;

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

use common::{DEBUG_EXIT, ECHO, HANG, POWER_OFF, Place, TRIPLE_FAULT, complaint, kernel};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn the_guest_ends_it() {
    let place = Place::new();
    assert_eq!(place.run(POWER_OFF, &[]).status.code(), Some(0));
    assert_eq!(place.run(DEBUG_EXIT, &["--debug-exit"]).status.code(), Some(7));
    let crash = place.run(TRIPLE_FAULT, &[]);
    assert_eq!(crash.status.code(), Some(139));
    let text = complaint(&crash);
    assert!(text.contains("triple fault") && text.to_lowercase().contains("rip"), "{text}");
}

#[test]
fn without_debug_exit_the_port_is_not_there() {
    let place = Place::new();
    assert_eq!(place.run(DEBUG_EXIT, &["--timeout", "2s"]).status.code(), Some(124));
}

#[test]
fn the_time_is_up() {
    let output = Place::new().run(HANG, &["--timeout", "500ms"]);
    assert_eq!(output.status.code(), Some(124));
    assert!(complaint(&output).contains("--timeout"));
}

/// Starts the echo with pipes, once it has answered.
fn start_echo(place: &Place) -> Child {
    place.file("guest", &kernel(ECHO));
    let mut child = place
        .umbra(&["run", "guest", "-m", "16M"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(b"!").unwrap();
    let mut answer = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"!");
    child
}

#[test]
fn signals_end_it() {
    let place = Place::new();
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut child = start_echo(&place);
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(status));
    }
}

#[test]
fn a_reader_that_goes_ends_it() {
    let place = Place::new();
    let mut child = start_echo(&place);
    drop(child.stdout.take());
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn any_byte_goes_through_a_pipe_both_ways() {
    let place = Place::new();
    let mut child = start_echo(&place);
    let bytes: Vec<u8> =
        (0..20_000_u32).map(|n| (n * 7 + n / 256) as u8).filter(|byte| *byte != b'q').collect();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || {
        stdin.write_all(&sent).unwrap();
        // A reader that is slow at times.
        std::thread::sleep(Duration::from_millis(50));
        stdin.write_all(b"q").unwrap();
    });
    let mut answer = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut answer).unwrap();
    writer.join().unwrap();
    assert_eq!(answer.pop(), Some(b'q'));
    assert!(answer == bytes, "{} bytes came back of {}", answer.len(), bytes.len());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
