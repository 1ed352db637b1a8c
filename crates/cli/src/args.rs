//! What was typed.
//!
//! The command line as clap reads it: every field is one option with its type and help, and nothing is decided here.
//! What the options mean together is [`crate::plan`]'s business.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use spec::{
    CodeCacheSize, CpuCount, DiskSpec, EngineChoice, MemorySize, MmuChoice, Name, NetSpec, PackageName,
    PortSpec, SlotCount, VolumeSpec,
};
use x86::cpuid::CpuRequest;

use crate::disk::args::DiskArgs;
use crate::vms::args::{
    ConsoleArgs, CpArgs, ExecArgs, InspectArgs, KillArgs, LogsArgs, PauseArgs, PlugArgs, PsArgs, ResumeArgs,
    RmArgs, StatsArgs, StopArgs, UnplugArgs, UpdateArgs, WaitArgs,
};
use crate::{duration, environment, help, number};

/// The colours of help, used on a terminal only.
const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Run virtual machines on Linux without hardware virtualization.
#[derive(Debug, Parser)]
#[command(name = "umbra", version, styles = STYLES, max_term_width = 100, after_help = help::TOP)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Box<RunArgs>),
    Ps(PsArgs),
    Exec(ExecArgs),
    Cp(CpArgs),
    Console(ConsoleArgs),
    Logs(LogsArgs),
    Stop(StopArgs),
    Kill(KillArgs),
    Pause(PauseArgs),
    Resume(ResumeArgs),
    Wait(WaitArgs),
    Rm(RmArgs),
    Update(UpdateArgs),
    Plug(PlugArgs),
    Unplug(UnplugArgs),
    Inspect(InspectArgs),
    Stats(StatsArgs),
    Disk(DiskArgs),
    Fetch(FetchArgs),
    Doctor(DoctorArgs),
    Debug(DebugArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Boot a virtual machine with its console on this terminal
///
/// With no SOURCE, the guest is Debian's newest cloud kernel with a small root file system in memory (busybox), made
/// on the spot. The packages are fetched once, through this machine's own apt, which checks their signatures, and are
/// not installed. With a CMD, the guest runs it and powers off; without one, it runs a shell.
///
/// With 'host' or a directory as SOURCE, the guest's root is the host's or that directory, with its programs and files.
/// The guest sees it through a layer of its own in memory, which takes every change and is gone at the end; only what is
/// shared with --volume is changed in place. CMD runs as root of the guest, which has no more rights on the host than you.
///
/// With 'debian' or debian:SUITE as SOURCE, the guest is a Debian of its own, with systemd, ssh and apt, made once from packages
/// that this machine's apt fetches, by a VM that installs them (no root, no other tools), and cached. It boots to a shell of root on the console;
/// with a CMD, that runs there instead. What it changes is forgotten, or with --name kept for the next VM of that name
/// ('umbra rm --disk' removes it). Nobody has a password; by ssh your public keys (~/.ssh/*.pub) let you in, with -p 2222:22.
///
/// With a disk image as SOURCE, raw or qcow2, its system boots on Debian's kernel, with its console on the first serial port; with a
/// CMD, that runs there instead. The image is the first disk, and its root the largest partition that holds a system, or what
/// --append root=DEVICE names. Changes are forgotten, unless SOURCE is IMAGE,rw, or IMAGE,overlay=FILE keeps them; the
/// options are those of --disk.
///
/// With a kernel file as SOURCE, exactly that kernel is booted, with the --initrd files and the --append line given
/// and nothing of ours.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::RUN_SHORT, after_long_help = help::RUN)]
pub(crate) struct RunArgs {
    /// 'host', 'debian', a directory that is to be the root, a disk image, or a kernel to boot: bzImage, ELF vmlinux, PVH or Multiboot
    pub(crate) source: Option<PathBuf>,

    /// A command to run in the guest; its exit status becomes umbra's
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,

    /// Boot this kernel instead of Debian's, with the same root file system unless there is an --initrd
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) session: SessionArgs,

    /// With 'debian', packages that are installed beside the usual ones; makes and caches a root of its own
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) packages: Vec<PackageName>,

    /// With 'debian', the public key that root can log in with by ssh, instead of yours in ~/.ssh; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) ssh_key: Vec<PathBuf>,

    /// Give a guest that boots by itself what cloud-init asks for (NoCloud): user data, or a directory with user-data, meta-data,
    /// network-config, vendor-data
    ///
    /// It is the last disk, a volume with the label cidata that can only be read. What is not given is made up from the VM's name.
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) cloud_init: Option<PathBuf>,

    /// An initial RAM disk, or a Multiboot module; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Vec<PathBuf>,

    /// Text for the kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) append: Option<String>,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,

    /// Run in the background, and print the VM's name
    ///
    /// 'umbra ps' lists it, 'umbra logs' shows what it prints, 'umbra console' attaches to it, 'umbra stop' ends it. CMD's
    /// standard input is empty; without a CMD, there is a shell on the console.
    #[arg(short, long)]
    pub(crate) detach: bool,

    /// Leave nothing when the VM has ended, neither name nor log nor status; so it is without --name
    #[arg(long)]
    pub(crate) rm: bool,

    /// We are the process that runs the VM in the background.
    #[arg(long, hide = true)]
    pub(crate) in_background: bool,

    /// Stop the VM after this long and exit with status 124: 90s, 5m, 1h30m
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,

    /// Do not confine the VM's process, for debugging it
    ///
    /// Without this, the process has no privileges once the guest runs, each of its threads may make only the system calls that
    /// it needs, and files can be opened in shared directories only. Backtraces and debuggers may need it.
    #[arg(long)]
    pub(crate) no_jail: bool,

    /// Show the kernel's messages, and figures at the end
    #[arg(long)]
    pub(crate) verbose: bool,

    /// Print on standard error what was counted, when the VM has stopped
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    pub(crate) stats: Option<StatsFormat>,
}

/// How CMD runs, where the root is the host's, a directory or on a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, ClapArgs)]
pub(crate) struct SessionArgs {
    /// Share a directory of the host with the guest, to be changed or (:ro) only to be read; may be repeated
    #[arg(short, long, value_name = "HOST:GUEST[:ro]")]
    pub(crate) volume: Vec<VolumeSpec>,

    #[command(flatten)]
    pub(crate) command: CommandArgs,
}

/// With what, where and as whom a command runs in a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, ClapArgs)]
pub(crate) struct CommandArgs {
    /// Set an environment variable, to your own value unless another is given; may be repeated
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = environment::parse)]
    pub(crate) env: Vec<(OsString, OsString)>,

    /// The directory to run CMD in; unless given, that in which 'umbra run host' was started, else USER's home
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<PathBuf>,

    /// The guest's user to run CMD as, by name or number, with a group or without
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
}

/// How `--stats` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatsFormat {
    /// A line for each counter, with what it counts
    Table,
    /// One line of JSON
    Json,
}

/// What the machine is made of.
#[derive(Clone, Debug, PartialEq, Eq, ClapArgs)]
pub(crate) struct MachineArgs {
    /// Guest memory, with a unit: K, M, G or T; 256M unless given, 1G with 'host', 'debian', a directory or a disk image
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<MemorySize>,

    /// Virtual CPUs, 1 to 64; each is a thread of the host
    #[arg(short, long, value_name = "N", default_value_t = CpuCount::ONE)]
    pub(crate) cpus: CpuCount,

    /// The processor that the guest sees: v2, v3, max or host, then +feature, -feature, vendor=NAME
    ///
    /// max, the default, is everything that this processor and Umbra can do together; host is that with the family,
    /// model and stepping of this processor, too. v2 and v3 are the micro-architecture levels of the x86-64 ABI, for
    /// VMs that move to other hosts. What is not offered faults, as on a processor without it.
    #[arg(long, value_name = "MODEL[,±FEATURE…][,vendor=NAME]", allow_hyphen_values = true)]
    pub(crate) cpu: Option<CpuRequest>,

    /// What executes the guest's instructions: auto, bt, interp or lockstep
    ///
    /// bt translates them to the host's, which is several times as fast as interp, the interpreter. auto is bt where
    /// the host allows it, else interp; 'umbra doctor' says which. lockstep runs both and compares them, very slowly.
    #[arg(long, value_name = "ENGINE", default_value_t)]
    pub(crate) engine: EngineChoice,

    /// How guest addresses are translated: walk, vtlb, lazy, eager, nested, nested-2m or nested-4k
    ///
    /// A guest cannot tell the difference but for time. walk reads the guest's page table at each TLB miss. vtlb keeps
    /// what it found in a larger, virtual TLB. lazy and eager keep shadow page tables, which follow the guest's when it
    /// invalidates, or at each write. nested walks the guest's table through a second table, of host pages as large as
    /// there can be, or of at most 2 MiB or 4 KiB. --stats counts what each of them does.
    #[arg(long, value_name = "TECHNIQUE", default_value_t)]
    pub(crate) mmu: MmuChoice,

    /// Room for translated code and what is known about it, for each virtual CPU; 64M unless given, less with more than 8 CPUs
    #[arg(long, value_name = "SIZE")]
    pub(crate) code_cache: Option<CodeCacheSize>,

    /// Name translated code for perf(1), in /tmp/perf-PID.map
    #[arg(long)]
    pub(crate) perf_map: bool,

    /// The VM's name, also the guest's host name
    ///
    /// No two VMs have one name; what a VM leaves keeps it until 'umbra rm', unless there is --rm. A VM without one is called
    /// vm1, vm2 and so on from outside, and its guest umbra.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<Name>,

    /// A disk for the guest, a raw or qcow2 image or a block device; may be repeated
    ///
    /// The guest finds it as a virtio disk: /dev/vda, /dev/vdb and so on, in this order, with the serial numbers disk0, disk1
    /// and so on; or with ',bus=nvme' as an NVMe disk, /dev/nvme0n1 and so on, for which most kernels have a driver built in. With ',ro' it can only be read, and several VMs may share it. With ',overlay' too, and what each of
    /// them writes is forgotten when it ends, or kept in another file with ',overlay=FILE', a qcow2 image upon this
    /// one. An image is qcow2 if its name ends in .qcow2 or with ',format=qcow2'. What it is made upon is used if
    /// that is in the image's directory, or in DIR with ',backing=DIR'. ',ops=N' and
    /// ',rate=SIZE' let so many requests and bytes pass each second. A comma in a name is written twice.
    #[arg(long, value_name = "FILE[,OPTION…]")]
    pub(crate) disk: Vec<DiskSpec>,

    /// The guest's network: user, tap=DEVICE or none
    ///
    /// user needs no privileges: the guest's connections go on as umbra's own. The guest is 10.0.2.15 and fec0::15 (by DHCP and
    /// router advertisement), its router 10.0.2.2 and fec0::2, which lead to the host's loopback unless there is
    /// ',loopback=off', its name server 10.0.2.3 and fec0::3, which asks the host's, or the one given with
    /// ',dns=IP[:PORT]'. ',rate=SIZE' lets so many bytes pass each second, in each direction: rate=10M. ',queues=N'
    /// gives the adapter N pairs of queues, 1 to 8, so that each CPU of the guest can have its own; one unless given.
    ///
    /// tap=DEVICE is a TAP device of the host's, made before, which you may open ('ip tuntap add dev DEVICE mode tap user USER').
    /// The guest is on whatever that is connected with, and asks there for its address, or is told one by CMD. Its Ethernet address follows
    /// from the device's, unless there is ',mac=ADDRESS'; ',rate=SIZE' and ',queues=N' are as above.
    #[arg(long, value_name = "NETWORK", default_value_t)]
    pub(crate) net: NetSpec,

    /// Lead a port of the host into the guest; may be repeated
    ///
    /// The host listens on 127.0.0.1 unless IP says otherwise: 0.0.0.0 is every address of it, [::1] its IPv6 loopback.
    #[arg(short, long, value_name = "[IP:]HOST:GUEST[/udp]")]
    pub(crate) port: Vec<PortSpec>,

    /// Connect sockets of guest and host (vsock), by Unix sockets at this path
    ///
    /// A program of the host that connects to PATH and says 'CONNECT PORT' hears 'OK PORT' and then the guest's program that listens
    /// at that port. What the guest calls at CID 2, port P, is the socket PATH_P, if a program of the host listens there. The guest's
    /// own CID is 3.
    #[arg(long, value_name = "PATH")]
    pub(crate) vsock: Option<PathBuf>,

    /// Slots for devices that are plugged in while the VM runs ('umbra plug'), 0 to 16
    ///
    /// Each costs two waiting threads. The guest's kernel needs ACPI hot-plug, which distributions' have, and drivers for what comes;
    /// a guest of umbra's loads those for virtio disks and networks.
    #[arg(long, value_name = "N", default_value_t)]
    pub(crate) slots: SlotCount,

    /// Keep what the guest has used, also when it has freed it
    ///
    /// Otherwise a balloon device gives memory that the guest does not use back to the host, and 'umbra update' can leave the
    /// guest less of it.
    #[arg(long)]
    pub(crate) no_balloon: bool,

    /// Let the guest end the VM by writing to port 0xf4 (isa-debug-exit)
    ///
    /// A guest that writes V exits umbra with status (V << 1) | 1.
    #[arg(long)]
    pub(crate) debug_exit: bool,
}

/// Fetch a Debian kernel into the cache, or make a root of Debian's packages there, and print its path
///
/// With 'debian' or debian:SUITE, makes a root for 'umbra run debian' of the newest packages. Disks that VMs have kept stay upon
/// the one that they were made upon.
///
/// Without PACKAGE, fetches what `umbra run` uses, in its newest version. `umbra run` itself fetches only what is
/// not in the cache, so this is also how to update it.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::FETCH)]
pub(crate) struct FetchArgs {
    /// A kernel package, or a package that depends on one; or 'debian' or debian:SUITE
    pub(crate) package: Option<String>,

    /// With 'debian', packages that are installed beside the usual ones
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) packages: Vec<PackageName>,

    /// Be content with what is in the cache
    #[arg(long)]
    pub(crate) cached: bool,
}

/// Say what this machine can do, what is missing, and how to get it
#[derive(Debug, ClapArgs)]
#[command(after_help = help::DOCTOR)]
pub(crate) struct DoctorArgs {}

/// Look at how umbra works
#[derive(Debug, ClapArgs)]
pub(crate) struct DebugArgs {
    #[command(subcommand)]
    pub(crate) what: DebugWhat,
}

/// What to look at.
#[derive(Debug, Subcommand)]
pub(crate) enum DebugWhat {
    Block(BlockArgs),
}

/// Translate guest code and print it beside its translation
///
/// One block of 64-bit code is translated as 'umbra run' does it: from the first instruction to one that ends the
/// block, or to the end of the page. Offsets of host code are from the block's beginning.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::DEBUG_BLOCK)]
pub(crate) struct BlockArgs {
    /// The code in hexadecimal, with spaces or without
    #[arg(value_name = "HEX", required_unless_present = "file", conflicts_with = "file")]
    pub(crate) code: Vec<String>,

    /// A file that holds the code instead
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Where in the file it begins
    #[arg(long, value_name = "OFFSET", default_value = "0", requires = "file", value_parser = number::parse)]
    pub(crate) offset: u64,

    /// The address at which the guest runs it
    #[arg(long, value_name = "ADDRESS", default_value = "0x401000", value_parser = number::parse)]
    pub(crate) at: u64,

    /// Whose code it is; by its address unless given
    #[arg(long, value_name = "WHOSE")]
    pub(crate) mode: Option<Whose>,
}

/// Whose code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Whose {
    /// A program's: CPL 3
    User,
    /// A 32-bit program's: CPL 3, compatibility mode
    User32,
    /// The kernel's: CPL 0
    Kernel,
}

/// Print a completion script for a shell
#[derive(Debug, ClapArgs)]
#[command(after_help = help::COMPLETIONS)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: Shell,
}

/// Write the man pages
#[derive(Debug, ClapArgs)]
#[command(after_help = help::MAN)]
pub(crate) struct ManArgs {
    /// Where to put one page per command; without it, umbra(1) goes to standard output
    pub(crate) dir: Option<PathBuf>,
}
