//! `umbra doctor`: what this machine can do, what is missing, and the remedy.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use anyhow::Result;
use host::{CodeMemory, Memfd, Stub};
use vm::Automatic;
use x86::cpuid::{CpuModel, CpuRequest, HostCpuid};

use crate::debian::{self, Cache, Wanted};
use crate::documents;
use crate::status::Status;

/// What was found about one thing.
struct Finding {
    verdict: Verdict,
    subject: &'static str,
    text: String,
}

/// How it bears on `umbra run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is as it should be.
    Good,
    /// It could be better, or is good to know.
    Note,
    /// `umbra run` does not work without it.
    Missing,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Note => "note",
            Self::Missing => "MISSING",
        }
    }
}

/// Looks at everything and prints what it found.
///
/// # Errors
/// If standard output cannot be written.
pub(crate) fn run() -> Result<Status> {
    let findings = [
        processor(),
        models(),
        engine(),
        direct_execution(),
        memory(),
        memfd(),
        code_memory(),
        jail(),
        kvm(),
        network(),
        apt(),
        root(),
        cache(),
    ];
    let mut text = format!("umbra {} on {}\n", env!("CARGO_PKG_VERSION"), system());
    for finding in &findings {
        text += &format!("  {:8} {:12} {}\n", finding.verdict.word(), finding.subject, finding.text);
    }
    let missing = findings.iter().any(|finding| finding.verdict == Verdict::Missing);
    text += if missing { "Something is missing: see above.\n" } else { "'umbra run' has all it needs.\n" };
    let written = documents::print(&text)?;
    Ok(if missing { Status::MISSING } else { written })
}

fn system() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let distribution = fs::read_to_string("/etc/os-release")
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| Some(line.strip_prefix("PRETTY_NAME=")?.trim_matches('"').to_owned()))
        })
        .unwrap_or_else(|| "an unnamed distribution".to_owned());
    format!("Linux {}, {distribution}", release.trim())
}

fn processor() -> Finding {
    let name = fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()))
        })
        .unwrap_or_else(|| "unknown model".to_owned());
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Finding { verdict: Verdict::Good, subject: "processor", text: format!("{name}, {count} usable") }
}

/// Which named models can be offered to a guest here.
fn models() -> Finding {
    let host = HostCpuid::new(&host::cpu::cpuid, host::cpu::xgetbv0());
    let works = |model: &str| {
        let request: Result<CpuRequest, _> = model.parse();
        request.is_ok_and(|request| CpuModel::resolve(&request, &host).is_ok())
    };
    let (verdict, text) = if works("v3") {
        (Verdict::Good, "x86-64-v3: --cpu v2, v3, max and host work, max is the default".to_owned())
    } else if works("v2") {
        (
            Verdict::Note,
            "x86-64-v2: --cpu v2, max and host work, max is the default; guests get no AVX2, BMI or FMA"
                .to_owned(),
        )
    } else {
        (Verdict::Missing, "below x86-64-v2: use a machine with SSE4.2".to_owned())
    };
    Finding { verdict, subject: "features", text }
}

/// What `--engine auto` comes to.
fn engine() -> Finding {
    let (verdict, text) = match vm::automatic() {
        Automatic::Bt => {
            (Verdict::Good, "bt: guests run as translated code (--engine interp works, too)".to_owned())
        }
        Automatic::Interp(why) => (Verdict::Note, format!("interp, the interpreter, which is slow: {why}")),
    };
    Finding { verdict, subject: "engine", text }
}

/// Whether user code can run untranslated.
fn direct_execution() -> Finding {
    let try_it =
        || Memfd::new("umbra-doctor", x86::PAGE_SIZE).and_then(|memory| Stub::new(memory.as_fd()).map(drop));
    let reason = match host::cpu::has_avx().then(try_it) {
        Some(Ok(())) => {
            let text = "user code that computes for long runs untranslated".to_owned();
            return Finding { verdict: Verdict::Good, subject: "direct", text };
        }
        Some(Err(error)) => format!("{:#} (does a container forbid ptrace?)", anyhow::Error::from(error)),
        None => "the processor has no AVX".to_owned(),
    };
    let text = format!("all user code is translated: {reason}");
    Finding { verdict: Verdict::Note, subject: "direct", text }
}

/// Whether guests may send echo requests; all else of the network needs nothing.
fn network() -> Finding {
    let (verdict, text) = match host::socket::connect_ping(Ipv4Addr::LOCALHOST.into()) {
        Ok(_) => (Verdict::Good, "guests reach what this user reaches, ping included".to_owned()),
        Err(error) => (
            Verdict::Note,
            format!(
                "guests reach what this user reaches, but cannot ping past their router ({error}): as root, sysctl -w \
                 net.ipv4.ping_group_range='0 2147483647'"
            ),
        ),
    };
    Finding { verdict, subject: "network", text }
}

fn memory() -> Finding {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mib = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib >> 10)
    };
    let (verdict, text) = match (mib("MemAvailable"), mib("MemTotal")) {
        (Some(available), Some(total)) if available < 256 => (
            Verdict::Note,
            format!("{available} MiB of {total} MiB available: free some, or run with a smaller -m"),
        ),
        (Some(available), Some(total)) => {
            (Verdict::Good, format!("{available} MiB of {total} MiB available"))
        }
        _ => (Verdict::Note, "cannot be read from /proc/meminfo: mount /proc".to_owned()),
    };
    Finding { verdict, subject: "memory", text }
}

fn memfd() -> Finding {
    let (verdict, text) = match Memfd::new("doctor", 4096) {
        Ok(_) => (Verdict::Good, "anonymous memory files work".to_owned()),
        Err(error) => {
            (Verdict::Missing, format!("{}: allow memfd_create in this container or sandbox", chain(&error)))
        }
    };
    Finding { verdict, subject: "memfd", text }
}

fn code_memory() -> Finding {
    let (verdict, text) = match CodeMemory::new(4096) {
        Ok(_) => (Verdict::Good, "anonymous memory can be mapped executable".to_owned()),
        Err(error) => (
            Verdict::Missing,
            format!(
                "{}: allow executable mappings of memory files (vm.memfd_noexec, SELinux execmem)",
                chain(&error)
            ),
        ),
    };
    Finding { verdict, subject: "code", text }
}

/// What a VM's process can be confined with.
fn jail() -> Finding {
    let (verdict, text) = match (host::jail::is_possible(), host::jail::landlock_abi()) {
        (false, _) => (
            Verdict::Missing,
            "the kernel cannot filter system calls: allow seccomp in this container or sandbox, or run with --no-jail"
                .to_owned(),
        ),
        (true, Some(abi @ 2..)) => {
            (Verdict::Good, format!("a VM is confined by filters of system calls and Landlock (version {abi})"))
        }
        (true, _) => (
            Verdict::Note,
            "a VM is confined by filters of system calls, but without Landlock (in Linux 5.19 and later: lsm=landlock,…) \
             one that breaks out by a shared directory opens what this user may open"
                .to_owned(),
        ),
    };
    Finding { verdict, subject: "jail", text }
}

fn kvm() -> Finding {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let text = match opened {
        Ok(_) => "/dev/kvm can be opened, but this version does not use it yet".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "no /dev/kvm, and none needed".to_owned(),
        Err(error) => format!("/dev/kvm cannot be opened ({error}); this version does not use it anyway"),
    };
    Finding { verdict: Verdict::Note, subject: "kvm", text }
}

fn apt() -> Finding {
    let absent = ["apt-get", "apt-cache", "dpkg-deb", "tar"].into_iter().find(|program| !runs(program));
    let (verdict, text) = match absent {
        None => (Verdict::Good, "apt can fetch Debian's kernel and busybox".to_owned()),
        Some(program) => (
            Verdict::Note,
            format!(
                "no {program}: 'umbra run' needs a kernel as SOURCE, or --kernel and --initrd, or a filled cache"
            ),
        ),
    };
    Finding { verdict, subject: "apt", text }
}

/// Whether a root of Debian's packages can be made.
fn root() -> Finding {
    let (verdict, text) = if debian::can_format() {
        (Verdict::Good, "'umbra run debian' can make its root, with apt and mkfs.ext4")
    } else {
        (Verdict::Note, "no mkfs.ext4: 'umbra run debian' needs it, from e2fsprogs, to make its root")
    };
    Finding { verdict, subject: "root", text: text.to_owned() }
}

fn runs(program: &str) -> bool {
    let nothing = Stdio::null;
    Command::new(program)
        .arg("--version")
        .stdin(nothing())
        .stdout(nothing())
        .stderr(nothing())
        .status()
        .is_ok_and(|status| status.success())
}

fn cache() -> Finding {
    let (verdict, text) = match Cache::of_user() {
        Err(error) => (Verdict::Missing, format!("{error:#}")),
        Ok(cache) => {
            let place = cache.root().display();
            let entries: Vec<String> = [Wanted::NewestKernel, Wanted::BUSYBOX]
                .into_iter()
                .filter_map(|wanted| {
                    Some(cache.entry(wanted.link())?.file_name()?.to_string_lossy().into_owned())
                })
                .collect();
            match entries.len() {
                2 => (Verdict::Good, format!("{place}: {}", entries.join(", "))),
                _ => (
                    Verdict::Note,
                    format!("{place}: will be filled by the first 'umbra run' or 'umbra fetch'"),
                ),
            }
        }
    };
    Finding { verdict, subject: "cache", text }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
