//! A device with all that surrounds it, and a driver that does what drivers do.

use std::sync::{Arc, Mutex};

use bus::Device;
use bus::pci::{Function, Slot};
use memory::{GuestMemory, RamRange};
use x86::Gpa;

use crate::queue::RingFeatures;
use crate::queue::tests::driver::{Buffer, Driver, shifted};
use crate::service::Service;
use crate::transport::{BAR_BYTES, VirtioPci, Worker};

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const PACKED: u64 = 1 << 34;
pub(crate) const EVENT_INDEX: u64 = 1 << 29;
pub(crate) const INDIRECT: u64 = 1 << 28;
pub(crate) const NEEDS_RESET: u8 = 0x40;
const SIZE: u16 = 8;

/// The device and its surroundings.
pub(crate) struct Rig {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) device: Arc<Mutex<VirtioPci>>,
    pub(crate) slot: Slot,
    pub(crate) workers: Vec<Worker>,
}

impl Rig {
    /// A device behind a bridge's window, in the power-on state.
    pub(crate) fn new(service: Box<dyn Service>) -> Self {
        let memory = Arc::new(GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 0x10_0000)]).unwrap());
        Self::with_memory(service, memory)
    }

    pub(crate) fn with_memory(service: Box<dyn Service>, memory: Arc<GuestMemory>) -> Self {
        let slot = Slot::new();
        let device = slot.socket(&memory).plug(|socket| VirtioPci::new(service, socket));
        let workers = device.lock().unwrap().workers();
        Self { memory, device, slot, workers }
    }

    pub(crate) fn messages(&self) -> Vec<(u64, u32)> {
        self.slot.messages()
    }

    pub(crate) fn config_write(&self, register: u64, data: &[u8]) {
        self.device.lock().unwrap().write_config(register, data);
    }

    pub(crate) fn config_word(&self, register: u64) -> u32 {
        let mut data = [0xff; 4];
        self.device.lock().unwrap().read_config(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.slot.read(Slot::HOME + offset, &mut data);
        data
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        assert!(offset < BAR_BYTES);
        self.slot.write(Slot::HOME + offset, data);
    }

    pub(crate) fn status(&self) -> u8 {
        self.read::<1>(0x14)[0]
    }

    /// Enables memory and bus mastering; with `messages`, also MSI-X with vector 0 for the configuration and 1 for the
    /// queue.
    pub(crate) fn enable(&self, messages: bool) {
        self.config_write(4, &[6, 0]);
        if messages {
            let capability = self.capability(|id, _| id == 0x11).unwrap();
            self.config_write(capability + 3, &[0x80]);
            for vector in 0..2u64 {
                self.write(0x4000 + 16 * vector, &(0xfee0_0000_u64).to_le_bytes());
                self.write(0x4008 + 16 * vector, &(0x40 + vector).to_le_bytes());
            }
        }
    }

    /// Where the capability is that `wanted` says, by identifier and the byte in which virtio's have their type.
    pub(crate) fn capability(&self, wanted: impl Fn(u8, u8) -> bool) -> Option<u64> {
        let mut at = u64::from(self.config_word(0x34) & 0xff);
        while at != 0 {
            let [id, next, _, kind] = self.config_word(at).to_le_bytes();
            if wanted(id, kind) {
                return Some(at);
            }
            at = next.into();
        }
        None
    }

    /// Resets the device and agrees on features; the status afterwards.
    pub(crate) fn negotiate(&self, features: u64) -> u8 {
        self.write(0x14, &[0]);
        assert_eq!(self.status(), 0);
        self.write(0x14, &[1]);
        self.write(0x14, &[3]);
        for (select, half) in [(0u32, features & 0xffff_ffff), (1, features >> 32)] {
            self.write(0x08, &select.to_le_bytes());
            self.write(0x0c, &u32::try_from(half).unwrap().to_le_bytes());
        }
        self.write(0x14, &[11]);
        self.status()
    }

    /// Sets queue 0 up and the device going; the driver of that queue.
    pub(crate) fn start(&self, features: u64) -> Driver<'_> {
        self.start_queue(0, features)
    }

    /// Sets one queue up and the device going; the driver of that queue.
    pub(crate) fn start_queue(&self, queue: u8, features: u64) -> Driver<'_> {
        assert_eq!(self.negotiate(features | VERSION_1), 11);
        let driver = self.set_up(queue, features, 0);
        self.write(0x14, &[15]);
        driver
    }

    /// Sets one queue up, so much further on in memory than usual; its driver.
    pub(crate) fn set_up(&self, queue: u8, features: u64, shift: u64) -> Driver<'_> {
        self.write(0x10, &[0, 0]);
        self.write(0x16, &[queue, 0]);
        self.write(0x18, &SIZE.to_le_bytes());
        self.write(0x1a, &[1, 0]);
        let areas = shifted(shift);
        for (at, area) in [(0x20, areas.descriptors), (0x28, areas.driver), (0x30, areas.device)] {
            self.write(at, &area.to_le_bytes());
        }
        self.memory.fill(Gpa(0x1000 + shift), 0x4000, 0).unwrap();
        let rings = RingFeatures {
            packed: features & PACKED != 0,
            event_index: features & EVENT_INDEX != 0,
            indirect: features & INDIRECT != 0,
        };
        let driver = Driver::at(shift, &self.memory, SIZE, rings, 0);
        self.write(0x1c, &[1, 0]);
        driver
    }

    pub(crate) fn notify(&self) {
        self.write(0x3000, &[0, 0]);
    }

    /// Serves all there is.
    pub(crate) fn serve(&self) {
        while self.workers[0].step() {}
    }

    /// A chain, from its offer to its return: how much was written.
    pub(crate) fn round(&self, driver: &mut Driver<'_>, buffers: &[Buffer]) -> Option<u32> {
        let name = driver.offer(buffers, false).expect("room");
        self.notify();
        self.serve();
        let (back, written) = driver.collect()?;
        assert_eq!(back, name);
        Some(written)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Whatever is in the middle of something elsewhere in a test is not waited for.
        if let Ok(device) = self.device.lock() {
            device.end();
        }
    }
}

/// Reads through the device's own door, as the bus would.
pub(crate) fn read_device(device: &mut VirtioPci, offset: u64) -> u8 {
    let mut data = [0];
    device.read(0, offset, &mut data);
    data[0]
}
