//! What the controller and its namespace say of themselves (NVM Express 1.4, 5.15.2).

use crate::MOST_TRANSFER_PAGES;
use crate::command::NAMESPACE;
use crate::features::NUMBER_OF_POWER_STATES;
use crate::page::Page;

/// The bytes of an Identify data structure.
pub(crate) const IDENTIFY_BYTES: usize = 4096;

/// Version 1.4, as the version register and the controller have it.
pub(crate) const VERSION: u32 = 0x0001_0400;
/// Red Hat, as with the host bridge; its device 0010 is the NVMe controller that QEMU has.
pub(crate) const VENDOR: u16 = 0x1b36;
/// The device identifier of [`VENDOR`].
pub(crate) const DEVICE: u16 = 0x0010;

/// How many Abort and Async Event Request commands may be out, and how many entries the error log has; each less one.
pub(crate) const ABORT_LIMIT: u8 = 3;
pub(crate) const EVENT_LIMIT: u8 = 3;
pub(crate) const ERROR_LOG_LIMIT: u8 = 15;

const MODEL: &str = "Umbra NVMe disk";
pub(crate) const FIRMWARE_REVISION: &str = "1";
/// Composite temperatures at which it would be too warm, in kelvins.
pub(crate) const WARNING_KELVINS: u16 = 343;
const CRITICAL_KELVINS: u16 = 373;

/// Commands beyond the mandatory ones: Dataset Management, Write Zeroes.
const OPTIONAL_COMMANDS: u16 = 1 << 2 | 1 << 3;
/// There is a volatile write cache, and Flush takes the identifier of all namespaces.
const WRITE_CACHE: u8 = 0b111;
/// Entries of submission queues are 64 bytes, of completion queues 16: what is required and the most.
const ENTRY_SIZES: [u8; 2] = [0x66, 0x44];
/// A sector is 2 to the 9th.
const SECTOR_BITS: u8 = 9;
/// What images are stored in: 8 sectors, less one.
const PREFERRED_SECTORS: u16 = 7;

/// What one disk has that another has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Which disk of the machine it is.
    pub(crate) number: u16,
    pub(crate) sectors: u64,
    pub(crate) read_only: bool,
}

impl Disk {
    fn serial(&self) -> String {
        format!("disk{}", self.number)
    }

    /// An identifier of the disk: no other disk of the machine has it, and it is the same at the next start (RFC 9562, version 8).
    fn uuid(&self) -> [u8; 16] {
        let [high, low] = self.number.to_be_bytes();
        [b'u', b'm', b'b', b'r', b'a', 0, 0x80, 0, 0x80, 0, 0, 0, 0, 0, high, low]
    }

    /// The controller.
    pub(crate) fn controller(&self) -> Vec<u8> {
        let mut page = Page::new(IDENTIFY_BYTES);
        page.put(0, &VENDOR.to_le_bytes()).put(2, &VENDOR.to_le_bytes());
        page.text(4, 20, &self.serial()).text(24, 40, MODEL).text(64, 8, FIRMWARE_REVISION);
        let transfer_bits = u8::try_from(MOST_TRANSFER_PAGES.trailing_zeros()).unwrap_or(0);
        page.put(77, &[transfer_bits]).put(80, &VERSION.to_le_bytes());
        // An I/O controller.
        page.put(111, &[1]);
        // One slot of firmware, which cannot be written; log pages may be read in parts.
        page.put(258, &[ABORT_LIMIT, EVENT_LIMIT, 0b011, 0b100, ERROR_LOG_LIMIT, NUMBER_OF_POWER_STATES - 1]);
        page.put(266, &WARNING_KELVINS.to_le_bytes()).put(268, &CRITICAL_KELVINS.to_le_bytes());
        page.put(512, &ENTRY_SIZES).put(516, &NAMESPACE.to_le_bytes());
        page.put(520, &OPTIONAL_COMMANDS.to_le_bytes()).put(525, &[WRITE_CACHE]);
        page.put(768, self.qualified_name().as_bytes());
        // The one power state: 25 W at most, in units of 10 mW.
        page.put(2048, &2500u16.to_le_bytes());
        page.finish()
    }

    /// The subsystem's NVMe qualified name (7.9).
    fn qualified_name(&self) -> String {
        let hex: String = self.uuid().iter().map(|byte| format!("{byte:02x}")).collect();
        let parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)];
        let parts: Vec<&str> = parts.into_iter().filter_map(|(from, to)| hex.get(from..to)).collect();
        format!("nqn.2014-08.org.nvmexpress:uuid:{}", parts.join("-"))
    }

    /// The namespace.
    pub(crate) fn namespace(&self) -> Vec<u8> {
        let mut page = Page::new(IDENTIFY_BYTES);
        let sectors = self.sectors.to_le_bytes();
        page.put(0, &sectors).put(8, &sectors).put(16, &sectors);
        // It says what sizes it likes (bytes 64 to 73); Write Zeroes may deallocate.
        page.put(24, &[1 << 4]).put(33, &[1 << 3]);
        for at in [64, 66, 68, 70] {
            page.put(at, &PREFERRED_SECTORS.to_le_bytes());
        }
        page.put(99, &[u8::from(self.read_only)]);
        page.put(104, &self.uuid());
        // The one format: no metadata, sectors.
        page.put(130, &[SECTOR_BITS]);
        page.finish()
    }

    /// The namespace's identifiers: descriptors of type, length and value (5.15.2.4).
    pub(crate) fn descriptors(&self) -> Vec<u8> {
        const UUID: u8 = 3;
        let mut page = Page::new(IDENTIFY_BYTES);
        page.put(0, &[UUID, 16, 0, 0]).put(4, &self.uuid());
        page.finish()
    }
}

/// The identifiers of active namespaces greater than one.
pub(crate) fn active_namespaces(greater_than: u32) -> Vec<u8> {
    let mut page = Page::new(IDENTIFY_BYTES);
    if greater_than < NAMESPACE {
        page.put(0, &NAMESPACE.to_le_bytes());
    }
    page.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_names_have_their_form() {
        let disk = Disk { number: 0x102, sectors: 1 << 33, read_only: true };
        let controller = disk.controller();
        assert_eq!(controller.len(), IDENTIFY_BYTES);
        assert_eq!(&controller[4..24], b"disk258             ");
        assert_eq!(&controller[24..42], b"Umbra NVMe disk   ");
        assert_eq!(&controller[64..72], b"1       ");
        let name = b"nqn.2014-08.org.nvmexpress:uuid:756d6272-6100-8000-8000-000000000102\0";
        assert_eq!(&controller[768..768 + name.len()], name);
        let namespace = disk.namespace();
        assert_eq!((&namespace[..8], namespace[99], namespace[130]), (&(1u64 << 33).to_le_bytes()[..], 1, 9));
        assert_eq!((namespace.len(), active_namespaces(0)[0], active_namespaces(1)[0]), (4096, 1, 0));
    }
}
