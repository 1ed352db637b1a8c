//! One request: header, data, status (VIRTIO 1.2, 5.2.6).
//!
//! How the driver cuts these into buffers means nothing: the header is the first 16 bytes to read, the status the last
//! byte to write. A chain that has not both, or has them where there is no memory, is malformed. All else that is wrong
//! with a request is its status.

use std::io;

use backend::SECTOR;
use memory::MemoryError;
use x86::bits::{index, low32};

use super::config::{MOST_RANGE_SECTORS, MOST_RANGES};
use super::{Blk, FLUSH};
use crate::queue::Buffers;
use crate::service::{Malformed, Request, header};

const HEADER: usize = 16;
/// A range to discard or to make zero: sector, number of sectors, flags.
const RANGE: usize = 16;
const UNMAP: u32 = 1;

// Types.
const READ: u32 = 0;
const WRITE: u32 = 1;
const DO_FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// What a driver hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Io,
    Unsupported,
}

impl Failure {
    const fn status(self) -> u8 {
        match self {
            Self::Io => 1,
            Self::Unsupported => 2,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::Unsupported { Self::Unsupported } else { Self::Io }
    }
}

/// Data where there is no memory is a failed transfer.
impl From<MemoryError> for Failure {
    fn from(_: MemoryError) -> Self {
        Self::Io
    }
}

/// A request taken apart.
struct Parts<'a> {
    blk: &'a Blk,
    request: &'a Request<'a>,
    kind: u32,
    sector: u64,
    data_out: Buffers,
    data_in: Buffers,
}

/// Serves a request.
pub(super) fn serve(blk: &Blk, request: &Request<'_>) -> Result<u32, Malformed> {
    let chain = request.chain;
    let (header, data_out) = header::<HEADER>(request.memory, chain)?;
    let data_bytes = chain.writable.bytes().checked_sub(1).ok_or(Malformed)?;
    let (data_in, status) = chain.writable.split_at(data_bytes).ok_or(Malformed)?;
    let word = u128::from_le_bytes(header);
    let kind = low32(x86::bits::low64(word));
    let sector = x86::bits::high64(word);
    let parts = Parts { blk, request, kind, sector, data_out, data_in };
    let outcome = parts.perform();
    blk.volume.count(parts.data_out.bytes() + parts.data_in.bytes());
    if outcome.is_err() {
        // What is said to be written is written.
        let _ = parts.data_in.fill(request.memory, 0);
    }
    let code = outcome.err().map_or(0, Failure::status);
    status.write(request.memory, &[code]).map_err(|_| Malformed)?;
    Ok(u32::try_from(chain.writable.bytes()).unwrap_or(u32::MAX))
}

impl Parts<'_> {
    fn perform(&self) -> Result<(), Failure> {
        match self.kind {
            READ => self.read(),
            WRITE => self.write(),
            DO_FLUSH => Ok(self.blk.volume.disk().flush()?),
            GET_ID => {
                self.data_in.write(self.request.memory, &self.blk.serial)?;
                Ok(())
            }
            DISCARD => self.each_range(|offset, len, flags| match flags {
                0 => self.blk.volume.disk().discard(offset, len),
                _ => Err(io::ErrorKind::Unsupported.into()),
            }),
            WRITE_ZEROES => self.each_range(|offset, len, flags| match flags {
                0 | UNMAP => self.blk.volume.disk().write_zeroes(offset, len, flags == UNMAP),
                _ => Err(io::ErrorKind::Unsupported.into()),
            }),
            _ => Err(Failure::Unsupported),
        }
    }

    /// The offset of `len` bytes at `sector`, all of them on the disk and whole sectors.
    fn place(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        self.blk.volume.place(sector, len).ok_or(Failure::Io)
    }

    fn read(&self) -> Result<(), Failure> {
        let offset = self.place(self.sector, self.data_in.bytes())?;
        let to = self.data_in.ranges();
        Ok(self.request.memory.receive(to, |targets| self.blk.volume.disk().read(offset, targets))??)
    }

    fn write(&self) -> Result<(), Failure> {
        if self.blk.volume.disk().is_read_only() {
            return Err(Failure::Io);
        }
        let offset = self.place(self.sector, self.data_out.bytes())?;
        let from = self.data_out.ranges();
        self.request.memory.provide(from, |sources| self.blk.volume.disk().write(offset, sources))??;
        self.settle()
    }

    /// Makes a change durable for a driver that cannot ask for it.
    fn settle(&self) -> Result<(), Failure> {
        if self.request.features & FLUSH == 0 { Ok(self.blk.volume.disk().flush()?) } else { Ok(()) }
    }

    /// Acts on each range that the data names, once all of them are found possible.
    fn each_range(&self, act: impl Fn(u64, u64, u32) -> io::Result<()>) -> Result<(), Failure> {
        if self.blk.volume.disk().is_read_only() {
            return Err(Failure::Io);
        }
        let bytes = self.data_out.bytes();
        if bytes == 0 || !bytes.is_multiple_of(RANGE as u64) || bytes > u64::from(MOST_RANGES) * RANGE as u64
        {
            return Err(Failure::Io);
        }
        let mut data = vec![0; index(bytes)];
        self.data_out.read(self.request.memory, &mut data)?;
        let (ranges, _) = data.as_chunks::<RANGE>();
        let mut places = Vec::with_capacity(ranges.len());
        for range in ranges {
            let word = u128::from_le_bytes(*range);
            let rest = x86::bits::high64(word);
            let (sectors, flags) = (low32(rest), x86::bits::high32(rest));
            if sectors > MOST_RANGE_SECTORS {
                return Err(Failure::Io);
            }
            let len = u64::from(sectors) * SECTOR;
            places.push((self.place(x86::bits::low64(word), len)?, len, flags));
        }
        for (offset, len, flags) in places {
            // The host knows no ranges of nothing.
            if len != 0 {
                act(offset, len, flags)?;
            }
        }
        self.settle()
    }
}
