//! Configuration space of a function with a type 0 header.
//!
//! A function is words and, for each, a mask of the bits that the guest may write. That mask is all there is to base
//! address registers: the bits below a register's size are constant, so a guest that writes all ones reads the size
//! back. The extended space above the first 256 bytes is empty, that is zero.
//!
//! Reference: PCI Local Bus 3.0, 6.1, 6.2.5 and 6.7.

use state::StateError;
use x86::bits::{high32, index, low16, low32};

use crate::access;

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor identifier.
    pub vendor: u16,
    /// Device identifier.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass, programming interface, from the high byte down; 24 bits.
    pub class: u32,
    /// Subsystem's vendor.
    pub subsystem_vendor: u16,
    /// Subsystem's identifier.
    pub subsystem: u16,
}

/// The command register (PCI 3.0, 6.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command(u16);

impl Command {
    /// Whether the function answers at its memory addresses.
    pub const fn memory(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// Whether the function may access memory by itself.
    pub const fn bus_master(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// Whether the function must not use its interrupt pin.
    pub const fn interrupt_disabled(self) -> bool {
        self.0 & 1 << 10 != 0
    }
}

pub(super) const WORDS: usize = 64;
const COMMAND: usize = 1;
const FIRST_BAR: usize = 4;
const INTERRUPT: usize = 15;

/// I/O, memory, bus master, parity, SERR, interrupt disable.
const COMMAND_WRITABLE: u32 = 0x0547;
const STATUS_INTERRUPT: u32 = 1 << 19;
const STATUS_CAPABILITIES: u32 = 1 << 20;
/// A base address of 64 bits in memory, not prefetchable.
const MEMORY_64: u32 = 0b100;
/// The first byte after the header.
const HEADER_END: u8 = 0x40;

/// A base address register of 64 bits.
#[derive(Clone, Copy, Debug)]
struct Bar {
    number: u8,
    len: u64,
    /// Where whoever stands in for the firmware puts it.
    home: u64,
}

/// A function's configuration space.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    // Static.
    writable: [u32; WORDS],
    bars: Vec<Bar>,
    /// Where the next capability goes.
    free: u8,
    /// The byte that holds the list's end.
    tail: u8,
    // Volatile.
    words: [u32; WORDS],
}

impl ConfigSpace {
    /// A header with nothing in it.
    pub fn new(identity: &Identity) -> Self {
        let (mut words, mut writable) = ([0; WORDS], [0; WORDS]);
        words[0] = u32::from(identity.device) << 16 | u32::from(identity.vendor);
        words[2] = identity.class << 8 | u32::from(identity.revision);
        words[11] = u32::from(identity.subsystem) << 16 | u32::from(identity.subsystem_vendor);
        writable[COMMAND] = COMMAND_WRITABLE;
        // Interrupt line: the guest's notepad.
        writable[INTERRUPT] = 0xff;
        Self { writable, bars: Vec::new(), free: HEADER_END, tail: 0x34, words }
    }

    /// Says that the function uses an interrupt pin (0 is INTA).
    pub fn set_interrupt_pin(&mut self, pin: u8) {
        self.words[INTERRUPT] |= (u32::from(pin & 3) + 1) << 8;
    }

    /// Gives the function `len` bytes of memory-mapped registers behind base address register `number` (0, 2 or 4) and the
    /// one after it, placed at `home` at reset. `len` is a power of two of 16 or more, and `home` a multiple of it; others are
    /// rounded.
    pub fn add_memory_bar(&mut self, number: u8, len: u64, home: u64) {
        let (number, len) = (number & 4 | number & 2, len.max(16).next_power_of_two());
        let (at, mask) = (FIRST_BAR + usize::from(number), !(len - 1));
        if let [low, high] = &mut self.writable[at..at + 2] {
            (*low, *high) = (low32(mask), high32(mask));
        }
        self.bars.push(Bar { number, len, home: home & mask });
        self.words[at] = MEMORY_64;
        self.go_home();
    }

    /// Adds a capability: what follows its identifier and its link, and which bits of that the guest may write. Returns
    /// where the capability begins; `None` if there is no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u8> {
        let at = self.free;
        let end = usize::from(at) + 2 + body.len();
        if end > WORDS * 4 {
            return None;
        }
        self.free = u8::try_from(end.next_multiple_of(4)).unwrap_or(u8::MAX);
        put(&mut self.words, self.tail, at);
        self.tail = at + 1;
        put(&mut self.words, at, id);
        for (place, byte) in (at + 2..).zip(body) {
            put(&mut self.words, place, *byte);
        }
        for (place, byte) in (at + 2..).zip(writable) {
            put(&mut self.writable, place, *byte);
        }
        self.words[COMMAND] |= STATUS_CAPABILITIES;
        Some(at)
    }

    /// The command register.
    pub fn command(&self) -> Command {
        Command(low16(u64::from(self.words[COMMAND])))
    }

    /// Shows in the status register whether an interrupt waits.
    pub fn show_interrupt(&mut self, pending: bool) {
        let bit = if pending { STATUS_INTERRUPT } else { 0 };
        self.words[COMMAND] = self.words[COMMAND] & !STATUS_INTERRUPT | bit;
    }

    /// Each base address register: its number, where the function answers for it at the moment, if it does, and its
    /// length.
    pub fn bars(&self) -> impl Iterator<Item = (usize, Option<u64>, u64)> {
        let decodes = self.command().memory();
        self.bars.iter().map(move |bar| {
            let at = FIRST_BAR + usize::from(bar.number);
            let base = u64::from(self.words[at + 1]) << 32 | u64::from(self.words[at] & !0xf);
            (usize::from(bar.number), decodes.then_some(base), bar.len)
        })
    }

    /// The aligned word at `register`.
    pub fn word(&self, register: u64) -> u32 {
        self.words.get(index(register / 4)).copied().unwrap_or(0)
    }

    /// A read by the guest.
    pub fn read(&self, register: u64, data: &mut [u8]) {
        access::read(4, register, data, |register| u64::from(self.word(register)));
    }

    /// A write by the guest.
    pub fn write(&mut self, register: u64, data: &[u8]) {
        access::write(4, register, data, |register, value, mask| {
            self.write_word(register, low32(value), low32(mask));
        });
    }

    fn write_word(&mut self, register: u64, value: u32, mask: u32) {
        let at = index(register / 4);
        if let (Some(word), Some(writable)) = (self.words.get_mut(at), self.writable.get(at)) {
            let mask = mask & writable;
            *word = *word & !mask | value & mask;
        }
    }

    /// Back to the state in which firmware hands a function over: nothing enabled, base addresses assigned.
    pub fn reset(&mut self) {
        for (word, writable) in self.words.iter_mut().zip(&self.writable) {
            *word &= !writable;
        }
        self.show_interrupt(false);
        self.go_home();
    }

    fn go_home(&mut self) {
        for bar in &self.bars {
            let at = FIRST_BAR + usize::from(bar.number);
            self.words[at] = low32(bar.home) | MEMORY_64;
            self.words[at + 1] = high32(bar.home);
        }
    }

    /// The words, to be saved.
    pub fn save(&self) -> Vec<u32> {
        self.words.to_vec()
    }

    /// Takes the writable bits of saved words over.
    ///
    /// # Errors
    /// If they are not as many; nothing has changed then.
    pub fn restore(&mut self, name: &'static str, words: &[u32]) -> Result<(), StateError> {
        if words.len() != WORDS {
            return Err(StateError::Damaged { name, reason: "configuration space of another size".into() });
        }
        for (register, word) in (0..).step_by(4).zip(words) {
            self.write_word(register, *word, u32::MAX);
        }
        Ok(())
    }
}

/// Sets a byte of an array of words.
fn put(words: &mut [u32; WORDS], at: u8, byte: u8) {
    let shift = 8 * u32::from(at & 3);
    if let Some(word) = words.get_mut(usize::from(at) / 4) {
        *word = *word & !(0xff << shift) | u32::from(byte) << shift;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: 0x01_0000,
        subsystem_vendor: 0x1af4,
        subsystem: 2,
    };

    fn word(config: &ConfigSpace, register: u64) -> u32 {
        let mut data = [0; 4];
        config.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_base_address_shows_its_size_and_moves() {
        let mut config = ConfigSpace::new(&IDENTITY);
        config.add_memory_bar(0, 0x8000, 0xc000_0000);
        assert_eq!((word(&config, 0x10), word(&config, 0x14)), (0xc000_0004, 0));
        assert_eq!(config.bars().next(), Some((0, None, 0x8000)));
        config.write(0x10, &[0xff; 8]);
        assert_eq!((word(&config, 0x10), word(&config, 0x14)), (0xffff_8004, 0xffff_ffff));
        config.write(0x10, &0x1_d000_1234_u64.to_le_bytes());
        config.write(4, &[2]);
        assert_eq!(config.bars().next(), Some((0, Some(0x1_d000_0000), 0x8000)));
        config.reset();
        assert_eq!((word(&config, 0x10), word(&config, 4) & 0xffff), (0xc000_0004, 0));
    }

    #[test]
    fn capabilities_are_a_list_and_writable_where_said() {
        let mut config = ConfigSpace::new(&IDENTITY);
        assert_eq!(word(&config, 4) >> 20 & 1, 0);
        assert_eq!(config.add_capability(9, &[5, 1, 2], &[0, 0xf0]), Some(0x40));
        assert_eq!(config.add_capability(0x11, &[0; 10], &[0, 0xc0]), Some(0x48));
        assert_eq!((word(&config, 4) >> 20 & 1, word(&config, 0x34)), (1, 0x40));
        assert_eq!((word(&config, 0x40), word(&config, 0x48)), (0x0105_4809, 0x11));
        config.write(0x40, &[0xff; 8]);
        assert_eq!((word(&config, 0x40), word(&config, 0x44)), (0xf105_4809, 2));
        assert_eq!(config.add_capability(9, &[0; 180], &[]), None, "no room");
    }

    #[test]
    fn a_saved_space_keeps_what_is_constant() {
        let mut config = ConfigSpace::new(&IDENTITY);
        config.set_interrupt_pin(0);
        config.restore("x", &[u32::MAX; WORDS]).unwrap();
        assert_eq!((word(&config, 0), word(&config, 4)), (0x1042_1af4, COMMAND_WRITABLE));
        assert_eq!(word(&config, 0x3c), 0x1ff);
        assert!(config.restore("x", &[0; 3]).is_err());
        let mut data = [1; 4];
        config.read(0xffc, &mut data);
        assert_eq!(data, [0; 4], "extended space is empty");
    }
}
