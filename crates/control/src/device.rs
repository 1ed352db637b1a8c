//! A device that goes to a VM that runs, as it is sent.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What is sent of a device, but for its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// A disk, with a file for each image of its chain.
    Disk {
        /// As it is typed.
        spec: String,
        /// From the top down.
        images: Vec<ImageFile>,
    },
    /// A network adapter on a user-mode network, without files.
    User {
        /// As it is typed.
        spec: String,
        /// The host's name servers.
        resolvers: Vec<SocketAddr>,
    },
    /// A network adapter on a TAP device, which is the file.
    Tap {
        /// As it is typed.
        spec: String,
        /// The device's Ethernet address.
        address: [u8; 6],
        /// The most bytes of a packet.
        mtu: u16,
    },
}

/// An image of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    /// Its name in messages.
    pub name: String,
    /// It is a qcow2 image, not a raw one.
    pub qcow2: bool,
    /// It is only read.
    pub read_only: bool,
    /// What is flushed is to be there after a crash of the host.
    pub durable: bool,
}

impl Device {
    /// Whether files come with it.
    pub const fn has_files(&self) -> bool {
        !matches!(self, Self::User { .. })
    }
}
