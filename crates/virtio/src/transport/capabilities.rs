//! Where a device's registers are, and the capabilities that say so (VIRTIO 1.2, 4.1.4).

use bus::pci::{ConfigSpace, Identity};

use crate::service::Kind;

/// The base address register that all registers are behind.
pub(super) const BAR: u8 = 0;
/// The bytes of registers.
pub const BAR_BYTES: u64 = 0x8000;

/// The parts of [`BAR`], each a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Common,
    Isr,
    Device,
    Notify,
    Table,
    Pending,
}

impl Part {
    const ALL: [Self; 6] = [Self::Common, Self::Isr, Self::Device, Self::Notify, Self::Table, Self::Pending];

    /// Where it begins.
    pub(super) const fn offset(self) -> u32 {
        (self as u32) << 12
    }

    /// The part at an offset of the bar, and the offset in it.
    pub(super) fn at(offset: u64) -> Option<(Self, u64)> {
        let part = Self::ALL.get(x86::bits::index(offset >> 12))?;
        Some((*part, offset & 0xfff))
    }
}

/// The distance of two queues' notification registers.
pub(super) const NOTIFY_STRIDE: u32 = 4;
/// The bytes of the common configuration.
pub(super) const COMMON_BYTES: u32 = 0x40;

const VENDOR: u16 = 0x1af4;
/// What device identifiers of devices without a legacy interface begin with.
const FIRST_DEVICE: u16 = 0x1040;
/// Vendor-specific.
const CAPABILITY: u8 = 0x09;

// Types of virtio's capabilities.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;
const ACCESS: u8 = 5;

// Fields of such a capability.
const FIELD_BAR: u64 = 4;
const FIELD_OFFSET: u64 = 8;
const FIELD_LENGTH: u64 = 12;
const FIELD_DATA: u64 = 16;

/// The identity of a device of some kind.
pub(super) fn identity(kind: Kind) -> Identity {
    Identity {
        vendor: VENDOR,
        device: FIRST_DEVICE.wrapping_add(kind.id),
        revision: 1,
        class: kind.class,
        subsystem_vendor: VENDOR,
        subsystem: FIRST_DEVICE.wrapping_add(kind.id),
    }
}

/// What stands behind a capability's identifier and link.
fn body(kind: u8, offset: u32, len: u32, extra: &[u32]) -> Vec<u8> {
    // Its length, with the two bytes before; type, bar, no identifier, padding.
    let total = u8::try_from(16 + 4 * extra.len()).unwrap_or(16);
    let mut body = vec![total, kind, BAR, 0, 0, 0];
    for word in [offset, len].iter().chain(extra) {
        body.extend(word.to_le_bytes());
    }
    body
}

/// Adds virtio's capabilities; returns where the one is that gives access through configuration space.
pub(super) fn add(config: &mut ConfigSpace, queues: u16, device_bytes: usize) -> u64 {
    let notify_bytes = u32::from(queues) * NOTIFY_STRIDE;
    let device_bytes = u32::try_from(device_bytes).unwrap_or(0);
    let common = body(COMMON, Part::Common.offset(), COMMON_BYTES, &[]);
    let notify = body(NOTIFY, Part::Notify.offset(), notify_bytes, &[NOTIFY_STRIDE]);
    let isr = body(ISR, Part::Isr.offset(), 1, &[]);
    let device = body(DEVICE, Part::Device.offset(), device_bytes, &[]);
    config.add_capability(CAPABILITY, &common, &[]);
    config.add_capability(CAPABILITY, &notify, &[]);
    config.add_capability(CAPABILITY, &isr, &[]);
    if device_bytes != 0 {
        config.add_capability(CAPABILITY, &device, &[]);
    }
    // Of this one the driver writes bar, offset, length and data.
    let access = body(ACCESS, 0, 0, &[0]);
    let mut writable = vec![0; access.len()];
    for (at, byte) in (2..).zip(writable.iter_mut()) {
        *byte = if at == FIELD_BAR || at >= FIELD_OFFSET { 0xff } else { 0 };
    }
    config.add_capability(CAPABILITY, &access, &writable).map_or(0, u64::from)
}

/// The access that a driver has set up in configuration space, if it is one (4.1.4.9).
pub(super) struct ConfigAccess {
    /// Where in the bar.
    pub(super) offset: u64,
    /// How much: 1, 2 or 4.
    pub(super) len: usize,
    /// Where the data is, in configuration space.
    pub(super) data: u64,
}

impl ConfigAccess {
    /// What an access of configuration space to these bytes sets off.
    pub(super) fn of(config: &ConfigSpace, capability: u64, register: u64, len: usize) -> Option<Self> {
        let data = capability + FIELD_DATA;
        if register >= data + 4 || register + len as u64 <= data {
            return None;
        }
        let bar = config.word(capability + FIELD_BAR) & 0xff;
        let offset = u64::from(config.word(capability + FIELD_OFFSET));
        let len = u64::from(config.word(capability + FIELD_LENGTH));
        let possible = matches!(len, 1 | 2 | 4)
            && bar == u32::from(BAR)
            && offset.is_multiple_of(len)
            && offset + len <= BAR_BYTES;
        possible.then(|| Self { offset, len: x86::bits::index(len), data })
    }
}
