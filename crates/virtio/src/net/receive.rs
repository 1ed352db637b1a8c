//! Frames from the network to the driver.
//!
//! A frame lies in one chain, or with mergeable buffers in as many as it takes (VIRTIO 1.2, 5.1.6.4). One for which there
//! are not enough chains stays with the network, and the chains with the driver.

use backend::net::header::{self, HEADER};
use backend::net::{Frame, Offload};
use memory::{GuestMemory, MemoryError};
use x86::bits::{index, low32};

use super::steering::{HEAD, Steering};
use super::{Far, GUEST_CHECKSUM, MERGEABLE, Pairs, abilities, receive_queue};
use crate::queue::Chain;
use crate::service::Malformed;
use crate::transport::{Batch, QUEUE_SIZE, Queues};

/// How many chains are taken at once.
const BATCH: usize = 32;
/// The most chains that are out before those with frames are given back, so that the driver has something to do.
const MOST_OUT: usize = 128;

/// Gives the driver what there is for it, as far as it has room; true if a frame has none and there may be more room by now.
pub(super) fn turn(far: &mut Far, queues: &Queues<'_>, features: u64, pairs: Pairs) -> bool {
    loop {
        let Far { network, steering, .. } = far;
        let batches = (0..pairs.used).map(|_| None).collect();
        let mut receiver = Receiver { queues, features, steering, batches, chains: 0, stuck: None };
        let left = network.receive(abilities(features), &mut |frame| receiver.deliver(frame));
        // The driver has to do something first, or the network wants to wait.
        if !left || receiver.stuck.is_some() || receiver.chains == 0 {
            return left && receiver.stuck.is_some_and(|pair| receiver.has_more(pair));
        }
    }
}

struct Receiver<'a> {
    queues: &'a Queues<'a>,
    features: u64,
    steering: &'a Steering,
    /// What was taken from the receive queue of each pair in use.
    batches: Vec<Option<Batch<'a>>>,
    /// Chains with frames in them.
    chains: usize,
    /// The pair on which the driver has to do something first.
    stuck: Option<u16>,
}

impl<'a> Receiver<'a> {
    /// Puts a frame into chains; false if it has to wait.
    fn deliver(&mut self, frame: &Frame<'_>) -> bool {
        if self.chains >= MOST_OUT {
            return false;
        }
        let needed = (HEADER + frame.bytes()) as u64;
        let pair = self.pair_of(frame);
        let Some(chains) = self.collect(pair, needed) else {
            self.stuck = Some(pair);
            return false;
        };
        self.chains += chains.len();
        if let Err(Malformed) = self.fill(pair, frame, &chains, needed) {
            // The first chain carries the news; the device needs a reset, and nothing is given back.
            for chain in &chains {
                self.answer(pair, chain, Err(Malformed));
            }
            self.stuck = Some(pair);
        }
        true
    }

    /// The pair that a frame is to come on.
    fn pair_of(&self, frame: &Frame<'_>) -> u16 {
        let pairs = u16::try_from(self.batches.len()).unwrap_or(u16::MAX);
        if pairs == 1 {
            return 0;
        }
        let mut head = [0; HEAD];
        let mut room = &mut head[..];
        for part in frame.parts {
            let len = part.len().min(room.len());
            let (now, later) = room.split_at_mut(len);
            now.copy_from_slice(part.split_at(len).0);
            room = later;
        }
        let len = HEAD - room.len();
        self.steering.pair(head.split_at(len).0, pairs)
    }

    /// What was taken from a pair's queue, or is now. There is such a pair.
    fn batch(&mut self, pair: u16) -> Option<&mut Batch<'a>> {
        let batch = self.batches.get_mut(usize::from(pair))?;
        Some(batch.get_or_insert_with(|| self.queues.take(receive_queue(pair), BATCH)))
    }

    fn answer(&mut self, pair: u16, chain: &Chain, answer: Result<u32, Malformed>) {
        if let Some(batch) = self.batch(pair) {
            batch.answer(chain.ticket, answer);
        }
    }

    /// Whether the pair's queue may have more of which the driver will not notify.
    fn has_more(&self, pair: u16) -> bool {
        self.batches.get(usize::from(pair)).and_then(Option::as_ref).is_some_and(Batch::has_more)
    }

    /// Chains with room for so many bytes, if there are.
    fn collect(&mut self, pair: u16, needed: u64) -> Option<Vec<Chain>> {
        let mergeable = self.features & MERGEABLE != 0;
        let batch = self.batch(pair)?;
        let (mut chains, mut room) = (Vec::new(), 0);
        while room < needed && (mergeable || chains.is_empty()) && chains.len() < QUEUE_SIZE.into() {
            if batch.is_empty() {
                batch.take_more(BATCH);
            }
            let Some(chain) = batch.next() else {
                chains.into_iter().rev().for_each(|chain| batch.put_back(chain));
                return None;
            };
            room += chain.writable.bytes();
            chains.push(chain);
        }
        Some(chains)
    }

    /// Writes header and frame.
    fn fill(&mut self, pair: u16, frame: &Frame<'_>, chains: &[Chain], needed: u64) -> Result<(), Malformed> {
        let room: u64 = chains.iter().map(|chain| chain.writable.bytes()).sum();
        let first_holds_header = chains.first().is_some_and(|chain| chain.writable.bytes() >= HEADER as u64);
        // Buffers that cannot hold what was negotiated, or that are to be read.
        if room < needed || !first_holds_header || chains.iter().any(|chain| chain.readable.bytes() > 0) {
            return Err(Malformed);
        }
        // Who makes no checksums himself is told nothing about them.
        let valid = frame.offload.valid && self.features & GUEST_CHECKSUM != 0;
        let offload = Offload { valid, ..frame.offload };
        let header = header::build(offload, u16::try_from(chains.len()).unwrap_or(u16::MAX));
        let [first, second, third] = frame.parts;
        let mut source = Source { parts: [&header, first, second, third] };
        let mut left = needed;
        for chain in chains {
            let here = left.min(chain.writable.bytes());
            source.copy_to(self.queues.memory(), chain, here).map_err(|_| Malformed)?;
            self.answer(pair, chain, Ok(low32(here)));
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
