//! The packed virtqueue: one ring of descriptors that driver and device overwrite in turn (VIRTIO 1.2, 2.8).
//!
//! Each side goes round the ring and flips a wrap counter of its own when it passes the end. A descriptor is available when
//! its AVAIL flag is the driver's counter and its USED flag is not, and used when both are the device's. A chain occupies as
//! many places as it has descriptors in the ring, and is given back in the first of as many places at the device's own
//! position, whatever the order.
//!
//! A place together with the counter is a number below twice the ring's size, in which distances are simple: that is how
//! wishes for interrupts are compared.

use std::sync::atomic::{Ordering, fence};

use memory::GuestMemory;
use x86::Gpa;
use x86::bits::low16;

use super::chain::{Builder, Chain, DESCRIPTOR, Descriptor, INDIRECT, NEXT, Ticket, WRITE};
use super::{Areas, MAX_SIZE, Progress, QueueError, RingFeatures, area};

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

// A descriptor's fields.
const LENGTH: u64 = 8;
const IDENTIFIER: u64 = 12;
const FLAGS: u64 = 14;

// The event suppression structure (2.8.14): a place with its wrap counter in bit 15, then flags.
const EVENT_FLAGS: u64 = 2;
const EVENT_BYTES: u64 = 4;
const EVENT_WRAP: u16 = 1 << 15;
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const AT_PLACE: u16 = 2;

/// A place in the ring and the wrap counter that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    place: u16,
    wrap: bool,
}

impl Position {
    const START: Self = Self { place: 0, wrap: true };

    /// `places`, at most `size`, further on.
    fn advance(&mut self, places: u16, size: u16) {
        // Both are at most 2^15.
        let sum = u32::from(self.place) + u32::from(places);
        if sum >= u32::from(size) {
            self.wrap = !self.wrap;
        }
        self.place = low16(u64::from(sum % u32::from(size)));
    }

    /// `places`, at most `size`, back.
    fn retreat(&mut self, places: u16, size: u16) {
        // Going on to the same place of the round after next is going back by what is missing to two rounds.
        self.advance(size - places.min(size), size);
        self.advance(size, size);
    }

    /// How far `other` is ahead, below twice `size`.
    fn distance_to(self, other: Self, size: u16) -> u32 {
        let size = u32::from(size);
        let number = |p: Self| u32::from(p.place) + if p.wrap { 0 } else { size };
        (number(other) + 2 * size - number(self)) % (2 * size)
    }
}

#[derive(Debug)]
pub(super) struct Packed {
    // Static.
    size: u16,
    features: RingFeatures,
    ring: Gpa,
    driver_event: Gpa,
    device_event: Gpa,
    // Volatile.
    next_avail: Position,
    next_used: Position,
    /// The device's position at the last decision about an interrupt.
    decided: Position,
    /// Places used since then.
    since: u32,
    /// Places of chains that are out.
    out: u16,
}

impl Packed {
    pub(super) fn new(size: u16, areas: &Areas, features: RingFeatures) -> Result<Self, QueueError> {
        if size == 0 || size > MAX_SIZE {
            return Err(QueueError::Setup("has a size that cannot be"));
        }
        Ok(Self {
            size,
            features,
            ring: area(areas.descriptors, 16, u64::from(size) * DESCRIPTOR)?,
            driver_event: area(areas.driver, 4, EVENT_BYTES)?,
            device_event: area(areas.device, 4, EVENT_BYTES)?,
            next_avail: Position::START,
            next_used: Position::START,
            decided: Position::START,
            since: 0,
            out: 0,
        })
    }

    fn address(&self, place: u16) -> Gpa {
        self.ring + DESCRIPTOR * u64::from(place)
    }

    /// Whether there is a chain at the driver's position.
    fn is_available(&self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let flags: u16 = memory.read_word(self.address(self.next_avail.place) + FLAGS)?;
        let wrap = self.next_avail.wrap;
        Ok((flags & AVAIL != 0) == wrap && (flags & USED != 0) != wrap)
    }

    pub(super) fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        if !self.is_available(memory)? {
            return Ok(None);
        }
        // Loads stay in order: the rest is read after the flag that publishes it.
        let chain = self.walk(memory)?;
        let slots = chain.ticket.slots;
        if u32::from(self.out) + u32::from(slots) > u32::from(self.size) {
            return Err(QueueError::Ring("makes available what has not been given back"));
        }
        self.out += slots;
        self.next_avail.advance(slots, self.size);
        Ok(Some(chain))
    }

    pub(super) fn put_back(&mut self, ticket: Ticket) {
        self.next_avail.retreat(ticket.slots, self.size);
        self.out = self.out.saturating_sub(ticket.slots);
    }

    fn walk(&self, memory: &GuestMemory) -> Result<Chain, QueueError> {
        let mut builder = Builder::default();
        let mut at = self.next_avail;
        for slots in 1..=self.size {
            let descriptor = Descriptor::read(memory, self.address(at.place))?;
            let (flags, id) = descriptor.packed();
            match flags & (INDIRECT | NEXT) {
                // The last descriptor of a chain has its identifier.
                0 => {
                    builder.add(&descriptor, flags)?;
                    return Ok(builder.finish(id, slots));
                }
                NEXT => builder.add(&descriptor, flags)?,
                INDIRECT if self.features.indirect => {
                    // In a table, descriptors just follow each other.
                    for entry in &Builder::table(memory, &descriptor)? {
                        builder.add(entry, entry.packed().0)?;
                    }
                    return Ok(builder.finish(id, slots));
                }
                INDIRECT => return Err(QueueError::Chain("has a table that was not negotiated")),
                _ => return Err(QueueError::Chain("goes on behind its table")),
            }
            at.advance(1, self.size);
        }
        Err(QueueError::Chain("has no end"))
    }

    pub(super) fn push(
        &mut self,
        memory: &GuestMemory,
        ticket: Ticket,
        written: u32,
    ) -> Result<(), QueueError> {
        let at = self.address(self.next_used.place);
        memory.write_word(at + LENGTH, written)?;
        memory.write_word(at + IDENTIFIER, ticket.id)?;
        let wrap = if self.next_used.wrap { AVAIL | USED } else { 0 };
        // Stores stay in order: who sees the flags sees the rest.
        memory.write_word(at + FLAGS, wrap | if written == 0 { 0 } else { WRITE })?;
        self.next_used.advance(ticket.slots, self.size);
        self.since = self.since.saturating_add(ticket.slots.into());
        self.out = self.out.saturating_sub(ticket.slots);
        Ok(())
    }

    pub(super) fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let (old, since) = (self.decided, self.since);
        (self.decided, self.since) = (self.next_used, 0);
        if since == 0 {
            return Ok(false);
        }
        // What was used before the wish.
        fence(Ordering::SeqCst);
        let flags: u16 = memory.read_word(self.driver_event + EVENT_FLAGS)?;
        Ok(match flags & 3 {
            DISABLE => false,
            AT_PLACE if self.features.event_index => {
                let wish: u16 = memory.read_word(self.driver_event)?;
                let wish = Position { place: wish & !EVENT_WRAP, wrap: wish & EVENT_WRAP != 0 };
                old.distance_to(wish, self.size) < since
            }
            _ => true,
        })
    }

    pub(super) fn ignore(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        Ok(memory.write_word(self.device_event + EVENT_FLAGS, DISABLE)?)
    }

    pub(super) fn listen(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        if self.features.event_index {
            let wrap = if self.next_avail.wrap { EVENT_WRAP } else { 0 };
            memory.write_word(self.device_event, self.next_avail.place | wrap)?;
            memory.write_word(self.device_event + EVENT_FLAGS, AT_PLACE)?;
        } else {
            memory.write_word(self.device_event + EVENT_FLAGS, ENABLE)?;
        }
        // The wish before the flag.
        fence(Ordering::SeqCst);
        self.is_available(memory)
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            avail: self.next_avail.place,
            used: self.next_used.place,
            wraps: (self.next_avail.wrap, self.next_used.wrap),
        }
    }

    pub(super) fn resume_at(&mut self, progress: Progress) -> bool {
        let Progress { avail, used, wraps } = progress;
        if avail >= self.size || used >= self.size {
            return false;
        }
        self.next_avail = Position { place: avail, wrap: wraps.0 };
        self.next_used = Position { place: used, wrap: wraps.1 };
        (self.decided, self.since) = (self.next_used, 0);
        true
    }
}
