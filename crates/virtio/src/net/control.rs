//! The control queue (VIRTIO 1.2, 5.1.6.5): how many pairs of queues the driver uses.

use std::sync::atomic::{AtomicU16, Ordering};

use crate::queue::Chain;
use crate::service::{self, Malformed};
use crate::transport::Queues;

/// The class of commands about several pairs, and its one command (5.1.6.5.6).
const PAIRS: [u8; 2] = [4, 0];

/// What a command ends with.
const OK: u8 = 0;
const ERROR: u8 = 1;

/// The most commands taken at once; a driver waits for each.
const BATCH: usize = 4;

/// Carries out what the driver wants of the device; `pairs` is told how many pairs it uses, of `most`. True if there may be more.
pub(super) fn turn(queues: &Queues<'_>, queue: u16, most: u16, pairs: &AtomicU16) -> bool {
    let mut batch = queues.take(queue, BATCH);
    while let Some(chain) = batch.next() {
        let answer = obey(queues, &chain, most, pairs);
        batch.answer(chain.ticket, answer.map(|()| 1));
    }
    batch.has_more()
}

/// Carries out one command, and says in the chain whether it could be.
fn obey(queues: &Queues<'_>, chain: &Chain, most: u16, pairs: &AtomicU16) -> Result<(), Malformed> {
    let memory = queues.memory();
    let (command, rest) = service::header::<2>(memory, chain)?;
    let mut bytes = [0; 2];
    let whole = rest.read(memory, &mut bytes).map_err(|_| Malformed)? == bytes.len();
    let wanted = u16::from_le_bytes(bytes);
    let good = command == PAIRS && whole && (1..=most).contains(&wanted);
    if good {
        pairs.store(wanted, Ordering::Relaxed);
    }
    let written = chain.writable.write(memory, &[if good { OK } else { ERROR }]);
    if written.is_ok_and(|len| len == 1) { Ok(()) } else { Err(Malformed) }
}
