//! A network adapter (VIRTIO 1.2, 5.1).
//!
//! One thread moves frames in both directions and waits for the network behind it. A frame of the guest is copied once, out
//! of guest memory, before it is looked at: what the guest changes afterwards changes nothing. A frame for the guest is written
//! straight from where the network keeps it. Receive buffers are taken when there is a frame for them, and no sooner,
//! so that nothing is out while nothing happens: a pause or a reset never waits for a frame.
//!
//! Checksums and segmentation are left to whoever comes last. Of the guest's frames nobody here needs either, and frames
//! for the guest come with a partial checksum and up to 64 KiB long, if it negotiated that.

mod receive;
#[cfg(test)]
mod tests;
mod transmit;

use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backend::net::{Abilities, LONGEST_FRAME, Mac, Network};
use host::jail::Role;
use host::poll::Bell;

use crate::service::{Kind, Pump, Service};
use crate::transport::Queues;

/// The receive queue and the transmit queue.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

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

/// The link is up (5.1.4).
const LINK_UP: u16 = 1;

/// The device.
pub struct Net {
    // Static.
    config: [u8; 12],
    bell: Bell,
    // Glue: used by the device's thread only.
    far: Mutex<Far>,
}

/// The far end, and a place for a frame on its way there.
struct Far {
    network: Box<dyn Network>,
    frame: Box<[u8]>,
}

impl Net {
    /// An adapter with this address before a network with packets of so many bytes.
    pub fn new(network: Box<dyn Network>, mac: Mac, mtu: u16) -> Self {
        let mut config = [0; 12];
        // Address, status, pairs of queues, which are not offered, and length of packets (5.1.4).
        let (address, rest) = config.split_at_mut(6);
        address.copy_from_slice(&mac);
        for (place, half) in rest.as_chunks_mut::<2>().0.iter_mut().zip([LINK_UP, 1, mtu]) {
            *place = half.to_le_bytes();
        }
        let bell = network.bell();
        let frame = vec![0; LONGEST_FRAME].into_boxed_slice();
        Self { config, bell, far: Mutex::new(Far { network, frame }) }
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
        ours | guests | MTU | MAC | MERGEABLE | STATUS
    }

    fn queues(&self) -> u16 {
        2
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn pump(&self) -> Option<&dyn Pump> {
        Some(self)
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
        let more_frames = transmit::turn(&mut far, queues);
        let more_room = receive::turn(&mut far, queues);
        let more = more_frames || more_room;
        if more {
            // However much a guest sends, the host's sockets and clocks have their turn. Only here, where no wait follows,
            // may the bell be heard: it rings once.
            far.network.wait(Some(Duration::ZERO));
        }
        more
    }
}
