//! Virtqueues, from the device's side.
//!
//! A driver makes *chains* of buffers available and the device gives them back *used*, in any order. There are two layouts
//! of that in memory ([`split`], [`packed`]), which differ in nothing that a device can see.
//!
//! # What a driver may do to us
//! Everything in a ring is the guest's, changes at any moment and may be a lie. So:
//!
//! - A descriptor is read once, into the [`Chain`], and used from there; a driver that changes it later changes nothing.
//! - A chain has at most [`MAX_CHAIN`] buffers, however its descriptors are linked, so every walk ends.
//! - A queue has at most as many chains out as it has descriptors, so a driver that makes the same ones available again
//!   and again cannot fill the host's memory.
//! - Whatever cannot be is a [`QueueError`]; the transport stops the device then until it is reset, as the specification has
//!   it (2.1.2, `DEVICE_NEEDS_RESET`).
//!
//! Buffers themselves are not looked at here. They stay where they are; whoever serves the chain hands them to
//! [`memory::GuestMemory`], which checks every address.
//!
//! # Notifications
//! The device says when it wants to hear of new chains, the driver when it wants to hear of used ones, and either says so in
//! memory while the other looks. Both are the same argument (Dekker's): write what you want, full barrier, look whether
//! it has happened already. [`Queue::listen`] and [`Queue::wants_interrupt`] hold our halves of it.
//!
//! Reference: Virtual I/O Device (VIRTIO) 1.2, 2.6 to 2.8.

mod chain;
mod packed;
mod split;
#[cfg(test)]
pub(crate) mod tests;

use memory::{GuestMemory, MemoryError};
use serde::{Deserialize, Serialize};
use x86::Gpa;

pub use chain::{Buffers, Chain, MAX_CHAIN, Ticket};
use packed::Packed;
use split::Split;

/// The most descriptors of a queue (2.6).
pub const MAX_SIZE: u16 = 1 << 15;

/// Where a queue is, as the driver said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Areas {
    /// The descriptors.
    pub descriptors: u64,
    /// What the driver writes: the available ring, or the driver's event suppression.
    pub driver: u64,
    /// What the device writes: the used ring, or the device's event suppression.
    pub device: u64,
}

/// What was negotiated about rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// `VIRTIO_F_RING_PACKED`.
    pub packed: bool,
    /// `VIRTIO_F_EVENT_IDX`.
    pub event_index: bool,
    /// `VIRTIO_F_INDIRECT_DESC`.
    pub indirect: bool,
}

/// The driver has done what a driver must not.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The queue is where or what none can be.
    #[error("a queue that {0}")]
    Setup(&'static str),
    /// The ring leads where there is no memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The ring says what cannot be.
    #[error("a ring that {0}")]
    Ring(&'static str),
    /// A chain of descriptors that cannot be.
    #[error("a chain that {0}")]
    Chain(&'static str),
}

/// How far the device has come in a ring: all of a queue's state that is not in guest memory, when no chain is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The next chain is found here: a free-running index, or a descriptor's.
    avail: u16,
    /// The next chain is given back here.
    used: u16,
    /// The wrap counters that belong to them; packed only.
    wraps: (bool, bool),
}

/// A virtqueue.
#[derive(Debug)]
pub struct Queue(Layout);

#[derive(Debug)]
enum Layout {
    Split(Split),
    Packed(Packed),
}

macro_rules! either {
    ($queue:expr, $ring:ident => $act:expr) => {
        match $queue {
            Layout::Split($ring) => $act,
            Layout::Packed($ring) => $act,
        }
    };
}

impl Queue {
    /// A queue of `size` descriptors that nothing has passed through yet.
    ///
    /// # Errors
    /// If the specification does not allow such a queue.
    pub fn new(size: u16, areas: &Areas, features: RingFeatures) -> Result<Self, QueueError> {
        Ok(Self(if features.packed {
            Layout::Packed(Packed::new(size, areas, features)?)
        } else {
            Layout::Split(Split::new(size, areas, features)?)
        }))
    }

    /// The next available chain.
    ///
    /// # Errors
    /// If the driver lies.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        either!(&mut self.0, ring => ring.pop(memory))
    }

    /// Takes back that the last chain popped was popped: it is the next one again.
    pub fn put_back(&mut self, ticket: Ticket) {
        either!(&mut self.0, ring => ring.put_back(ticket));
    }

    /// Gives a chain back, the first `written` bytes of whose writable buffers have been written.
    ///
    /// # Errors
    /// If the ring is not in memory.
    pub fn push(&mut self, memory: &GuestMemory, ticket: Ticket, written: u32) -> Result<(), QueueError> {
        either!(&mut self.0, ring => ring.push(memory, ticket, written))
    }

    /// Whether the driver wants to be interrupted for what was pushed since this was last called.
    ///
    /// # Errors
    /// If the ring is not in memory.
    pub fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        either!(&mut self.0, ring => ring.wants_interrupt(memory))
    }

    /// Says that notifications are not wanted. A hint: some may come nevertheless.
    ///
    /// # Errors
    /// If the ring is not in memory.
    pub fn ignore(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        either!(&mut self.0, ring => ring.ignore(memory))
    }

    /// Says that a notification is wanted for the next chain; true if there is one already, and perhaps no
    /// notification will come for it.
    ///
    /// # Errors
    /// If the ring is not in memory.
    pub fn listen(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        either!(&mut self.0, ring => ring.listen(memory))
    }

    /// What there is to save. Meaningful while no chain is out.
    pub fn progress(&self) -> Progress {
        either!(&self.0, ring => ring.progress())
    }

    /// Goes on where a saved queue was; false if that is nowhere in this queue.
    pub fn resume_at(&mut self, progress: Progress) -> bool {
        either!(&mut self.0, ring => ring.resume_at(progress))
    }
}

/// The address of `len` bytes at `base`, if they may be there at all.
fn area(base: u64, align: u64, len: u64) -> Result<Gpa, QueueError> {
    if !base.is_multiple_of(align) {
        return Err(QueueError::Setup("is not aligned"));
    }
    // From here on no sum of this base and an offset in its area overflows.
    base.checked_add(len).map(|_| Gpa(base)).ok_or(QueueError::Setup("does not fit the address space"))
}
