//! The host side of network adapters.
//!
//! An adapter and what is behind it exchange Ethernet frames, each with what is left to be done to it ([`Offload`]): a
//! checksum to be made, a segment to be cut into smaller ones. One thread serves an adapter, so nothing here is shared.

pub mod header;
mod limit;
mod tap;
pub mod user;

use std::time::Duration;

use host::jail::Role;
use host::poll::Bell;

pub use limit::Limited;
pub use tap::TapNetwork;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The longest frame: a header and an IP packet of 64 KiB.
pub const LONGEST_FRAME: usize = 14 + 65_535;

/// A checksum that is still to be made: from `start` to the end of the frame, to be stored at `start + offset`, where the
/// sum of the pseudo header is meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// The first byte that it covers.
    pub start: u16,
    /// Where it goes, from there.
    pub offset: u16,
}

/// The internet protocol under a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A TCP segment that is longer than what may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// What it is in.
    pub version: IpVersion,
    /// The bytes of headers, Ethernet's included.
    pub headers: u16,
    /// The most bytes of data of each segment.
    pub payload: u16,
}

/// What is left to be done to a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// A checksum.
    pub checksum: Option<PartialChecksum>,
    /// Cutting it up.
    pub segments: Option<Segments>,
    /// Its checksums are known to be right.
    pub valid: bool,
}

impl Offload {
    /// Nothing is left, and checksums are right.
    pub const WHOLE: Self = Self { checksum: None, segments: None, valid: true };
}

/// A frame on its way to the guest, in parts that follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Its bytes.
    pub parts: [&'a [u8]; 3],
    /// What is left to be done to it.
    pub offload: Offload,
}

impl Frame<'_> {
    /// How long it is.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }
}

/// What the guest's driver does itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// It takes frames whose checksum is to be made.
    pub checksum: bool,
    /// It takes TCP segments over IPv4 of up to 64 KiB.
    pub tcp4: bool,
    /// And over IPv6.
    pub tcp6: bool,
}

/// What is behind an adapter.
pub trait Network: Send {
    /// What the thread that serves it does on the host.
    fn role(&self) -> Role {
        Role::Network
    }

    /// Rung by whoever has something for the thread that waits.
    fn bell(&self) -> Bell;

    /// Waits until the bell rings or something happens on the host, `limit` at most, and takes in what has happened.
    fn wait(&mut self, limit: Option<Duration>);

    /// Whether it takes a frame of the guest now. Who finds it closed waits before the next look.
    fn is_open(&self) -> bool {
        true
    }

    /// Takes a frame from the guest. Whatever is wrong with it is its sender's loss.
    fn transmit(&mut self, frame: &[u8], offload: Offload);

    /// Hands frames to `deliver` until there are none, or it answers that there is no room: that frame is the first next
    /// time. True if frames are left.
    fn receive(&mut self, abilities: Abilities, deliver: &mut dyn FnMut(&Frame<'_>) -> bool) -> bool;
}

impl Network for Box<dyn Network> {
    fn role(&self) -> Role {
        (**self).role()
    }

    fn bell(&self) -> Bell {
        (**self).bell()
    }

    fn wait(&mut self, limit: Option<Duration>) {
        (**self).wait(limit);
    }

    fn is_open(&self) -> bool {
        (**self).is_open()
    }

    fn transmit(&mut self, frame: &[u8], offload: Offload) {
        (**self).transmit(frame, offload);
    }

    fn receive(&mut self, abilities: Abilities, deliver: &mut dyn FnMut(&Frame<'_>) -> bool) -> bool {
        (**self).receive(abilities, deliver)
    }
}
