//! The roads between a guest and its host, and how each is laid with every engine.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::content::{self, MIB, Sum};
use super::peer::Peer;
use crate::bench::engine::{Engine, Hosts};
use crate::bench::stage::Stage;

/// A road.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Road {
    /// A virtio disk that is a raw image.
    Raw,
    /// One that is a qcow2 image.
    Qcow2,
    /// A raw image as an NVMe disk.
    Nvme,
    /// A directory of the host.
    Share,
    /// TCP through the user-mode network.
    Net,
    /// Sockets between guest and host.
    Vsock,
}

/// The port at which the host is found by vsock.
const VSOCK_PORT: u16 = 4242;

/// A road that is laid: what it has on the host, and what is at its end. The files go with it.
pub(super) struct Ground {
    road: Road,
    dir: tempfile::TempDir,
    mib: u64,
    /// Who sends and takes, where that is no file.
    peer: Option<Peer>,
    port: u16,
    /// The sum of what was there first.
    first: String,
}

impl Road {
    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "blk raw",
            Self::Qcow2 => "blk qcow2",
            Self::Nvme => "nvme raw",
            Self::Share => "files",
            Self::Net => "tcp",
            Self::Vsock => "vsock",
        }
    }

    /// Whether it leads to a disk.
    pub(super) fn is_disk(self) -> bool {
        matches!(self, Self::Raw | Self::Qcow2 | Self::Nvme)
    }

    /// Why QEMU cannot have it here, if so: it is to need no privileges and nothing but its own process.
    fn why_not_in_qemu(self) -> Option<&'static str> {
        match self {
            Self::Share => Some("the guest's kernel has no 9p, and virtio-fs takes a daemon"),
            Self::Vsock => Some("vsock takes the host's vhost-vsock, or a daemon"),
            Self::Raw | Self::Qcow2 | Self::Nvme | Self::Net => None,
        }
    }
}

impl Ground {
    /// Lays a road, with so many MiB on it, in a new directory below `base`.
    ///
    /// # Errors
    /// If the host cannot.
    pub(super) fn lay(road: Road, base: &Path, mib: u64, hosts: &Hosts) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("umbra-bench-io-").tempdir_in(base);
        let dir = dir.with_context(|| format!("cannot make a directory in '{}'", base.display()))?;
        let mut ground = Self { road, dir, mib, peer: None, port: VSOCK_PORT, first: String::new() };
        match road {
            Road::Net => {
                let (peer, port) = Peer::tcp()?;
                (ground.peer, ground.port) = (Some(peer), port);
            }
            Road::Vsock => ground.peer = Some(Peer::unix(&ground.path(&format!("vsock_{VSOCK_PORT}")))?),
            Road::Raw | Road::Qcow2 | Road::Nvme | Road::Share => ground.fill(hosts)?,
        }
        Ok(ground)
    }

    /// Makes what is copied into the guest.
    fn fill(&mut self, hosts: &Hosts) -> Result<()> {
        let path = self.path("in");
        let mut file = File::create(&path).with_context(|| format!("cannot make '{}'", path.display()))?;
        let sum = content::write(&mut file, self.mib);
        self.first = sum.with_context(|| format!("cannot write '{}'", path.display()))?.text();
        if self.road == Road::Qcow2 {
            convert(hosts, &path, "raw", &self.path("in.qcow2"))?;
            fs::remove_file(&path)?;
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The sum of what was there first; for a disk, until something else is written there.
    pub(super) fn first_sum(&self) -> &str {
        &self.first
    }

    /// Whether it leads to a disk.
    pub(super) fn is_disk(&self) -> bool {
        self.road.is_disk()
    }

    /// The peer at the other end, if there is one.
    pub(super) fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// How an engine is started upon it.
    ///
    /// # Errors
    /// If it cannot be; why.
    pub(super) fn command(&self, engine: Engine, hosts: &Hosts, stage: &Stage) -> Result<Command, String> {
        if engine == Engine::Qemu {
            if let Some(why) = self.road.why_not_in_qemu() {
                return Err(why.to_owned());
            }
            let mut command = hosts.command(engine, stage)?;
            command.args(self.qemu_arguments());
            return Ok(command);
        }
        if self.road == Road::Share {
            return hosts.command_of_host(stage, &format!("{}:/mnt", self.dir.path().display()));
        }
        let mut command = hosts.command(engine, stage)?;
        command.args(self.umbra_arguments());
        Ok(command)
    }

    fn umbra_arguments(&self) -> Vec<OsString> {
        let (option, value) = match self.road {
            Road::Raw => ("--disk", self.path("in")),
            Road::Qcow2 => ("--disk", self.path("in.qcow2")),
            Road::Nvme => ("--disk", self.path("in,bus=nvme")),
            Road::Vsock => ("--vsock", self.path("vsock")),
            Road::Net | Road::Share => return Vec::new(),
        };
        vec![option.into(), value.into()]
    }

    fn qemu_arguments(&self) -> Vec<OsString> {
        let (option, value, device) = match self.road {
            Road::Raw => ("-drive", self.drive("in", "raw"), "virtio-blk-pci,drive=d"),
            Road::Qcow2 => ("-drive", self.drive("in.qcow2", "qcow2"), "virtio-blk-pci,drive=d"),
            Road::Nvme => ("-drive", self.drive("in", "raw"), "nvme,drive=d,serial=d"),
            Road::Net => ("-netdev", "user,id=n".into(), "virtio-net-pci,netdev=n,romfile="),
            Road::Share | Road::Vsock => return Vec::new(),
        };
        vec![option.into(), value, "-device".into(), device.into()]
    }

    fn drive(&self, name: &str, format: &str) -> OsString {
        let mut text = OsString::from(format!("if=none,id=d,format={format},file="));
        text.push(self.path(name));
        text
    }

    /// Where a guest finds it, for either direction.
    pub(super) fn place(&self, out: bool) -> String {
        match self.road {
            Road::Raw | Road::Qcow2 => "/dev/vda".to_owned(),
            Road::Nvme => "/dev/nvme0n1".to_owned(),
            Road::Share => format!("/mnt/{}", if out { "out" } else { "in" }),
            Road::Net => format!("tcp:{}", self.port),
            Road::Vsock => format!("vsock:{}", self.port),
        }
    }

    /// The sum of what a guest has written to a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn sum_of_file(&self) -> Result<String> {
        let path = self.path("out");
        let mut file = File::open(&path).with_context(|| format!("cannot read '{}'", path.display()))?;
        Ok(content::read(&mut file, self.mib, |_| ()).context("a file of the guest's is too short")?.text())
    }

    /// The sum of a disk that nobody uses any more; and that it holds nothing but blocks, each in its place.
    ///
    /// # Errors
    /// If not, or if it cannot be read.
    pub(super) fn sum_of_disk(&self, hosts: &Hosts) -> Result<String> {
        let path = self.path("in");
        if self.road == Road::Qcow2 {
            convert(hosts, &self.path("in.qcow2"), "qcow2", &path)?;
        }
        let mut file = File::open(&path).with_context(|| format!("cannot read '{}'", path.display()))?;
        let (mut first, mut checked) = (0, Ok(()));
        let sum: Sum = content::read(&mut file, self.mib, |chunk| {
            if checked.is_ok() {
                checked = content::check(chunk, first);
            }
            first += (MIB / content::BLOCK) as u64;
        })
        .with_context(|| format!("cannot read '{}'", path.display()))?;
        checked?;
        Ok(sum.text())
    }
}

/// Makes an image of another format.
fn convert(hosts: &Hosts, from: &Path, format: &str, to: &Path) -> Result<()> {
    let mut image = from.as_os_str().to_owned();
    image.push(format!(",format={format}"));
    let umbra = hosts.umbra().map_err(anyhow::Error::msg)?;
    let output = Command::new(umbra).args(["disk", "convert"]).arg(image).arg(to).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
