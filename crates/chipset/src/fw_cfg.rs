//! The `fw_cfg` interface: facts about the machine by key, for firmware and kernels that ask.
//!
//! A 16-bit selector and a byte-wide data port that moves on with each read. The contents are configuration and do
//! not change; beyond the end of an item, and for keys that do not exist, zeros are read. DMA is not offered and the
//! identification says so.
//!
//! Reference: QEMU, `docs/specs/fw_cfg.rst`.

use std::collections::BTreeMap;

use bus::{Device, Lifecycle, Region};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};
use x86::bits::index;

use bus::access;

const SELECTOR_PORT: u16 = 0x510;
const PORTS: u16 = 2;
const DATA: u64 = 1;

const KEY_SIGNATURE: u16 = 0x00;
const KEY_ID: u16 = 0x01;
const KEY_RAM_BYTES: u16 = 0x03;
const KEY_CPUS: u16 = 0x05;
const KEY_MAX_CPUS: u16 = 0x0f;
const KEY_DIRECTORY: u16 = 0x19;
const KEY_FIRST_FILE: u16 = 0x20;
/// Keys above are flagged as write or architecture-local.
const KEY_END: u16 = 0x4000;

/// The traditional interface, without DMA.
const ID: u32 = 1;
/// A name's place in the directory, with its terminating zero.
const NAME_BYTES: usize = 56;

/// What the interface tells.
#[derive(Clone, Debug, Default)]
pub struct FwCfgContents {
    /// Processors at start.
    pub cpus: u16,
    /// The largest number of processors.
    pub max_cpus: u16,
    /// Bytes of RAM.
    pub ram_bytes: u64,
    /// Named files. Names are cut after 55 bytes, for which the directory has room.
    pub files: Vec<(String, Vec<u8>)>,
}

/// The `fw_cfg` device.
pub struct FwCfg {
    // Static.
    items: BTreeMap<u16, Vec<u8>>,
    // Volatile.
    state: FwCfgState,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct FwCfgState {
    key: u16,
    offset: u64,
}

impl Saved for FwCfgState {
    const NAME: &'static str = "fw-cfg";
    const VERSION: u16 = 1;
}

impl FwCfg {
    /// A device that tells `contents`.
    pub fn new(contents: FwCfgContents) -> Self {
        let mut items = BTreeMap::from([
            (KEY_SIGNATURE, b"QEMU".to_vec()),
            (KEY_ID, ID.to_le_bytes().to_vec()),
            (KEY_RAM_BYTES, contents.ram_bytes.to_le_bytes().to_vec()),
            (KEY_CPUS, contents.cpus.to_le_bytes().to_vec()),
            (KEY_MAX_CPUS, contents.max_cpus.to_le_bytes().to_vec()),
        ]);
        // The directory is sorted by name and, unlike the items above, big-endian.
        let files: BTreeMap<String, Vec<u8>> = contents.files.into_iter().collect();
        let mut directory = Vec::new();
        let mut count = 0u32;
        for (key, (name, bytes)) in (KEY_FIRST_FILE..KEY_END).zip(files) {
            let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            directory.extend(size.to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let mut padded = name.into_bytes();
            padded.truncate(NAME_BYTES - 1);
            padded.resize(NAME_BYTES, 0);
            directory.extend(padded);
            items.insert(key, bytes);
            count += 1;
        }
        directory.splice(0..0, count.to_be_bytes());
        items.insert(KEY_DIRECTORY, directory);
        Self { items, state: FwCfgState::default() }
    }

    fn next_byte(&mut self) -> u8 {
        let item = self.items.get(&self.state.key);
        let byte = item.and_then(|bytes| bytes.get(index(self.state.offset)).copied());
        if byte.is_some() {
            self.state.offset += 1;
        }
        byte.unwrap_or(0)
    }
}

impl Device for FwCfg {
    fn regions(&self) -> Vec<Region> {
        vec![Region::ports(SELECTOR_PORT, PORTS)]
    }

    fn read(&mut self, _region: usize, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data) {
            if port == DATA {
                *byte = self.next_byte();
            }
        }
    }

    fn write(&mut self, _region: usize, offset: u64, data: &[u8]) {
        // Writes to the data port have been ignored since QEMU 2.4.
        if offset == 0 && data.len() == 2 {
            self.state = FwCfgState { key: x86::bits::low16(access::number(data)), offset: 0 };
        }
    }
}

impl Lifecycle for FwCfg {
    fn name(&self) -> &'static str {
        FwCfgState::NAME
    }

    fn reset(&mut self) {
        self.state = FwCfgState::default();
    }

    fn save(&self) -> Record {
        Record::encode(&self.state)
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        self.state = record.decode()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{self, Rig};

    fn device() -> FwCfg {
        let files = vec![("opt/b".into(), b"bee".to_vec()), ("opt/a".repeat(20), b"ay".to_vec())];
        FwCfg::new(FwCfgContents { cpus: 2, max_cpus: 8, ram_bytes: 5 << 30, files })
    }

    fn item(device: &mut FwCfg, key: u16, len: usize) -> Vec<u8> {
        device.write(0, 0, &key.to_le_bytes());
        (0..len)
            .map(|_| {
                let mut byte = [0xff];
                device.read(0, DATA, &mut byte);
                byte[0]
            })
            .collect()
    }

    #[test]
    fn tells_the_facts() {
        let mut d = device();
        assert_eq!(item(&mut d, 0, 6), b"QEMU\0\0");
        assert_eq!(item(&mut d, 1, 4), [1, 0, 0, 0]);
        assert_eq!(item(&mut d, 3, 8), (5u64 << 30).to_le_bytes());
        assert_eq!((item(&mut d, 5, 2), item(&mut d, 0xf, 2)), (vec![2, 0], vec![8, 0]));
        assert_eq!(item(&mut d, 0x7777, 2), [0, 0]);
    }

    #[test]
    fn files_are_found_through_the_directory() {
        let mut d = device();
        let directory = item(&mut d, 0x19, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        let second = &directory[4 + 64..];
        assert_eq!(second[..8], [0, 0, 0, 3, 0, 0x21, 0, 0]);
        assert_eq!(second[8..14], *b"opt/b\0");
        assert_eq!(directory[4 + 63], 0, "a long name is cut");
        assert_eq!(item(&mut d, 0x21, 4), b"bee\0");
    }

    #[test]
    fn stands_any_access_and_survives_a_save() {
        harness::check(|| Rig::new(device()));
    }
}
