//! `umbra run`: from a plan to an exit status.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use host::jail::{self, Needs, Role};
use spec::{DebianSpec, DiskSpec, VmSpec};
use vm::{BootImages, Builder, Initrd, OnReset, Stopped, VmHandle};

use crate::args::RunArgs;
use crate::console::{Console, Event, Events, FromGuest, signals, terminal};
use crate::debian::{self, Cache, Freshness, Module, Set, Wanted};
use crate::initramfs::{self, Contents, Session};
use crate::plan::{Guest, Plan, Surroundings};
use crate::report::OwnFigures;
use crate::seed::Seed;
use crate::source::Source;
use crate::status::Status;
use crate::vms::presence::Presence;
use crate::vms::record::Description;
use crate::vms::{detach, disk};
use crate::{counters, files, keys, message, report};

/// How long a guest whose command has ended may take to power off.
const GRACE: Duration = Duration::from_secs(10);

/// How it ended.
enum Ending {
    /// By itself.
    Stopped(Stopped),
    /// The guest stayed after its command.
    Lingering,
    /// `--timeout`.
    TimedOut,
    /// A signal to us.
    Signal(i32),
    /// Ctrl-].
    Detached,
    /// Its output has nowhere to go.
    OutputLost(io::Error),
}

/// Runs a VM.
///
/// # Errors
/// If it cannot be built, or we fail it.
pub(crate) fn run(args: RunArgs) -> Result<Status> {
    if args.detach && !args.in_background {
        return detach::start();
    }
    let source = Source::of(args.source.as_deref())?;
    let keys = match &source {
        Source::Debian(_) => keys::read(&args.ssh_key)?,
        _ => Vec::new(),
    };
    let directory = std::env::current_dir().ok();
    let surroundings = Surroundings { session: session(&args), directory, keys };
    let described_source = source.to_string();
    let plan = Plan::new(args, source, surroundings)?;
    let (mut machine, images) = load(&plan)?;
    let seed = plan.cloud_init.as_ref().map(|from| Seed::new(from, machine.name.as_str())).transpose()?;
    machine.disks.extend(seed.as_ref().map(Seed::disk));
    let mut presence = note(&plan, &machine, described_source)?;
    let status = live(&plan, &machine, images, &mut presence).unwrap_or_else(|error| {
        message::error(&format!("{error:#}"));
        Status::OURS
    });
    presence.end(status);
    Ok(status)
}

/// How a command of ours is to meet the console.
fn session(args: &RunArgs) -> Session {
    // In the background nobody is there to type, but to a shell somebody may come.
    let terminal = if args.in_background { args.command.is_empty() } else { terminal::is_interactive() };
    if terminal {
        Session::Terminal { size: terminal::size(), term: terminal::kind() }
    } else {
        Session::Piped
    }
}

/// Lets others see the VM.
fn note(plan: &Plan, machine: &VmSpec, source: String) -> Result<Presence> {
    let command = plan.command().iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let description = Description {
        remove: plan.remove,
        detached: plan.background,
        ..Description::new(machine, source, command)
    };
    let name = plan.machine.name.as_ref().map(spec::Name::as_str);
    Presence::open(name, description)
}

/// The VM's life.
fn live(plan: &Plan, machine: &VmSpec, images: BootImages, presence: &mut Presence) -> Result<Status> {
    let (events, queue) = Events::queue();
    let mut console = Console::new(&plan.guest, presence.hub(), events);
    let mut builder = Builder::new(machine, images).on_reset(if plan.guest.is_ours() {
        OnReset::Stop
    } else {
        OnReset::Reboot
    });
    builder = console.plug(builder)?;
    let opened = builder.open()?;
    let figures = plan.verbose.then(OwnFigures::open);
    if plan.jail {
        let needs = Needs {
            directories: opened.directories(),
            own: &presence.directories()?,
            ram_bytes: plan.memory.bytes(),
            before_the_end: terminal::restore_at_once,
        };
        jail::shut(&needs).context("the VM cannot be jailed; --no-jail runs it without, for debugging")?;
    }
    let vm = opened.build()?.start()?;
    presence.start(&vm, plan.guest.is_ours(), console.agent())?;
    console.start(&vm)?;
    jail::enter(Role::Main);
    let mut watch = Watch::new(plan.timeout);
    let ending = watch.until_the_end(&vm, &console, presence, &queue)?;
    if !matches!(ending, Ending::Stopped(_)) {
        vm.stop();
    }
    console.close();
    if let Some(figures) = figures {
        report::print(&vm.stats(), watch.ready, figures);
    }
    if let Some(format) = plan.stats {
        message::block(&counters::text(&vm.stats(), format));
    }
    let reported = watch.reported.filter(|_| plan.has_command());
    // A reset is how a panic ends; a shell's user may also have asked for one.
    let expects_reset = !plan.has_command() && watch.ready.is_some();
    status(ending, reported, expects_reset)
}

/// Reads or makes everything that the machine boots from.
fn load(plan: &Plan) -> Result<(VmSpec, BootImages)> {
    let limit = plan.memory.bytes();
    let path = match &plan.kernel {
        Some(path) => path.clone(),
        None => debian::kernel(&Cache::of_user()?, Wanted::NewestKernel, Freshness::Cached)?,
    };
    let kernel = files::open(&path, "kernel", limit)?;
    let initrds = match &plan.guest {
        Guest::Ours { command, session } => {
            let busybox = debian::busybox(&Cache::of_user()?, Freshness::Cached)?;
            let bytes = initramfs::build(&Contents {
                busybox: &files::read(&busybox.program, "busybox", limit)?,
                applets: &busybox.applets,
                hostname: plan.machine.name.clone().unwrap_or_default().as_str(),
                modules: &modules(plan, &path)?,
                command,
                session,
                user_network: plan.machine.net.is_user(),
            });
            vec![Initrd { name: "initramfs".to_owned(), image: bytes.into() }]
        }
        Guest::Entered(settings) | Guest::Booted(settings) => {
            let bytes = initramfs::shared::build(settings, &modules(plan, &path)?);
            vec![Initrd { name: "initramfs".to_owned(), image: bytes.into() }]
        }
        Guest::Theirs { initrds } => {
            let read = |path: &PathBuf| {
                let image = files::open(path, "initrd", limit)?;
                Ok(Initrd { name: path.display().to_string(), image })
            };
            initrds.iter().map(read).collect::<Result<_>>()?
        }
    };
    let mut machine = plan.describe(path);
    if let Some(debian) = &plan.debian {
        machine.disks.insert(0, root_disk(plan, debian)?);
    }
    Ok((machine, BootImages { kernel, initrds }))
}

/// The disk with a root of Debian's packages.
fn root_disk(plan: &Plan, debian: &DebianSpec) -> Result<DiskSpec> {
    let cache = Cache::of_user()?;
    let name = plan.machine.name.as_ref().filter(|_| !plan.remove);
    disk::upon(name, &debian::root_link(debian), &cache.debian(), || {
        debian::root(&cache, debian, Freshness::Cached)
    })
}

/// The drivers that a guest of ours loads, and what they depend on.
fn modules(plan: &Plan, kernel: &Path) -> Result<Vec<Module>> {
    let drivers = plan.drivers();
    if drivers.is_empty() {
        return Ok(Vec::new());
    }
    let volume = plan.cloud_init.as_ref().map(|_| (Set::Volume, vec!["isofs"]));
    let mut modules = Vec::new();
    for (set, names) in [(Set::Drivers, drivers)].into_iter().chain(volume) {
        // A kernel of the user's own has to bring its drivers with it.
        if let Some(dir) = debian::modules_of(&Cache::of_user()?, kernel, set)? {
            modules.extend(debian::select(&dir, &names)?);
        }
    }
    Ok(modules)
}

/// What has been seen of a running VM.
struct Watch {
    started: Instant,
    /// When not to wait any longer, and what that means.
    deadline: Option<Instant>,
    /// How long it took until the guest was ready.
    ready: Option<Duration>,
    /// The command's status.
    reported: Option<u8>,
}

impl Watch {
    fn new(timeout: Option<Duration>) -> Self {
        let started = Instant::now();
        Self {
            started,
            deadline: timeout.and_then(|time| started.checked_add(time)),
            ready: None,
            reported: None,
        }
    }

    /// Reacts to events until one of them is the end.
    fn until_the_end(
        &mut self,
        vm: &VmHandle,
        console: &Console,
        presence: &Presence,
        queue: &Receiver<Event>,
    ) -> Result<Ending> {
        loop {
            match self.next(queue)? {
                None if self.reported.is_some() => return Ok(Ending::Lingering),
                None => return Ok(Ending::TimedOut),
                Some(Event::Stopped(stopped)) => return Ok(Ending::Stopped(stopped)),
                Some(Event::Detach) => return Ok(Ending::Detached),
                Some(Event::OutputLost(error)) => return Ok(Ending::OutputLost(error)),
                Some(Event::Signal(signal)) if signals::is_deadly(signal) => {
                    return Ok(Ending::Signal(signal));
                }
                Some(Event::Signal(signal)) => console.signal(signal, vm),
                Some(Event::Guest(FromGuest::Ready(way))) if self.ready.is_none() => {
                    self.ready = Some(self.started.elapsed());
                    console.start_input(vm, way);
                    presence.ready();
                }
                Some(Event::Guest(FromGuest::Exit(status))) if self.reported.is_none() => {
                    self.reported = Some(status);
                    let grace = Instant::now() + GRACE;
                    self.deadline = Some(self.deadline.map_or(grace, |deadline| deadline.min(grace)));
                }
                Some(Event::Guest(_)) => {}
            }
        }
    }

    /// The next event, or none when the time is up.
    fn next(&self, queue: &Receiver<Event>) -> Result<Option<Event>> {
        let Some(deadline) = self.deadline else { return Ok(Some(queue.recv()?)) };
        match queue.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(error @ RecvTimeoutError::Disconnected) => Err(error.into()),
        }
    }
}

/// What an ending means to whoever called us; `reported` is the command's own status.
fn status(ending: Ending, reported: Option<u8>, expects_reset: bool) -> Result<Status> {
    Ok(match ending {
        Ending::Stopped(Stopped::Failed(why)) => bail!(why),
        Ending::Stopped(Stopped::TripleFault(dump)) => {
            message::error("the guest's processor shut down (triple fault)");
            message::block(&dump.to_string());
            Status::TRIPLE_FAULT
        }
        Ending::Stopped(Stopped::DebugExit(value)) => Status::debug_exit(value),
        // By 'umbra kill', or a guest that 'umbra stop' asked in vain.
        Ending::Stopped(Stopped::Killed) => Status::KILLED,
        Ending::Stopped(_) | Ending::Lingering if reported.is_some() => reported.map_or(Status::OK, Status),
        Ending::Stopped(Stopped::Reset) if !expects_reset => {
            bail!("the guest's kernel panicked or rebooted: run with --verbose to see its messages")
        }
        Ending::Stopped(_) | Ending::Lingering => Status::OK,
        Ending::Detached => {
            // The guest's prompt is still on the line.
            message::block("");
            Status::OK
        }
        Ending::TimedOut => {
            message::error("the VM was stopped because the time given with --timeout is over");
            Status::TIMEOUT
        }
        Ending::Signal(number) => Status::signal(number),
        Ending::OutputLost(error) if error.kind() == io::ErrorKind::BrokenPipe => Status::BROKEN_PIPE,
        Ending::OutputLost(error) => bail!("the guest's output cannot be written: {error}"),
    })
}
