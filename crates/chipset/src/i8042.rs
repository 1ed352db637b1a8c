//! The keyboard controller, with nothing plugged into it.
//!
//! It is here for what else hangs on it: the reset line, the A20 gate with its twin at port 0x92, and for systems that
//! take its absence for a broken PC. All answers come at once, since drivers wait up to half a second for each: the
//! keyboard port tests good but a byte to it is answered with "resend" and the timeout bit, as the chip does when no
//! keyboard clocks it in; the mouse port tests bad. Linux, where it looks at all (the FADT says there is nothing), is
//! done with it after a few accesses.
//!
//! A20 is always open in effect, as on processors that no longer have the pin; its bit is stored for those who ask.
//!
//! Reference: IBM PS/2 Hardware Interface Technical Reference (1988), "Keyboard and Auxiliary Device Controller";
//! Intel ICH9 datasheet, 13.7.3, for port 0x92.

use std::sync::Arc;

use bus::{Device, IrqLine, Lifecycle, Region};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};

use crate::control::{MachineControl, MachineEvent};

const DATA_PORT: u16 = 0x60;
const COMMAND_PORT: u16 = 0x64;
const FAST_PORT: u16 = 0x92;
const DATA_REGION: usize = 0;
const COMMAND_REGION: usize = 1;

/// Status register.
const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_MOUSE: u8 = 1 << 5;
const STATUS_TIMEOUT: u8 = 1 << 6;

/// Configuration byte.
const CONFIG_INTERRUPT: u8 = 1 << 0;
const CONFIG_SYSTEM: u8 = 1 << 2;
const CONFIG_KEYBOARD_OFF: u8 = 1 << 4;
const CONFIG_MOUSE_OFF: u8 = 1 << 5;
const CONFIG_TRANSLATE: u8 = 1 << 6;

/// Output port and port 0x92. The output port's reset bit is active low.
const OUTPUT_NOT_RESET: u8 = 1 << 0;
const OUTPUT_A20: u8 = 1 << 1;
const FAST_RESET: u8 = 1 << 0;
const FAST_A20: u8 = 1 << 1;

const SELF_TEST_PASSED: u8 = 0x55;
const PORT_TEST_PASSED: u8 = 0x00;
const PORT_TEST_CLOCK_LOW: u8 = 0x01;
const RESEND: u8 = 0xfe;

/// The keyboard controller.
pub struct I8042 {
    // Glue.
    irq: Arc<dyn IrqLine>,
    control: Arc<dyn MachineControl>,
    // Volatile.
    state: I8042State,
}

#[derive(Clone, Serialize, Deserialize)]
struct I8042State {
    config: u8,
    /// The last write went to the command port.
    last_was_command: bool,
    /// The command that the next data byte belongs to.
    command: Option<u8>,
    output: Output,
    a20: bool,
    fast_reset: bool,
}

/// The output buffer and the status bits that go with its byte.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Output {
    full: bool,
    byte: u8,
    flags: u8,
}

impl Saved for I8042State {
    const NAME: &'static str = "i8042";
    const VERSION: u16 = 1;
}

impl I8042State {
    fn new() -> Self {
        Self {
            config: CONFIG_INTERRUPT | CONFIG_SYSTEM | CONFIG_MOUSE_OFF | CONFIG_TRANSLATE,
            last_was_command: false,
            command: None,
            output: Output::default(),
            a20: true,
            fast_reset: false,
        }
    }

    fn answer(&mut self, byte: u8) {
        self.output = Output { full: true, byte, flags: 0 };
    }

    /// No device has taken the byte that was sent to it.
    fn nobody_there(&mut self, flags: u8) {
        self.output = Output { full: true, byte: RESEND, flags: STATUS_TIMEOUT | flags };
    }

    fn status(&self) -> u8 {
        STATUS_UNLOCKED
            | self.output.flags
            | if self.output.full { STATUS_OUTPUT_FULL } else { 0 }
            | if self.config & CONFIG_SYSTEM != 0 { STATUS_SYSTEM } else { 0 }
            | if self.last_was_command { STATUS_COMMAND } else { 0 }
    }
}

impl I8042 {
    /// A controller whose keyboard interrupt is `irq` (IRQ 1) and whose reset line leads to `control`.
    pub fn new(irq: Arc<dyn IrqLine>, control: Arc<dyn MachineControl>) -> Self {
        Self { irq, control, state: I8042State::new() }
    }

    fn drive(&self) {
        let output = self.state.output;
        let keyboard = output.full && output.flags & STATUS_MOUSE == 0;
        self.irq.set(keyboard && self.state.config & CONFIG_INTERRUPT != 0);
    }

    fn command(&mut self, command: u8) {
        let state = &mut self.state;
        state.last_was_command = true;
        state.command = None;
        match command {
            0x20 => state.answer(state.config),
            // These take a byte: configuration, output port, keyboard and mouse output, mouse input.
            0x60 | 0xd1..=0xd4 => state.command = Some(command),
            0xa7 => state.config |= CONFIG_MOUSE_OFF,
            0xa8 => state.config &= !CONFIG_MOUSE_OFF,
            0xa9 => state.answer(PORT_TEST_CLOCK_LOW),
            0xaa => {
                state.config |= CONFIG_SYSTEM;
                state.answer(SELF_TEST_PASSED);
            }
            0xab => state.answer(PORT_TEST_PASSED),
            0xad => state.config |= CONFIG_KEYBOARD_OFF,
            0xae => state.config &= !CONFIG_KEYBOARD_OFF,
            // Input port: keyboard not locked.
            0xc0 => state.answer(0x80),
            0xd0 => state.answer(OUTPUT_NOT_RESET | if state.a20 { OUTPUT_A20 } else { 0 }),
            // Test inputs: both clocks low.
            0xe0 => state.answer(0),
            // Pulses the output lines of which the bit is clear; line 0 is reset.
            0xf0..=0xff if command & 1 == 0 => self.control.request(MachineEvent::Reset),
            _ => {}
        }
    }

    fn data(&mut self, byte: u8) {
        let state = &mut self.state;
        state.last_was_command = false;
        match state.command.take() {
            Some(0x60) => state.config = byte,
            Some(0xd1) => {
                state.a20 = byte & OUTPUT_A20 != 0;
                if byte & OUTPUT_NOT_RESET == 0 {
                    self.control.request(MachineEvent::Reset);
                }
            }
            Some(0xd2) => state.answer(byte),
            // There is no mouse channel to loop a byte through: it does not come back.
            Some(0xd3) => state.nobody_there(0),
            Some(0xd4) => state.nobody_there(STATUS_MOUSE),
            _ => state.nobody_there(0),
        }
    }

    fn fast(&mut self, byte: u8) {
        let reset = byte & FAST_RESET != 0;
        if reset && !self.state.fast_reset {
            self.control.request(MachineEvent::Reset);
        }
        self.state.fast_reset = reset;
        self.state.a20 = byte & FAST_A20 != 0;
    }
}

impl Device for I8042 {
    fn regions(&self) -> Vec<Region> {
        [DATA_PORT, COMMAND_PORT, FAST_PORT].map(|port| Region::ports(port, 1)).to_vec()
    }

    fn read(&mut self, region: usize, _offset: u64, data: &mut [u8]) {
        let state = &mut self.state;
        let value = match region {
            DATA_REGION => {
                state.output.full = false;
                state.output.flags = 0;
                state.output.byte
            }
            COMMAND_REGION => state.status(),
            _ => (if state.a20 { FAST_A20 } else { 0 }) | u8::from(state.fast_reset),
        };
        data.fill(value);
        self.drive();
    }

    fn write(&mut self, region: usize, _offset: u64, data: &[u8]) {
        for byte in data {
            match region {
                DATA_REGION => self.data(*byte),
                COMMAND_REGION => self.command(*byte),
                _ => self.fast(*byte),
            }
        }
        self.drive();
    }
}

impl Lifecycle for I8042 {
    fn name(&self) -> &'static str {
        I8042State::NAME
    }

    fn reset(&mut self) {
        self.state = I8042State::new();
        self.drive();
    }

    fn save(&self) -> Record {
        Record::encode(&self.state)
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        self.state = record.decode()?;
        self.drive();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{self, Requests, Rig};
    use bus::Latch;

    fn chip() -> (I8042, Latch, Requests) {
        let (line, requests) = (Latch::default(), Requests::default());
        let chip = I8042::new(Arc::new(line.clone()), Arc::new(requests.clone()));
        (chip, line, requests)
    }

    fn get(chip: &mut I8042, region: usize) -> u8 {
        let mut data = [0xff];
        chip.read(region, 0, &mut data);
        data[0]
    }

    /// A command with its parameters; the answer with the status before it was read.
    fn ask(chip: &mut I8042, command: u8, parameters: &[u8]) -> Option<(u8, u8)> {
        chip.write(COMMAND_REGION, 0, &[command]);
        for byte in parameters {
            chip.write(DATA_REGION, 0, &[*byte]);
        }
        let status = get(chip, COMMAND_REGION);
        (status & STATUS_OUTPUT_FULL != 0).then(|| (get(chip, DATA_REGION), status))
    }

    #[test]
    fn linux_finds_a_good_controller_with_nothing_attached_and_waits_for_nothing() {
        let (mut c, line, _) = chip();
        assert_eq!(get(&mut c, COMMAND_REGION) & STATUS_OUTPUT_FULL, 0, "nothing to flush");
        assert_eq!(ask(&mut c, 0xaa, &[]).unwrap().0, SELF_TEST_PASSED);
        assert_eq!(ask(&mut c, 0x60, &[0x74]), None);
        assert_eq!(ask(&mut c, 0x20, &[]).unwrap().0, 0x74);
        // The mouse port fails both of Linux's tests.
        let (byte, status) = ask(&mut c, 0xd3, &[0x5a]).unwrap();
        assert!(byte != 0x5a && status & STATUS_MOUSE == 0);
        assert_eq!(ask(&mut c, 0xa9, &[]).unwrap().0, 1);
        // A byte to the keyboard: negative answer with the timeout bit and an interrupt.
        assert_eq!(ask(&mut c, 0x60, &[0x45]), None);
        c.write(DATA_REGION, 0, &[0xf2]);
        assert!(line.is_high());
        assert_eq!(get(&mut c, COMMAND_REGION) & (STATUS_TIMEOUT | STATUS_OUTPUT_FULL), 0x41);
        assert_eq!((get(&mut c, DATA_REGION), line.is_high()), (RESEND, false));
    }

    #[test]
    fn resets_by_every_road() {
        let (mut c, _, requests) = chip();
        for (region, bytes) in [(1, &[0xfe][..]), (2, &[1])] {
            c.write(region, 0, bytes);
            assert_eq!(requests.take(), [MachineEvent::Reset]);
        }
        c.write(2, 0, &[1]);
        assert!(requests.take().is_empty(), "only the rising edge counts");
        ask(&mut c, 0xd1, &[0x02]);
        assert_eq!(requests.take(), [MachineEvent::Reset]);
        ask(&mut c, 0xff, &[]);
        assert!(requests.take().is_empty());
    }

    #[test]
    fn a20_is_one_bit_with_two_doors() {
        let (mut c, _, requests) = chip();
        assert_eq!(get(&mut c, 2), FAST_A20);
        ask(&mut c, 0xd1, &[0xdd]);
        assert_eq!(get(&mut c, 2), 0);
        c.write(2, 0, &[FAST_A20]);
        assert_eq!(ask(&mut c, 0xd0, &[]).unwrap().0, OUTPUT_NOT_RESET | OUTPUT_A20);
        assert!(requests.take().is_empty());
    }

    #[test]
    fn stands_any_access_and_survives_a_save() {
        harness::check(|| {
            let (chip, line, requests) = chip();
            Rig::new(chip).driving(&[&line]).reporting(&requests)
        });
    }
}
