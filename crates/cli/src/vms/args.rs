//! What was typed, of the commands that name VMs.

use std::ffi::OsString;
use std::time::Duration;

use clap::{ArgGroup, Args as ClapArgs, ValueEnum};
use spec::{DiskSpec, MemorySize, NetSpec, SlotName};

use crate::args::CommandArgs;
use crate::{duration, help};

/// One VM or several.
#[derive(Debug, ClapArgs)]
pub(crate) struct Names {
    /// The VMs' names
    #[arg(required = true, value_name = "VM")]
    pub(crate) names: Vec<String>,
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// Columns
    #[default]
    Table,
    /// A line of JSON for each VM
    Json,
}

/// List VMs
#[derive(Debug, ClapArgs)]
#[command(after_help = help::PS)]
pub(crate) struct PsArgs {
    /// Those that have ended, too
    #[arg(short, long)]
    pub(crate) all: bool,

    /// Names only
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: ListFormat,
}

/// Say everything that is known of VMs, as JSON
#[derive(Debug, ClapArgs)]
#[command(after_help = help::VMS)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) vms: Names,
}

/// Show what VMs use and do, every second
#[derive(Debug, ClapArgs)]
#[command(after_help = help::VMS)]
pub(crate) struct StatsArgs {
    /// The VMs' names; all that run unless given
    #[arg(value_name = "VM")]
    pub(crate) names: Vec<String>,

    /// Once, not every second
    #[arg(long)]
    pub(crate) no_stream: bool,

    /// How to print; json has every counter
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: ListFormat,
}

/// Change VMs that run
///
/// The guest gives memory up, or gets it back, by a balloon: it takes what it uses least, and may come to less than SIZE
/// slowly or, if it needs more, never. 'umbra stats' shows how far it is.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::UPDATE)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    pub(crate) vms: Names,

    /// Leave the guest so much memory, at most what the VM was started with
    #[arg(short, long, value_name = "SIZE", required = true)]
    pub(crate) memory: MemorySize,
}

/// Plug a disk or a network adapter into a VM that runs
///
/// The VM needs a free slot ('umbra run --slots N'). Prints the slot's name, slot1 and so on, when the guest has found the
/// device; a virtio disk has that name as its serial number. The device is opened by this command, with your rights.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::PLUG)]
#[command(group(ArgGroup::new("device").args(["disk", "net"])))]
pub(crate) struct PlugArgs {
    /// The VM's name
    #[arg(value_name = "VM")]
    pub(crate) name: String,

    /// A disk, as of 'umbra run --disk'
    #[arg(long, value_name = "FILE[,OPTION…]")]
    pub(crate) disk: Option<DiskSpec>,

    /// A network adapter, as of 'umbra run --net': user or tap=DEVICE
    ///
    /// The user-mode network of slot N is 10.0.(2+N).0/24 and fec0:0:0:N::/64, with the guest, its router and its name server at the
    /// same places as on 10.0.2.0/24. No ports lead into the guest there, and a VM of --net none takes none.
    #[arg(long, value_name = "NETWORK")]
    pub(crate) net: Option<NetSpec>,
}

/// Take a device out of a VM that runs
///
/// The guest is asked to let go of it, as by the button beside a slot: its drivers write what is to be written, and then it is out and its files are
/// closed. A guest may also let go of it by itself (echo 0 > /sys/bus/pci/slots/N/power).
#[derive(Debug, ClapArgs)]
#[command(after_help = help::UNPLUG)]
pub(crate) struct UnplugArgs {
    /// The VM's name
    #[arg(value_name = "VM")]
    pub(crate) name: String,

    /// The slot, as 'umbra plug' printed it and 'umbra inspect' lists it
    #[arg(value_name = "SLOT")]
    pub(crate) slot: SlotName,

    /// Take it away without asking: what the guest has not written is lost
    #[arg(short, long)]
    pub(crate) force: bool,

    /// How long the guest may take: 90s, 5m, or a number of seconds
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    pub(crate) timeout: Duration,
}

/// Halt VMs, with their clocks
#[derive(Debug, ClapArgs)]
#[command(after_help = help::VMS)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    pub(crate) vms: Names,
}

/// Let paused VMs go on
#[derive(Debug, ClapArgs)]
#[command(visible_alias = "unpause", after_help = help::VMS)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    pub(crate) vms: Names,
}

/// Switch VMs off: press the power button, and after a while pull the plug
///
/// The guest hears of an ACPI power button; one that systemd has booted is told to power off, too. A guest that umbra made, or whose root is shared, sends SIGTERM to CMD (and
/// SIGHUP to a shell), whose end is its own. A guest that does not listen is ended when the time is over, with status 137.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::VMS)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) vms: Names,

    /// How long the guest may take: 90s, 5m, or a number of seconds
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    pub(crate) timeout: Duration,
}

/// End VMs at once, with status 137
#[derive(Debug, ClapArgs)]
#[command(after_help = help::VMS)]
pub(crate) struct KillArgs {
    #[command(flatten)]
    pub(crate) vms: Names,
}

/// Wait until VMs have ended, and print their exit statuses
#[derive(Debug, ClapArgs)]
#[command(after_help = help::VMS)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    pub(crate) vms: Names,
}

/// Remove what VMs that have ended left: name, log and status
///
/// The disk of a VM of 'umbra run --name VM debian' stays, and the next VM of that name goes on with it, unless there is --disk.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::VMS)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    pub(crate) vms: Names,

    /// End those that run
    #[arg(short, long)]
    pub(crate) force: bool,

    /// The disks that they have kept, too ('umbra run --name VM debian')
    #[arg(long)]
    pub(crate) disk: bool,
}

/// Print what a VM in the background has printed
///
/// Standard output and standard error stay what they are. The last megabytes are kept.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::VMS)]
pub(crate) struct LogsArgs {
    /// The VM's name
    #[arg(value_name = "VM")]
    pub(crate) name: String,

    /// Go on with what it prints from now on, until it ends
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// The last lines only
    #[arg(short = 'n', long, value_name = "LINES")]
    pub(crate) tail: Option<usize>,
}

/// Run a command in a VM that runs
///
/// In VMs of 'umbra run host', 'umbra run DIRECTORY', and 'umbra run debian' or a disk image that systemd boots. What is not given is as it was for the VM's own CMD: user, directory,
/// environment.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::EXEC)]
pub(crate) struct ExecArgs {
    /// Pass standard input on; without this, CMD's is empty
    #[arg(short, long)]
    pub(crate) interactive: bool,

    /// Run CMD on a terminal of its own, as large as this one
    #[arg(short, long)]
    pub(crate) tty: bool,

    #[command(flatten)]
    pub(crate) how: CommandArgs,

    /// How long to wait for a guest that is booting still
    #[arg(long, value_name = "SECONDS", default_value_t = super::exec::PATIENCE_S)]
    pub(crate) wait: u64,

    /// The VM's name
    #[arg(value_name = "VM")]
    pub(crate) name: String,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// Copy files to a VM that runs, or from it
///
/// In VMs that run commands for 'umbra exec'. What is copied goes into TARGET if that is a directory, else TARGET is its new name; of DIR/. only
/// what is in it is copied. Links are copied as links. Permissions are kept, owners are not: in the guest it is root, here you.
#[derive(Debug, ClapArgs)]
#[command(after_help = help::CP)]
pub(crate) struct CpArgs {
    /// VM:PATH or a path; '-' is a tar archive on standard input, to be unpacked in TARGET
    #[arg(value_name = "SOURCE")]
    pub(crate) source: OsString,

    /// A path or VM:PATH; '-' writes a tar archive to standard output
    #[arg(value_name = "TARGET")]
    pub(crate) target: OsString,
}

/// Attach this terminal to the console of a VM in the background
///
/// Ctrl-P Ctrl-Q detaches it, and the VM goes on. Several terminals may be attached.
#[derive(Debug, ClapArgs)]
#[command(visible_alias = "attach", after_help = help::CONSOLE)]
pub(crate) struct ConsoleArgs {
    /// The VM's name
    #[arg(value_name = "VM")]
    pub(crate) name: String,
}
