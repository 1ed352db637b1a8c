//! The PCI Express host bridge: configuration mechanism #1, ECAM, and the window for functions' memory.
//!
//! Both mechanisms lead to the same functions, all of which sit on bus 0; whatever is absent reads as ones. The bridge's own
//! function is the generic one of vendor 1b36 (Red Hat, device 0008), which no driver claims and no quirk knows; its class is
//! what kernels look for before they trust mechanism #1. The functions' memory-mapped registers do not pass through here:
//! they lie in a [`bus::Window`] that functions enter themselves, so that no two of them share a lock.
//!
//! Lock order: the bridge, then one function.
//!
//! Port 0xcf9 lies among the ports of mechanism #1 and belongs to the same chip on real boards: the reset control
//! register, which is also the machine's ACPI reset register.
//!
//! Reference: PCI Local Bus 3.0, 3.2.2.3.2 and 6.1; PCI Express Base 3.0, 7.2.2; Intel ICH9 datasheet, 13.7.5 (0xcf9).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bus::pci::{ConfigSpace, Function, FunctionId, Identity};
use bus::{Device, Lifecycle, Region, access};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};
use x86::bits::{low16, low32};

use crate::control::{MachineControl, MachineEvent};
use crate::sync::lock;

/// Where configuration space appears in memory (ECAM), for the MCFG table: bus 0 of segment 0.
pub const ECAM_BASE: u64 = 0xe000_0000;
/// The length of that window.
pub const ECAM_LEN: u64 = 1 << 20;
/// Where the window for functions' memory begins.
pub const MEMORY_BASE: u64 = 0xc000_0000;
/// The length of that window, which ends where ECAM begins.
pub const MEMORY_LEN: u64 = ECAM_BASE - MEMORY_BASE;
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

/// The host bridge's own function.
const BRIDGE: FunctionId = FunctionId::on_root(0);
const BRIDGE_IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_0000,
    subsystem_vendor: 0,
    subsystem: 0,
};

/// The PCI host: both configuration mechanisms and the functions behind them.
pub struct Pci {
    // Glue.
    control: Arc<dyn MachineControl>,
    functions: BTreeMap<FunctionId, Arc<Mutex<dyn Function>>>,
    // Volatile.
    address: u32,
    reset_control: u8,
    bridge: ConfigSpace,
}

#[derive(Serialize, Deserialize)]
struct PciState {
    address: u32,
    reset_control: u8,
    /// The bridge's configuration space; of that, only the writable bits are taken over.
    bridge: Vec<u32>,
    /// Who else is there. Each keeps its own state.
    functions: Vec<FunctionId>,
}

impl Saved for PciState {
    const NAME: &'static str = "pci";
    const VERSION: u16 = 2;
}

impl Pci {
    /// A bus with nothing but the host bridge; the reset register leads to `control`.
    pub fn new(control: Arc<dyn MachineControl>) -> Self {
        let bridge = ConfigSpace::new(&BRIDGE_IDENTITY);
        Self { control, functions: BTreeMap::new(), address: 0, reset_control: 0, bridge }
    }

    /// The addresses behind the bridge, for functions' memory.
    pub const fn memory_window() -> Region {
        Region::mmio(MEMORY_BASE, MEMORY_LEN)
    }

    /// Puts a function on the bus, in place of any that was there. Device 0 is the bridge.
    pub fn attach(&mut self, id: FunctionId, function: Arc<Mutex<dyn Function>>) {
        if id != BRIDGE {
            self.functions.insert(id, function);
        }
    }

    /// Takes a function off the bus. An access that has begun may still reach it.
    pub fn detach(&mut self, id: FunctionId) {
        self.functions.remove(&id);
    }

    fn read_config(&self, id: FunctionId, register: u64, data: &mut [u8]) {
        if id == BRIDGE {
            self.bridge.read(register, data);
        } else if let Some(function) = self.functions.get(&id) {
            lock(function).read_config(register, data);
        } else {
            data.fill(0xff);
        }
    }

    fn write_config(&mut self, id: FunctionId, register: u64, data: &[u8]) {
        if id == BRIDGE {
            self.bridge.write(register, data);
        } else if let Some(function) = self.functions.get(&id) {
            lock(function).write_config(register, data);
        }
    }

    /// The function and register that mechanism #1's data port stands for now.
    fn addressed(&self, offset: u64) -> Option<(FunctionId, u64)> {
        let id = FunctionId(low16(u64::from(self.address >> 8)));
        (self.address & ADDRESS_ENABLE != 0).then_some((id, u64::from(self.address & 0xfc) + offset))
    }

    /// What an access to the ECAM window stands for. One that crosses the end of a function's 4 KiB is none.
    fn ecam(offset: u64, len: usize) -> Option<(FunctionId, u64)> {
        let register = offset & 0xfff;
        (register + len as u64 <= 0x1000).then_some((FunctionId(low16(offset >> 12)), register))
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
                if let Some((id, register)) = Self::ecam(offset, data.len()) {
                    self.read_config(id, register, data);
                }
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
                if let Some((id, register)) = Self::ecam(offset, data.len()) {
                    self.write_config(id, register, data);
                }
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
        self.bridge.reset();
    }

    fn save(&self) -> Record {
        let functions = self.functions.keys().copied().collect();
        Record::encode(&PciState {
            address: self.address,
            reset_control: self.reset_control,
            bridge: self.bridge.save(),
            functions,
        })
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        let state: PciState = record.decode()?;
        if !self.functions.keys().eq(&state.functions) {
            return Err(StateError::Damaged { name: PciState::NAME, reason: "other functions".into() });
        }
        self.bridge.restore(PciState::NAME, &state.bridge)?;
        self.address = state.address & ADDRESS_WRITABLE;
        self.reset_control = state.reset_control & RESET_WRITABLE;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{self, Requests, Rig};

    /// A function of bytes.
    struct Scratch([u8; 4096]);

    impl Lifecycle for Scratch {
        fn name(&self) -> &'static str {
            "scratch"
        }
        fn reset(&mut self) {}
        fn save(&self) -> Record {
            Record::encode(&x86::CpuState::reset())
        }
        fn restore(&mut self, _: &Record) -> Result<(), StateError> {
            Ok(())
        }
    }

    impl Device for Scratch {
        fn regions(&self) -> Vec<Region> {
            Vec::new()
        }
        fn read(&mut self, _: usize, _: u64, _: &mut [u8]) {}
        fn write(&mut self, _: usize, _: u64, _: &[u8]) {}
    }

    impl Function for Scratch {
        fn read_config(&mut self, register: u64, data: &mut [u8]) {
            let at = usize::try_from(register).unwrap();
            data.copy_from_slice(&self.0[at..at + data.len()]);
        }
        fn write_config(&mut self, register: u64, data: &[u8]) {
            let at = usize::try_from(register).unwrap();
            self.0[at..at + data.len()].copy_from_slice(data);
        }
    }

    fn host() -> (Pci, Requests) {
        let requests = Requests::default();
        (Pci::new(Arc::new(requests.clone())), requests)
    }

    /// Reads by mechanism #1.
    fn config(pci: &mut Pci, id: FunctionId, register: u8) -> u32 {
        let address = 1 << 31 | u32::from(id.0) << 8 | u32::from(register);
        pci.write(ADDRESS_REGION, 0, &address.to_le_bytes());
        let mut data = [0xff; 4];
        pci.read(DATA_REGION, 0, &mut data);
        u32::from_le_bytes(data)
    }

    fn ecam(pci: &mut Pci, id: FunctionId, register: u64) -> u32 {
        let mut data = [0xff; 4];
        pci.read(2, u64::from(id.0) << 12 | register, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_host_bridge_is_found_by_both_mechanisms_and_is_alone() {
        let (mut pci, _) = host();
        assert_eq!(config(&mut pci, BRIDGE, 0), 0x0008_1b36);
        assert_eq!(config(&mut pci, BRIDGE, 8) >> 16, 0x0600);
        for id in [1, 8, 0xff, 0x100, 0xffff].map(FunctionId) {
            assert_eq!((config(&mut pci, id, 0), ecam(&mut pci, id, 0)), (u32::MAX, u32::MAX));
        }
        assert_eq!((ecam(&mut pci, BRIDGE, 0), ecam(&mut pci, BRIDGE, 0x100)), (0x0008_1b36, 0));
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
        assert_eq!((ecam(&mut pci, BRIDGE, 0), ecam(&mut pci, BRIDGE, 4)), (0x0008_1b36, 0x547));
        pci.reset();
        assert_eq!(ecam(&mut pci, BRIDGE, 4), 0);
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
        for (bridge, functions) in [(vec![0; 64], vec![FunctionId(8)]), (vec![0; 63], vec![])] {
            let state = PciState { address: 0, reset_control: 0, bridge, functions };
            assert!(pci.restore(&Record::encode(&state)).is_err());
        }
    }

    #[test]
    fn both_mechanisms_lead_to_a_function_and_no_access_leaves_it() {
        let (mut pci, _) = host();
        let id = FunctionId::on_root(3);
        let function = Arc::new(Mutex::new(Scratch([0; 4096])));
        pci.attach(id, function.clone());
        pci.attach(BRIDGE, function);
        config(&mut pci, id, 0x40);
        pci.write(DATA_REGION, 2, &[7]);
        pci.write(2, u64::from(id.0) << 12 | 0xffc, &[1, 2, 3, 4, 5]);
        assert_eq!((ecam(&mut pci, id, 0x40), ecam(&mut pci, id, 0xffc)), (7 << 16, 0));
        pci.write(2, u64::from(id.0) << 12 | 0xffc, &[1, 2, 3, 4]);
        assert_eq!((ecam(&mut pci, id, 0xffc), ecam(&mut pci, id, 0xffd)), (0x0403_0201, u32::MAX));
        assert_eq!(config(&mut pci, BRIDGE, 0), 0x0008_1b36, "device 0 stays the bridge");
    }

    #[test]
    fn stands_any_access_and_survives_a_save() {
        harness::check(|| {
            let (pci, requests) = host();
            Rig::new(pci).reporting(&requests)
        });
    }
}
