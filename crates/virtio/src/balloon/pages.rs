//! What requests about pages say.

use x86::Gfn;
use x86::bits::index;

use crate::queue::Chain;
use crate::service::Malformed;
use crate::transport::Queues;

/// The most pages that one request names. Linux's driver names 256.
const MOST_PAGES: usize = 16 << 10;

/// The pages that a request names, each a number of 32 bits (5.5.6.1).
fn named(queues: &Queues<'_>, chain: &Chain) -> Result<Vec<Gfn>, Malformed> {
    let len = index(chain.readable.bytes());
    if len > MOST_PAGES * 4 {
        return Err(Malformed);
    }
    let mut bytes = vec![0; len];
    chain.readable.read(queues.memory(), &mut bytes).map_err(|_| Malformed)?;
    let (numbers, _) = bytes.as_chunks();
    Ok(numbers.iter().map(|number| Gfn(u32::from_le_bytes(*number).into())).collect())
}

/// Pages come into the balloon. What the host's kernel does not take back costs memory, and nothing else.
pub(super) fn inflate(queues: &Queues<'_>, chain: &Chain) -> Result<(), Malformed> {
    let _ = queues.memory().inflate(&named(queues, chain)?);
    Ok(())
}

/// Pages leave it.
pub(super) fn deflate(queues: &Queues<'_>, chain: &Chain) -> Result<(), Malformed> {
    queues.memory().deflate(&named(queues, chain)?);
    Ok(())
}

/// Pages that nobody uses are the chain's own buffers (5.5.6.7). Returns how many bytes were given back: none if they are more than all
/// of memory, for then some are none, or come twice, and looking at them all has no end.
pub(super) fn empty(queues: &Queues<'_>, chain: &Chain) -> u64 {
    if chain.writable.bytes() > queues.memory().ram_bytes() {
        return 0;
    }
    let ranges = chain.writable.ranges().iter();
    ranges.map(|range| queues.memory().empty(*range).unwrap_or(0)).sum()
}
