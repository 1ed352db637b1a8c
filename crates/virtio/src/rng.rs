//! An entropy source (VIRTIO 1.2, 5.4): fills the driver's buffers with the host's random bytes.

use crate::service::{Kind, Malformed, Request, Service};

/// The most that one request gets, so that none takes long; a driver asks again.
const MOST: u64 = 64 << 10;
/// The bytes made at once.
const PORTION: usize = 4096;

/// The device.
#[derive(Debug, Default)]
pub struct Rng;

impl Service for Rng {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-rng", id: 4, class: 0xff_0000 }
    }

    fn features(&self) -> u64 {
        0
    }

    fn serve(&self, request: &Request<'_>) -> Result<u32, Malformed> {
        let mut portion = [0; PORTION];
        let (mut done, most) = (0, request.chain.writable.bytes().min(MOST));
        while done < most {
            let (_, rest) = request.chain.writable.split_at(done).ok_or(Malformed)?;
            let len = PORTION.min(x86::bits::index(most - done));
            let portion = portion.get_mut(..len).ok_or(Malformed)?;
            if !host::random::fill(portion) {
                break;
            }
            rest.write(request.memory, portion).map_err(|_| Malformed)?;
            done += len as u64;
        }
        Ok(x86::bits::low32(done))
    }
}
