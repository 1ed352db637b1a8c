//! What the options of `umbra run` mean together.
//!
//! Pure: decides, and touches nothing. What it decides is carried out by [`crate::run`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use init::{Directory, Mount, Network, Root, Settings, Terminal};
use spec::{
    BootSpec, CodeCacheSize, DebianSpec, DiskBus, DiskChanges, DiskSpec, MemorySize, NetSpec, ShareSpec,
    SlotCount, TranslatorSpec, UserNetSpec, VmSpec, VolumeSpec, VsockSpec,
};

use crate::args::{MachineArgs, RunArgs, SessionArgs, StatsFormat};
use crate::initramfs::Session;
use crate::source::Source;

/// What to run and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The machine but for what it boots.
    pub(crate) machine: MachineArgs,
    /// Its memory.
    pub(crate) memory: MemorySize,
    /// The kernel's file; without one, the kernel is Debian's.
    pub(crate) kernel: Option<PathBuf>,
    /// Whose root file system the kernel gets.
    pub(crate) guest: Guest,
    /// The root of Debian's packages that its first disk is to hold, if any.
    pub(crate) debian: Option<DebianSpec>,
    /// What cloud-init is to find there.
    pub(crate) cloud_init: Option<PathBuf>,
    /// Directories shared with the guest.
    pub(crate) shares: Vec<ShareSpec>,
    /// The kernel's command line.
    pub(crate) command_line: String,
    /// It runs in the background.
    pub(crate) background: bool,
    /// It leaves nothing when it has ended.
    pub(crate) remove: bool,
    /// How long it may run.
    pub(crate) timeout: Option<Duration>,
    /// Whether the process is confined.
    pub(crate) jail: bool,
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
    /// One that Umbra's first process enters: the host's, a directory, or one on a disk.
    Entered(Box<Settings>),
    /// One on a disk that boots by itself, once Umbra's first process has found it.
    Booted(Box<Settings>),
    /// The user's, if any.
    Theirs {
        /// Initial RAM disks, or Multiboot modules.
        initrds: Vec<PathBuf>,
    },
}

impl Guest {
    /// Whether its first process is Umbra's, which speaks on the control port.
    pub(crate) fn is_ours(&self) -> bool {
        !matches!(self, Self::Theirs { .. } | Self::Booted(_))
    }

    /// Whether somebody runs commands for the host there, if its kernel has a driver for that: its first process, or
    /// one that systemd starts.
    pub(crate) fn has_agent(&self) -> bool {
        matches!(self, Self::Entered(_) | Self::Booted(_))
    }

    /// Whether its command is on a terminal, where it is Umbra's to say.
    pub(crate) fn is_on_terminal(&self) -> bool {
        match self {
            Self::Ours { session, .. } => *session != Session::Piped,
            Self::Entered(settings) => settings.terminal.is_some(),
            Self::Theirs { .. } | Self::Booted(_) => false,
        }
    }
}

/// Where umbra itself runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// How a command would meet the console.
    pub(crate) session: Session,
    /// The working directory, if there is one.
    pub(crate) directory: Option<PathBuf>,
    /// The public keys of whoever may log in to a guest that Umbra makes.
    pub(crate) keys: Vec<String>,
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

/// Memory for a root file system in memory, and for one that is shared, whose programs are larger.
const MEMORY: &str = "256M";
const SHARED_MEMORY: &str = "1G";

/// What the root is mounted by.
const ROOT_TAG: &str = "root";

impl Plan {
    /// Decides.
    ///
    /// # Errors
    /// If the options contradict each other.
    pub(crate) fn new(args: RunArgs, source: Source, surroundings: Surroundings) -> Result<Self> {
        let theirs = matches!(source, Source::Kernel(_)) || !args.initrd.is_empty();
        let on_disk = matches!(source, Source::Image(_) | Source::Debian(_));
        let shared = on_disk || matches!(source, Source::Host | Source::Directory(_));
        let boots = on_disk && args.command.is_empty();
        check(&args, theirs, shared, boots)?;
        check_debian(&args, &source)?;
        ensure!(
            theirs || boots || args.cloud_init.is_none(),
            "--cloud-init needs a guest that boots by itself: a disk image, 'debian' or a kernel of yours as SOURCE, without a command"
        );
        let command_line = command_line(&args, theirs, boots);
        let memory = match args.machine.memory {
            Some(memory) => memory,
            None => if shared { SHARED_MEMORY } else { MEMORY }.parse().context("no memory")?,
        };
        let shares = shares(&source, &args.session);
        let guest = if theirs {
            Guest::Theirs { initrds: args.initrd }
        } else if boots {
            Guest::Booted(Box::new(settings(&args, &source, surroundings)))
        } else if shared {
            Guest::Entered(Box::new(settings(&args, &source, surroundings)))
        } else {
            Guest::Ours { command: args.command, session: surroundings.session }
        };
        let mut machine = args.machine;
        let mut debian = None;
        let kernel = match source {
            Source::Kernel(file) => Some(file),
            Source::Debian(wanted) => {
                debian = Some(DebianSpec { packages: args.packages, ..wanted });
                args.kernel
            }
            Source::Image(disk) => {
                machine.disk.insert(0, disk);
                args.kernel
            }
            _ => args.kernel,
        };
        Ok(Self {
            background: args.in_background,
            remove: args.rm || machine.name.is_none(),
            machine,
            memory,
            kernel,
            guest,
            debian,
            cloud_init: args.cloud_init,
            shares,
            command_line,
            timeout: args.timeout,
            jail: !args.no_jail,
            verbose: args.verbose,
            stats: args.stats,
        })
    }

    /// The VM's description, once it is known where its kernel is.
    pub(crate) fn describe(&self, kernel: PathBuf) -> VmSpec {
        let initrds = match &self.guest {
            Guest::Ours { .. } | Guest::Entered(_) | Guest::Booted(_) => Vec::new(),
            Guest::Theirs { initrds } => initrds.clone(),
        };
        let machine = self.machine.clone();
        VmSpec {
            name: machine.name.unwrap_or_default(),
            memory: self.memory,
            cpus: machine.cpus,
            cpu: machine.cpu.unwrap_or_default(),
            engine: machine.engine,
            mmu: machine.mmu,
            translator: TranslatorSpec {
                code_cache: machine.code_cache.unwrap_or(CodeCacheSize::for_cpus(machine.cpus)),
                perf_map: machine.perf_map,
            },
            boot: BootSpec { kernel, initrds, command_line: self.command_line.clone() },
            disks: machine.disk,
            shares: self.shares.clone(),
            net: machine.net,
            ports: machine.port,
            vsock: machine.vsock.map(|path| VsockSpec { path }),
            balloon: !machine.no_balloon,
            slots: machine.slots,
            debug_exit: machine.debug_exit,
        }
    }

    /// The drivers that a guest of ours loads for what the user gave it, and may give it later.
    pub(crate) fn drivers(&self) -> Vec<&'static str> {
        // Debian's kernels have their NVMe driver built in.
        let is_virtio = |disk: &DiskSpec| disk.bus == DiskBus::Virtio;
        let made = self.debian.is_some() || self.cloud_init.is_some();
        let slots = self.machine.slots != SlotCount::default();
        let disks = (self.machine.disk.iter().any(is_virtio) || made || slots).then_some("virtio_blk");
        let network = (self.machine.net != NetSpec::None || slots).then_some("virtio_net");
        let sockets = self.machine.vsock.is_some().then_some("vmw_vsock_virtio_transport");
        let files = (!self.shares.is_empty()).then_some(["virtiofs", "overlay"]).into_iter().flatten();
        let agent = self.guest.has_agent().then_some("virtio_console");
        let balloon = (!self.machine.no_balloon).then_some("virtio_balloon");
        let mut drivers: Vec<_> = disks
            .into_iter()
            .chain(network)
            .chain(sockets)
            .chain(files)
            .chain(agent)
            .chain(balloon)
            .collect();
        if !drivers.is_empty() {
            drivers.insert(0, "virtio_pci");
        }
        if disks.is_some() {
            drivers.push("virtio_rng");
        }
        drivers
    }

    /// The command; empty for a shell, or where there is none.
    pub(crate) fn command(&self) -> &[OsString] {
        match &self.guest {
            Guest::Ours { command, .. } => command,
            Guest::Entered(settings) => &settings.command,
            Guest::Theirs { .. } | Guest::Booted(_) => &[],
        }
    }

    /// Whether there is a command whose status is to be ours.
    pub(crate) fn has_command(&self) -> bool {
        !self.command().is_empty()
    }
}

/// Refuses what contradicts itself.
fn check(args: &RunArgs, theirs: bool, shared: bool, boots: bool) -> Result<()> {
    ensure!(
        !theirs || args.command.is_empty(),
        "a CMD runs in the root file system that umbra makes, in a directory or in 'host': leave out --initrd, and \
         give a kernel of yours with --kernel instead of SOURCE"
    );
    ensure!(
        !shared || args.initrd.is_empty(),
        "with 'host', a directory or a disk image as SOURCE, the initial RAM disk is umbra's: leave out --initrd"
    );
    ensure!(
        !boots || args.session == SessionArgs::default(),
        "a disk image that boots by itself takes no --volume, --env, --workdir or --user: give a command, as in 'umbra run IMAGE -v .:/work -- sh'"
    );
    ensure!(
        args.machine.net.is_user() || args.machine.port.is_empty(),
        "a port leads into the guest by its user-mode network: leave out --net none or --net tap, or --port"
    );
    ensure!(
        shared || args.source.is_none() || args.kernel.is_none(),
        "two kernels: give one of them, as SOURCE or with --kernel"
    );
    ensure!(
        shared || args.session == SessionArgs::default(),
        "--volume, --env, --workdir and --user need 'host', a directory or a disk image as SOURCE, for example: umbra run host -v .:/work"
    );
    Ok(())
}

/// Refuses what goes with a root of Debian's packages only.
fn check_debian(args: &RunArgs, source: &Source) -> Result<()> {
    ensure!(
        matches!(source, Source::Debian(_)) || args.packages.is_empty() && args.ssh_key.is_empty(),
        "--packages and --ssh-key need a root that umbra makes: give 'debian' as SOURCE"
    );
    ensure!(
        args.command.is_empty() || args.ssh_key.is_empty(),
        "--ssh-key needs a guest that boots by itself: leave out the command"
    );
    Ok(())
}

fn command_line(args: &RunArgs, theirs: bool, boots: bool) -> String {
    if boots {
        // The system's own console, and as much as it says there.
        let append = args.append.iter().map(String::as_str);
        return std::iter::once(DEFAULT_COMMAND_LINE).chain(append).collect::<Vec<_>>().join(" ");
    }
    if theirs {
        return args.append.clone().unwrap_or_else(|| DEFAULT_COMMAND_LINE.to_owned());
    }
    let noise = if args.verbose { VERBOSE } else { QUIET };
    let base = format!("{OUR_COMMAND_LINE} {noise}");
    args.append.as_ref().map_or_else(|| base.clone(), |append| format!("{base} {append}"))
}

/// What a volume is mounted by.
fn share_tag(number: usize) -> String {
    format!("share{number}")
}

/// The directories that are shared: the root first, which is only read and not expected to change.
fn shares(source: &Source, session: &SessionArgs) -> Vec<ShareSpec> {
    let root = match source {
        Source::Host => Some(PathBuf::from("/")),
        Source::Directory(directory) => Some(directory.clone()),
        Source::Ours | Source::Image(_) | Source::Debian(_) | Source::Kernel(_) => None,
    };
    let root = root.map(|directory| ShareSpec {
        tag: ROOT_TAG.to_owned(),
        directory,
        read_only: true,
        settled: true,
    });
    let volume = |(number, volume): (usize, &VolumeSpec)| ShareSpec {
        tag: share_tag(number),
        directory: volume.host.clone(),
        read_only: volume.read_only,
        settled: false,
    };
    root.into_iter().chain(session.volume.iter().enumerate().map(volume)).collect()
}

/// The guest's network: what DHCP and router advertisements would say, without waiting for them.
fn network() -> Network {
    use UserNetSpec as Net;
    Network {
        addresses: vec![(Net::GUEST4.into(), Net::PREFIX4), (Net::GUEST6.into(), Net::PREFIX6)],
        routers: vec![Net::GATEWAY4.into(), Net::ROUTER_LINK.into()],
        name_servers: vec![Net::DNS4.into()],
    }
}

/// What the first process of a shared root is told.
fn settings(args: &RunArgs, source: &Source, surroundings: Surroundings) -> Settings {
    let mount = |(number, volume): (usize, &VolumeSpec)| Mount {
        tag: share_tag(number),
        path: volume.guest.clone(),
        read_only: volume.read_only,
    };
    let directory = match (&args.session.command.workdir, source, surroundings.directory) {
        (Some(directory), ..) => Directory::Exactly(directory.clone()),
        (None, Source::Host, Some(directory)) => Directory::Rather(directory),
        _ => Directory::Home,
    };
    Settings {
        hostname: args.machine.name.clone().unwrap_or_default().to_string(),
        root: match source {
            Source::Image(disk) => {
                Root::Disk { read_only: disk.changes == DiskChanges::Refused, boot: args.command.is_empty() }
            }
            Source::Debian(_) => Root::Disk { read_only: false, boot: args.command.is_empty() },
            _ => Root::Shared(ROOT_TAG.to_owned()),
        },
        shares: args.session.volume.iter().enumerate().map(mount).collect(),
        network: match args.machine.net {
            NetSpec::None => None,
            NetSpec::User(_) => Some(network()),
            // Who has made it knows who is on it.
            NetSpec::Tap(_) => Some(Network::default()),
        },
        terminal: match surroundings.session {
            Session::Terminal { size, term } => Some(Terminal { size, kind: term }),
            Session::Piped => None,
        },
        environment: args.session.command.env.clone(),
        directory,
        user: args.session.command.user.clone(),
        keys: surroundings.keys,
        command: args.command.clone(),
        quiet: !args.verbose,
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
        let source = Source::of(args.source.as_deref()).unwrap();
        let surroundings = Surroundings {
            session: Session::Piped,
            directory: Some("/here".into()),
            keys: vec!["ssh-rsa A".into()],
        };
        Plan::new(*args, source, surroundings)
    }

    #[test]
    fn nothing_means_debian_and_a_shell() {
        let plan = plan(&[]).unwrap();
        assert_eq!(plan.kernel, None);
        assert_eq!(plan.guest, Guest::Ours { command: vec![], session: Session::Piped });
        assert_eq!(plan.memory.bytes(), 256 << 20);
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let plan = plan(&["--verbose", "--append", "-x y", "--", "ls", "-v", "--", "--help"]).unwrap();
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
        let translator = |words: &[&str]| plan(words).unwrap().describe("k".into()).translator;
        let asked = translator(&["k", "-c", "64", "--code-cache", "16M", "--perf-map"]);
        assert_eq!((asked.code_cache.bytes(), asked.perf_map), (16 << 20, true));
        assert_eq!(translator(&["k", "-c", "64"]).code_cache.bytes(), 8 << 20);
    }

    #[test]
    fn disks_come_with_their_drivers() {
        let plan = plan(&["--disk", "a.img", "--disk", "b,,c,ro", "--", "true"]).unwrap();
        assert!(plan.drivers().contains(&"virtio_blk"));
        let disks = plan.describe("k".into()).disks;
        let seen: Vec<_> = disks.iter().map(ToString::to_string).collect();
        assert_eq!(seen, ["a.img", "b,,c,ro"]);
        assert!(self::plan(&["--net", "none", "--no-balloon", "--", "true"]).unwrap().drivers().is_empty());
    }

    #[test]
    fn slots_come_with_drivers_for_what_may_come() {
        let plan = plan(&["--slots", "3", "--net", "none", "--no-balloon", "--", "true"]).unwrap();
        let drivers = plan.drivers();
        assert!(drivers.contains(&"virtio_blk") && drivers.contains(&"virtio_net"));
        assert_eq!(plan.describe("k".into()).slots.get(), 3);
    }

    #[test]
    fn there_is_a_network_unless_there_is_none() {
        let plan = plan(&["-p", "8080:80", "--port", "0.0.0.0:53:53/udp", "--", "true"]).unwrap();
        assert_eq!(plan.drivers(), ["virtio_pci", "virtio_net", "virtio_balloon"]);
        let ports: Vec<_> = plan.describe("k".into()).ports.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["127.0.0.1:8080:80", "0.0.0.0:53:53/udp"]);
        assert!(self::plan(&["--net", "none", "-p", "1:2"]).is_err());
    }

    #[test]
    fn a_disk_image_boots_or_runs_a_command() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, [&[0; 510][..], &[0x55, 0xaa]].concat()).unwrap();
        let image = path.to_str().unwrap();
        let boots = plan(&[image, "--append", "single", "--disk", "b"]).unwrap();
        let Guest::Booted(settings) = &boots.guest else { panic!("{boots:?}") };
        assert_eq!(settings.root, Root::Disk { read_only: false, boot: true });
        assert_eq!((boots.guest.is_ours(), boots.command_line.as_str()), (false, "console=ttyS0 single"));
        let disks: Vec<_> = boots.describe("k".into()).disks.iter().map(ToString::to_string).collect();
        assert_eq!(disks, [format!("{image},overlay"), "b".to_owned()]);
        let runs = plan(&[&format!("{image},ro"), "-v", ".:/work", "--", "true"]).unwrap();
        let Guest::Entered(settings) = &runs.guest else { panic!("{runs:?}") };
        assert_eq!(settings.root, Root::Disk { read_only: true, boot: false });
        assert!(runs.guest.is_ours() && runs.drivers().contains(&"virtiofs") && runs.shares.len() == 1);
        assert!(plan(&[image, "-v", ".:/work"]).is_err() && plan(&[image, "--initrd", "x"]).is_err());
    }

    #[test]
    fn debian_boots_or_runs_a_command_on_a_disk_that_is_made() {
        let boots = plan(&["debian:bookworm", "--packages", "gcc,make"]).unwrap();
        let Guest::Booted(settings) = &boots.guest else { panic!("{boots:?}") };
        assert_eq!(settings.root, Root::Disk { read_only: false, boot: true });
        assert_eq!(settings.keys, ["ssh-rsa A"]);
        assert_eq!(boots.debian.as_ref().unwrap().packages.len(), 2);
        let drivers = boots.drivers();
        assert!(drivers.contains(&"virtio_blk") && drivers.contains(&"virtio_console"));
        assert_eq!(boots.memory.bytes(), 1 << 30);
        let runs = plan(&["debian", "-u", "nobody", "--", "id"]).unwrap();
        assert!(matches!(runs.guest, Guest::Entered(_)) && runs.debian == Some(DebianSpec::default()));
        for wrong in [&["--packages", "gcc"][..], &["host", "--ssh-key", "k"], &["debian", "-e", "A=b"]] {
            assert!(plan(wrong).is_err(), "{wrong:?}");
        }
        assert!(plan(&["debian", "--ssh-key", "k", "--", "true"]).is_err());
        assert_eq!(plan(&["debian", "--cloud-init", "u"]).unwrap().cloud_init, Some("u".into()));
        for wrong in [&["host", "--cloud-init", "u"][..], &["debian", "--cloud-init", "u", "--", "true"]] {
            assert!(plan(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_host_is_shared_and_only_volumes_change() {
        let words = ["host", "-v", ".:/work", "-v", "/a:/b:ro", "-e", "A=b", "-u", "1:2", "--", "make"];
        let plan = plan(&words).unwrap();
        let shares = plan.describe("k".into()).shares;
        let seen: Vec<_> = shares
            .iter()
            .map(|share| (share.directory.to_str().unwrap(), share.read_only, share.settled))
            .collect();
        assert_eq!(seen, [("/", true, true), (".", false, false), ("/a", true, false)]);
        let Guest::Entered(settings) = &plan.guest else { panic!("{plan:?}") };
        assert_eq!(settings.root, Root::Shared(shares[0].tag.clone()));
        let mounts: Vec<_> = settings.shares.iter().map(|mount| (&mount.tag, mount.read_only)).collect();
        assert_eq!(mounts, [(&shares[1].tag, false), (&shares[2].tag, true)]);
        assert_eq!(settings.directory, Directory::Rather("/here".into()));
        assert!(plan.has_command() && plan.memory.bytes() == 1 << 30 && plan.kernel.is_none());
        assert!(plan.drivers().contains(&"virtiofs"));
        let directory = self::plan(&["/", "-w", "/x"]).unwrap();
        let Guest::Entered(settings) = &directory.guest else { panic!("{directory:?}") };
        assert_eq!(settings.directory, Directory::Exactly("/x".into()));
        assert!(self::plan(&["host", "--kernel", "k"]).unwrap().kernel.is_some());
    }

    #[test]
    fn contradictions_are_refused() {
        for options in [&["-v", ".:/work"][..], &["-u", "1"], &["-w", "/"], &["k", "-e", "A=b"]] {
            assert!(plan(options).is_err(), "{options:?}");
        }
        assert!(plan(&["k", "--kernel", "j"]).is_err());
        assert!(plan(&["host", "--initrd", "i"]).is_err());
        assert!(plan(&["k", "--", "ls"]).is_err());
        assert!(plan(&["--initrd", "i", "--", "ls"]).is_err());
    }
}
