//! The host and directories as roots, as Debian's kernels see them.
//!
//! Like the other tests with Debian's packages, these say so and pass where those cannot be had.

mod common;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Place, complaint, is_installed, kernels_that_share, skipped, umbra};

fn run(kernel: &str, options: &[&str], command: &[&str]) -> Output {
    let args = [&["run", "--kernel", kernel, "--timeout", "10m"], options, &["--"], command].concat();
    umbra(&args).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_hosts_programs_run_with_their_streams_and_status() {
    for kernel in kernels_that_share() {
        let output = run(kernel, &["host", "--name", "guest", "--rm"], &["uname", "-n"]);
        assert_eq!(
            (text(&output).as_str(), output.status.code()),
            ("guest\n", Some(0)),
            "{}",
            complaint(&output)
        );
        let script = "cat; echo sent >&2; test -t 1 || echo a pipe; exit 7";
        let args = ["run", "host", "--kernel", kernel, "--", "sh", "-c", script];
        let mut vm =
            umbra(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Any byte, and an end.
        let sent: Vec<u8> = (0..=255).chain(b"no newline at the end".iter().copied()).collect();
        vm.stdin.take().unwrap().write_all(&sent).unwrap();
        let output = vm.wait_with_output().unwrap();
        assert_eq!(output.stdout, [&sent[..], b"a pipe\n"].concat());
        assert_eq!((complaint(&output).as_str(), output.status.code()), ("sent\n", Some(7)));
        for (command, status) in [("kill -9 $$", 137), ("/no/such/command", 127), ("exec /etc/passwd", 126)] {
            assert_eq!(
                run(kernel, &["host"], &["sh", "-c", command]).status.code(),
                Some(status),
                "{command}"
            );
        }
        let missing = run(kernel, &["host"], &["no-such-command"]);
        assert_eq!(missing.status.code(), Some(127));
        assert!(complaint(&missing).contains("cannot run 'no-such-command'"));
    }
}

#[test]
fn a_command_runs_where_and_as_whom_it_should() {
    for kernel in kernels_that_share() {
        let script = "pwd; id -u; id -g; echo $HOME $GREETING; cat /proc/sys/kernel/hostname; cat /sys/class/net/lo/operstate; ls -A /umbra 2>&1";
        let options = ["host", "-w", "/usr", "-u", "65534:1", "-e", "GREETING=hello"];
        let output = run(kernel, &options, &["sh", "-c", script]);
        let shown = text(&output);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[..3], ["/usr", "65534", "1"], "{}", complaint(&output));
        assert!(lines[3].ends_with(" hello") && lines[4] == "umbra", "{lines:?}");
        assert_eq!(lines[5], "unknown", "loopback is up, and has no carrier to speak of");
        assert!(lines[6].contains("/umbra"), "nothing is left of how the root came about: {lines:?}");
        for (option, value, says) in [
            ("-w", "/no/where", "no directory '/no/where'"),
            ("-u", "no-such-user", "no user 'no-such-user'"),
        ] {
            let output = run(kernel, &["host", option, value], &["true"]);
            assert_eq!(output.status.code(), Some(125));
            assert!(complaint(&output).contains(says), "{}", complaint(&output));
        }
    }
}

/// What the guest changes stays in the guest, but for what is shared.
#[test]
fn changes_stay_in_the_guest_or_reach_the_host_as_they_should() {
    for kernel in kernels_that_share() {
        let place = Place::new();
        let (shared, kept) = (place.path().join("shared"), place.path().join("kept"));
        fs::create_dir(&shared).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(place.path().join("secret"), "secret").unwrap();
        fs::write(kept.join("file"), "as it was").unwrap();
        symlink("../secret", shared.join("out")).unwrap();
        let (here, work, look) = (
            place.path().to_str().unwrap().to_owned(),
            format!("{}:/work", shared.display()),
            format!("{}:/look:ro", kept.display()),
        );
        let script = format!(
            "echo gone >{here}/mine && cat {here}/mine && rm -r {here}/kept && ls {here}
             cat /look/file; touch /look/new || echo refused; rm /look/file || echo refused
             cd /work && mkdir -p a/b && echo text >a/b/file && ln a/b/file link && mv a/b c && chmod 600 c/file
             ln -s /etc/passwd absolute; cat out && echo followed
             sync && cat c/file && stat -c %a-%h link"
        );
        let options = ["host", "-v", &work, "-v", &look, "--append", "quiet"];
        let output = run(kernel, &options, &["sh", "-c", &script]);
        assert_eq!(output.status.code(), Some(0), "{}", complaint(&output));
        assert_eq!(text(&output), "gone\nmine\nsecret\nshared\nas it wasrefused\nrefused\ntext\n600-2\n");
        assert!(
            !place.path().join("mine").exists() && kept.join("file").exists() && !kept.join("new").exists()
        );
        assert_eq!(fs::read_to_string(shared.join("c/file")).unwrap(), "text\n");
        assert_eq!(fs::read_link(shared.join("absolute")).unwrap().to_str(), Some("/etc/passwd"));
        assert_eq!(fs::read_to_string(place.path().join("secret")).unwrap(), "secret");
    }
}

/// What a guest's root is prepared with is not written to what is shared.
#[test]
fn a_shared_directory_over_etc_stays_as_it_is() {
    let Some(kernel) = kernels_that_share().first() else { return };
    let place = Place::new();
    place.file("resolv.conf", b"the host's\n");
    for access in ["rw", "ro"] {
        let volume = format!("{}:/etc:{access}", place.path().display());
        let output = run(kernel, &["host", "-v", &volume], &["cat", "/etc/resolv.conf"]);
        assert_eq!(text(&output), "the host's\n", "{access}: {}", complaint(&output));
    }
    assert_eq!(fs::read_to_string(place.path().join("resolv.conf")).unwrap(), "the host's\n");
}

#[test]
fn what_is_copied_in_and_out_is_the_same() {
    const BYTES: usize = 64 << 20;
    for kernel in kernels_that_share() {
        let place = Place::new();
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let bytes: Vec<u8> = (0..BYTES).map(|_| random()).collect();
        place.file("in", &bytes);
        let volume = format!("{}:/work", place.path().display());
        // In pages through the cache, odd pieces, and past the cache.
        let script = "cp in one && dd if=in of=two bs=12345 2>/dev/null && dd if=in of=three bs=1M oflag=direct 2>/dev/null && cat in | sha256sum && sha256sum <in";
        let output = run(kernel, &["host", "-v", &volume, "-w", "/work"], &["sh", "-c", script]);
        assert_eq!(output.status.code(), Some(0), "{}", complaint(&output));
        for copy in ["one", "two", "three"] {
            assert!(fs::read(place.path().join(copy)).unwrap() == bytes, "{copy}");
        }
        let sums = text(&output);
        let sums: Vec<&str> = sums.lines().collect();
        assert_eq!((sums.len(), sums[0]), (2, sums[1]));
    }
}

#[test]
fn a_project_is_built() {
    if !["make", "cc"].into_iter().all(is_installed) {
        return;
    }
    let Some(kernel) = kernels_that_share().first() else { return };
    let place = Place::new();
    place.file("Makefile", b"prog: main.o twice.o\n\t$(CC) -o $@ $^\nmain.o twice.o: twice.h\n");
    place.file("twice.h", b"int twice(int);\n");
    place.file("twice.c", b"#include \"twice.h\"\nint twice(int n) { return 2 * n; }\n");
    place.file(
        "main.c",
        b"#include <stdio.h>\n#include \"twice.h\"\nint main(void) { return printf(\"%d\\n\", twice(21)) != 3; }\n",
    );
    let volume = format!("{}:/work", place.path().display());
    let output = run(kernel, &["host", "-v", &volume], &["sh", "-c", "cd /work && make -s && ./prog"]);
    assert_eq!((text(&output).as_str(), output.status.code()), ("42\n", Some(0)), "{}", complaint(&output));
    // What was built there runs here.
    assert_eq!(Command::new(place.path().join("prog")).output().unwrap().stdout, b"42\n");
    let again = run(kernel, &["host", "-v", &volume], &["make", "-C", "/work"]);
    assert!(text(&again).contains("up to date"), "times are the host's: {}", text(&again));
}

/// A root of a single program that needs no libraries.
#[test]
fn a_directory_is_a_root() {
    let Some(kernel) = kernels_that_share().first() else { return };
    // `umbra fetch` gets it beside the kernel.
    let entries = Path::new(kernel).parent().and_then(Path::parent).unwrap();
    let busybox = entries.join("busybox-static/busybox");
    if !busybox.is_file() {
        skipped("busybox is not in the cache");
        return;
    }
    let place = Place::new();
    let root = place.path().join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/sh")).unwrap();
    let script = "busybox ls /; echo new >/file; busybox cat /file; busybox id -u";
    let output = run(kernel, &[root.to_str().unwrap()], &["sh", "-c", script]);
    assert_eq!(output.status.code(), Some(0), "{}", complaint(&output));
    assert_eq!(text(&output), "bin\ndev\nproc\nrun\nsys\ntmp\nnew\n0\n");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1, "the directory is as it was");
}

/// The guest's network is set up by what is known of it beforehand.
#[test]
fn the_hosts_programs_reach_the_network() {
    if !is_installed("bash") {
        return;
    }
    let Some(kernel) = kernels_that_share().first() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server =
        std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"from the host\n").unwrap());
    let script = format!("cat </dev/tcp/10.0.2.2/{port}; cat /etc/resolv.conf");
    let output = run(kernel, &["host"], &["bash", "-c", &script]);
    assert_eq!(text(&output), "from the host\nnameserver 10.0.2.3\n", "{}", complaint(&output));
    server.join().unwrap();
    let only_v4 = ["host", "--append", "ipv6.disable=1"];
    let output = run(kernel, &only_v4, &["cat", "/etc/resolv.conf"]);
    assert_eq!(text(&output), "nameserver 10.0.2.3\n", "{}", complaint(&output));
    let none = run(kernel, &["host", "--net", "none"], &["ls", "/sys/class/net"]);
    assert_eq!(text(&none), "lo\n", "{}", complaint(&none));
}
