//! What is compared, and how each is started with a given root file system.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use spec::MmuChoice;

use super::apt::{Cache, Closure, Tree, Wanted};
use super::args::SetupArgs;
use super::stage::Stage;

/// Something that runs programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Engine {
    /// The host itself.
    Native,
    /// Umbra with the engine that it chooses.
    Umbra,
    /// Umbra's interpreter.
    UmbraInterp,
    /// Umbra's binary translator.
    UmbraBt,
    /// QEMU with its translator.
    Qemu,
    /// User-Mode Linux.
    Uml,
    /// Umbra's binary translator over a technique of memory virtualization.
    #[value(skip)]
    Mmu(MmuChoice),
}

impl Engine {
    /// The name on the command line and in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Umbra => "umbra",
            Self::UmbraInterp => "umbra-interp",
            Self::UmbraBt => "umbra-bt",
            Self::Qemu => "qemu",
            Self::Uml => "uml",
            Self::Mmu(technique) => technique.name(),
        }
    }

    /// What `umbra run` is to be told, if it is Umbra.
    pub(super) fn umbra_choice(self) -> Option<&'static str> {
        match self {
            Self::Umbra => Some("auto"),
            Self::UmbraInterp => Some("interp"),
            Self::UmbraBt | Self::Mmu(_) => Some("bt"),
            Self::Native | Self::Qemu | Self::Uml => None,
        }
    }

    /// What Umbra is to be told of memory virtualization, if anything.
    pub(super) fn technique(self) -> Option<MmuChoice> {
        match self {
            Self::Mmu(technique) => Some(technique),
            _ => None,
        }
    }

    /// Whether it is one that Umbra is compared with.
    pub(super) fn is_peer(self) -> bool {
        matches!(self, Self::Qemu | Self::Uml)
    }
}

/// A kernel that says nothing and makes an end when it panics; its tests of cryptography are no part of booting.
const COMMAND_LINE: &str = "quiet loglevel=1 panic=-1 cryptomgr.notests";

/// Why something is not there.
const NOT_ASKED: &str = "not asked for";

/// Where libraries are in a Debian root.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// Everything that runs guests. What could not be had is the reason why.
pub(super) struct Hosts {
    umbra: Result<PathBuf, String>,
    kernel: Result<PathBuf, String>,
    qemu: Result<Tree, String>,
    uml: Result<Tree, String>,
}

impl Hosts {
    /// Builds, finds and fetches what the chosen engines need.
    ///
    /// # Errors
    /// If Umbra cannot be built.
    pub(super) fn find(root: &Path, cache: &Cache, engines: &[Engine], args: &SetupArgs) -> Result<Self> {
        let needs = |engine: Engine| engines.contains(&engine);
        let any_umbra = engines.iter().any(|engine| engine.umbra_choice().is_some());
        // QEMU boots the kernel that Umbra finds.
        let umbra = match &args.umbra {
            Some(path) => Ok(path.clone()),
            None if any_umbra || (needs(Engine::Qemu) && args.kernel.is_none()) => Ok(build_umbra(root)?),
            None => Err(NOT_ASKED.to_owned()),
        };
        let kernel = match (&args.kernel, &umbra) {
            (Some(path), _) => Ok(path.clone()),
            (None, Ok(umbra)) => in_words(debian_kernel(umbra, args.refresh)),
            (None, Err(why)) => Err(why.clone()),
        };
        let fetch = |engine, name, package| {
            let wanted = Wanted { name, packages: &[package], closure: Closure::Missing, backports: true };
            if needs(engine) { in_words(cache.tree(&wanted)) } else { Err(NOT_ASKED.to_owned()) }
        };
        let qemu = fetch(Engine::Qemu, "qemu", "qemu-system-x86");
        let uml = fetch(Engine::Uml, "uml", "user-mode-linux");
        Ok(Self { umbra, kernel, qemu, uml })
    }

    /// How an engine is started.
    ///
    /// # Errors
    /// If something that it needs could not be had.
    pub(super) fn command(&self, engine: Engine, stage: &Stage) -> Result<Command, String> {
        match engine {
            Engine::Native => Ok(stage.native()),
            Engine::Qemu => Ok(qemu(self.qemu.as_ref().map_err(Clone::clone)?, self.kernel.as_ref()?, stage)),
            Engine::Uml => Ok(uml(self.uml.as_ref().map_err(Clone::clone)?, stage)),
            Engine::Umbra | Engine::UmbraInterp | Engine::UmbraBt | Engine::Mmu(_) => {
                Ok(umbra(self.umbra.as_ref()?, engine, self.kernel.as_ref()?, stage))
            }
        }
    }

    /// How Umbra is started with the host's files as its guest's, and a directory of them that may be changed; the driver is no
    /// init then.
    ///
    /// # Errors
    /// As [`Hosts::command`].
    pub(super) fn command_of_host(&self, stage: &Stage, volume: &str) -> Result<Command, String> {
        let mut command = Command::new(self.umbra()?);
        command.args(["run", "host", "-m", &format!("{}M", stage.memory_mib), "-v", volume]);
        command.arg("--kernel").arg(self.kernel_file()?).arg("--").arg(stage.driver());
        Ok(command)
    }

    /// The `umbra` command.
    ///
    /// # Errors
    /// If it could not be had.
    pub(super) fn umbra(&self) -> Result<&Path, String> {
        self.umbra.as_deref().map_err(Clone::clone)
    }

    /// The kernel's file.
    ///
    /// # Errors
    /// If it could not be had.
    pub(super) fn kernel_file(&self) -> Result<&Path, String> {
        self.kernel.as_deref().map_err(Clone::clone)
    }

    /// What an engine is, with its version.
    pub(super) fn describe(&self, engine: Engine) -> String {
        let of = |tree: &Result<Tree, String>| match tree {
            Ok(tree) => tree.version.clone(),
            Err(why) => why.clone(),
        };
        match engine {
            Engine::Native => format!("{}, Linux {}", processor(), release()),
            Engine::Qemu => format!("QEMU {}, TCG, -cpu max, one thread", of(&self.qemu)),
            Engine::Uml => format!("User-Mode Linux {}", of(&self.uml)),
            Engine::Umbra => "umbra run".to_owned(),
            Engine::UmbraInterp => "umbra run --engine interp".to_owned(),
            Engine::UmbraBt => "umbra run --engine bt".to_owned(),
            Engine::Mmu(technique) => format!("umbra run --engine bt --mmu {technique}"),
        }
    }

    /// The kernel of Umbra's and QEMU's guests.
    pub(super) fn kernel(&self) -> String {
        let path = self.kernel.as_ref().map(|path| path.canonicalize().unwrap_or_else(|_| path.clone()));
        match path {
            Ok(path) => path
                .parent()
                .and_then(Path::file_name)
                .filter(|_| path.ends_with("vmlinuz"))
                .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned()),
            Err(why) => why.clone(),
        }
    }
}

/// A failure as its text, to be shown wherever it matters.
fn in_words<T>(result: Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{error:#}"))
}

fn umbra(program: &Path, engine: Engine, kernel: &Path, stage: &Stage) -> Command {
    let choice = engine.umbra_choice().unwrap_or("auto");
    let mut command = Command::new(program);
    command.arg("run").arg(kernel).args(["-m", &format!("{}M", stage.memory_mib)]);
    command.args(["--engine", choice, "--append", &format!("console=ttyS0 {COMMAND_LINE}")]);
    command.arg("--initrd").arg(&stage.initrd);
    if let Some(technique) = engine.technique() {
        command.args(["--mmu", technique.name()]);
    }
    command
}

fn qemu(tree: &Tree, kernel: &Path, stage: &Stage) -> Command {
    let root = &tree.root;
    let libraries = LIBRARIES.map(|dir| root.join(dir).display().to_string()).join(":");
    let mut command = Command::new(root.join("usr/bin/qemu-system-x86_64"));
    command.env("LD_LIBRARY_PATH", libraries).env("QEMU_MODULE_DIR", root.join(LIBRARIES[0]).join("qemu"));
    command.arg("-L").arg(root.join("usr/share/qemu")).arg("-L").arg(root.join("usr/share/seabios"));
    command.args(["-machine", "q35", "-cpu", "max", "-accel", "tcg,thread=single", "-smp", "1"]);
    command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    command.args(["-m", &stage.memory_mib.to_string(), "-append", &format!("console=ttyS0 {COMMAND_LINE}")]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(&stage.initrd);
    command
}

fn uml(tree: &Tree, stage: &Stage) -> Command {
    let mut initrd = OsString::from("initrd=");
    initrd.push(&stage.initrd);
    let mut command = Command::new(tree.root.join("usr/bin/linux.uml"));
    command.arg(format!("mem={}M", stage.memory_mib)).arg(initrd);
    command.args(["con0=fd:0,fd:1", "con=null", "ssl=null"]).args(COMMAND_LINE.split(' '));
    command
}

/// Builds Umbra as its users do. It is beside us, wherever cargo has been told to put things.
fn build_umbra(root: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", "umbra-cli"])
        .current_dir(root)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "umbra cannot be built");
    let own = std::env::current_exe().context("cannot find this program")?;
    let target = own.parent().and_then(Path::parent).context("this program is in no target directory")?;
    Ok(target.join("release/umbra"))
}

/// The kernel that `umbra run` boots.
fn debian_kernel(umbra: &Path, refresh: bool) -> Result<PathBuf> {
    let mut command = Command::new(umbra);
    command.arg("fetch").args((!refresh).then_some("--cached"));
    let output = command.output().with_context(|| format!("cannot run '{}'", umbra.display()))?;
    if !output.status.success() {
        bail!("there is no kernel: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| "an unknown processor".to_owned(), |(_, name)| name.to_owned())
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
