//! Devices that are plugged into a VM that runs.
//!
//! The VM's process opens no files by then, so whoever plugs a device in brings them open: the images of a disk, a TAP
//! device, the addresses of name servers. What is left, to look at what is in the images and to make the device, is done by the thread that
//! will serve it ([`crate::slots`]).

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use backend::Layers;
use host::tap::{Facts, Tap};
use spec::{DiskBus, DiskSpec, NetSpec, SlotName, TapNetSpec, UserNetSpec};
use virtio::blk::Blk;

use crate::VmError;
use crate::functions::{self, Card, virtio};

/// The I/O queues of a disk in a slot: a thread serves it.
const QUEUES: u16 = 1;
/// NVMe disks in slots are numbered from here on: behind all others.
const FIRST_NUMBER: u16 = 100;

/// A device that is to be plugged in.
#[derive(Debug)]
pub enum Attachment {
    /// A disk.
    Disk {
        /// What it is; its file's name is for messages only.
        spec: DiskSpec,
        /// Its image's files.
        layers: Layers,
    },
    /// A network adapter on a user-mode network of its own.
    User {
        /// What it is.
        spec: UserNetSpec,
        /// The host's name servers.
        resolvers: Vec<SocketAddr>,
    },
    /// A network adapter on a TAP device.
    Tap {
        /// What it is; its device's name is for messages only.
        spec: TapNetSpec,
        /// The device, as [`Tap::open`] left it.
        device: OwnedFd,
        /// What the device is.
        facts: Facts,
    },
}

impl Attachment {
    /// What people call it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Disk { spec, .. } => spec.to_string(),
            Self::User { spec, .. } => NetSpec::User(spec.clone()).to_string(),
            Self::Tap { spec, .. } => NetSpec::Tap(spec.clone()).to_string(),
        }
    }

    /// Whether the process makes connections for it.
    pub(crate) fn is_user_network(&self) -> bool {
        matches!(self, Self::User { .. })
    }

    /// Makes the device. May take its time.
    ///
    /// # Errors
    /// If an image is none or is damaged, or the host has no descriptors left.
    pub(crate) fn card(self, slot: SlotName) -> Result<Card, VmError> {
        match self {
            Self::Disk { spec, layers } => {
                let volume = functions::limited(layers.stack()?, &spec);
                Ok(match spec.bus {
                    DiskBus::Virtio => virtio(Blk::new(volume, &slot.to_string(), QUEUES)),
                    DiskBus::Nvme => {
                        let number = FIRST_NUMBER + u16::from(slot.number());
                        Card::Nvme { volume, number, queues: QUEUES }
                    }
                })
            }
            Self::User { spec, resolvers } => functions::user_adapter(&spec, &[], resolvers, slot.number()),
            Self::Tap { spec, device, facts } => {
                functions::tap_adapter(Tap::standing_in(device), facts, &spec)
            }
        }
    }
}
