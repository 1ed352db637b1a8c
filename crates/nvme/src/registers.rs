//! The controller's registers (NVM Express 1.4, 3.1), a word at a time.

use bus::access;
use serde::{Deserialize, Serialize};
use x86::bits::{high32, low32};

use crate::controller::Controller;
use crate::identify::VERSION;
use crate::queue::Ring;

/// The base address register that all registers are behind.
pub(crate) const BAR: u8 = 0;
/// How many bytes there are: a page of registers, one of doorbells, one each for the interrupt table and its pending bits.
pub const BAR_BYTES: u64 = 0x4000;
pub(crate) const TABLE: u32 = 0x2000;
pub(crate) const PENDING: u32 = 0x3000;
const DOORBELLS: u64 = 0x1000;
/// The bytes between doorbells (`CAP.DSTRD` is 0).
const STRIDE: u64 = 4;

/// The most entries of an I/O queue.
pub(crate) const MOST_ENTRIES: u32 = 1024;

/// Half a second each: how long a driver is to wait for a controller to become ready, or not ready, which takes as long as the
/// slowest command.
const TIMEOUT: u64 = 120;
/// Capabilities: queues of [`MOST_ENTRIES`], in one piece; the timeout; the NVM command set; pages of 4 KiB only.
const CAPABILITIES: u64 = (MOST_ENTRIES as u64 - 1) | 1 << 16 | TIMEOUT << 24 | 1 << 37;

// Configuration.
const ENABLE: u32 = 1;
/// Command set, page size, arbitration: of each there is only 0.
const CHOICES: u32 = 0x3ff0;
const SHUTDOWN: u32 = 3 << 14;
/// With the sizes of entries.
const CONFIGURATION: u32 = ENABLE | CHOICES | SHUTDOWN | 0xff << 16;

// Status.
const READY: u32 = 1;
const FAILED: u32 = 1 << 1;
const SHUTDOWN_STATUS: u32 = 3 << 2;
const SHUTDOWN_GOES_ON: u32 = 1 << 2;
const SHUTDOWN_OVER: u32 = 2 << 2;

/// What a driver writes and reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registers {
    /// Which vectors are masked, where interrupts are not messages.
    mask: u32,
    configuration: u32,
    status: u32,
    /// The admin queues' sizes and places.
    sizes: u32,
    submission: u64,
    completion: u64,
}

impl Registers {
    pub(crate) const RESET: Self =
        Self { mask: 0, configuration: 0, status: 0, sizes: 0, submission: 0, completion: 0 };

    /// Whether they hold what they can.
    pub(crate) fn is_possible(&self) -> bool {
        let Self { configuration, status, sizes, submission, completion, .. } = *self;
        let shutdown = status & SHUTDOWN_STATUS != SHUTDOWN_STATUS;
        configuration & !CONFIGURATION == 0
            && status & !(READY | FAILED | SHUTDOWN_STATUS) == 0
            && shutdown
            && sizes & !0x0fff_0fff == 0
            && (submission | completion).trailing_zeros() >= 12
            && (status & READY == 0 || configuration & ENABLE != 0)
    }

    /// The rings of the admin queues, submission and completion, as far as they can be.
    pub(crate) fn admin_rings(&self) -> (Option<Ring>, Option<Ring>) {
        let (submission, completion) = (self.sizes & 0xfff, self.sizes >> 16 & 0xfff);
        (Ring::new(self.submission, submission + 1), Ring::new(self.completion, completion + 1))
    }

    /// Whether the configuration asks for what there is.
    pub(crate) fn can_be_enabled(&self) -> bool {
        self.configuration & CHOICES == 0
    }

    /// Whether the driver has set the sizes of entries of I/O queues, which it does before it makes any: 64 and 16 bytes.
    pub(crate) fn has_entry_sizes(&self) -> bool {
        self.configuration >> 16 & 0xff == 0x46
    }

    pub(crate) fn set_ready(&mut self) {
        self.status |= READY;
    }

    /// Whether the controller is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.status & READY != 0
    }

    pub(crate) fn set_failed(&mut self) {
        self.status |= FAILED;
    }

    /// Whether it is ready and has not failed.
    pub(crate) fn is_working(&self) -> bool {
        self.status & (READY | FAILED) == READY
    }

    pub(crate) fn is_shut_down(&self) -> bool {
        self.status & SHUTDOWN_STATUS != 0
    }

    pub(crate) fn is_shutting_down(&self) -> bool {
        self.status & SHUTDOWN_STATUS == SHUTDOWN_GOES_ON
    }

    /// The shutdown is over.
    pub(crate) fn finish_shutdown(&mut self) {
        if self.is_shutting_down() {
            self.status = self.status & !SHUTDOWN_STATUS | SHUTDOWN_OVER;
        }
    }

    /// Whether a vector is masked, where interrupts are not messages.
    pub(crate) fn masks(&self, vector: u16) -> bool {
        self.mask.checked_shr(vector.into()).is_some_and(|mask| mask & 1 != 0)
    }

    /// What a reset of the controller leaves: the places of the admin queues, and what the driver has configured (3.1.5).
    pub(crate) fn reset_controller(&mut self) {
        (self.mask, self.status) = (0, 0);
    }
}

impl Controller {
    pub(crate) fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match (offset, self.endpoint.msix()) {
            (0..DOORBELLS, _) => access::read(4, offset, data, |at| self.read_register(at).into()),
            (0x2000..0x3000, Some(msix)) => msix.read_table(offset - u64::from(TABLE), data),
            (0x3000.., Some(msix)) => msix.read_pending(offset - u64::from(PENDING), data),
            _ => {}
        }
    }

    pub(crate) fn write_bar(&mut self, offset: u64, data: &[u8]) {
        match (offset, self.endpoint.msix()) {
            (0..0x2000, _) => {
                access::write(4, offset, data, |at, value, mask| match at.checked_sub(DOORBELLS) {
                    None => self.write_register(at, low32(value), low32(mask)),
                    // A doorbell is written as a whole; it cannot be read, so its bytes cannot be merged.
                    Some(at) if low32(mask) == u32::MAX => self.ring_doorbell(at / STRIDE, low32(value)),
                    Some(_) => {}
                });
            }
            (0x2000..0x3000, Some(msix)) => msix.write_table(offset - u64::from(TABLE), data),
            _ => {}
        }
    }

    fn read_register(&self, at: u64) -> u32 {
        let registers = &self.registers;
        match at {
            0x00 => low32(CAPABILITIES),
            0x04 => high32(CAPABILITIES),
            0x08 => VERSION,
            0x0c | 0x10 => registers.mask,
            0x14 => registers.configuration,
            0x1c => registers.status,
            0x24 => registers.sizes,
            0x28 => low32(registers.submission),
            0x2c => high32(registers.submission),
            0x30 => low32(registers.completion),
            0x34 => high32(registers.completion),
            _ => 0,
        }
    }

    fn write_register(&mut self, at: u64, value: u32, mask: u32) {
        let registers = &mut self.registers;
        let merge = |old: u32| low32(access::merge(old.into(), value.into(), mask.into()));
        let merge_long = |old: u64, shift: u32| {
            access::merge(old, u64::from(value) << shift, u64::from(mask) << shift) & !(x86::PAGE_SIZE - 1)
        };
        match at {
            0x0c => registers.mask |= value & mask,
            0x10 => registers.mask &= !(value & mask),
            0x14 => {
                let new = merge(registers.configuration) & CONFIGURATION;
                self.configure(new);
            }
            // Where the admin queues are is read when the controller is enabled.
            0x24 => registers.sizes = merge(registers.sizes) & 0x0fff_0fff,
            0x28 => registers.submission = merge_long(registers.submission, 0),
            0x2c => registers.submission = merge_long(registers.submission, 32),
            0x30 => registers.completion = merge_long(registers.completion, 0),
            0x34 => registers.completion = merge_long(registers.completion, 32),
            _ => {}
        }
        self.update_pin();
    }

    /// Does what a new configuration says. While a reset waits for commands to come back, there is none: a driver waits until the
    /// controller is not ready (3.1.5).
    fn configure(&mut self, new: u32) {
        if self.resetting {
            return;
        }
        let old = std::mem::replace(&mut self.registers.configuration, new);
        match (old & ENABLE != 0, new & ENABLE != 0) {
            (true, false) => self.begin_reset(),
            (false, true) => self.enable(),
            _ => {}
        }
        if new & SHUTDOWN != 0 && !self.resetting && !self.registers.is_shut_down() {
            self.registers.status |= SHUTDOWN_GOES_ON;
        }
    }
}
