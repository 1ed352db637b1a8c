//! The 8259A pair (Intel 8259A data sheet, order 231468-003) with the edge/level registers of PC chipsets.
//!
//! Two chips: the master at ports 0x20/0x21 takes IRQ 0 to 7, the slave at 0xa0/0xa1 IRQ 8 to 15 and drives the
//! master's input 2. The master's INT output is the machine's INTR. Input 2 is an edge input like others; after each
//! acknowledge of the slave its output is dropped and driven anew, so that a request that is still there makes a new
//! edge and none is lost.
//!
//! An edge stays latched in IRR when its line falls, so a pulse is a request. A level request (ELCR) goes with its
//! line. An acknowledge cycle that finds no request gives the spurious vector, IRQ 7 of the chip asked, with no
//! in-service bit.
//!
//! The machine has no firmware, so power-on leaves the pair as PC firmware does: initialised, vectors 0x08 and 0x70,
//! everything masked. ICW1's level bit is ignored in favour of ELCR, as in the PIIX and its successors; an interrupt
//! vector in MCS-80 mode is not a thing in a PC.
//!
//! Lock order: the pair's own lock, then whatever the INTR line takes. The device and the lines share one [`Pic`].

use std::sync::{Arc, Mutex};

use bus::{Device, IrqLine, Lifecycle, Region};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};

use crate::sync::lock;

const NAME: &str = "pic";
/// The input of the master that the slave drives.
const CASCADE: u8 = 2;
/// The lines that can be level-triggered: not the timer, the keyboard, the cascade, the clock and the FPU.
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];
/// The vectors that PC firmware gives the two chips.
const FIRMWARE_BASE: [u8; 2] = [0x08, 0x70];

/// What the next write to the data port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Expect {
    #[default]
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chip {
    // Static.
    index: usize,
    // Volatile.
    state: ChipState,
}

/// One 8259A's saved form, which is its registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct ChipState {
    /// The input pins.
    lines: u8,
    /// Latched edges; requests by level are computed from the pins.
    edges: u8,
    isr: u8,
    imr: u8,
    elcr: u8,
    /// The vector of input 0.
    base: u8,
    /// The input of the lowest priority; 7 unless rotated.
    lowest: u8,
    expect: Expect,
    needs_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

const fn bit(input: u8) -> u8 {
    1 << (input & 7)
}

impl Chip {
    fn new(index: usize) -> Self {
        let mut chip = Self { index, state: ChipState::default() };
        chip.reset();
        chip
    }

    fn reset(&mut self) {
        // The pins belong to those who drive them.
        self.state = ChipState {
            lines: self.state.lines,
            imr: 0xff,
            base: FIRMWARE_BASE.get(self.index).copied().unwrap_or(0),
            lowest: 7,
            ..ChipState::default()
        };
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let s = &mut self.state;
        if high {
            s.edges |= bit(input) & !s.lines & !s.elcr;
            s.lines |= bit(input);
        } else {
            s.lines &= !bit(input);
        }
    }

    const fn irr(&self) -> u8 {
        self.state.edges | self.state.lines & self.state.elcr
    }

    /// The member of `set` with the highest priority, and its rank (0 first).
    fn first_of(&self, set: u8) -> Option<(u32, u8)> {
        let top = u32::from(self.state.lowest & 7) + 1;
        let rank = set.rotate_right(top & 7).trailing_zeros();
        let input = u8::try_from((rank + top) & 7).ok()?;
        (rank < 8).then_some((rank, input))
    }

    /// The request that drives INT: unmasked and above everything in service.
    fn request(&self) -> Option<u8> {
        let s = &self.state;
        let (rank, input) = self.first_of(self.irr() & !s.imr)?;
        let mut in_service = s.isr;
        if s.special_mask {
            in_service &= !s.imr;
        }
        if s.special_fully_nested && self.index == 0 {
            // Another request of the slave is above the slave's own, which is in service.
            in_service &= !bit(CASCADE);
        }
        let above = self.first_of(in_service).is_none_or(|(served, _)| rank < served);
        above.then_some(input)
    }

    /// The acknowledge cycle: the input served, `None` for a spurious one.
    fn acknowledge(&mut self) -> Option<u8> {
        let input = self.request()?;
        let s = &mut self.state;
        s.edges &= !bit(input);
        if !s.auto_eoi {
            s.isr |= bit(input);
        } else if s.rotate_on_auto_eoi {
            s.lowest = input;
        }
        Some(input)
    }

    fn vector(&self, input: Option<u8>) -> u8 {
        self.state.base | input.unwrap_or(7)
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.initialise(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    /// ICW1.
    fn initialise(&mut self, value: u8) {
        self.state = ChipState {
            lines: self.state.lines,
            elcr: self.state.elcr,
            base: self.state.base,
            lowest: 7,
            expect: Expect::Icw2,
            needs_icw4: value & 1 != 0,
            single: value & 2 != 0,
            ..ChipState::default()
        };
    }

    fn write_ocw3(&mut self, value: u8) {
        let s = &mut self.state;
        s.poll = value & 4 != 0;
        if value & 2 != 0 {
            s.read_isr = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            s.special_mask = value & 0x20 != 0;
        }
    }

    fn write_ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            0 => self.state.rotate_on_auto_eoi = false,
            4 => self.state.rotate_on_auto_eoi = true,
            1 => {
                self.end_first();
            }
            5 => {
                if let Some(input) = self.end_first() {
                    self.state.lowest = input;
                }
            }
            3 => self.state.isr &= !bit(level),
            7 => {
                self.state.isr &= !bit(level);
                self.state.lowest = level;
            }
            6 => self.state.lowest = level,
            _ => {}
        }
    }

    /// The non-specific EOI. In special mask mode it leaves masked inputs in service.
    fn end_first(&mut self) -> Option<u8> {
        let s = &self.state;
        let eligible = if s.special_mask { s.isr & !s.imr } else { s.isr };
        let (_, input) = self.first_of(eligible)?;
        self.state.isr &= !bit(input);
        Some(input)
    }

    fn write_data(&mut self, value: u8) {
        let s = &mut self.state;
        s.expect = match s.expect {
            Expect::Mask => {
                s.imr = value;
                Expect::Mask
            }
            Expect::Icw2 => {
                s.base = value & 0xf8;
                match (s.single, s.needs_icw4) {
                    (false, _) => Expect::Icw3,
                    (true, true) => Expect::Icw4,
                    (true, false) => Expect::Mask,
                }
            }
            // Who is connected where is wired.
            Expect::Icw3 if s.needs_icw4 => Expect::Icw4,
            Expect::Icw3 => Expect::Mask,
            Expect::Icw4 => {
                s.special_fully_nested = value & 0x10 != 0;
                s.auto_eoi = value & 2 != 0;
                Expect::Mask
            }
        };
    }

    /// A read of the command (0) or data port. After a poll command it is an acknowledge cycle.
    fn read(&mut self, data_port: bool) -> u8 {
        if std::mem::take(&mut self.state.poll) {
            self.acknowledge().map_or(0, |input| 0x80 | input)
        } else if data_port {
            self.state.imr
        } else if self.state.read_isr {
            self.state.isr
        } else {
            self.irr()
        }
    }

    fn write_elcr(&mut self, value: u8) {
        let elcr = value & ELCR_WRITABLE.get(self.index).copied().unwrap_or(0);
        self.state.elcr = elcr;
        self.state.edges &= !elcr;
    }
}

#[derive(Debug)]
struct Pair {
    master: Chip,
    slave: Chip,
}

impl Pair {
    fn chip(&mut self, index: usize) -> &mut Chip {
        if index == 0 { &mut self.master } else { &mut self.slave }
    }

    fn cascade(&mut self) {
        let int = self.slave.request().is_some();
        self.master.set_line(CASCADE, int);
    }

    fn acknowledge(&mut self) -> u8 {
        let input = self.master.acknowledge();
        if input != Some(CASCADE) {
            return self.master.vector(input);
        }
        let behind = self.slave.acknowledge();
        self.master.set_line(CASCADE, false);
        self.slave.vector(behind)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedPic {
    master: ChipState,
    slave: ChipState,
}

impl Saved for SavedPic {
    const NAME: &'static str = NAME;
    const VERSION: u16 = 1;
}

/// The 8259 pair. Clones are handles of the same chips.
#[derive(Clone)]
pub struct Pic {
    // Glue.
    intr: Arc<dyn IrqLine>,
    // Volatile.
    pair: Arc<Mutex<Pair>>,
}

impl Pic {
    /// A pair that drives `intr`.
    pub fn new(intr: Arc<dyn IrqLine>) -> Self {
        let pair = Pair { master: Chip::new(0), slave: Chip::new(1) };
        Self { intr, pair: Arc::new(Mutex::new(pair)) }
    }

    /// Changes the chips and drives the outputs, all under the lock, so that INTR follows the last change.
    fn change<R>(&self, act: impl FnOnce(&mut Pair) -> R) -> R {
        let mut pair = lock(&self.pair);
        let result = act(&mut pair);
        pair.cascade();
        self.intr.set(pair.master.request().is_some());
        result
    }

    /// Drives input `irq` (0 to 15; 2 is the cascade and has no pin).
    pub fn set_line(&self, irq: u8, high: bool) {
        match irq {
            CASCADE => {}
            0..=7 => self.change(|pair| pair.master.set_line(irq, high)),
            8..=15 => self.change(|pair| pair.slave.set_line(irq - 8, high)),
            _ => {}
        }
    }

    /// The acknowledge cycle: the vector of the request with the highest priority, or a spurious one.
    pub fn acknowledge(&self) -> u8 {
        self.change(Pair::acknowledge)
    }
}

impl Device for Pic {
    fn regions(&self) -> Vec<Region> {
        vec![Region::ports(0x20, 2), Region::ports(0xa0, 2), Region::ports(0x4d0, 2)]
    }

    fn read(&mut self, region: usize, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data) {
            *byte = self.change(|pair| match region {
                0 | 1 => pair.chip(region).read(port != 0),
                _ => pair.chip(usize::from(port != 0)).state.elcr,
            });
        }
    }

    fn write(&mut self, region: usize, offset: u64, data: &[u8]) {
        for (port, value) in (offset..).zip(data) {
            self.change(|pair| match (region, port) {
                (0 | 1, 0) => pair.chip(region).write_command(*value),
                (0 | 1, _) => pair.chip(region).write_data(*value),
                _ => pair.chip(usize::from(port != 0)).write_elcr(*value),
            });
        }
    }
}

impl Lifecycle for Pic {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reset(&mut self) {
        self.change(|pair| {
            pair.master.reset();
            pair.slave.reset();
        });
    }

    fn save(&self) -> Record {
        let pair = lock(&self.pair);
        Record::encode(&SavedPic { master: pair.master.state.clone(), slave: pair.slave.state.clone() })
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        let saved: SavedPic = record.decode()?;
        if saved.master.lowest > 7 || saved.slave.lowest > 7 {
            return Err(StateError::Damaged { name: NAME, reason: "a priority above 7".into() });
        }
        self.change(|pair| {
            pair.master.state = saved.master;
            pair.slave.state = saved.slave;
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
