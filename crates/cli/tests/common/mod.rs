//! The command, and guests of a few bytes for it to run.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use tempfile::TempDir;

/// `cli; hlt`, for ever.
pub(crate) const HANG: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
/// `mov al, 3; out 0xf4, al; cli; hlt`: debug exit with 3, status 7.
pub(crate) const DEBUG_EXIT: &[u8] = &[0xb0, 0x03, 0xe6, 0xf4, 0xfa, 0xf4];
/// `mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt`: ACPI power-off.
pub(crate) const POWER_OFF: &[u8] = &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xf4];
/// `push 0; push 0; lidt [esp]; int3`: an IDT without entries, so a triple fault.
pub(crate) const TRIPLE_FAULT: &[u8] = &[0x6a, 0x00, 0x6a, 0x00, 0x0f, 0x01, 0x1c, 0x24, 0xcc];
/// Sends back every byte that it receives on COM1, and powers off after a `q`.
pub(crate) const ECHO: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, // again: mov dx, 0x3fd
    0xec, 0xa8, 0x01, // in al, dx; test al, 1
    0x74, 0xf7, // jz again
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, 0xee, // in al, dx; out dx, al
    0x3c, b'q', 0x75, 0xed, // cmp al, 'q'; jne again
    0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xf4,
];

/// Where a guest's image starts.
const BASE: u32 = 0x10_0000;
/// Bytes before its code: the Multiboot header and the loading of a stack pointer.
const HEADER: u32 = 32;

/// A 32-bit Multiboot kernel of this code (Multiboot 0.6.96, 3.1.1, with the address fields filled in).
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
    let (magic, flags) = (0x1bad_b002_u32, 0x1_0000_u32);
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    let header = [magic, flags, checksum, BASE, BASE, 0, 0, BASE + HEADER];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    // mov esp, 0x80000
    image.extend([0xbc, 0x00, 0x00, 0x08, 0x00]);
    image.extend(code);
    image
}

/// A directory with a cache of its own, and files.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A file in it.
    pub(crate) fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, contents).unwrap();
        path
    }

    /// The command with nothing on its standard input, and this place's cache.
    pub(crate) fn umbra(&self, args: &[&str]) -> Command {
        let mut command = umbra(args);
        command
            .env("XDG_CACHE_HOME", self.dir.path().join("cache"))
            .env("XDG_RUNTIME_DIR", self.dir.path().join("runtime"))
            .current_dir(self.dir.path());
        command
    }

    /// Runs a guest of this code to its end.
    pub(crate) fn run(&self, code: &[u8], options: &[&str]) -> Output {
        self.file("guest", &kernel(code));
        let args: Vec<&str> = ["run", "guest", "-m", "16M"].iter().chain(options).copied().collect();
        self.umbra(&args).output().unwrap()
    }
}

/// The command, with the user's cache.
pub(crate) fn umbra(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
    command.args(args).stdin(Stdio::null()).env_remove("NO_COLOR");
    command
}

/// What it said on standard error.
pub(crate) fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A package that leads to Debian 12's own kernel series (6.1), and one that leads to a later series.
pub(crate) const KERNELS: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64"];

/// The cached file of a kernel package; fetched if need be.
pub(crate) fn debian_kernel(package: &str) -> Option<String> {
    let cached = umbra(&["fetch", "--cached", package]).output().unwrap();
    if cached.status.success() {
        return Some(String::from_utf8(cached.stdout).unwrap().trim().to_owned());
    }
    skipped(&format!("{package} cannot be had: {}", complaint(&cached).lines().last().unwrap_or("")));
    None
}

/// Says past the capture of test output that something was not tested: that must be seen.
pub(crate) fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

/// Whether the host has a program.
pub(crate) fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        skipped(&format!("no {program} on this host"));
    }
    found
}

/// A kernel with its modules; both fetched if need be.
pub(crate) fn debian_kernel_with_modules(package: &str) -> Option<String> {
    let kernel = debian_kernel(package)?;
    if Path::new(&kernel).with_file_name("drivers").is_dir() {
        return Some(kernel);
    }
    let output = umbra(&["run", "--kernel", &kernel, "--timeout", "10m", "--", "true"]).output().unwrap();
    if output.status.success() {
        return Some(kernel);
    }
    skipped(&format!("no modules for {kernel}: {}", complaint(&output)));
    None
}

/// The kernels that have a driver for shared directories.
pub(crate) fn kernels_that_share() -> &'static [String] {
    static KERNELS_THAT_SHARE: LazyLock<Vec<String>> = LazyLock::new(|| {
        KERNELS.iter().filter_map(|package| debian_kernel(package)).filter(|kernel| shares(kernel)).collect()
    });
    &KERNELS_THAT_SHARE
}

fn shares(kernel: &str) -> bool {
    let args = ["run", "host", "--kernel", kernel, "--timeout", "10m", "--", "true"];
    let lacks = complaint(&umbra(&args).output().unwrap()).contains("no virtiofs driver");
    if lacks {
        skipped(&format!("{kernel} has no driver for shared directories"));
    }
    !lacks
}

/// VMs that nobody else sees, ended when the test is over, whatever its end.
pub(crate) struct Vms(pub(crate) Place);

impl Vms {
    pub(crate) fn new() -> Self {
        Self(Place::new())
    }

    pub(crate) fn umbra(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.0.umbra(args)
    }

    /// What it prints when all goes well.
    #[track_caller]
    pub(crate) fn says(&self, args: &[&str]) -> String {
        let output = self.umbra(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", complaint(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Its one sentence when something was not done.
    #[track_caller]
    pub(crate) fn refuses(&self, args: &[&str], status: i32) -> String {
        let output = self.umbra(args);
        let text = complaint(&output);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    }

    /// Starts a guest of this code in the background.
    #[track_caller]
    pub(crate) fn start(&self, name: &str, code: &[u8]) {
        self.0.file("guest", &kernel(code));
        assert_eq!(self.says(&["run", "-d", "--name", name, "guest", "-m", "16M"]), format!("{name}\n"));
    }

    /// What is known of a VM.
    #[track_caller]
    pub(crate) fn inspect(&self, name: &str) -> serde_json::Value {
        serde_json::from_str::<serde_json::Value>(&self.says(&["inspect", name])).unwrap()[0].take()
    }

    /// Attaches with this on standard input, which stays open until the VM ends.
    pub(crate) fn console(&self, name: &str, input: &[u8]) -> Output {
        let mut console = self
            .command(&["console", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        console.stdin.as_mut().unwrap().write_all(input).unwrap();
        let mut stdout = Vec::new();
        console.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        let output = console.wait_with_output().unwrap();
        Output { stdout, ..output }
    }
}

impl Drop for Vms {
    fn drop(&mut self) {
        let all = self.umbra(&["ps", "-q"]);
        let names = String::from_utf8(all.stdout).unwrap();
        let args: Vec<&str> = ["rm", "-f"].into_iter().chain(names.split_whitespace()).collect();
        if !names.is_empty() {
            self.umbra(&args);
        }
    }
}
