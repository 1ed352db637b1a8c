//! Slots that functions are plugged into while the guest runs, and taken out of: the registers behind the ACPI methods.
//!
//! # Scheme
//! The host plugs a function in ([`Slots::insert`]) or asks for it back ([`Slots::request`]). While there is something to say the line
//! to a general-purpose event is high, whose method (`\_GPE._L01` in the DSDT) reads here which slots it is about and notifies the operating
//! system of each. That evaluates `_OST` when it has dealt with a notification, and `_EJ0` when it has let go of a function; both write here. Each register
//! has a bit for each slot:
//!
//! | offset | name | read | written ones |
//! |---|---|---|---|
//! | 0 | [`INSERTED`] | something was plugged in | that is known now |
//! | 2 | [`WANTED`] | the host wants it back | that is known now |
//! | 4 | [`EJECT`] | there is a function | it is taken out |
//! | 6 | [`HEARD`] | nothing | the operating system has dealt with a notification |
//!
//! # Invariants
//! A function is on the bus exactly if its slot says so. What leaves the bus is handed to the [`Keeper`], once. What a guest writes
//! costs it its own functions at most. A slot whose function was taken away without asking stays closed until the guest
//! has ejected it or the machine is reset: else a late `_EJ0` would hit the next function.
//!
//! Lock order: this chip, then the bridge and a function, or whom the line leads to.
//!
//! Reference: ACPI 6.5, 5.6.6 (notifications 1 and 3), 6.3.3 (`_EJx`), 6.3.5 (`_OST`).

use std::sync::{Arc, Mutex};

use bus::pci::{Function, FunctionId};
use bus::{Device, IrqLine, Lifecycle, Region, access};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};
use x86::bits::low16;

use crate::pci::Pci;
use crate::sync::lock;

/// The registers' ports.
pub const PORT: u16 = 0x630;
/// How many there are.
pub const PORTS: u16 = 8;
/// The most slots.
pub const MOST: usize = 16;
/// The general-purpose event that the line leads to.
pub const EVENT: u8 = 1;

/// Offsets of the registers, 16 bits each.
pub const INSERTED: u64 = 0;
/// See [`INSERTED`].
pub const WANTED: u64 = 2;
/// See [`INSERTED`].
pub const EJECT: u64 = 4;
/// See [`INSERTED`].
pub const HEARD: u64 = 6;

/// Who gets what leaves the bus.
pub trait Keeper: Send + Sync {
    /// The function of a slot is not on the bus any more. Must not wait: a vCPU calls.
    fn ejected(&self, slot: usize, function: Arc<Mutex<dyn Function>>);
}

/// What is in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Occupancy {
    /// Nothing.
    Empty,
    /// A function that the guest has said nothing about yet.
    New,
    /// A function that the guest knows.
    Known,
    /// A function that the guest has been asked for.
    Leaving,
    /// Nothing, and the guest has not said that it knows.
    Vacated,
}

impl Occupancy {
    /// Whether there is a function.
    pub const fn is_function(self) -> bool {
        matches!(self, Self::New | Self::Known | Self::Leaving)
    }
}

struct Slot {
    // Static.
    id: FunctionId,
    // Glue: there exactly if the occupancy says so.
    function: Option<Arc<Mutex<dyn Function>>>,
    // Volatile.
    occupancy: Occupancy,
    inserted: bool,
    wanted: bool,
}

/// The chip.
pub struct Slots {
    // Glue.
    pci: Arc<Mutex<Pci>>,
    line: Arc<dyn IrqLine>,
    keeper: Arc<dyn Keeper>,
    slots: Vec<Slot>,
}

/// The saved form of a slot; with that of the function in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SlotState {
    occupancy: Occupancy,
    inserted: bool,
    wanted: bool,
    function: Option<Record>,
}

#[derive(Serialize, Deserialize)]
struct SlotsState(Vec<SlotState>);

impl Saved for SlotsState {
    const NAME: &'static str = "slots";
    const VERSION: u16 = 1;
}

impl Slots {
    /// Empty slots for functions with these places on the bus, [`MOST`] at most.
    pub fn new(
        pci: Arc<Mutex<Pci>>,
        ids: &[FunctionId],
        line: Arc<dyn IrqLine>,
        keeper: Arc<dyn Keeper>,
    ) -> Self {
        let slot = |id: &FunctionId| Slot {
            id: *id,
            function: None,
            occupancy: Occupancy::Empty,
            inserted: false,
            wanted: false,
        };
        Self { pci, line, keeper, slots: ids.iter().take(MOST).map(slot).collect() }
    }

    /// What is in a slot; one that is not there is empty.
    pub fn occupancy(&self, slot: usize) -> Occupancy {
        self.slots.get(slot).map_or(Occupancy::Empty, |slot| slot.occupancy)
    }

    /// Plugs a function in; false if the slot is not empty.
    pub fn insert(&mut self, slot: usize, function: Arc<Mutex<dyn Function>>) -> bool {
        let Some(slot) = self.slots.get_mut(slot).filter(|slot| slot.occupancy == Occupancy::Empty) else {
            return false;
        };
        lock(&self.pci).attach(slot.id, function.clone());
        slot.function = Some(function);
        (slot.occupancy, slot.inserted) = (Occupancy::New, true);
        self.drive();
        true
    }

    /// Asks the guest for a function; false if there is none.
    pub fn request(&mut self, slot: usize) -> bool {
        let Some(slot) = self.slots.get_mut(slot).filter(|slot| slot.occupancy.is_function()) else {
            return false;
        };
        (slot.occupancy, slot.wanted) = (Occupancy::Leaving, true);
        self.drive();
        true
    }

    /// Takes a function away without asking; false if there is none. The guest is told.
    pub fn take(&mut self, slot: usize) -> bool {
        if !self.slots.get(slot).is_some_and(|slot| slot.occupancy.is_function()) {
            return false;
        }
        self.eject(slot, Occupancy::Vacated);
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.wanted = true;
        }
        self.drive();
        true
    }

    /// Leaves a slot without a function, in this state.
    fn eject(&mut self, number: usize, occupancy: Occupancy) {
        let Some(slot) = self.slots.get_mut(number) else { return };
        slot.occupancy = occupancy;
        (slot.inserted, slot.wanted) = (false, false);
        if let Some(function) = slot.function.take() {
            lock(&self.pci).detach(slot.id);
            self.keeper.ejected(number, function);
        }
    }

    fn drive(&self) {
        self.line.set(self.slots.iter().any(|slot| slot.inserted || slot.wanted));
    }

    fn mask(&self, has: impl Fn(&Slot) -> bool) -> u16 {
        (0..).zip(&self.slots).filter(|(_, slot)| has(slot)).fold(0, |mask, (number, _)| mask | 1 << number)
    }

    fn read_register(&self, register: u64) -> u16 {
        match register {
            INSERTED => self.mask(|slot| slot.inserted),
            WANTED => self.mask(|slot| slot.wanted),
            EJECT => self.mask(|slot| slot.occupancy.is_function()),
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u64, value: u16) {
        for number in (0..self.slots.len()).filter(|number| value >> number & 1 != 0) {
            let Some(slot) = self.slots.get_mut(number) else { continue };
            match register {
                INSERTED => slot.inserted = false,
                WANTED => slot.wanted = false,
                EJECT => self.eject(number, Occupancy::Empty),
                _ if slot.occupancy == Occupancy::New => slot.occupancy = Occupancy::Known,
                _ => {}
            }
        }
    }

    fn functions(&self) -> impl DoubleEndedIterator<Item = &Arc<Mutex<dyn Function>>> {
        self.slots.iter().filter_map(|slot| slot.function.as_ref())
    }

    fn saved(&self) -> Vec<SlotState> {
        let save = |slot: &Slot| SlotState {
            occupancy: slot.occupancy,
            inserted: slot.inserted,
            wanted: slot.wanted,
            function: slot.function.as_ref().map(|function| lock(function).save()),
        };
        self.slots.iter().map(save).collect()
    }

    /// Whether a saved form is of so many slots with functions in the same ones, and holds what can be.
    fn check(&self, states: &[SlotState]) -> Result<(), StateError> {
        let name = SlotsState::NAME;
        let unfit = |reason: String| Err(StateError::Unfit { name, reason });
        if states.len() != self.slots.len() {
            return unfit(format!("{} slots, and there are {}", states.len(), self.slots.len()));
        }
        for (number, (state, slot)) in (1..).zip(states.iter().zip(&self.slots)) {
            if state.function.is_some() != state.occupancy.is_function() {
                let reason =
                    format!("slot {number} says that it has a device, and has none, or the other way");
                return Err(StateError::Damaged { name, reason });
            }
            if state.function.is_some() != slot.function.is_some() {
                let (then, now) = if state.function.is_some() { ("a", "no") } else { ("no", "a") };
                return unfit(format!("slot {number} had {then} device in it, and has {now} device now"));
            }
        }
        Ok(())
    }

    fn restore_functions(&self, states: &[SlotState]) -> Result<(), StateError> {
        let mut records = states.iter().filter_map(|state| state.function.as_ref());
        self.functions().zip(&mut records).try_for_each(|(function, record)| lock(function).restore(record))
    }
}

impl Device for Slots {
    fn regions(&self) -> Vec<Region> {
        vec![Region::ports(PORT, PORTS)]
    }

    fn read(&mut self, _region: usize, offset: u64, data: &mut [u8]) {
        access::read(2, offset, data, |register| self.read_register(register).into());
    }

    fn write(&mut self, _region: usize, offset: u64, data: &[u8]) {
        access::write(2, offset, data, |register, value, _| self.write_register(register, low16(value)));
        self.drive();
    }
}

/// What is plugged in lives with the chip: it is not on the router's list.
impl Lifecycle for Slots {
    fn name(&self) -> &'static str {
        SlotsState::NAME
    }

    /// A function that was asked for is out afterwards: a guest that boots has let go of all. The others it finds.
    fn reset(&mut self) {
        for number in 0..self.slots.len() {
            match self.occupancy(number) {
                Occupancy::Leaving | Occupancy::Vacated => self.eject(number, Occupancy::Empty),
                Occupancy::New | Occupancy::Known | Occupancy::Empty => {}
            }
        }
        for slot in &mut self.slots {
            slot.inserted = false;
            if let Some(function) = &slot.function {
                slot.occupancy = Occupancy::Known;
                lock(function).reset();
            }
        }
        self.drive();
    }

    fn pause(&mut self) {
        self.functions().for_each(|function| lock(function).pause());
    }

    fn resume(&mut self) {
        self.functions().rev().for_each(|function| lock(function).resume());
    }

    fn save(&self) -> Record {
        Record::encode(&SlotsState(self.saved()))
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        let SlotsState(states) = record.decode()?;
        self.check(&states)?;
        let before = self.saved();
        if let Err(error) = self.restore_functions(&states) {
            // Those that came before it took theirs over, and take their own back.
            self.restore_functions(&before)?;
            return Err(error);
        }
        for (slot, state) in self.slots.iter_mut().zip(&states) {
            slot.occupancy = state.occupancy;
            (slot.inserted, slot.wanted) = (state.inserted, state.wanted);
        }
        self.drive();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
