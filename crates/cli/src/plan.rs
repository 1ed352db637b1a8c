//! What the options of `umbra run` mean together.
//!
//! Pure: decides, and touches nothing. What it decides is carried out by [`crate::run`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use spec::{BootSpec, VmSpec};

use crate::args::RunArgs;
use crate::initramfs::Session;

/// What to run and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The machine but for what it boots.
    pub(crate) machine: VmSpec,
    /// What it boots.
    pub(crate) guest: Guest,
    /// How long it may run.
    pub(crate) timeout: Option<Duration>,
    /// Whether to show the kernel's messages and figures.
    pub(crate) verbose: bool,
}

/// What the machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    /// A Linux kernel with the root file system that Umbra makes.
    Ours {
        /// The command to run in it; empty for a shell.
        command: Vec<OsString>,
        /// How that meets the console.
        session: Session,
    },
    /// What the user gives and nothing else.
    Theirs,
}

/// Who sits at the console.
#[derive(Clone, Debug)]
pub(crate) struct Audience {
    /// The size and kind of the terminal, if standard input and output are one.
    pub(crate) terminal: Option<((u16, u16), String)>,
}

/// The kernel's console where the user gives a kernel and no command line.
const DEFAULT_COMMAND_LINE: &str = "console=ttyS0";

/// The kernel's console where the root file system is ours. A panic resets the machine, which ends the VM. The self-tests
/// of the kernel's cryptography take a third of the time to boot and say nothing about what the user wants to run.
const OUR_COMMAND_LINE: &str = "console=ttyS2,115200 panic=-1 cryptomgr.notests";
/// Only what the kernel says before it dies.
const QUIET: &str = "quiet loglevel=1";
/// What a kernel says by default.
const VERBOSE: &str = "loglevel=7";

impl Plan {
    /// Decides. Without a kernel's file in the result, the kernel is Debian's.
    ///
    /// # Errors
    /// If the options contradict each other.
    pub(crate) fn new(args: RunArgs, audience: Audience) -> Result<Self> {
        let theirs = args.source.is_some() || !args.initrd.is_empty();
        ensure!(
            !theirs || args.command.is_empty(),
            "a CMD runs in the root file system that umbra makes: leave out --initrd, and give a kernel of yours with \
             --kernel instead of SOURCE"
        );
        let command_line = if theirs {
            args.append.unwrap_or_else(|| DEFAULT_COMMAND_LINE.to_owned())
        } else {
            let noise = if args.verbose { VERBOSE } else { QUIET };
            let base = format!("{OUR_COMMAND_LINE} {noise}");
            args.append.map_or_else(|| base.clone(), |append| format!("{base} {append}"))
        };
        let guest = if theirs {
            Guest::Theirs
        } else {
            let session = match audience.terminal {
                Some((size, term)) => Session::Terminal { size, term },
                None => Session::Piped,
            };
            Guest::Ours { command: args.command, session }
        };
        let boot = BootSpec {
            kernel: args.source.or(args.kernel).unwrap_or_default(),
            initrds: args.initrd,
            command_line,
        };
        let machine = VmSpec {
            name: args.name,
            memory: args.memory,
            cpus: args.cpus,
            cpu: args.cpu.unwrap_or_default(),
            engine: args.engine,
            boot,
            debug_exit: args.debug_exit,
        };
        Ok(Self { machine, guest, timeout: args.timeout, verbose: args.verbose })
    }

    /// The file of the kernel that the user gave, if any.
    pub(crate) fn kernel(&self) -> Option<&PathBuf> {
        Some(&self.machine.boot.kernel).filter(|path| !path.as_os_str().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn plan(words: &[&str]) -> Result<Plan> {
        let line = ["umbra", "run"].iter().chain(words);
        let Command::Run(args) = Args::try_parse_from(line).unwrap().command else { unreachable!() };
        Plan::new(*args, Audience { terminal: None })
    }

    #[test]
    fn nothing_means_debian_and_a_shell() {
        let plan = plan(&[]).unwrap();
        assert_eq!(plan.kernel(), None);
        assert_eq!(plan.guest, Guest::Ours { command: vec![], session: Session::Piped });
        assert_eq!(plan.machine.memory.bytes(), 256 << 20);
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let plan = plan(&["-v", "--append", "-x y", "--", "ls", "-v", "--", "--help"]).unwrap();
        let Guest::Ours { command, .. } = &plan.guest else { panic!("{plan:?}") };
        assert_eq!(command, &["ls", "-v", "--", "--help"]);
        assert!(plan.machine.boot.command_line.ends_with("loglevel=7 -x y"));
    }

    #[test]
    fn a_kernel_of_mine_boots_alone_or_with_your_root() {
        let alone = plan(&["./k", "--initrd", "a", "--initrd", "b"]).unwrap();
        assert_eq!((alone.guest.clone(), alone.kernel()), (Guest::Theirs, Some(&PathBuf::from("./k"))));
        assert_eq!(alone.machine.boot.initrds.len(), 2);
        assert_eq!(alone.machine.boot.command_line, "console=ttyS0");
        let with_root = plan(&["--kernel", "./k", "--", "true"]).unwrap();
        assert!(matches!(with_root.guest, Guest::Ours { .. }));
        assert_eq!(plan(&["k", "--append", "x=1"]).unwrap().machine.boot.command_line, "x=1");
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(plan(&["k", "--", "ls"]).is_err());
        assert!(plan(&["--initrd", "i", "--", "ls"]).is_err());
    }
}
