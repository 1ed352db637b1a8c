//! The common configuration: its fields and what writing them means (VIRTIO 1.2, 4.1.4.3).
//!
//! All fields stand in one image. A read copies from it; a write changes a copy of it and stores every field that it
//! touched, so that any width does what it says.

use x86::bits::{high32, index, low32};

use super::capabilities;
use super::function::{Registers, State, status};
use crate::service::Service;

const COMMON_BYTES: usize = index(capabilities::COMMON_BYTES as u64);

/// The fields that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    DeviceFeatureSelect,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    Status,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueDescriptors,
    QueueDriver,
    QueueDevice,
}

/// Where each is, and its length.
const WRITABLE: [(Field, usize, usize); 12] = [
    (Field::DeviceFeatureSelect, 0x00, 4),
    (Field::DriverFeatureSelect, 0x08, 4),
    (Field::DriverFeature, 0x0c, 4),
    (Field::ConfigVector, 0x10, 2),
    (Field::Status, 0x14, 1),
    (Field::QueueSelect, 0x16, 2),
    (Field::QueueSize, 0x18, 2),
    (Field::QueueVector, 0x1a, 2),
    (Field::QueueEnable, 0x1c, 2),
    (Field::QueueDescriptors, 0x20, 8),
    (Field::QueueDriver, 0x28, 8),
    (Field::QueueDevice, 0x30, 8),
];

impl State {
    /// Reads the common configuration.
    pub(super) fn read_common(&self, offset: u64, data: &mut [u8]) {
        let image = self.common_image();
        for (at, byte) in (index(offset)..).zip(data) {
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes it.
    pub(super) fn write_common(&mut self, service: &dyn Service, offset: u64, data: &[u8]) {
        let mut image = self.common_image();
        let (from, to) = (index(offset), index(offset) + data.len());
        for (at, byte) in (from..to).zip(data) {
            if let Some(place) = image.get_mut(at) {
                *place = *byte;
            }
        }
        for (field, at, len) in WRITABLE {
            if from < at + len && at < to {
                let bytes = image.get(at..at + len).unwrap_or_default();
                self.store(service, field, bus::access::number(bytes));
            }
        }
    }

    fn common_image(&self) -> [u8; COMMON_BYTES] {
        let Registers { device_feature_select, driver_feature_select, driver_features, .. } = self.registers;
        let window = |features: u64, select| match select {
            0 => low32(features),
            1 => high32(features),
            _ => 0,
        };
        let mut image = [0; COMMON_BYTES];
        let mut put = |at: usize, bytes: &[u8]| {
            for (place, byte) in image.iter_mut().skip(at).zip(bytes) {
                *place = *byte;
            }
        };
        put(0x00, &device_feature_select.to_le_bytes());
        put(0x04, &window(self.offered, device_feature_select).to_le_bytes());
        put(0x08, &driver_feature_select.to_le_bytes());
        put(0x0c, &window(driver_features, driver_feature_select).to_le_bytes());
        put(0x10, &self.registers.config_vector.to_le_bytes());
        put(0x12, &u16::try_from(self.queues.len()).unwrap_or(0).to_le_bytes());
        put(0x14, &[self.registers.status, self.registers.generation]);
        put(0x16, &self.registers.queue_select.to_le_bytes());
        // A queue that does not exist has size 0.
        if let Some(queue) = self.selected() {
            let set = &queue.setup;
            put(0x18, &set.size.to_le_bytes());
            put(0x1a, &set.vector.to_le_bytes());
            put(0x1c, &u16::from(set.enabled).to_le_bytes());
            put(0x1e, &self.registers.queue_select.to_le_bytes());
            put(0x20, &set.areas.descriptors.to_le_bytes());
            put(0x28, &set.areas.driver.to_le_bytes());
            put(0x30, &set.areas.device.to_le_bytes());
        }
        image
    }

    fn store(&mut self, service: &dyn Service, field: Field, value: u64) {
        // A driver waits until its reset is over (2.4.1).
        if self.resetting {
            return;
        }
        let half = x86::bits::low16(value);
        match field {
            Field::DeviceFeatureSelect => self.registers.device_feature_select = low32(value),
            Field::DriverFeatureSelect => self.registers.driver_feature_select = low32(value),
            Field::DriverFeature => self.store_features(low32(value)),
            Field::ConfigVector => self.registers.config_vector = self.vector(half),
            Field::Status => self.store_status(service, x86::bits::low8(value)),
            Field::QueueSelect => self.registers.queue_select = half,
            Field::QueueSize
            | Field::QueueVector
            | Field::QueueEnable
            | Field::QueueDescriptors
            | Field::QueueDriver
            | Field::QueueDevice => self.store_queue(field, value),
        }
    }

    fn store_features(&mut self, value: u32) {
        if self.registers.status & status::FEATURES_OK != 0 {
            return;
        }
        let features = &mut self.registers.driver_features;
        let value = u64::from(value);
        match self.registers.driver_feature_select {
            0 => *features = *features & !0xffff_ffff | value,
            1 => *features = *features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    fn store_queue(&mut self, field: Field, value: u64) {
        let (half, vector) = (x86::bits::low16(value), self.vector(x86::bits::low16(value)));
        let number = self.registers.queue_select;
        let Some(queue) = self.queues.get_mut(usize::from(number)) else { return };
        let set = &mut queue.setup;
        match field {
            // A queue's interrupt may be moved at any time.
            Field::QueueVector => set.vector = vector,
            _ if set.enabled => {}
            // What cannot be is found when the queue is enabled.
            Field::QueueSize if half <= super::QUEUE_SIZE => set.size = half,
            Field::QueueDescriptors => set.areas.descriptors = value,
            Field::QueueDriver => set.areas.driver = value,
            Field::QueueDevice => set.areas.device = value,
            Field::QueueEnable if half == 1 => self.enable(number),
            _ => {}
        }
    }
}
