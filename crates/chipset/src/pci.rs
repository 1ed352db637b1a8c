//! PCI configuration space: mechanism #1, ECAM, and a host bridge on an otherwise empty bus.
//!
//! Both doors lead to the same functions. A function is a [`ConfigSpace`]: bytes, and a mask of the bits the guest may
//! write; whatever is absent reads as ones. The host bridge is the generic one of vendor 1b36 (Red Hat, device 0008),
//! which no driver claims and no quirk knows; its class is what kernels look for before they trust mechanism #1.
//!
//! Port 0xcf9 lies among the ports of mechanism #1 and belongs to the same chip on real boards: the reset control
//! register, which is also the machine's ACPI reset register.
//!
//! Reference: PCI Local Bus 3.0, 3.2.2.3.2 and 6.1; PCI Express Base 3.0, 7.2.2; Intel ICH9 datasheet, 13.7.5 (0xcf9).

use std::collections::BTreeMap;
use std::sync::Arc;

use bus::{Device, Lifecycle, Region};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};
use x86::bits::{index, low32};

use crate::access;
use crate::control::{MachineControl, MachineEvent};

/// Where configuration space appears in memory (ECAM), for the MCFG table: all 256 buses of segment 0.
pub const ECAM_BASE: u64 = 0xe000_0000;
/// The length of that window.
pub const ECAM_LEN: u64 = 256 << 20;
/// The reset control register, for the FADT.
pub const RESET_PORT: u16 = 0xcf9;
/// The value that resets the machine when written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 0x06;

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ADDRESS_REGION: usize = 0;
const DATA_REGION: usize = 1;

const ADDRESS_ENABLE: u32 = 1 << 31;
/// Bits 30:24 and 1:0 are reserved.
const ADDRESS_WRITABLE: u32 = 0x80ff_fffc;

const RESET_OFFSET: u64 = 1;
const RESET_TRIGGER: u8 = 1 << 2;
const RESET_WRITABLE: u8 = 0x0e;

/// A function's address: bus in bits 15:8, device in 7:3, function in 2:0.
type FunctionId = u16;

const HOST_BRIDGE: FunctionId = 0;

/// Conventional configuration space; the extended part above it is empty, that is zero, for every function there is.
struct ConfigSpace {
    words: [u32; ConfigSpace::WORDS],
    writable: [u32; ConfigSpace::WORDS],
}

impl ConfigSpace {
    const WORDS: usize = 64;

    /// The host bridge: a type 0 header without base addresses, capabilities or interrupts.
    fn host_bridge() -> Self {
        let (mut words, mut writable) = ([0; Self::WORDS], [0; Self::WORDS]);
        // Device and vendor; class 06, subclass 00.
        words[0] = 0x0008_1b36;
        words[2] = 0x0600_0000;
        // Command: I/O, memory, bus master, parity, SERR, interrupt disable. Interrupt line: the guest's notepad.
        writable[1] = 0x0547;
        writable[15] = 0xff;
        Self { words, writable }
    }

    fn read(&self, register: u64) -> u32 {
        self.words.get(index(register / 4)).copied().unwrap_or(0)
    }

    fn write(&mut self, register: u64, value: u32, mask: u32) {
        let at = index(register / 4);
        if let (Some(word), Some(writable)) = (self.words.get_mut(at), self.writable.get(at)) {
            let mask = mask & writable;
            *word = *word & !mask | value & mask;
        }
    }

    fn reset(&mut self) {
        for (word, writable) in self.words.iter_mut().zip(&self.writable) {
            *word &= !writable;
        }
    }
}

/// The PCI host: both configuration mechanisms and the functions behind them.
pub struct Pci {
    // Glue.
    control: Arc<dyn MachineControl>,
    // Volatile.
    address: u32,
    reset_control: u8,
    functions: BTreeMap<FunctionId, ConfigSpace>,
}

#[derive(Serialize, Deserialize)]
struct PciState {
    address: u32,
    reset_control: u8,
    /// Each function's configuration space; of that, only the writable bits are taken over.
    functions: Vec<(FunctionId, Vec<u32>)>,
}

impl Saved for PciState {
    const NAME: &'static str = "pci";
    const VERSION: u16 = 1;
}

impl Pci {
    /// A bus with nothing but the host bridge; the reset register leads to `control`.
    pub fn new(control: Arc<dyn MachineControl>) -> Self {
        let functions = BTreeMap::from([(HOST_BRIDGE, ConfigSpace::host_bridge())]);
        Self { control, address: 0, reset_control: 0, functions }
    }

    fn read_config(&self, id: FunctionId, register: u64, data: &mut [u8]) {
        if let Some(function) = self.functions.get(&id) {
            access::read(4, register, data, |register| u64::from(function.read(register)));
        } else {
            data.fill(0xff);
        }
    }

    fn write_config(&mut self, id: FunctionId, register: u64, data: &[u8]) {
        if let Some(function) = self.functions.get_mut(&id) {
            access::write(4, register, data, |register, value, mask| {
                function.write(register, low32(value), low32(mask));
            });
        }
    }

    /// The function and register that mechanism #1's data port stands for now.
    fn addressed(&self, offset: u64) -> Option<(FunctionId, u64)> {
        let id = x86::bits::low16(u64::from(self.address >> 8));
        (self.address & ADDRESS_ENABLE != 0).then_some((id, u64::from(self.address & 0xfc) + offset))
    }

    /// The function and register at an offset of the ECAM window.
    fn ecam(offset: u64) -> (FunctionId, u64) {
        (x86::bits::low16(offset >> 12), offset & 0xfff)
    }

    fn write_reset(&mut self, value: u8) {
        if value & RESET_TRIGGER != 0 && self.reset_control & RESET_TRIGGER == 0 {
            self.control.request(MachineEvent::Reset);
        }
        self.reset_control = value & RESET_WRITABLE;
    }
}

impl Device for Pci {
    fn regions(&self) -> Vec<Region> {
        vec![Region::ports(ADDRESS_PORT, 4), Region::ports(DATA_PORT, 4), Region::mmio(ECAM_BASE, ECAM_LEN)]
    }

    fn read(&mut self, region: usize, offset: u64, data: &mut [u8]) {
        match region {
            // The address register is there for whole words only.
            ADDRESS_REGION if data.len() == 4 => data.copy_from_slice(&self.address.to_le_bytes()),
            ADDRESS_REGION => {
                if let ([byte], RESET_OFFSET) = (data, offset) {
                    *byte = self.reset_control;
                }
            }
            DATA_REGION => {
                if let Some((id, register)) = self.addressed(offset) {
                    self.read_config(id, register, data);
                }
            }
            _ => {
                let (id, register) = Self::ecam(offset);
                self.read_config(id, register, data);
            }
        }
    }

    fn write(&mut self, region: usize, offset: u64, data: &[u8]) {
        match region {
            ADDRESS_REGION if data.len() == 4 => {
                self.address = low32(access::number(data)) & ADDRESS_WRITABLE;
            }
            ADDRESS_REGION => {
                if let ([byte], RESET_OFFSET) = (data, offset) {
                    self.write_reset(*byte);
                }
            }
            DATA_REGION => {
                if let Some((id, register)) = self.addressed(offset) {
                    self.write_config(id, register, data);
                }
            }
            _ => {
                let (id, register) = Self::ecam(offset);
                self.write_config(id, register, data);
            }
        }
    }
}

impl Lifecycle for Pci {
    fn name(&self) -> &'static str {
        PciState::NAME
    }

    fn reset(&mut self) {
        self.address = 0;
        self.reset_control = 0;
        for function in self.functions.values_mut() {
            function.reset();
        }
    }

    fn save(&self) -> Record {
        let functions = self.functions.iter().map(|(id, function)| (*id, function.words.to_vec())).collect();
        Record::encode(&PciState { address: self.address, reset_control: self.reset_control, functions })
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        let state: PciState = record.decode()?;
        let same = |((id, words), known): (&(FunctionId, Vec<u32>), &FunctionId)| {
            id == known && words.len() == ConfigSpace::WORDS
        };
        if state.functions.len() != self.functions.len()
            || !state.functions.iter().zip(self.functions.keys()).all(same)
        {
            return Err(StateError::Damaged { name: PciState::NAME, reason: "other functions".into() });
        }
        self.address = state.address & ADDRESS_WRITABLE;
        self.reset_control = state.reset_control & RESET_WRITABLE;
        for ((_, words), function) in state.functions.iter().zip(self.functions.values_mut()) {
            for (register, word) in (0..).step_by(4).zip(words) {
                function.write(register, *word, u32::MAX);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{self, Requests, Rig};

    fn host() -> (Pci, Requests) {
        let requests = Requests::default();
        (Pci::new(Arc::new(requests.clone())), requests)
    }

    /// Reads by mechanism #1.
    fn config(pci: &mut Pci, id: FunctionId, register: u8) -> u32 {
        let address = 1 << 31 | u32::from(id) << 8 | u32::from(register);
        pci.write(ADDRESS_REGION, 0, &address.to_le_bytes());
        let mut data = [0xff; 4];
        pci.read(DATA_REGION, 0, &mut data);
        u32::from_le_bytes(data)
    }

    fn ecam(pci: &mut Pci, id: FunctionId, register: u64) -> u32 {
        let mut data = [0xff; 4];
        pci.read(2, u64::from(id) << 12 | register, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_host_bridge_is_found_by_both_mechanisms_and_is_alone() {
        let (mut pci, _) = host();
        assert_eq!(config(&mut pci, HOST_BRIDGE, 0), 0x0008_1b36);
        assert_eq!(config(&mut pci, HOST_BRIDGE, 8) >> 16, 0x0600);
        for id in [1, 8, 0xff, 0x100, 0xffff] {
            assert_eq!((config(&mut pci, id, 0), ecam(&mut pci, id, 0)), (u32::MAX, u32::MAX));
        }
        assert_eq!((ecam(&mut pci, 0, 0), ecam(&mut pci, 0, 0x100)), (0x0008_1b36, 0));
    }

    #[test]
    fn mechanism_1_as_linux_probes_it() {
        let (mut pci, _) = host();
        pci.write(ADDRESS_REGION, 3, &[1]);
        pci.write(ADDRESS_REGION, 0, &0x8000_0000u32.to_le_bytes());
        let mut address = [0; 4];
        pci.read(ADDRESS_REGION, 0, &mut address);
        assert_eq!(u32::from_le_bytes(address), 0x8000_0000);
        let mut class = [0; 2];
        pci.write(ADDRESS_REGION, 0, &0x8000_0008u32.to_le_bytes());
        pci.read(DATA_REGION, 2, &mut class);
        assert_eq!(class, [0, 6]);
        pci.write(ADDRESS_REGION, 0, &0u32.to_le_bytes());
        let mut data = [0xff; 4];
        pci.read(DATA_REGION, 0, &mut data);
        assert_eq!(data, [0xff; 4], "not enabled");
    }

    #[test]
    fn only_writable_bits_change_and_reset_clears_them() {
        let (mut pci, _) = host();
        pci.write(2, 0, &[0; 8]);
        pci.write(2, 4, &[0xff; 4]);
        assert_eq!((ecam(&mut pci, 0, 0), ecam(&mut pci, 0, 4)), (0x0008_1b36, 0x547));
        pci.reset();
        assert_eq!(ecam(&mut pci, 0, 4), 0);
    }

    #[test]
    fn the_reset_register_acts_on_a_rising_edge() {
        let (mut pci, requests) = host();
        pci.write(ADDRESS_REGION, 1, &[0x02]);
        assert!(requests.take().is_empty());
        pci.write(ADDRESS_REGION, 1, &[RESET_VALUE]);
        pci.write(ADDRESS_REGION, 1, &[RESET_VALUE]);
        assert_eq!(requests.take(), [MachineEvent::Reset]);
        let mut value = [0];
        pci.read(ADDRESS_REGION, u64::from(RESET_PORT - ADDRESS_PORT), &mut value);
        assert_eq!(value, [RESET_VALUE]);
    }

    #[test]
    fn a_record_of_another_machine_is_refused() {
        let (mut pci, _) = host();
        let state = PciState { address: 0, reset_control: 0, functions: vec![(8, vec![0; 64])] };
        assert!(pci.restore(&Record::encode(&state)).is_err());
    }

    #[test]
    fn stands_any_access_and_survives_a_save() {
        harness::check(|| {
            let (pci, requests) = host();
            Rig::new(pci).reporting(&requests)
        });
    }
}
