//! Frames from the driver to the network.

use backend::net::header::{self, HEADER};

use super::{Far, TRANSMIT};
use crate::queue::Chain;
use crate::service::{self, Malformed};
use crate::transport::Queues;

/// The most frames taken at once: the guest hears of them together, and what they make others send is sent meanwhile.
const BATCH: usize = 64;

/// Takes frames, as long as the network does; true if there may be more that it takes.
pub(super) fn turn(far: &mut Far, queues: &Queues<'_>) -> bool {
    let is_open = |far: &Far| far.network.is_open();
    queues.drain(TRANSMIT, BATCH, far, is_open, |far, chain| send(far, queues, chain))
}

/// Sends one frame. What is too long to be a frame, or asks for what was not offered, is lost.
fn send(far: &mut Far, queues: &Queues<'_>, chain: &Chain) -> Result<(), Malformed> {
    let memory = queues.memory();
    let (bytes, body) = service::header::<HEADER>(memory, chain)?;
    let fits = body.bytes() <= far.frame.len() as u64;
    let (Some(offload), true) = (header::parse(&bytes), fits) else { return Ok(()) };
    let len = body.read(memory, &mut far.frame).map_err(|_| Malformed)?;
    far.network.transmit(far.frame.get(..len).unwrap_or_default(), offload);
    Ok(())
}
