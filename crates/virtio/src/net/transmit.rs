//! Frames from the driver to the network.

use backend::net::header::{self, HEADER};

use super::{Far, Pairs, transmit_queue};
use crate::queue::Chain;
use crate::service::{self, Malformed};
use crate::transport::Queues;

/// The most frames taken at once: the guest hears of them together, and what they make others send is sent meanwhile.
const BATCH: usize = 64;

/// Takes frames, as long as the network does; true if there may be more that it takes.
pub(super) fn turn(far: &mut Far, queues: &Queues<'_>, pairs: Pairs) -> bool {
    let is_open = |far: &Far| far.network.is_open();
    let mut more = false;
    for pair in 0..pairs.all {
        // Of one pair nothing is to be learnt.
        let learns = (pairs.all > 1).then_some(pair);
        let send = |far: &mut Far, chain: &Chain| send(far, queues, chain, learns);
        more |= queues.drain(transmit_queue(pair), BATCH, far, is_open, send);
    }
    more
}

/// Sends one frame, and remembers that its flow is on this pair. What is too long to be a frame, or asks for what was not offered, is
/// lost.
fn send(far: &mut Far, queues: &Queues<'_>, chain: &Chain, pair: Option<u16>) -> Result<(), Malformed> {
    let memory = queues.memory();
    let (bytes, body) = service::header::<HEADER>(memory, chain)?;
    let fits = body.bytes() <= far.frame.len() as u64;
    let (Some(offload), true) = (header::parse(&bytes), fits) else { return Ok(()) };
    let len = body.read(memory, &mut far.frame).map_err(|_| Malformed)?;
    let frame = far.frame.get(..len).unwrap_or_default();
    if let Some(pair) = pair {
        far.steering.sent(frame, pair);
    }
    far.network.transmit(frame, offload);
    Ok(())
}
