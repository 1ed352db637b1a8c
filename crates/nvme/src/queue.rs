//! Submission and completion queues: rings of entries in guest memory (NVM Express 1.4, 4.1).
//!
//! A driver says by doorbells how far it has come, and numbers that cannot be are refused there. So indices always lie in the
//! ring. A completion is posted only where there is room: who takes a command from a submission queue owes the completion
//! queue an entry, and no more are taken than there is room for.

use std::sync::atomic::{Ordering, fence};

use memory::{GuestMemory, MemoryError};
use serde::{Deserialize, Serialize};
use x86::{Gpa, PAGE_SIZE};

use crate::command::{COMMAND_BYTES, Command};

/// The bytes of a completion.
const COMPLETION_BYTES: u64 = 16;

/// Where a ring is, and its size in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ring {
    base: u64,
    size: u16,
}

impl Ring {
    /// The most entries that a ring has at all: those that the admin queues' register can say.
    const MOST: u16 = 4096;

    /// A ring of `size` entries at `base`; none if there cannot be one.
    pub(crate) fn new(base: u64, size: u32) -> Option<Self> {
        let ring = Self { base, size: u16::try_from(size).ok()? };
        ring.is_possible().then_some(ring)
    }

    /// Whether it can be. A full ring has one entry left, so it takes two to be of use.
    pub(crate) fn is_possible(self) -> bool {
        let end = self.base.checked_add(u64::from(Self::MOST) * COMMAND_BYTES as u64);
        (2..=Self::MOST).contains(&self.size) && self.base.is_multiple_of(PAGE_SIZE) && end.is_some()
    }

    fn at(self, index: u16, entry_bytes: u64) -> Gpa {
        Gpa(self.base + u64::from(index) * entry_bytes)
    }

    /// The index `by` entries further on, `by` less than the size.
    fn after(self, index: u16, by: u16) -> u16 {
        (index + by) % self.size
    }

    /// How many entries it is from one index to another.
    fn between(self, from: u16, to: u16) -> u16 {
        (to + self.size - from) % self.size
    }

    pub(crate) fn has(self, index: u16) -> bool {
        index < self.size
    }
}

/// A submission queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Submission {
    pub(crate) ring: Ring,
    /// The next command to be taken.
    pub(crate) head: u16,
    /// The first entry that the driver has not filled.
    pub(crate) tail: u16,
    /// The completion queue that it belongs to.
    pub(crate) completion: u16,
    /// How many commands have been taken and not been completed.
    pub(crate) out: u16,
    /// The command that deletes the queue, once nothing is out.
    pub(crate) deleting: Option<u16>,
}

impl Submission {
    pub(crate) fn new(ring: Ring, completion: u16) -> Self {
        Self { ring, head: 0, tail: 0, completion, out: 0, deleting: None }
    }

    /// How many commands there are to be taken.
    pub(crate) fn waiting(&self) -> u16 {
        self.ring.between(self.head, self.tail)
    }

    /// Takes the doorbell's value over; false if it cannot be.
    pub(crate) fn ring_doorbell(&mut self, tail: u32) -> bool {
        let Some(tail) = u16::try_from(tail).ok().filter(|tail| self.ring.has(*tail)) else { return false };
        self.tail = tail;
        true
    }

    /// The next command, of which there is one.
    pub(crate) fn take(&mut self, memory: &GuestMemory) -> Result<Command, MemoryError> {
        let mut bytes = [0; COMMAND_BYTES];
        memory.read(self.ring.at(self.head, COMMAND_BYTES as u64), &mut bytes)?;
        self.head = self.ring.after(self.head, 1);
        self.out += 1;
        Ok(Command::parse(&bytes))
    }

    /// Puts the last commands back that were taken. Nothing that says how far the head is has been posted since.
    pub(crate) fn put_back(&mut self, count: u16) {
        self.out = self.out.saturating_sub(count);
        self.head = self.ring.after(self.head, self.ring.size - count % self.ring.size);
    }
}

/// A completion queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) ring: Ring,
    /// The first entry that the driver has not consumed.
    pub(crate) head: u16,
    /// Where the next entry goes.
    pub(crate) tail: u16,
    /// The tag of entries in this turn of the ring.
    pub(crate) phase: bool,
    /// The interrupt for new entries, if they interrupt.
    pub(crate) vector: Option<u16>,
    /// How many entries are to come for commands that are out.
    pub(crate) owed: u16,
}

/// An entry of a completion queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Dword 0.
    pub(crate) result: u32,
    /// How far the device has come in the submission queue, and which one it is.
    pub(crate) submission: (u16, u16),
    /// The command.
    pub(crate) command: u16,
    /// The status field, without the phase tag.
    pub(crate) status: u16,
}

impl Completion {
    pub(crate) fn new(ring: Ring, vector: Option<u16>) -> Self {
        Self { ring, head: 0, tail: 0, phase: true, vector, owed: 0 }
    }

    /// How many entries the driver has not consumed.
    pub(crate) fn waiting(&self) -> u16 {
        self.ring.between(self.head, self.tail)
    }

    /// How many entries there is room for beyond those that are owed.
    pub(crate) fn room(&self) -> u16 {
        (self.ring.size - 1).saturating_sub(self.waiting()).saturating_sub(self.owed)
    }

    /// Takes the doorbell's value over; false if it cannot be: a driver consumes what is there and nothing else.
    pub(crate) fn ring_doorbell(&mut self, head: u32) -> bool {
        let head = u16::try_from(head).ok().filter(|head| self.ring.has(*head));
        let Some(head) = head.filter(|head| self.ring.between(self.head, *head) <= self.waiting()) else {
            return false;
        };
        self.head = head;
        true
    }

    /// Posts an entry, for which there is room.
    pub(crate) fn post(&mut self, memory: &GuestMemory, entry: &Entry) -> Result<(), MemoryError> {
        let at = self.ring.at(self.tail, COMPLETION_BYTES);
        let (head, queue) = entry.submission;
        memory.write_word(at, u64::from(entry.result))?;
        memory.write_word(at + 8, u32::from(queue) << 16 | u32::from(head))?;
        let status = entry.status << 1 | u16::from(self.phase);
        // Who sees the phase tag sees the entry.
        fence(Ordering::Release);
        memory.write_word(at + 12, u32::from(status) << 16 | u32::from(entry.command))?;
        self.tail = self.ring.after(self.tail, 1);
        self.phase ^= self.tail == 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use memory::RamRange;

    use super::*;

    #[test]
    fn rings_that_cannot_be() {
        for (base, size) in [(0, 1), (0, 4097), (0, 0), (8, 16), (!0xfff, 2), (0, 1 << 16 | 2)] {
            assert_eq!(Ring::new(base, size), None, "{base:x} {size}");
        }
        assert!(Ring::new(0x1000, 4096).is_some());
    }

    #[test]
    fn a_completion_queue_has_room_for_what_it_is_owed() {
        let memory = GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 0x1000)]).unwrap();
        let mut queue = Completion::new(Ring::new(0, 4).unwrap(), None);
        assert_eq!(queue.room(), 3);
        assert!(!queue.ring_doorbell(1), "nothing is there to be consumed");
        queue.owed = 2;
        assert_eq!(queue.room(), 1);
        queue.owed = 0;
        let entry = |command| Entry { result: 7, submission: (3, 9), command, status: 0x81 };
        let seen = |index: u64| memory.read_word::<u32>(Gpa(index * 16 + 12)).unwrap();
        for round in 0..3u16 {
            for command in 0..3 {
                queue.post(&memory, &entry(command)).unwrap();
            }
            assert_eq!((queue.room(), queue.waiting()), (0, 3));
            // 3 entries a round in a ring of 4.
            let last = u64::from((round * 3 + 2) % 4);
            let turn = u32::from((round * 3 + 2) / 4 % 2 == 0);
            assert_eq!(seen(last), (0x102 | turn) << 16 | 2);
            assert!(!queue.ring_doorbell(4), "outside of the ring");
            assert!(queue.ring_doorbell(u32::from(queue.tail)));
        }
        assert_eq!(memory.read_word::<u32>(Gpa(8)).unwrap(), 9 << 16 | 3);
    }

    #[test]
    fn commands_are_taken_and_put_back() {
        let memory = GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 0x1000)]).unwrap();
        let mut queue = Submission::new(Ring::new(0, 3).unwrap(), 1);
        for index in 0..3u64 {
            memory.write_word(Gpa(index * 64 + 2), x86::bits::low16(index)).unwrap();
        }
        assert!(!queue.ring_doorbell(3) && queue.ring_doorbell(2));
        let taken: Vec<u16> = (0..2).map(|_| queue.take(&memory).unwrap().id).collect();
        assert_eq!((taken, queue.waiting(), queue.out), (vec![0, 1], 0, 2));
        queue.put_back(2);
        assert_eq!((queue.head, queue.waiting(), queue.out), (0, 2, 0));
        queue.take(&memory).unwrap();
        assert!(queue.ring_doorbell(0));
        assert_eq!(queue.waiting(), 2);
    }
}
