//! A network adapter (VIRTIO 1.2, 5.1).
//!
//! One thread moves frames in both directions and waits for the network behind it. A frame of the guest is copied once, out
//! of guest memory, before it is looked at: what the guest changes afterwards changes nothing. A frame for the guest is written
//! straight from where the network keeps it. Receive buffers are taken when there is a frame for them, and no sooner,
//! so that nothing is out while nothing happens: a pause or a reset never waits for a frame.
//!
//! Checksums and segmentation are left to whoever comes last. Of the guest's frames nobody here needs either, and frames
//! for the guest come with a partial checksum and up to 64 KiB long, if it negotiated that.
//!
//! With several pairs of queues each processor of the guest can have one of its own. A flow's frames come on the pair that the guest
//! sends them on ([`steering`]). It is one thread still: what is behind the adapter is one network.

mod control;
mod receive;
mod saved;
mod steering;
#[cfg(test)]
mod tests;
mod transmit;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backend::net::{Abilities, LONGEST_FRAME, Mac, Network};
use host::jail::Role;
use host::poll::Bell;
use state::{Record, StateError};

use self::steering::Steering;
use crate::service::{Kind, Pump, Service};
use crate::transport::Queues;

/// The most pairs of queues.
pub const MOST_PAIRS: u16 = 8;

/// A pair's receive queue (5.1.2).
fn receive_queue(pair: u16) -> u16 {
    2 * pair
}

/// A pair's transmit queue.
fn transmit_queue(pair: u16) -> u16 {
    2 * pair + 1
}

// Features (5.1.3).
const CHECKSUM: u64 = 1 << 0;
const GUEST_CHECKSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const MERGEABLE: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;
const CONTROL: u64 = 1 << 17;
const SEVERAL_PAIRS: u64 = 1 << 22;

/// The link is up (5.1.4).
const LINK_UP: u16 = 1;

/// The device.
pub struct Net {
    // Static.
    config: [u8; 12],
    bell: Bell,
    /// How many pairs of queues there are.
    most_pairs: u16,
    // Glue: used by the device's thread only.
    far: Mutex<Far>,
    // Volatile.
    /// How many pairs the driver uses.
    pairs: AtomicU16,
}

/// The far end, a place for a frame on its way there, and what is known of flows.
struct Far {
    network: Box<dyn Network>,
    frame: Box<[u8]>,
    steering: Steering,
}

/// The pairs of queues, as driver and device have agreed on them.
#[derive(Clone, Copy)]
struct Pairs {
    /// How many may have frames to send.
    all: u16,
    /// How many may get frames.
    used: u16,
}

impl Net {
    /// An adapter with this address before a network with packets of so many bytes, with so many pairs of queues, of which there
    /// are 1 to [`MOST_PAIRS`].
    pub fn new(network: Box<dyn Network>, mac: Mac, mtu: u16, pairs: u16) -> Self {
        let most_pairs = pairs.clamp(1, MOST_PAIRS);
        let mut config = [0; 12];
        // Address, status, pairs of queues, and length of packets (5.1.4).
        let (address, rest) = config.split_at_mut(6);
        address.copy_from_slice(&mac);
        for (place, half) in rest.as_chunks_mut::<2>().0.iter_mut().zip([LINK_UP, most_pairs, mtu]) {
            *place = half.to_le_bytes();
        }
        let bell = network.bell();
        let frame = vec![0; LONGEST_FRAME].into_boxed_slice();
        let far = Mutex::new(Far { network, frame, steering: Steering::new() });
        Self { config, bell, most_pairs, far, pairs: AtomicU16::new(1) }
    }

    fn far(&self) -> MutexGuard<'_, Far> {
        self.far.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the driver does itself, by what was negotiated. Segments without checksums make no sense (5.1.3.1).
fn abilities(features: u64) -> Abilities {
    let checksum = features & GUEST_CHECKSUM != 0;
    Abilities {
        checksum,
        tcp4: checksum && features & GUEST_TSO4 != 0,
        tcp6: checksum && features & GUEST_TSO6 != 0,
    }
}

impl Net {
    /// The pairs that there are for a driver with these features.
    fn pairs(&self, features: u64) -> Pairs {
        match features & SEVERAL_PAIRS != 0 {
            true => Pairs { all: self.most_pairs, used: self.pairs.load(Ordering::Relaxed) },
            false => Pairs { all: 1, used: 1 },
        }
    }

    /// Carries out what is on the control queue, which comes after the pairs that were negotiated (5.1.2); true if there may be
    /// more.
    fn obey(&self, queues: &Queues<'_>, features: u64) -> bool {
        let Pairs { all, .. } = self.pairs(features);
        // Without several pairs there is no number of them to choose.
        let most = if features & SEVERAL_PAIRS != 0 { all } else { 0 };
        features & CONTROL != 0 && control::turn(queues, 2 * all, most, &self.pairs)
    }
}

impl Service for Net {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-net", id: 1, class: 0x02_0000 }
    }

    fn role(&self) -> Role {
        self.far().network.role()
    }

    fn features(&self) -> u64 {
        let ours = CHECKSUM | HOST_TSO4 | HOST_TSO6;
        let guests = GUEST_CHECKSUM | GUEST_TSO4 | GUEST_TSO6;
        let pairs = if self.most_pairs > 1 { CONTROL | SEVERAL_PAIRS } else { 0 };
        ours | guests | pairs | MTU | MAC | MERGEABLE | STATUS
    }

    fn queues(&self) -> u16 {
        let control = u16::from(self.most_pairs > 1);
        2 * self.most_pairs + control
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn reset(&self) {
        self.pairs.store(1, Ordering::Relaxed);
    }

    fn pump(&self) -> Option<&dyn Pump> {
        Some(self)
    }

    fn save(&self) -> Option<Record> {
        saved::save(self.most_pairs, self.pairs.load(Ordering::Relaxed))
    }

    fn restore(&self, record: Option<&Record>) -> Result<(), StateError> {
        self.pairs.store(saved::restore(self.most_pairs, record)?, Ordering::Relaxed);
        Ok(())
    }
}

impl Pump for Net {
    fn wake(&self) {
        self.bell.ring();
    }

    fn wait(&self) {
        self.far().network.wait(None);
    }

    fn turn(&self, queues: &Queues<'_>) -> bool {
        let mut far = self.far();
        let features = queues.features();
        let more_commands = self.obey(queues, features);
        let pairs = self.pairs(features);
        let more_frames = transmit::turn(&mut far, queues, pairs);
        let more_room = receive::turn(&mut far, queues, features, pairs);
        let more = more_commands || more_frames || more_room;
        if more {
            // However much a guest sends, the host's sockets and clocks have their turn. Only here, where no wait follows,
            // may the bell be heard: it rings once.
            far.network.wait(Some(Duration::ZERO));
        }
        more
    }
}
