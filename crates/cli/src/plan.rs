//! What the options of `umbra run` mean together.
//!
//! Pure: decides, and touches nothing. What it decides is carried out by [`crate::run`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use spec::{BootSpec, NetSpec, TranslatorSpec, VmSpec};

use crate::args::{MachineArgs, RunArgs, StatsFormat};
use crate::initramfs::Session;

/// What to run and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The machine but for what it boots.
    pub(crate) machine: MachineArgs,
    /// The kernel's file; without one, the kernel is Debian's.
    pub(crate) kernel: Option<PathBuf>,
    /// Whose root file system the kernel gets.
    pub(crate) guest: Guest,
    /// The kernel's command line.
    pub(crate) command_line: String,
    /// How long it may run.
    pub(crate) timeout: Option<Duration>,
    /// Whether to show the kernel's messages and figures.
    pub(crate) verbose: bool,
    /// How to print what was counted, if at all.
    pub(crate) stats: Option<StatsFormat>,
}

/// Whose root file system the kernel gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    /// The one that Umbra makes.
    Ours {
        /// The command to run in it; empty for a shell.
        command: Vec<OsString>,
        /// How that meets the console.
        session: Session,
    },
    /// The user's, if any.
    Theirs {
        /// Initial RAM disks, or Multiboot modules.
        initrds: Vec<PathBuf>,
    },
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
    /// Decides; `session` is how a command of ours would meet the console.
    ///
    /// # Errors
    /// If the options contradict each other.
    pub(crate) fn new(args: RunArgs, session: Session) -> Result<Self> {
        let theirs = args.source.is_some() || !args.initrd.is_empty();
        ensure!(
            !theirs || args.command.is_empty(),
            "a CMD runs in the root file system that umbra makes: leave out --initrd, and give a kernel of yours with \
             --kernel instead of SOURCE"
        );
        ensure!(
            args.machine.net != NetSpec::None || args.machine.port.is_empty(),
            "a port leads into the guest by its network: leave out --net none, or --port"
        );
        let command_line = if theirs {
            args.append.unwrap_or_else(|| DEFAULT_COMMAND_LINE.to_owned())
        } else {
            let noise = if args.verbose { VERBOSE } else { QUIET };
            let base = format!("{OUR_COMMAND_LINE} {noise}");
            args.append.map_or_else(|| base.clone(), |append| format!("{base} {append}"))
        };
        let guest = if theirs {
            Guest::Theirs { initrds: args.initrd }
        } else {
            Guest::Ours { command: args.command, session }
        };
        Ok(Self {
            machine: args.machine,
            kernel: args.source.or(args.kernel),
            guest,
            command_line,
            timeout: args.timeout,
            verbose: args.verbose,
            stats: args.stats,
        })
    }

    /// The VM's description, once it is known where its kernel is.
    pub(crate) fn describe(&self, kernel: PathBuf) -> VmSpec {
        let initrds = match &self.guest {
            Guest::Ours { .. } => Vec::new(),
            Guest::Theirs { initrds } => initrds.clone(),
        };
        let machine = self.machine.clone();
        VmSpec {
            name: machine.name,
            memory: machine.memory,
            cpus: machine.cpus,
            cpu: machine.cpu.unwrap_or_default(),
            engine: machine.engine,
            mmu: machine.mmu,
            translator: TranslatorSpec { code_cache: machine.code_cache, perf_map: machine.perf_map },
            boot: BootSpec { kernel, initrds, command_line: self.command_line.clone() },
            disks: machine.disk,
            net: machine.net,
            ports: machine.port,
            debug_exit: machine.debug_exit,
        }
    }

    /// The drivers that a guest of ours loads for what the user gave it.
    pub(crate) fn drivers(&self) -> Vec<&'static str> {
        let disks = (!self.machine.disk.is_empty()).then_some("virtio_blk");
        let network = (self.machine.net != NetSpec::None).then_some("virtio_net");
        let mut drivers: Vec<_> = [disks, network].into_iter().flatten().collect();
        if !drivers.is_empty() {
            drivers.insert(0, "virtio_pci");
        }
        if disks.is_some() {
            drivers.push("virtio_rng");
        }
        drivers
    }

    /// Whether there is a command whose status is to be ours.
    pub(crate) fn has_command(&self) -> bool {
        matches!(&self.guest, Guest::Ours { command, .. } if !command.is_empty())
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
        Plan::new(*args, Session::Piped)
    }

    #[test]
    fn nothing_means_debian_and_a_shell() {
        let plan = plan(&[]).unwrap();
        assert_eq!(plan.kernel, None);
        assert_eq!(plan.guest, Guest::Ours { command: vec![], session: Session::Piped });
        assert_eq!(plan.machine.memory.bytes(), 256 << 20);
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let plan = plan(&["-v", "--append", "-x y", "--", "ls", "-v", "--", "--help"]).unwrap();
        let Guest::Ours { command, .. } = &plan.guest else { panic!("{plan:?}") };
        assert_eq!(command, &["ls", "-v", "--", "--help"]);
        assert!(plan.command_line.ends_with("loglevel=7 -x y"));
    }

    #[test]
    fn a_kernel_of_mine_boots_alone_or_with_your_root() {
        let alone = plan(&["./k", "--initrd", "a", "--initrd", "b"]).unwrap();
        assert_eq!(alone.guest, Guest::Theirs { initrds: vec!["a".into(), "b".into()] });
        let spec = alone.describe("k".into());
        assert_eq!((spec.boot.initrds.len(), spec.boot.command_line.as_str()), (2, "console=ttyS0"));
        let with_root = plan(&["--kernel", "./k", "--", "true"]).unwrap();
        assert!(matches!(with_root.guest, Guest::Ours { .. }));
        assert_eq!(plan(&["k", "--append", "x=1"]).unwrap().command_line, "x=1");
    }

    #[test]
    fn counters_are_a_table_unless_said_otherwise() {
        let stats = |words: &[&str]| plan(words).unwrap().stats;
        assert_eq!(stats(&[]), None);
        assert_eq!(stats(&["--stats", "k"]), Some(StatsFormat::Table));
        assert_eq!(stats(&["--stats=json", "k"]), Some(StatsFormat::Json));
    }

    #[test]
    fn the_translator_is_set_up() {
        let plan = plan(&["k", "--code-cache", "8M", "--perf-map"]).unwrap();
        let translator = plan.describe("k".into()).translator;
        assert_eq!((translator.code_cache.bytes(), translator.perf_map), (8 << 20, true));
    }

    #[test]
    fn disks_come_with_their_drivers() {
        let plan = plan(&["--disk", "a.img", "--disk", "b,,c,ro", "--", "true"]).unwrap();
        assert!(plan.drivers().contains(&"virtio_blk"));
        let disks = plan.describe("k".into()).disks;
        let seen: Vec<_> = disks.iter().map(|disk| (disk.file.to_str().unwrap(), disk.read_only)).collect();
        assert_eq!(seen, [("a.img", false), ("b,c", true)]);
        assert!(self::plan(&["--net", "none", "--", "true"]).unwrap().drivers().is_empty());
    }

    #[test]
    fn there_is_a_network_unless_there_is_none() {
        let plan = plan(&["-p", "8080:80", "--port", "0.0.0.0:53:53/udp", "--", "true"]).unwrap();
        assert_eq!(plan.drivers(), ["virtio_pci", "virtio_net"]);
        let ports: Vec<_> = plan.describe("k".into()).ports.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["127.0.0.1:8080:80", "0.0.0.0:53:53/udp"]);
        assert!(self::plan(&["--net", "none", "-p", "1:2"]).is_err());
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(plan(&["k", "--", "ls"]).is_err());
        assert!(plan(&["--initrd", "i", "--", "ls"]).is_err());
    }
}
