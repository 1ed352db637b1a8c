//! What a virtio device does, apart from how it is reached.

use std::borrow::Cow;
use std::time::Duration;

use host::jail::Role;
use memory::GuestMemory;
use state::{Record, StateError};

use crate::queue::{Buffers, Chain};
use crate::transport::Queues;

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name in messages.
    pub name: &'static str,
    /// Its device type (VIRTIO 1.2, 5).
    pub id: u16,
    /// Its PCI class, subclass and programming interface; 24 bits.
    pub class: u32,
}

/// A chain that a driver made available, to be served.
#[derive(Debug)]
pub struct Request<'a> {
    /// The queue that it came on.
    pub queue: u16,
    /// The features that were negotiated.
    pub features: u64,
    /// Where its buffers are.
    pub memory: &'a GuestMemory,
    /// The chain.
    pub chain: &'a Chain,
}

/// A request from which it does not follow where an answer goes: the device needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What a device's requests begin with, copied out of a chain, and the buffers behind it.
///
/// # Errors
/// If the chain has fewer bytes to read, or has them where there is no memory.
pub(crate) fn header<const N: usize>(
    memory: &GuestMemory,
    chain: &Chain,
) -> Result<([u8; N], Buffers), Malformed> {
    let (head, rest) = chain.readable.split_at(N as u64).ok_or(Malformed)?;
    let mut bytes = [0; N];
    head.read(memory, &mut bytes).map_err(|_| Malformed)?;
    Ok((bytes, rest))
}

/// A device that answers requests, each by itself. Any thread may call any method; the answers to requests that are out at
/// the same time come in any order.
pub trait Service: Send + Sync {
    /// What it is.
    fn kind(&self) -> Kind;

    /// The features it offers beside those of the transport and of rings.
    fn features(&self) -> u64;

    /// How many queues it has, at least 1 and fewer than [`bus::pci::Msix::MAX_VECTORS`].
    fn queues(&self) -> u16 {
        1
    }

    /// Its configuration, always of the same length. Where it changes, [`Queues::config_changed`] says so to the driver.
    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[])
    }

    /// The driver writes its configuration. Called under the transport's lock, as the next.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    /// The driver has reset the device: what it has written to the configuration is what it was at first.
    fn reset(&self) {}

    /// What the threads that serve it do on the host.
    fn role(&self) -> Role {
        Role::Device
    }

    /// The device as one that is served by a thread of its own, if it is such.
    fn pump(&self) -> Option<&dyn Pump> {
        None
    }

    /// How long no request is to be served, because of a limit on them; the rest waits where the driver put it.
    fn closed_for(&self) -> Duration {
        Duration::ZERO
    }

    /// Serves a request, taking its time; returns how many bytes were written to the beginning of its writable buffers. Where
    /// all queues are a pump's, nobody asks for that.
    ///
    /// # Errors
    /// If it is malformed.
    fn serve(&self, _request: &Request<'_>) -> Result<u32, Malformed> {
        Err(Malformed)
    }

    /// The saved form of what it remembers from one request to the next, if it is a device that does. No request is out.
    fn save(&self) -> Option<Record> {
        None
    }

    /// Remembers what was saved.
    ///
    /// # Errors
    /// If the record is another device's, or damaged.
    fn restore(&self, record: Option<&Record>) -> Result<(), StateError> {
        restore_nothing(self.kind().name, record)
    }
}

/// What a device does that remembers nothing.
pub(crate) fn restore_nothing(name: &'static str, record: Option<&Record>) -> Result<(), StateError> {
    match record {
        None => Ok(()),
        Some(_) => {
            let reason = "it has what this device does not remember".to_owned();
            Err(StateError::Damaged { name, reason })
        }
    }
}

/// A device whose chains wait for what happens elsewhere, such as a network's receive buffers: one thread serves all its
/// queues, and the host's side too. It takes chains only when it can answer them at once.
pub trait Pump: Sync {
    /// Ends [`Pump::wait`], now or the next time. Any thread may call it, and it takes no time.
    fn wake(&self);

    /// Waits until it is woken or something happens on the host. No chain is out meanwhile.
    fn wait(&self);

    /// Moves what can be moved, without waiting; true if it is to be called again before the next wait.
    fn turn(&self, queues: &Queues<'_>) -> bool;
}
