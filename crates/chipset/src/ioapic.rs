//! The I/O APIC (Intel 82093AA data sheet, order 290566-001), with the EOI register of version 0x20 (Intel ICH
//! data sheets, "I/O APIC").
//!
//! 24 pins, each with a redirection entry. An edge pin sends one message per rising edge; edges that come while the
//! entry is masked are lost, as the data sheet has it. A level pin sends while its line is high and its remote-IRR
//! bit is clear; the bit is set when a local APIC takes the message and cleared by that interrupt's EOI, after which
//! a line that is still high sends again. Polarity is not looked at: a line's "high" means asserted.
//!
//! Messages of modes that this machine has no use for (SMI, ExtINT) are not sent.
//!
//! Lock order: the chip's own lock, then local APICs (through the [`MessageBus`]). The device and the lines share
//! one [`IoApic`].

use std::sync::{Arc, Mutex};

use bus::{Device, Lifecycle, Region};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};
use x86::bits::low8;

use crate::apic::{DeliveryMode, Destination, Message, MessageBus, Trigger};
use crate::sync::lock;

const NAME: &str = "ioapic";
/// The number of pins.
pub const PINS: usize = 24;
/// Where the registers are.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;

// Offsets in the page.
const INDEX: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

// Indirect registers.
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const TABLE_FIRST: u8 = 0x10;
const TABLE_LAST: u8 = 0x3f;

/// Version 0x20, number of the last pin.
const VERSION_VALUE: u32 = 0x20 | 23 << 16;
const ID_WRITABLE: u32 = 0x0f00_0000;

// A redirection entry (82093AA, 3.2.4).
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Vector, modes, polarity, trigger, mask, destination.
const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_afff;

#[derive(Debug)]
struct Chip {
    id: u32,
    index: u8,
    /// The level of each pin.
    lines: u32,
    table: [u64; PINS],
}

impl Chip {
    const RESET: Self = Self { id: 0, index: 0, lines: 0, table: [MASKED; PINS] };

    fn is_high(&self, pin: usize) -> bool {
        self.lines >> pin & 1 != 0
    }

    fn set_line(&mut self, pin: usize, high: bool, out: &dyn MessageBus) {
        let rises = high && !self.is_high(pin);
        self.lines = self.lines & !(1 << pin) | u32::from(high) << pin;
        let Some(entry) = self.table.get(pin) else { return };
        if entry & LEVEL != 0 {
            self.service_level(pin, out);
        } else if rises && entry & MASKED == 0 {
            send(*entry, out);
        }
    }

    /// Sends a level pin's message if one is called for.
    fn service_level(&mut self, pin: usize, out: &dyn MessageBus) {
        let high = self.is_high(pin);
        let Some(entry) = self.table.get_mut(pin) else { return };
        if high && *entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL && send(*entry, out) {
            *entry |= REMOTE_IRR;
        }
    }

    fn end_of_interrupt(&mut self, vector: u8, out: &dyn MessageBus) {
        for pin in 0..PINS {
            let Some(entry) = self.table.get_mut(pin) else { return };
            if low8(*entry) == vector && *entry & LEVEL != 0 {
                *entry &= !REMOTE_IRR;
                self.service_level(pin, out);
            }
        }
    }

    fn read_register(&self) -> u32 {
        match self.index {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_VALUE,
            TABLE_FIRST..=TABLE_LAST => {
                let entry = self.table.get(usize::from(self.index - TABLE_FIRST) / 2).copied().unwrap_or(0);
                if self.index & 1 == 0 { x86::bits::low32(entry) } else { x86::bits::high32(entry) }
            }
            _ => 0,
        }
    }

    fn write_register(&mut self, value: u32, out: &dyn MessageBus) {
        match self.index {
            ID => self.id = value & ID_WRITABLE,
            TABLE_FIRST..=TABLE_LAST => {
                let pin = usize::from(self.index - TABLE_FIRST) / 2;
                let shift = if self.index & 1 == 0 { 0 } else { 32 };
                let half = 0xffff_ffff << shift;
                let Some(entry) = self.table.get_mut(pin) else { return };
                let written = *entry & !half | u64::from(value) << shift;
                *entry = legal(written & ENTRY_WRITABLE | *entry & REMOTE_IRR);
                self.service_level(pin, out);
            }
            _ => {}
        }
    }
}

/// An entry without what cannot be: an edge pin has no remote IRR, so software clears a stuck one by a detour
/// through edge mode.
const fn legal(entry: u64) -> u64 {
    let entry = entry & (ENTRY_WRITABLE | REMOTE_IRR);
    if entry & LEVEL == 0 { entry & !REMOTE_IRR } else { entry }
}

/// Sends an entry's message; false if nobody took it.
fn send(entry: u64, out: &dyn MessageBus) -> bool {
    let Some(mode) = DeliveryMode::from_field(x86::bits::low32(entry >> 8)) else { return false };
    let message = Message {
        destination: Destination::narrow(low8(entry >> 56), entry & LOGICAL != 0),
        mode,
        vector: low8(entry),
        trigger: if entry & LEVEL != 0 { Trigger::Level } else { Trigger::Edge },
    };
    out.deliver(&message)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedIoApic {
    id: u32,
    index: u8,
    lines: u32,
    table: [u64; PINS],
}

impl Saved for SavedIoApic {
    const NAME: &'static str = NAME;
    const VERSION: u16 = 1;
}

/// The I/O APIC. Clones are handles of the same chip.
#[derive(Clone)]
pub struct IoApic {
    // Glue.
    out: Arc<dyn MessageBus>,
    // Volatile.
    chip: Arc<Mutex<Chip>>,
}

impl IoApic {
    /// An I/O APIC that sends its messages to `out`.
    pub fn new(out: Arc<dyn MessageBus>) -> Self {
        Self { out, chip: Arc::new(Mutex::new(Chip::RESET)) }
    }

    /// Drives a pin; one past the last is ignored.
    pub fn set_line(&self, pin: usize, high: bool) {
        if pin < PINS {
            lock(&self.chip).set_line(pin, high, &*self.out);
        }
    }

    /// A level-triggered interrupt with this vector has ended.
    pub fn end_of_interrupt(&self, vector: u8) {
        lock(&self.chip).end_of_interrupt(vector, &*self.out);
    }
}

impl Device for IoApic {
    fn regions(&self) -> Vec<Region> {
        vec![Region::mmio(IOAPIC_BASE, 0x1000)]
    }

    fn read(&mut self, _region: usize, offset: u64, data: &mut [u8]) {
        let chip = lock(&self.chip);
        let value = match offset & !15 {
            INDEX => u32::from(chip.index),
            WINDOW => chip.read_register(),
            _ => return,
        };
        let shift = x86::bits::low32(offset & 15) * 8;
        let bytes = u64::from(value).checked_shr(shift).unwrap_or(0).to_le_bytes();
        for (byte, from) in data.iter_mut().zip(bytes) {
            *byte = from;
        }
    }

    fn write(&mut self, _region: usize, offset: u64, data: &[u8]) {
        let Some(first) = data.first() else { return };
        match (offset, data.first_chunk()) {
            // A byte is all that these two have.
            (INDEX, _) => lock(&self.chip).index = *first,
            (EOI, _) => self.end_of_interrupt(*first),
            (WINDOW, Some(bytes)) => {
                lock(&self.chip).write_register(u32::from_le_bytes(*bytes), &*self.out);
            }
            _ => {}
        }
    }
}

impl Lifecycle for IoApic {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reset(&mut self) {
        let mut chip = lock(&self.chip);
        // The pins belong to those who drive them.
        *chip = Chip { lines: chip.lines, ..Chip::RESET };
    }

    fn save(&self) -> Record {
        let chip = lock(&self.chip);
        Record::encode(&SavedIoApic { id: chip.id, index: chip.index, lines: chip.lines, table: chip.table })
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        let saved: SavedIoApic = record.decode()?;
        *lock(&self.chip) = Chip {
            id: saved.id & ID_WRITABLE,
            index: saved.index,
            lines: saved.lines & ((1 << PINS) - 1),
            table: saved.table.map(legal),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
