//! The split virtqueue: a table of descriptors, a ring of those made available, a ring of those used (VIRTIO 1.2, 2.7).
//!
//! Indices run freely and wrap at 65,536; a ring's place is the index modulo its size, a power of two.

use std::sync::atomic::{Ordering, fence};

use memory::GuestMemory;
use x86::Gpa;

use super::chain::{Builder, Chain, DESCRIPTOR, Descriptor, INDIRECT, NEXT, Ticket};
use super::{Areas, MAX_SIZE, Progress, QueueError, RingFeatures, area};

/// Both rings begin with 16 bits of flags and 16 bits of index.
const INDEX: u64 = 2;
const RING: u64 = 4;
/// The bytes of a used element: 32 bits of identifier, 32 bits of length.
const ELEMENT: u64 = 8;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` and `VIRTQ_USED_F_NO_NOTIFY`.
const SUPPRESS: u16 = 1;

#[derive(Debug)]
pub(super) struct Split {
    // Static.
    size: u16,
    features: RingFeatures,
    table: Gpa,
    available: Gpa,
    used: Gpa,
    // Volatile.
    next_avail: u16,
    next_used: u16,
    /// The used index at the last decision about an interrupt.
    decided: u16,
    /// Chains that are out.
    out: u16,
}

impl Split {
    pub(super) fn new(size: u16, areas: &Areas, features: RingFeatures) -> Result<Self, QueueError> {
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(QueueError::Setup("has a size that is no power of two"));
        }
        let entries = u64::from(size);
        Ok(Self {
            size,
            features,
            table: area(areas.descriptors, 16, entries * DESCRIPTOR)?,
            // Each ring has one more word, for the other side's wishes.
            available: area(areas.driver, 2, RING + entries * 2 + 2)?,
            used: area(areas.device, 4, RING + entries * ELEMENT + 2)?,
            next_avail: 0,
            next_used: 0,
            decided: 0,
            out: 0,
        })
    }

    fn place(&self, index: u16) -> u64 {
        u64::from(index & (self.size - 1))
    }

    /// How many chains wait.
    fn waiting(&self, memory: &GuestMemory) -> Result<u16, QueueError> {
        let index: u16 = memory.read_word(self.available + INDEX)?;
        let waiting = index.wrapping_sub(self.next_avail);
        if waiting > self.size {
            return Err(QueueError::Ring("makes more available than it holds"));
        }
        Ok(waiting)
    }

    pub(super) fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        if self.waiting(memory)? == 0 {
            return Ok(None);
        }
        if self.out >= self.size {
            return Err(QueueError::Ring("makes available what has not been given back"));
        }
        let head: u16 = memory.read_word(self.available + RING + 2 * self.place(self.next_avail))?;
        let chain = self.walk(memory, head)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        self.out += 1;
        Ok(Some(chain))
    }

    pub(super) fn put_back(&mut self, _: Ticket) {
        self.next_avail = self.next_avail.wrapping_sub(1);
        self.out = self.out.saturating_sub(1);
    }

    fn descriptor(&self, memory: &GuestMemory, number: u16) -> Result<Descriptor, QueueError> {
        if number >= self.size {
            return Err(QueueError::Chain("names a descriptor outside the table"));
        }
        Ok(Descriptor::read(memory, self.table + DESCRIPTOR * u64::from(number))?)
    }

    fn walk(&self, memory: &GuestMemory, head: u16) -> Result<Chain, QueueError> {
        let mut builder = Builder::default();
        let mut number = head;
        // A chain with more descriptors than there are comes back to one of its own.
        for _ in 0..self.size {
            let descriptor = self.descriptor(memory, number)?;
            let (flags, next) = descriptor.split();
            match flags & (INDIRECT | NEXT) {
                0 => {
                    builder.add(&descriptor, flags)?;
                    return Ok(builder.finish(head, 1));
                }
                NEXT => builder.add(&descriptor, flags)?,
                INDIRECT if self.features.indirect => {
                    walk_table(&mut builder, &Builder::table(memory, &descriptor)?)?;
                    return Ok(builder.finish(head, 1));
                }
                INDIRECT => return Err(QueueError::Chain("has a table that was not negotiated")),
                _ => return Err(QueueError::Chain("goes on behind its table")),
            }
            number = next;
        }
        Err(QueueError::Chain("is a loop"))
    }

    pub(super) fn push(
        &mut self,
        memory: &GuestMemory,
        ticket: Ticket,
        written: u32,
    ) -> Result<(), QueueError> {
        let element = u64::from(written) << 32 | u64::from(ticket.id);
        memory.write_word(self.used + RING + ELEMENT * self.place(self.next_used), element)?;
        self.next_used = self.next_used.wrapping_add(1);
        // Stores stay in order: who sees the index sees the element.
        memory.write_word(self.used + INDEX, self.next_used)?;
        self.out = self.out.saturating_sub(1);
        Ok(())
    }

    pub(super) fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let (old, new) = (self.decided, self.next_used);
        self.decided = new;
        if old == new {
            return Ok(false);
        }
        // The index before the wish: see the head of the module above.
        fence(Ordering::SeqCst);
        if self.features.event_index {
            let event: u16 = memory.read_word(self.available + RING + 2 * u64::from(self.size))?;
            // The wish lies in what was just used (2.7.7.2).
            return Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old));
        }
        let flags: u16 = memory.read_word(self.available)?;
        Ok(flags & SUPPRESS == 0)
    }

    pub(super) fn ignore(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        // With an event index the old wish has been fulfilled, which is a wish for nothing.
        if !self.features.event_index {
            memory.write_word(self.used, SUPPRESS)?;
        }
        Ok(())
    }

    pub(super) fn listen(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        if self.features.event_index {
            let event = self.used + RING + ELEMENT * u64::from(self.size);
            memory.write_word(event, self.next_avail)?;
        } else {
            memory.write_word(self.used, 0u16)?;
        }
        // The wish before the index.
        fence(Ordering::SeqCst);
        Ok(self.waiting(memory)? != 0)
    }

    pub(super) fn progress(&self) -> Progress {
        Progress { avail: self.next_avail, used: self.next_used, wraps: (false, false) }
    }

    pub(super) fn resume_at(&mut self, progress: Progress) -> bool {
        (self.next_avail, self.next_used, self.decided) = (progress.avail, progress.used, progress.used);
        true
    }
}

/// Adds the chain in an indirect table, which begins with the table's first descriptor.
fn walk_table(builder: &mut Builder, table: &[Descriptor]) -> Result<(), QueueError> {
    let mut number = 0;
    for _ in 0..table.len() {
        let Some(descriptor) = table.get(usize::from(number)) else {
            return Err(QueueError::Chain("names a descriptor outside its indirect table"));
        };
        let (flags, next) = descriptor.split();
        if flags & INDIRECT != 0 {
            return Err(QueueError::Chain("has a table in a table"));
        }
        builder.add(descriptor, flags)?;
        if flags & NEXT == 0 {
            return Ok(());
        }
        number = next;
    }
    Err(QueueError::Chain("is a loop in an indirect table"))
}
