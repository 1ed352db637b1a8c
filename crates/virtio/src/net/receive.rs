//! Frames from the network to the driver.
//!
//! A frame lies in one chain, or with mergeable buffers in as many as it takes (VIRTIO 1.2, 5.1.6.4). One for which there
//! are not enough chains stays with the network, and the chains with the driver.

use backend::net::header::{self, HEADER};
use backend::net::{Frame, Offload};
use memory::{GuestMemory, MemoryError};
use x86::bits::{index, low32};

use super::{Far, GUEST_CHECKSUM, MERGEABLE, RECEIVE, abilities};
use crate::queue::Chain;
use crate::service::Malformed;
use crate::transport::{Batch, QUEUE_SIZE, Queues};

/// How many chains are taken at once.
const BATCH: usize = 32;
/// The most chains that are out before those with frames are given back, so that the driver has something to do.
const MOST_OUT: usize = 128;

/// Gives the driver what there is for it, as far as it has room; true if a frame has none and there may be more room by now.
pub(super) fn turn(far: &mut Far, queues: &Queues<'_>) -> bool {
    loop {
        let mut receiver =
            Receiver { memory: queues.memory(), batch: queues.take(RECEIVE, 0), chains: 0, stuck: false };
        let features = receiver.batch.features();
        let left = far.network.receive(abilities(features), &mut |frame| receiver.deliver(frame));
        // The driver has to do something first, or the network wants to wait.
        if !left || receiver.stuck || receiver.chains == 0 {
            return receiver.stuck && left && receiver.batch.has_more();
        }
    }
}

struct Receiver<'a> {
    memory: &'a GuestMemory,
    batch: Batch<'a>,
    /// Chains with frames in them.
    chains: usize,
    /// The driver has to do something first.
    stuck: bool,
}

impl Receiver<'_> {
    /// Puts a frame into chains; false if it has to wait.
    fn deliver(&mut self, frame: &Frame<'_>) -> bool {
        if self.chains >= MOST_OUT {
            return false;
        }
        let mergeable = self.batch.features() & MERGEABLE != 0;
        let needed = (HEADER + frame.bytes()) as u64;
        let Some(chains) = self.collect(needed, mergeable) else {
            self.stuck = true;
            return false;
        };
        self.chains += chains.len();
        if let Err(Malformed) = self.fill(frame, &chains, needed) {
            // The first chain carries the news; the device needs a reset, and nothing is given back.
            for chain in &chains {
                self.batch.answer(chain.ticket, Err(Malformed));
            }
            self.stuck = true;
        }
        true
    }

    /// Chains with room for so many bytes, if there are.
    fn collect(&mut self, needed: u64, mergeable: bool) -> Option<Vec<Chain>> {
        let (mut chains, mut room) = (Vec::new(), 0);
        while room < needed && (mergeable || chains.is_empty()) && chains.len() < QUEUE_SIZE.into() {
            if self.batch.is_empty() {
                self.batch.take_more(BATCH);
            }
            let Some(chain) = self.batch.next() else {
                chains.into_iter().rev().for_each(|chain| self.batch.put_back(chain));
                return None;
            };
            room += chain.writable.bytes();
            chains.push(chain);
        }
        Some(chains)
    }

    /// Writes header and frame.
    fn fill(&mut self, frame: &Frame<'_>, chains: &[Chain], needed: u64) -> Result<(), Malformed> {
        let room: u64 = chains.iter().map(|chain| chain.writable.bytes()).sum();
        let first_holds_header = chains.first().is_some_and(|chain| chain.writable.bytes() >= HEADER as u64);
        // Buffers that cannot hold what was negotiated, or that are to be read.
        if room < needed || !first_holds_header || chains.iter().any(|chain| chain.readable.bytes() > 0) {
            return Err(Malformed);
        }
        // Who makes no checksums himself is told nothing about them.
        let valid = frame.offload.valid && self.batch.features() & GUEST_CHECKSUM != 0;
        let offload = Offload { valid, ..frame.offload };
        let header = header::build(offload, u16::try_from(chains.len()).unwrap_or(u16::MAX));
        let [first, second, third] = frame.parts;
        let mut source = Source { parts: [&header, first, second, third] };
        let mut left = needed;
        for chain in chains {
            let here = left.min(chain.writable.bytes());
            source.copy_to(self.memory, chain, here).map_err(|_| Malformed)?;
            self.batch.answer(chain.ticket, Ok(low32(here)));
            left -= here;
        }
        Ok(())
    }
}

/// Bytes in parts, taken from the front.
struct Source<'a> {
    parts: [&'a [u8]; 4],
}

impl Source<'_> {
    /// Copies the next `count` bytes to the beginning of a chain's buffers.
    fn copy_to(&mut self, memory: &GuestMemory, chain: &Chain, count: u64) -> Result<(), MemoryError> {
        let mut left = index(count);
        for range in chain.writable.ranges() {
            let (mut gpa, mut room) = (range.gpa, index(range.len).min(left));
            left -= room;
            for part in &mut self.parts {
                let (now, later) = part.split_at(part.len().min(room));
                if !now.is_empty() {
                    memory.write(gpa, now)?;
                    gpa = gpa.wrapping_add(now.len() as u64);
                    room -= now.len();
                    *part = later;
                }
            }
        }
        Ok(())
    }
}
