//! Commands that a disk serves (NVM Express 1.4, 6), without the lock: each is a request to the image.

use std::io;

use backend::{SECTOR, Volume};
use memory::GuestMemory;
use x86::bits::{high32, high64, index, low64};

use crate::MOST_TRANSFER_BYTES;
use crate::command::{ALL_NAMESPACES, Command, NAMESPACE};
use crate::controller::Answer;
use crate::log::Moved;
use crate::prp;
use crate::status::Status;

// Opcodes.
const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const WRITE_ZEROES: u8 = 0x08;
const DATASET_MANAGEMENT: u8 = 0x09;

/// Dword 12: what is read or written is to be durable.
const UNIT_ACCESS: u32 = 1 << 30;
/// Dword 12 of Write Zeroes: the sectors may be given back.
const DEALLOCATE_ZEROES: u32 = 1 << 25;
/// Dword 11 of Dataset Management: the ranges are of no use any more. Other attributes are hints.
const DEALLOCATE: u32 = 1 << 2;
/// A range of Dataset Management: attributes, number of sectors, first sector.
const RANGE: usize = 16;

/// What serves commands.
pub(crate) struct Server<'a> {
    pub(crate) volume: &'a Volume,
    pub(crate) memory: &'a GuestMemory,
    /// Writes may stay in the host's cache until they are flushed.
    pub(crate) write_cache: bool,
}

impl Server<'_> {
    /// Serves a command, taking its time.
    pub(crate) fn serve(&self, command: &Command) -> Answer {
        let outcome = self.perform(command);
        let moved = outcome.unwrap_or_default();
        self.volume.count((moved.read_sectors + moved.written_sectors) * SECTOR);
        Answer {
            command: command.id,
            status: outcome.err().unwrap_or(Status::SUCCESS),
            result: 0,
            moved,
            sector: command.long(10),
            namespace: command.namespace,
        }
    }

    fn perform(&self, command: &Command) -> Result<Moved, Status> {
        if !command.is_plain() {
            return Err(Status::INVALID_FIELD);
        }
        let all = command.opcode == FLUSH && command.namespace == ALL_NAMESPACES;
        if command.namespace != NAMESPACE && !all {
            return Err(Status::INVALID_NAMESPACE);
        }
        let changes = matches!(command.opcode, WRITE | WRITE_ZEROES | DATASET_MANAGEMENT);
        if changes && self.volume.disk().is_read_only() {
            return Err(Status::WRITE_PROTECTED);
        }
        match command.opcode {
            READ => self.read(command),
            WRITE => self.write(command),
            FLUSH => self.flush(),
            WRITE_ZEROES => self.write_zeroes(command),
            DATASET_MANAGEMENT => self.manage(command),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// The offset and the length of what a command names.
    fn place(&self, command: &Command) -> Result<(u64, u64), Status> {
        let bytes = (u64::from(command.word(12) & 0xffff) + 1) * SECTOR;
        let offset = self.volume.place(command.long(10), bytes).ok_or(Status::LBA_OUT_OF_RANGE)?;
        Ok((offset, bytes))
    }

    /// The same, of a command with data.
    fn place_of_data(&self, command: &Command) -> Result<(u64, u64), Status> {
        let (offset, bytes) = self.place(command)?;
        if bytes > MOST_TRANSFER_BYTES { Err(Status::INVALID_FIELD) } else { Ok((offset, bytes)) }
    }

    fn read(&self, command: &Command) -> Result<Moved, Status> {
        let (offset, bytes) = self.place_of_data(command)?;
        if command.word(12) & UNIT_ACCESS != 0 {
            self.flush()?;
        }
        let ranges = prp::ranges(self.memory, command.prp, bytes)?;
        let read = self.memory.receive(&ranges, |to| self.volume.disk().read(offset, to))?;
        read.map_err(|_| Status::READ_ERROR)?;
        Ok(Moved { read_sectors: bytes / SECTOR, written_sectors: 0 })
    }

    fn write(&self, command: &Command) -> Result<Moved, Status> {
        let (offset, bytes) = self.place_of_data(command)?;
        let ranges = prp::ranges(self.memory, command.prp, bytes)?;
        let written = self.memory.provide(&ranges, |from| self.volume.disk().write(offset, from))?;
        written.map_err(|_| Status::WRITE_FAULT)?;
        self.settle(command)?;
        Ok(Moved { read_sectors: 0, written_sectors: bytes / SECTOR })
    }

    fn write_zeroes(&self, command: &Command) -> Result<Moved, Status> {
        let (offset, bytes) = self.place(command)?;
        let unmap = command.word(12) & DEALLOCATE_ZEROES != 0;
        done(self.volume.disk().write_zeroes(offset, bytes, unmap))?;
        self.settle(command)
    }

    /// Acts on each range, once all of them are found possible.
    fn manage(&self, command: &Command) -> Result<Moved, Status> {
        let mut bytes = vec![0; RANGE * (index(u64::from(command.word(10) & 0xff)) + 1)];
        let mut rest = bytes.as_mut_slice();
        for range in prp::ranges(self.memory, command.prp, rest.len() as u64)? {
            let (now, later) = rest.split_at_mut(index(range.len).min(rest.len()));
            self.memory.read(range.gpa, now)?;
            rest = later;
        }
        let mut places = Vec::new();
        for range in bytes.as_chunks::<RANGE>().0 {
            let word = u128::from_le_bytes(*range);
            let bytes = u64::from(high32(low64(word))) * SECTOR;
            places.push((self.volume.place(high64(word), bytes).ok_or(Status::LBA_OUT_OF_RANGE)?, bytes));
        }
        if command.word(11) & DEALLOCATE != 0 {
            for (offset, bytes) in places {
                // The host knows no ranges of nothing.
                if bytes != 0 {
                    done(self.volume.disk().discard(offset, bytes))?;
                }
            }
        }
        Ok(Moved::default())
    }

    fn flush(&self) -> Result<Moved, Status> {
        done(self.volume.disk().flush())?;
        Ok(Moved::default())
    }

    /// Makes a change durable if it has to be when the command is completed.
    fn settle(&self, command: &Command) -> Result<Moved, Status> {
        if self.write_cache && command.word(12) & UNIT_ACCESS == 0 {
            return Ok(Moved::default());
        }
        self.flush()
    }
}

/// What of the host's failures has no status of its own.
fn done(result: io::Result<()>) -> Result<(), Status> {
    result.map_err(|_| Status::INTERNAL_ERROR)
}
