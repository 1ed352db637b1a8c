//! Sockets between guest and host (VIRTIO 1.2, 5.10).
//!
//! One thread moves packets in both directions and waits for the host's streams. A packet of the guest is copied out of guest memory
//! before it is looked at. Receive buffers are taken when there is a packet for them, and no sooner, so that a pause or a reset
//! waits for nothing.
//!
//! A connection is not saved: it has an end in another process. A machine that goes on elsewhere is told that its transport was
//! reset (5.10.6.7), which ends all connections as far as the guest is concerned. What the driver's reset of the device leaves behind is ended by us.

mod connection;
mod exchange;
#[cfg(test)]
mod tests;
mod wire;

use std::borrow::Cow;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backend::vsock::Doors;
use host::jail::Role;
use host::poll::Bell;
use state::{Record, StateError};
use x86::bits::{index, low32};

use crate::queue::Chain;
use crate::service::{self, Kind, Malformed, Pump, Service};
use crate::transport::Queues;
use exchange::Exchange;
use wire::{HEADER, Header};

// Queues (5.10.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;

/// Streams (5.10.3).
const FEATURE_STREAM: u64 = 1 << 0;
/// The event of a transport that was reset: 0 (5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// The most data of a packet, in either direction.
const LONGEST: usize = 64 << 10;
/// How many chains are taken at once, and given back at once.
const BATCH: usize = 64;

/// The device.
pub struct Vsock {
    // Static.
    config: [u8; 8],
    bell: Bell,
    // Glue: used by the device's thread only.
    far: Mutex<Far>,
    // Volatile.
    /// The guest has yet to hear that its connections are gone.
    news_of_reset: AtomicBool,
}

/// The far end, and a place for a packet's data.
struct Far {
    exchange: Exchange,
    data: Box<[u8]>,
    /// Which reset of the device the connections are from.
    resets: u64,
}

impl Vsock {
    /// A device for the guest of this number, whose connections lead to these doors.
    ///
    /// # Errors
    /// If the host has no descriptors left.
    pub fn new(guest: u32, doors: Box<dyn Doors>) -> io::Result<Self> {
        let bell = Bell::new()?;
        let exchange = Exchange::new(guest.into(), doors, &bell)?;
        let far = Far { exchange, data: vec![0; LONGEST].into_boxed_slice(), resets: 0 };
        Ok(Self {
            config: u64::from(guest).to_le_bytes(),
            bell,
            far: Mutex::new(far),
            news_of_reset: AtomicBool::new(false),
        })
    }

    fn far(&self) -> MutexGuard<'_, Far> {
        self.far.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the guest that its connections are gone, if it has a buffer for that.
    fn tell_of_reset(&self, queues: &Queues<'_>) {
        if !self.news_of_reset.load(Ordering::Relaxed) {
            return;
        }
        let mut batch = queues.take(EVENT, 1);
        if let Some(chain) = batch.next() {
            let told = give(queues, &chain, &TRANSPORT_RESET, &[]);
            batch.answer(chain.ticket, told);
            self.news_of_reset.store(false, Ordering::Relaxed);
        }
    }
}

impl Service for Vsock {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-vsock", id: 19, class: 0x07_8000 }
    }

    fn role(&self) -> Role {
        Role::LocalSockets
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    fn queues(&self) -> u16 {
        3
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn pump(&self) -> Option<&dyn Pump> {
        Some(self)
    }

    fn restore(&self, record: Option<&Record>) -> Result<(), StateError> {
        service::restore_nothing(self.kind().name, record)?;
        self.news_of_reset.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Pump for Vsock {
    fn wake(&self) {
        self.bell.ring();
    }

    fn wait(&self) {
        self.far().exchange.wait(None);
    }

    fn turn(&self, queues: &Queues<'_>) -> bool {
        let mut far = self.far();
        if std::mem::replace(&mut far.resets, queues.resets()) != far.resets {
            far.exchange.clear();
        }
        self.tell_of_reset(queues);
        let more_packets = transmit(&mut far, queues);
        let more_room = receive(&mut far, queues);
        let more = more_packets || more_room;
        if more {
            // As in a network adapter: streams have their turn, and the bell may be heard here.
            far.exchange.wait(Some(Duration::ZERO));
        }
        more
    }
}

/// Takes the guest's packets, as long as there is room for answers; true if there may be more to be taken.
fn transmit(far: &mut Far, queues: &Queues<'_>) -> bool {
    let is_open = |far: &Far| far.exchange.is_open();
    queues.drain(TRANSMIT, BATCH, far, is_open, |far, chain| send(far, queues, chain))
}

/// Passes one packet on. Data that is not there, or too long, is a packet that nobody can use: its connection ends.
fn send(far: &mut Far, queues: &Queues<'_>, chain: &Chain) -> Result<(), Malformed> {
    let (bytes, body) = service::header::<HEADER>(queues.memory(), chain)?;
    let mut header = Header::parse(&bytes);
    let len = index(header.len.into());
    let data = match far.data.get_mut(..len) {
        Some(data) if body.bytes() >= len as u64 => {
            body.read(queues.memory(), data).map_err(|_| Malformed)?;
            &*data
        }
        _ => {
            header.operation = u16::MAX;
            &[]
        }
    };
    far.exchange.take(&header, data);
    Ok(())
}

/// Gives the guest what there is for it, as far as it has buffers; true if there may be more of both.
fn receive(far: &mut Far, queues: &Queues<'_>) -> bool {
    let mut batch = queues.take(RECEIVE, 0);
    for _ in 0..BATCH {
        if !far.exchange.has_news() {
            return false;
        }
        if batch.is_empty() {
            batch.take_more(BATCH);
        }
        let Some(chain) = batch.next() else { return batch.has_more() };
        let Some(room) = chain.writable.bytes().checked_sub(HEADER as u64) else {
            batch.answer(chain.ticket, Err(Malformed));
            return false;
        };
        let room = index(room).min(LONGEST);
        let Some(header) = far.exchange.next(far.data.get_mut(..room).unwrap_or_default()) else {
            batch.put_back(chain);
            return false;
        };
        let data = far.data.get(..index(header.len.into())).unwrap_or_default();
        let given = give(queues, &chain, &header.bytes(), data);
        batch.answer(chain.ticket, given);
    }
    true
}

/// Writes a header and what follows it to a chain.
fn give(queues: &Queues<'_>, chain: &Chain, header: &[u8], data: &[u8]) -> Result<u32, Malformed> {
    let (head, rest) = chain.writable.split_at(header.len() as u64).ok_or(Malformed)?;
    head.write(queues.memory(), header).map_err(|_| Malformed)?;
    rest.write(queues.memory(), data).map_err(|_| Malformed)?;
    Ok(low32((header.len() + data.len()) as u64))
}
