//! A disk (VIRTIO 1.2, 5.2).
//!
//! Data goes between the image and the driver's buffers in one system call, without a copy. Without
//! `VIRTIO_BLK_F_FLUSH` a driver takes it that a finished write is durable (5.2.6.2), so each write is then followed by
//! a flush.

mod config;
mod request;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::time::Duration;

use backend::Volume;
use host::jail::Role;

use crate::service::{Kind, Malformed, Request, Service};

/// The bytes of a serial number (5.2.6.1, `VIRTIO_BLK_T_GET_ID`).
const SERIAL: usize = 20;

// Features (5.2.3).
const SEG_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const BLK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const MULTI_QUEUE: u64 = 1 << 12;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

/// The device.
pub struct Blk {
    volume: Volume,
    serial: [u8; SERIAL],
    queues: u16,
    config: Vec<u8>,
}

impl Blk {
    /// A device for `volume`, with as much of `serial` as fits and a number of queues, 1 at least and 16 at most.
    pub fn new(volume: Volume, serial: &str, queues: u16) -> Self {
        let mut text = [0; SERIAL];
        for (byte, from) in text.iter_mut().zip(serial.bytes()) {
            *byte = from;
        }
        let queues = queues.clamp(1, 16);
        let config = config::bytes(volume.sectors(), queues);
        Self { volume, serial: text, queues, config }
    }
}

impl Service for Blk {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-blk", id: 2, class: 0x01_0000 }
    }

    fn role(&self) -> Role {
        Role::Disk
    }

    fn features(&self) -> u64 {
        let changes = if self.volume.disk().is_read_only() { READ_ONLY } else { DISCARD | WRITE_ZEROES };
        let queues = if self.queues > 1 { MULTI_QUEUE } else { 0 };
        SEG_MAX | BLK_SIZE | FLUSH | changes | queues
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn closed_for(&self) -> Duration {
        self.volume.closed_for()
    }

    fn serve(&self, request: &Request<'_>) -> Result<u32, Malformed> {
        request::serve(self, request)
    }
}
