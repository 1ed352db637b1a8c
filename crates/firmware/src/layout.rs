//! The guest-physical memory map and the fixed addresses of the machine.
//!
//! A PC's map has three properties that loaders and kernels rely on: RAM starts at 0 with a hole for BIOS and video
//! below 1 MiB, memory-mapped devices sit right below 4 GiB, and RAM that does not fit below them continues at
//! 4 GiB. The map depends on the amount of RAM only, so it is computed, never stored.
//!
//! | from | to | what |
//! |---|---|---|
//! | 0 | `0x9fc00` | RAM (first page: BIOS data area) |
//! | `0x9fc00` | `0xa0000` | extended BIOS data area, reserved |
//! | `0xa0000` | `0xc0000` | nothing: where video would be |
//! | `0xc0000` | `0xe0000` | RAM where option ROMs would be, reserved: kernels search it, which devices would make slow |
//! | `0xe0000` | `0x100000` | RSDP and all ACPI tables, reserved; there whatever the RAM size |
//! | 1 MiB | RAM size, at most 3 GiB | RAM |
//! | 3 GiB | `0xe0000000` | window for PCI devices' memory |
//! | `0xe0000000` | `0xe0100000` | PCI configuration space (ECAM), reserved |
//! | `0xfec00000`, `0xfed00000`, `0xfee00000` | + a page, 1 KiB, a page | I/O APIC, HPET, local APICs |
//! | 4 GiB | … | the rest of the RAM |

use memory::RamRange;
use x86::{Gpa, PAGE_MASK, PAGE_SHIFT};

/// Where conventional memory ends and the extended BIOS data area begins.
pub const EBDA: Gpa = Gpa(0x9_fc00);
/// The end of the RAM below the video hole.
pub const VIDEO_HOLE: Gpa = Gpa(0xa_0000);
/// The end of the video hole.
pub const OPTION_ROMS: Gpa = Gpa(0xc_0000);
/// The ACPI root pointer; the tables follow it. Within the area that operating systems search for it.
pub const RSDP: Gpa = Gpa(0xe_0000);
/// The end of the area for ACPI tables, and of the first MiB.
pub const TABLES_END: Gpa = Gpa(0x10_0000);
/// Where RAM below 4 GiB ends at the latest and PCI devices' memory begins.
pub const MMIO_HOLE: Gpa = Gpa(0xc000_0000);
/// Where RAM goes on.
pub const HIGH_RAM: Gpa = Gpa(0x1_0000_0000);

/// PCI configuration space, memory-mapped: of bus 0, which is all there is. Linux would search further buses one function after
/// the other.
pub const ECAM: Gpa = Gpa(0xe000_0000);
/// The size of [`ECAM`] in bytes.
pub const ECAM_BYTES: u64 = 1 << 20;
/// The I/O APIC.
pub const IOAPIC: Gpa = Gpa(0xfec0_0000);
/// The I/O APIC's own APIC identifier.
pub const IOAPIC_ID: u8 = 0;
/// The high-precision event timer.
pub const HPET: Gpa = Gpa(0xfed0_0000);
/// The low half of the HPET's capability register, as the ACPI table repeats it: revision 1, three comparators,
/// 64-bit counter, legacy replacement, vendor 0x8086 (IA-PC HPET Specification 1.0a, 2.3.4).
pub const HPET_CAPABILITIES: u32 = 0x8086_a201;
/// The local APICs.
pub const LOCAL_APIC: Gpa = Gpa(0xfee0_0000);

/// The first serial port.
pub const COM1_PORT: u16 = 0x3f8;
/// The interrupt of the first serial port.
pub const COM1_IRQ: u8 = 4;
/// The real-time clock's index port; data follows.
pub const RTC_PORT: u16 = 0x70;
/// The interrupt of the real-time clock.
pub const RTC_IRQ: u8 = 8;
/// The CMOS byte that holds the century.
pub const RTC_CENTURY: u8 = 0x32;
/// ACPI power management: PM1a status and enable (ACPI 6.5, 4.8.3.1), 4 bytes.
pub const PM1A_EVENT_PORT: u16 = 0x600;
/// ACPI power management: PM1a control (ACPI 6.5, 4.8.3.2), 2 bytes.
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// The ACPI power-management timer (ACPI 6.5, 4.8.3.3), 4 bytes, 32 bits wide.
pub const PM_TIMER_PORT: u16 = 0x608;
/// General-purpose events (ACPI 6.5, 4.8.4.1): 2 bytes of status, 2 bytes of enable.
pub const GPE0_PORT: u16 = 0x620;
/// The bytes of [`GPE0_PORT`].
pub const GPE0_BYTES: u8 = 4;
/// Registers of slots that devices are plugged into while the machine runs.
pub const SLOTS_PORT: u16 = 0x630;
/// How many ports they have.
pub const SLOTS_PORTS: u8 = 8;
/// The general-purpose event that says that a slot has news.
pub const SLOTS_EVENT: u8 = 1;
/// The system control interrupt, level-triggered and active high.
pub const SCI_IRQ: u8 = 9;
/// The reset register of PCI chipsets.
pub const RESET_PORT: u16 = 0xcf9;
/// What a write to [`RESET_PORT`] must be to reset the machine: a full reset, now.
pub const RESET_VALUE: u8 = 0x06;
/// SLP_TYP of soft-off (`\_S5`) in PM1a control: 0, as small kernels that read no tables assume.
pub const S5_SLEEP_TYPE: u8 = 0;

/// The first global system interrupt of PCI devices; eight are shared in turn.
pub const PCI_GSI: u8 = 16;
/// How many interrupts PCI devices share.
pub const PCI_GSIS: u8 = 8;

/// The global system interrupt of pin `pin` (0 is INTA) of device `device` on the root bus, as `_PRT` tells it.
pub const fn pci_gsi(device: u8, pin: u8) -> u8 {
    PCI_GSI + device.wrapping_add(pin) % PCI_GSIS
}

/// The device on the root bus that slot `slot` (from 0) is: from the last one down.
pub const fn slot_device(slot: u8) -> u8 {
    31_u8.saturating_sub(slot)
}

/// What an entry of the memory map is, by its E820 number (ACPI 6.5, 15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionKind {
    /// RAM for the operating system.
    Usable = 1,
    /// Not for the operating system.
    Reserved = 2,
}

/// An entry of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// The first byte.
    pub start: Gpa,
    /// The first byte after it.
    pub end: Gpa,
    /// What it is.
    pub kind: RegionKind,
}

/// The map of a machine with a given amount of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    ram_bytes: u64,
}

impl MemoryMap {
    /// The map for `ram_bytes` of RAM, which is rounded down to pages, and is 1 MiB at least and what 52-bit
    /// addresses reach at most.
    pub fn new(ram_bytes: u64) -> Self {
        let most = (1 << 52) - (HIGH_RAM.0 - MMIO_HOLE.0);
        Self { ram_bytes: (ram_bytes & !PAGE_MASK).clamp(TABLES_END.0, most) }
    }

    /// The amount of RAM. Of it, what the first MiB's holes cover is lost, as on a PC.
    pub const fn ram_bytes(&self) -> u64 {
        self.ram_bytes
    }

    /// The end of the RAM below 4 GiB.
    pub const fn low_end(&self) -> Gpa {
        if self.ram_bytes < MMIO_HOLE.0 { Gpa(self.ram_bytes) } else { MMIO_HOLE }
    }

    /// The end of the RAM above 4 GiB, if there is any.
    pub const fn high_end(&self) -> Option<Gpa> {
        match self.ram_bytes.checked_sub(MMIO_HOLE.0) {
            None | Some(0) => None,
            Some(above) => Some(Gpa(HIGH_RAM.0 + above)),
        }
    }

    /// The frames that memory must back.
    pub fn ram_ranges(&self) -> Vec<RamRange> {
        let range =
            |start: Gpa, end: Gpa| RamRange { base: start.frame(), frames: (end.0 - start.0) >> PAGE_SHIFT };
        let mut ranges = vec![range(Gpa(0), VIDEO_HOLE), range(OPTION_ROMS, self.low_end())];
        ranges.extend(self.high_end().map(|end| range(HIGH_RAM, end)));
        ranges
    }

    /// The map as the operating system gets it, ascending, without overlaps.
    pub fn regions(&self) -> Vec<MemoryRegion> {
        let usable = |start, end| MemoryRegion { start, end, kind: RegionKind::Usable };
        let reserved = |start, end| MemoryRegion { start, end, kind: RegionKind::Reserved };
        let mut map =
            vec![usable(Gpa(0), EBDA), reserved(EBDA, VIDEO_HOLE), reserved(OPTION_ROMS, TABLES_END)];
        if self.low_end() > TABLES_END {
            map.push(usable(TABLES_END, self.low_end()));
        }
        map.push(reserved(ECAM, ECAM + ECAM_BYTES));
        map.extend(self.high_end().map(|end| usable(HIGH_RAM, end)));
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable_bytes(map: &MemoryMap) -> u64 {
        let usable = map.regions().into_iter().filter(|r| r.kind == RegionKind::Usable);
        usable.map(|r| r.end.0 - r.start.0).sum()
    }

    #[test]
    fn a_small_machine_has_no_high_ram() {
        let map = MemoryMap::new(64 << 20);
        assert_eq!((map.low_end(), map.high_end()), (Gpa(64 << 20), None));
        assert_eq!(usable_bytes(&map), (63 << 20) + EBDA.0);
    }

    #[test]
    fn ram_past_three_gib_continues_at_four() {
        let map = MemoryMap::new(8 << 30);
        assert_eq!((map.low_end(), map.high_end()), (MMIO_HOLE, Some(Gpa(9 << 30))));
        assert_eq!(usable_bytes(&map), (8 << 30) - (1 << 20) + EBDA.0);
        assert_eq!(MemoryMap::new(3 << 30).high_end(), None);
    }

    #[test]
    fn the_map_ascends_and_every_usable_byte_is_backed() {
        for ram in [0, 1 << 20, 0x12_3456, 1 << 28, 3 << 30, (3 << 30) + 4096, 1 << 40, u64::MAX] {
            let map = MemoryMap::new(ram);
            let regions = map.regions();
            assert!(regions.iter().all(|r| r.start < r.end));
            assert!(regions.is_sorted_by(|a, b| a.end <= b.start), "{ram:#x}");
            let ranges = map.ram_ranges();
            assert!(ranges.iter().all(|r| r.frames > 0));
            for region in regions.iter().filter(|r| r.kind == RegionKind::Usable) {
                let backed = ranges.iter().any(|r| {
                    r.base.base() <= region.start && region.end.0.div_ceil(4096) <= r.base.0 + r.frames
                });
                assert!(backed, "{region:?}");
            }
        }
    }
}
