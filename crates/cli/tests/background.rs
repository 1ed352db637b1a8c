//! VMs in the background and from outside: the commands that name them.

mod common;

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{ECHO, HANG, KERNELS, Vms, complaint, debian_kernel, kernel, kernels_that_share, umbra};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_vm_is_listed_attached_to_and_remembered() {
    let vms = Vms::new();
    vms.start("box", ECHO);
    assert_eq!(vms.says(&["ps", "-q"]), "box\n");
    let table = vms.says(&["ps"]);
    assert!(table.starts_with("NAME") && table.contains("Up ") && table.contains("guest"), "{table}");
    assert_eq!(vms.inspect("box")["state"], "running");
    let console = vms.console("box", b"hello q");
    assert_eq!((console.stdout.as_slice(), console.status.code()), (&b"hello q"[..], Some(0)));
    assert_eq!(vms.says(&["wait", "box"]), "0\n");
    assert_eq!(vms.says(&["logs", "box"]), "hello q");
    assert_eq!(vms.says(&["ps", "-q"]), "");
    let listed: serde_json::Value =
        serde_json::from_str(&vms.says(&["ps", "-a", "--format", "json"])).unwrap();
    assert_eq!(
        (&listed["name"], &listed["state"], &listed["status"]),
        (&"box".into(), &"exited".into(), &0.into())
    );
    assert!(vms.refuses(&["run", "-d", "--name", "box", "guest"], 125).contains("umbra rm box"));
    assert!(vms.refuses(&["console", "box"], 1).contains("has ended"));
    assert_eq!(vms.says(&["stop", "box"]), "box\n", "it is off already, as docker has it");
    assert_eq!(vms.says(&["rm", "box"]), "box\n");
    assert_eq!(vms.says(&["ps", "-aq"]), "");
}

#[test]
fn a_log_is_followed_to_the_end() {
    let vms = Vms::new();
    vms.start("box", ECHO);
    let follower = vms.command(&["logs", "-f", "box"]).stdout(Stdio::piped()).spawn().unwrap();
    // More than the log keeps in one file.
    let mut bytes: Vec<u8> = (0..100_000).map(|n| b"\n0123456789"[n % 11]).collect();
    bytes.push(b'q');
    let console = vms.console("box", &bytes);
    assert!(console.stdout == bytes && console.status.code() == Some(0));
    assert!(follower.wait_with_output().unwrap().stdout == bytes);
    assert_eq!(
        vms.says(&["logs", "--tail", "1", "box"]),
        String::from_utf8_lossy(&bytes).lines().last().unwrap()
    );
}

#[test]
fn a_paused_vm_stands_still() {
    let vms = Vms::new();
    vms.start("box", ECHO);
    assert_eq!(vms.says(&["pause", "box"]), "box\n");
    assert_eq!(vms.inspect("box")["state"], "paused");
    assert!(vms.says(&["ps"]).contains("(paused)"));
    assert!(vms.refuses(&["pause", "box"], 1).contains("paused already"));
    let sample = || -> serde_json::Value {
        serde_json::from_str(&vms.says(&["stats", "--no-stream", "--format", "json", "box"])).unwrap()
    };
    let (first, second) = (sample(), sample());
    assert_eq!(first["counters"]["guest_time_ns"], second["counters"]["guest_time_ns"]);
    assert_eq!(vms.says(&["unpause", "box"]), "box\n");
    assert!(vms.refuses(&["resume", "box"], 1).contains("not paused"));
    assert!(vms.says(&["stats", "--no-stream"]).contains("box "));
    let after = sample();
    assert!(after["counters"]["guest_time_ns"].as_u64() > second["counters"]["guest_time_ns"].as_u64());
}

#[test]
fn who_does_not_listen_is_ended() {
    let vms = Vms::new();
    vms.start("a", HANG);
    vms.start("b", HANG);
    vms.start("c", HANG);
    assert!(vms.refuses(&["rm", "a"], 1).contains("runs"));
    assert_eq!(vms.says(&["pause", "a"]), "a\n");
    assert_eq!(vms.says(&["stop", "--timeout", "100ms", "a"]), "a\n");
    assert_eq!(vms.says(&["kill", "b"]), "b\n");
    assert_eq!(vms.says(&["wait", "a", "b"]), "137\n137\n");
    assert!(vms.refuses(&["kill", "b"], 1).contains("has ended"));
    assert_eq!(vms.says(&["rm", "--force", "a", "b", "c"]), "a\nb\nc\n");
    assert_eq!(vms.says(&["ps", "-aq"]), "");
}

/// The process of a VM dies without a word.
#[track_caller]
fn slay(vms: &Vms, name: &str) {
    let pid = vms.inspect(name)["pid"].as_i64().unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let mut waiting =
        vms.command(&["wait", name]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    // Whoever waits is not left waiting.
    waiting.wait().unwrap();
    // A process takes a while to die.
    let started = Instant::now();
    while vms.says(&["ps", "-q"]).lines().any(|line| line == name) {
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}

#[test]
fn the_dead_are_noticed() {
    let vms = Vms::new();
    vms.start("kept", HANG);
    assert_eq!(vms.says(&["run", "-d", "guest", "-m", "16M"]), "vm1\n");
    slay(&vms, "kept");
    slay(&vms, "vm1");
    assert_eq!(vms.says(&["ps", "-q"]), "");
    assert_eq!(vms.says(&["ps", "-aq"]), "kept\n");
    assert_eq!(vms.says(&["wait", "kept"]), "137\n");
    assert!(!vms.0.path().join("runtime/umbra/vm1").exists());
}

#[test]
fn a_vm_in_the_foreground_is_seen_too() {
    let vms = Vms::new();
    vms.0.file("guest", &kernel(HANG));
    let mut vm = vms.command(&["run", "guest", "-m", "16M"]).stdout(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while vms.says(&["ps", "-q"]) != "vm1\n" {
        assert!(started.elapsed() < Duration::from_secs(60));
    }
    for command in ["console", "logs"] {
        assert!(vms.refuses(&[command, "vm1"], 1).contains("background"));
    }
    assert_eq!(vms.says(&["kill", "vm1"]), "vm1\n");
    assert_eq!(vm.wait().unwrap().code(), Some(137));
    assert_eq!(vms.says(&["ps", "-aq"]), "");
}

#[test]
fn what_cannot_be_done_is_said() {
    let vms = Vms::new();
    vms.start("database", HANG);
    assert!(vms.refuses(&["pause", "databse"], 1).contains("did you mean 'database'"));
    for command in ["console", "logs", "stop", "kill", "resume", "wait", "rm", "stats"] {
        let why = vms.refuses(&[command, "web"], 1);
        assert!(why.contains("no VM 'web'"), "{command}: {why}");
    }
    let both = vms.umbra(&["pause", "web", "database"]);
    assert_eq!((both.stdout.as_slice(), both.status.code()), (&b"database\n"[..], Some(1)));
    // What fails on the way into the background is said where it was asked for.
    assert!(vms.refuses(&["run", "-d", "--name", "x", "nowhere"], 125).contains("'nowhere'"));
    vms.0.file("noise", &[0xa5; 4096]);
    assert!(vms.refuses(&["run", "-d", "--name", "x", "noise"], 125).contains("noise"));
    assert_eq!(vms.says(&["ps", "-aq"]), "database\n");
    std::fs::set_permissions(
        vms.0.path().join("runtime/umbra"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    assert!(vms.refuses(&["ps"], 125).contains("only you"));
    std::fs::set_permissions(
        vms.0.path().join("runtime/umbra"),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
}

/// Starts a command in a guest of ours, waits until it has printed its first line, stops it; its log and its status.
fn stopped(vms: &Vms, options: &[&str], script: &str) -> (Output, String) {
    let runtime = vms.0.path().join("runtime");
    // Debian's kernels are in the user's cache.
    let with_cache = |args: &[&str]| {
        let mut command = umbra(args);
        command.env("XDG_RUNTIME_DIR", &runtime);
        command
    };
    let args = [&["run", "-d", "--name", "guest", "--timeout", "10m"], options, &["--", "sh", "-c", script]]
        .concat();
    let output = with_cache(&args).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", complaint(&output));
    let mut log = with_cache(&["logs", "-f", "guest"]).stdout(Stdio::piped()).spawn().unwrap();
    log.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    vms.says(&["stop", "--timeout", "5m", "guest"]);
    log.wait().unwrap();
    let status = vms.says(&["wait", "guest"]);
    let output = vms.umbra(&["logs", "guest"]);
    vms.says(&["rm", "guest"]);
    (output, status)
}

#[test]
fn a_command_is_asked_to_end_and_says_how() {
    let script = "trap 'echo bye >&2; exit 5' TERM; cat; echo ready; while :; do sleep 0.1; done";
    let vms = Vms::new();
    let ours = KERNELS.iter().filter_map(|package| debian_kernel(package)).map(|kernel| (None, kernel));
    let shared = kernels_that_share().iter().map(|kernel| (Some("host"), kernel.clone()));
    for (source, kernel) in ours.chain(shared) {
        let options: Vec<&str> = source.into_iter().chain(["--kernel", kernel.as_str()]).collect();
        let (log, status) = stopped(&vms, &options, script);
        assert_eq!((log.stdout.as_slice(), status.as_str()), (&b"ready\n"[..], "5\n"), "{options:?}");
        assert!(complaint(&log).contains("bye\n"), "{}", complaint(&log));
        let (_, status) = stopped(&vms, &options, "echo ready; exec sleep 1000");
        assert_eq!(status, "143\n", "{options:?}");
    }
}

/// A guest in the background whose root is the host's, with a command that does nothing, ready to run others.
struct Host {
    vms: Vms,
}

impl Host {
    fn start(kernel: &str) -> Self {
        let host = Self { vms: Vms::new() };
        let args = ["run", "-d", "--name", "box", "host", "--kernel", kernel, "--timeout", "10m"];
        let mut run = host.umbra(&[&args[..], &["-e", "A=b", "-w", "/usr", "--", "sleep", "1000"]].concat());
        assert_eq!(String::from_utf8_lossy(&run.output().unwrap().stdout), "box\n");
        // It boots still, and is waited for.
        assert!(complaint(&host.exec(&["--wait", "0"], &["true"], b"")).contains("not yet"));
        assert_eq!(host.exec(&["--wait", "120"], &["true"], b"").status.code(), Some(0));
        host
    }

    /// The command with the user's cache, where Debian's kernels are.
    fn umbra(&self, args: &[&str]) -> Command {
        let mut command = umbra(args);
        command.env("XDG_RUNTIME_DIR", self.vms.0.path().join("runtime"));
        command
    }

    fn exec(&self, options: &[&str], command: &[&str], input: &[u8]) -> Output {
        let args = [&["exec"], options, &["box"], command].concat();
        let mut child = self
            .umbra(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
        let typist = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        typist.join().unwrap();
        output
    }
}

#[test]
fn files_are_copied_to_a_guest_that_runs_and_back() {
    let Some(kernel) = kernels_that_share().first() else { return };
    let host = Host::start(kernel);
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("{}/{name}", here.path().display());
    let cp = |source: &str, target: &str| host.umbra(&["cp", source, target]).output().unwrap();
    std::fs::create_dir_all(at("src/deep")).unwrap();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(at("src/deep/file"), &bytes).unwrap();
    std::os::unix::fs::symlink("deep/file", at("src/link")).unwrap();

    let (src, back) = (at("src"), at("back"));
    for (source, target) in [(&*src, "box:/tmp"), ("box:/tmp/src", &*back), ("box:tmp/src/.", &src)] {
        let output = cp(source, target);
        assert_eq!(output.status.code(), Some(0), "{source}: {}", complaint(&output));
    }
    for name in ["back/deep/file", "back/link", "src/link"] {
        assert!(std::fs::read(at(name)).unwrap() == bytes, "{name}");
    }
    assert_eq!(std::fs::read_link(at("back/link")).unwrap().to_str(), Some("deep/file"));

    let archive = cp("box:/tmp/src/link", "-").stdout;
    let mut sent = host.umbra(&["cp", "-", "box:/root"]).stdin(Stdio::piped()).spawn().unwrap();
    sent.stdin.take().unwrap().write_all(&archive).unwrap();
    assert!(sent.wait().unwrap().success());
    assert_eq!(host.exec(&[], &["readlink", "/root/link"], b"").stdout, b"deep/file\n");

    let absent = at("absent");
    for (source, target, why) in [
        ("box:/no/such", &*absent, "/no/such"),
        (&*absent, "box:/tmp", "absent"),
        ("box:/etc/passwd", &*at("absent/"), "make it first"),
        (&*src, "box:/etc/passwd", "is a file"),
        ("box:/dev/null", &absent, "is not copied"),
        ("box:/a", "box:/b", "both"),
        ("box:", &absent, "no path"),
        ("bix:/a", &absent, "did you mean 'box'"),
    ] {
        let output = cp(source, target);
        let text = complaint(&output);
        assert!(output.status.code() == Some(1) && text.contains(why), "{source} {target}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!std::fs::exists(&absent).unwrap());
    }
}

#[test]
fn commands_run_in_a_guest_that_runs() {
    for kernel in kernels_that_share() {
        let host = Host::start(kernel);
        let said = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
        // As the main command runs, with no input.
        let output = host.exec(&[], &["sh", "-c", "pwd; echo $A; echo err >&2; cat; exit 9"], b"nobody's");
        let seen = (said(&output), complaint(&output), output.status.code());
        assert_eq!(seen, ("/usr\nb\n".to_owned(), "err\n".to_owned(), Some(9)));
        let options = ["-i", "-e", "C=d", "-w", "/tmp", "-u", "1234:5678"];
        let output = host.exec(&options, &["sh", "-c", "pwd; id -u; id -g; echo $A$C; cat"], b"input");
        assert_eq!(said(&output), "/tmp\n1234\n5678\nbd\ninput");
        for (command, status) in
            [("kill -9 $$", 137), ("exec /no/such/command", 127), ("sleep 999 & exit 3", 3)]
        {
            assert_eq!(host.exec(&[], &["sh", "-c", command], b"").status.code(), Some(status), "{command}");
        }
        let missing = host.exec(&[], &["no-such-command"], b"");
        assert!(missing.status.code() == Some(127) && complaint(&missing).contains("cannot run"));
        let nobody = host.exec(&["-u", "no-such-user"], &["true"], b"");
        assert!(nobody.status.code() == Some(125) && complaint(&nobody).contains("no user"));
        assert!(complaint(&host.exec(&["-t"], &["true"], b"")).contains("needs a terminal"));
    }
}

#[test]
fn streams_are_whole_and_do_not_hold_each_other_up() {
    let Some(kernel) = kernels_that_share().first() else { return };
    let host = Host::start(kernel);
    // One that nobody reads, longer than all that is kept on the way.
    let mut stuck = host.umbra(&["exec", "box", "cat", "/dev/zero"]).stdout(Stdio::piped()).spawn().unwrap();
    stuck.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let bytes: Vec<u8> = (0..4_000_000_u32).map(|n| (n * 7 + n / 256) as u8).collect();
    let output = host.exec(&["-i"], &["cat"], &bytes);
    assert!(output.stdout == bytes, "{} of {} bytes", output.stdout.len(), bytes.len());
    // Input that nobody reads.
    let output = host.exec(&["-i"], &["true"], &bytes);
    assert_eq!(output.status.code(), Some(0));
    let killed = host.umbra(&["exec", "box", "sleep", "1000"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    host.vms.says(&["kill", "box"]);
    assert_eq!(killed.wait_with_output().unwrap().status.code(), Some(137));
    drop(stuck.stdout.take());
    stuck.wait().unwrap();
}

#[test]
fn guests_that_run_no_commands_say_so() {
    let vms = Vms::new();
    vms.start("box", HANG);
    assert!(vms.refuses(&["exec", "box", "true"], 1).contains("umbra run host"));
    assert!(vms.refuses(&["exec", "bix", "true"], 1).contains("did you mean 'box'"));
}
