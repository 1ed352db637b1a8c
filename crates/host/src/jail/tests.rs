//! What a jail lets nobody do, tried in processes of their own: a jail is for good.
//!
//! Each case is this test program, run again for one hidden test, whose thread becomes a process of one thread (fork(2)). Nothing
//! else goes on there meanwhile, so no lock is held that the new process would wait for.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::*;
use crate::thread::spawn;

/// Says which case a process of its own is to try, and with which role.
const CASE: &str = "UMBRA_JAIL_CASE";

/// Runs a case in a process of its own.
fn run(case: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "--test-threads=1",
            "jail::tests::a_process_of_its_own",
        ])
        .env(CASE, case)
        // A trace would be looked for in files.
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn nothing() {}

fn shut_around(directories: &[Directory]) {
    shut(&Needs { directories, own: &[], ram_bytes: 1 << 20, before_the_end: nothing }).unwrap();
}

/// Does something on a thread of this role, to its end.
fn on_a_thread<T: Send + 'static>(role: Role, body: impl FnOnce() -> T + Send + 'static) -> T {
    spawn("test", role, body).unwrap().join().unwrap()
}

/// A system call that a thread which was taken over might try.
fn call(number: libc::c_long, arguments: [usize; 6]) -> libc::c_long {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the calls of these tests pass numbers and null pointers only.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

/// What no role may do, with its name in the report.
const NEVER: &[(&str, libc::c_long, [usize; 6])] = &[
    ("execve", libc::SYS_execve, [0; 6]),
    ("ptrace", libc::SYS_ptrace, [0; 6]),
    ("clone", libc::SYS_clone, [0; 6]),
    ("clone3", libc::SYS_clone3, [0; 6]),
    ("kill", libc::SYS_kill, [1, 0, 0, 0, 0, 0]),
    ("open", libc::SYS_open, [0; 6]),
    ("prctl", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 1, 0, 0, 0, 0]),
    ("socket", libc::SYS_socket, [libc::AF_NETLINK as usize, libc::SOCK_STREAM as usize, 0, 0, 0, 0]),
    ("mmap", libc::SYS_mmap, [0, 4096, libc::PROT_EXEC as usize, 0x22, usize::MAX, 0]),
    ("mprotect", libc::SYS_mprotect, [0, 4096, libc::PROT_EXEC as usize, 0, 0, 0]),
    ("rt_sigaction", libc::SYS_rt_sigaction, [libc::SIGSYS as usize, 0, 0, 8, 0, 0]),
    ("ioctl", libc::SYS_ioctl, [0, libc::TIOCSTI as usize, 0, 0, 0, 0]),
    ("tgkill", libc::SYS_tgkill, [1, 1, 0, 0, 0, 0]),
    ("bpf", libc::SYS_bpf, [0; 6]),
];

/// What only roles with a reason may do, and those.
const SOMETIMES: &[(&str, libc::c_long, &[Role])] = &[
    ("openat", libc::SYS_openat, &[Role::Files, Role::FilesToRead, Role::Main, Role::Console]),
    ("fchownat", libc::SYS_fchownat, &[Role::Files]),
    ("unlinkat", libc::SYS_unlinkat, &[Role::Files, Role::Main, Role::Console]),
    ("accept4", libc::SYS_accept4, &[Role::Network, Role::NetworkSlot, Role::LocalSockets, Role::Control]),
    ("pwritev", libc::SYS_pwritev, &[Role::Disk, Role::Files, Role::Slot, Role::NetworkSlot]),
    (
        "preadv",
        libc::SYS_preadv,
        &[Role::Disk, Role::Files, Role::FilesToRead, Role::Driver, Role::Slot, Role::NetworkSlot],
    ),
    ("connect", libc::SYS_connect, &[Role::Network, Role::NetworkSlot, Role::LocalSockets]),
    (
        "epoll_ctl",
        libc::SYS_epoll_ctl,
        &[Role::Network, Role::Tap, Role::LocalSockets, Role::Ports, Role::Slot, Role::NetworkSlot],
    ),
    ("recvmsg", libc::SYS_recvmsg, &[Role::Network, Role::NetworkSlot, Role::LocalSockets, Role::Control]),
    ("sendto", libc::SYS_sendto, &[Role::Network, Role::NetworkSlot, Role::LocalSockets]),
    (
        "recvfrom",
        libc::SYS_recvfrom,
        &[
            Role::Network,
            Role::NetworkSlot,
            Role::LocalSockets,
            Role::Console,
            Role::Signals,
            Role::Main,
            Role::Control,
        ],
    ),
];

#[test]
fn a_call_that_no_role_has_a_right_to_ends_the_process_with_a_sentence() {
    for role in Role::ALL {
        for (name, ..) in NEVER {
            expect_refusal(role, name);
        }
    }
}

#[test]
fn a_call_that_some_roles_have_a_right_to_is_refused_to_others() {
    for role in Role::ALL {
        for (name, _, roles) in SOMETIMES {
            if roles.contains(&role) {
                let output = run(&format!("call {name} {role:?}"));
                assert!(output.status.success(), "{role:?} {name}: {}", said(&output));
            } else {
                expect_refusal(role, name);
            }
        }
    }
}

fn expect_refusal(role: Role, name: &str) {
    let output = run(&format!("call {name} {role:?}"));
    let said = said(&output);
    assert_eq!(output.status.code(), Some(125), "{role:?} {name}: {said}");
    let sentence = format!("the jail refused a thread of the role '{}' the system call ", role.name());
    assert!(said.contains(&sentence) && said.contains(&format!("({name}): ")), "{role:?} {name}: {said}");
    assert!(said.contains("the end was prepared"), "{said}");
}

#[test]
fn every_role_lives_panics_and_ends() {
    for role in Role::ALL {
        let output = run(&format!("live {role:?}"));
        assert!(output.status.success(), "{role:?}: {}", said(&output));
        assert!(said(&output).contains("on purpose"), "the panic was not reported");
    }
}

#[test]
fn no_thread_has_privileges_or_lacks_a_filter() {
    let output = run("status");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn files_are_opened_in_shared_directories_and_nowhere_else() {
    if landlock_abi().is_none_or(|abi| abi < 2) {
        eprintln!("SKIPPED: this kernel has no Landlock that can be used");
        return;
    }
    for case in ["files", "own-files"] {
        let output = run(case);
        assert!(output.status.success(), "{}", said(&output));
    }
}

#[test]
fn a_jail_is_not_shut_around_a_process_with_other_threads() {
    let output = run("crowded");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_guest_waits_for_all_threads() {
    let output = run("settled");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn a_process_may_not_take_more_than_it_said() {
    let output = run("limits");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn names_belong_to_numbers() {
    let known = [
        (libc::SYS_read, "read"),
        (libc::SYS_execve, "execve"),
        (libc::SYS_openat, "openat"),
        (libc::SYS_rseq, "rseq"),
        (libc::SYS_pidfd_send_signal, "pidfd_send_signal"),
        (libc::SYS_landlock_restrict_self, "landlock_restrict_self"),
        (libc::SYS_mseal, "mseal"),
    ];
    for (number, name) in known {
        assert_eq!(refusal::call_name(number), Some(name));
    }
    assert_eq!([-1, 400, 1000].map(refusal::call_name), [None; 3]);
}

#[test]
#[ignore = "run by the others, in a process of its own"]
fn a_process_of_its_own() {
    let case = std::env::var(CASE).unwrap();
    // SAFETY: see the top of the file.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = if std::panic::catch_unwind(|| try_case(&case)).is_ok() { 0 } else { 1 };
        // SAFETY: ends the process, without what the test program does at its end.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: the status is a live integer.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status), "the case ended by signal {}", libc::WTERMSIG(status));
    std::process::exit(libc::WEXITSTATUS(status));
}

fn try_case(case: &str) {
    let words: Vec<&str> = case.split(' ').collect();
    let role = |name: &str| Role::ALL.into_iter().find(|role| format!("{role:?}") == name).unwrap();
    match words[..] {
        ["call", name, on] => try_call(name, role(on)),
        ["live", on] => live(role(on)),
        ["status"] => status(),
        ["files"] => files(),
        ["own-files"] => own_files(),
        ["crowded"] => {
            let (_keep, kept) = std::sync::mpsc::channel::<()>();
            let _other = std::thread::spawn(move || kept.recv());
            let refused = shut(&Needs { directories: &[], own: &[], ram_bytes: 0, before_the_end: nothing });
            assert!(matches!(refused, Err(HostError::Crowded)));
        }
        ["settled"] => wait_for_all(),
        ["limits"] => limits(),
        _ => panic!("what is '{case}'?"),
    }
}

fn try_call(name: &str, role: Role) {
    let never = NEVER.iter().find(|(known, ..)| *known == name).map(|(_, number, with)| (*number, *with));
    let sometimes =
        SOMETIMES.iter().find(|(known, ..)| *known == name).map(|(_, number, _)| (*number, [1 << 32; 6]));
    let (number, arguments) = never.or(sometimes).unwrap();
    let before_the_end = || eprintln!("the end was prepared");
    shut(&Needs { directories: &[], own: &[], ram_bytes: 1 << 20, before_the_end }).unwrap();
    let answer = on_a_thread(role, move || call(number, arguments));
    assert!(answer <= 0, "the call did something, with arguments that make no sense");
}

fn live(role: Role) {
    shut_around(&[]);
    let grown = on_a_thread(role, || {
        let panicked = std::panic::catch_unwind(|| panic!("on purpose"));
        assert!(panicked.is_err());
        std::thread::sleep(std::time::Duration::from_millis(1));
        std::thread::yield_now();
        assert!(crate::random::u64().is_some() && crate::time::monotonic_ns() > 0);
        // Memory of every kind that the allocator knows.
        let mut bytes = vec![1_u8; 100];
        (0..20).for_each(|_| bytes.extend_from_within(..));
        bytes.shrink_to(10);
        bytes.len()
    });
    assert_eq!(grown, 100 << 20);
}

/// A line of a thread's status.
fn line(status: &str, name: &str) -> String {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
}

fn status() {
    use std::os::unix::fs::FileExt;
    let read = |file: &File| {
        let mut text = vec![0; 4096];
        let len = file.read_at(&mut text, 0).unwrap();
        String::from_utf8(text[..len].to_vec()).unwrap()
    };
    let own = File::open("/proc/self/status").unwrap();
    let root = line(&read(&own), "CapPrm:") != "0000000000000000";
    let directory = Directory { descriptor: File::open("/usr").unwrap().into(), access: Access::Change };

    shut_around(&[directory]);
    let status = read(&own);
    assert_eq!(
        (line(&status, "NoNewPrivs:"), line(&status, "CapInh:")),
        ("1".into(), "0000000000000000".into())
    );
    let kept = line(&status, "CapPrm:");
    assert_eq!(kept, if root { "000000000000001f" } else { "0000000000000000" }, "CHOWN to FSETID");
    if root {
        assert_eq!(line(&status, "CapBnd:"), "0000000000000000");
    }
    enter(Role::Main);
    let status = read(&own);
    assert_eq!(
        (line(&status, "Seccomp:"), line(&status, "CapPrm:")),
        ("2".into(), "0000000000000000".into())
    );
    assert_eq!(line(&status, "CapEff:"), "0000000000000000");
}

/// A directory with a file, and one beside it.
fn place() -> (tempfile::TempDir, [PathBuf; 3]) {
    let dir = tempfile::tempdir().unwrap();
    let [changed, read, other] = ["changed", "read", "other"].map(|name| dir.path().join(name));
    for path in [&changed, &read, &other] {
        std::fs::create_dir(path).unwrap();
        std::fs::write(path.join("file"), "x").unwrap();
    }
    (dir, [changed, read, other])
}

fn files() {
    let (_dir, [changed, read, other]) = place();
    let open = |path: &Path| File::open(path).unwrap();
    let (outside, proc) = (open(&other), open(Path::new("/proc/self/fd")));
    let directories = [(&changed, Access::Change), (&read, Access::Read)]
        .map(|(path, access)| Directory { descriptor: open(path).into(), access });
    shut_around(&directories);
    on_a_thread(Role::Files, move || {
        use rustix::fs::{Mode, OFlags, openat};
        use rustix::io::Errno;
        let at = |directory: &File, name: &str, flags| openat(directory, name, flags, Mode::RUSR).map(drop);
        let [inside, reading] = directories.map(|directory| File::from(directory.descriptor));
        assert_eq!(at(&inside, "file", OFlags::RDWR), Ok(()));
        assert_eq!(at(&inside, "new", OFlags::CREATE | OFlags::WRONLY), Ok(()));
        assert_eq!(at(&reading, "file", OFlags::RDONLY), Ok(()));
        assert_eq!(at(&reading, "file", OFlags::WRONLY), Err(Errno::ACCESS));
        assert_eq!(at(&reading, "new", OFlags::CREATE | OFlags::WRONLY), Err(Errno::ACCESS));
        assert_eq!(at(&inside, "../other/file", OFlags::RDONLY), Err(Errno::ACCESS));
        assert_eq!(at(&inside, "/etc/passwd", OFlags::RDONLY), Err(Errno::ACCESS));
        // A descriptor from before is worth what it was opened for, and no way in.
        assert_eq!(at(&outside, "file", OFlags::RDONLY), Err(Errno::ACCESS));
        assert_eq!(at(&proc, &outside.as_raw_fd().to_string(), OFlags::RDONLY), Err(Errno::ACCESS));
        // Names move between shared directories' subdirectories, but not out of them.
        rustix::fs::mkdirat(&inside, "sub", Mode::RWXU).unwrap();
        rustix::fs::renameat(&inside, "new", &inside, "sub/new").unwrap();
        let out = rustix::fs::renameat(&inside, "sub/new", &outside, "new").unwrap_err();
        assert!([Errno::ACCESS, Errno::XDEV].contains(&out), "{out}");
    });
}

fn own_files() {
    let (_dir, [own, above, other]) = place();
    for sub in ["empty", "full"] {
        std::fs::create_dir(above.join(sub)).unwrap();
    }
    std::fs::write(above.join("full/file"), "x").unwrap();
    let open = |path: &Path| File::open(path).unwrap().into();
    let kept = [(&own, Access::Change), (&above, Access::RemoveDirectories)]
        .map(|(path, access)| Directory { descriptor: open(path), access });
    shut(&Needs { directories: &[], own: &kept, ram_bytes: 1 << 20, before_the_end: nothing }).unwrap();
    on_a_thread(Role::Main, move || {
        std::fs::write(own.join("new"), "y").unwrap();
        std::fs::rename(own.join("new"), own.join("newer")).unwrap();
        std::fs::remove_file(own.join("newer")).unwrap();
        std::fs::remove_dir(above.join("empty")).unwrap();
        assert!(std::fs::remove_dir(above.join("full")).is_err());
        assert!(std::fs::remove_file(above.join("full/file")).is_err());
        assert!(File::open(above.join("file")).is_err());
        assert!(std::fs::write(other.join("new"), "z").is_err());
    });
}

fn wait_for_all() {
    use std::sync::atomic::{AtomicBool, Ordering};
    static ENTERED: AtomicBool = AtomicBool::new(false);
    settled();
    shut_around(&[]);
    let guest = spawn("guest", Role::Driver, || {
        settled();
        ENTERED.load(Ordering::SeqCst)
    });
    std::thread::sleep(std::time::Duration::from_millis(20));
    ENTERED.store(true, Ordering::SeqCst);
    enter(Role::Main);
    assert!(guest.unwrap().join().unwrap(), "the guest ran before the first thread was in its role");
}

fn limits() {
    use rustix::process::{Resource, getrlimit};
    let files = getrlimit(Resource::Nofile).current;
    shut_around(&[]);
    assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
    assert_eq!(getrlimit(Resource::Nofile).maximum, files);
    assert!(getrlimit(Resource::Data).maximum.is_some_and(|most| most > 4 << 30));
    let too_much = call(libc::SYS_mmap, [0, 8 << 30, libc::PROT_WRITE as usize, 0x22, usize::MAX, 0]);
    assert_eq!(too_much, -1, "{:?} bytes are a limit", getrlimit(Resource::Data).maximum);
}
