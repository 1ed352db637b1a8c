//! The ACPI fixed registers: power management events, control, timer, and a general-purpose event block.
//!
//! There is no system-management mode to switch from, so the machine is always in ACPI mode: SCI_EN reads as one and
//! the FADT names no SMI command. The SCI is the OR of enabled event bits, a level. Sleeping state S5 is power-off;
//! no other state is offered (`\_Sx` objects), so other sleep types do nothing.
//!
//! The addresses are those of a widespread virtual board, and its S5 sleep type is 0, because small test kernels that
//! read no tables power off with `outw(0x604, 0x2000)`.
//!
//! Reference: ACPI specification 6.5, section 4.8 ("ACPI Register Model").

use std::sync::{Arc, Mutex};

use bus::{Alarm, Clock, Device, GuestTime, IrqLine, Lifecycle, Region};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};
use x86::bits::low16;

use crate::control::{MachineControl, MachineEvent};
use crate::sync::lock;
use crate::timer::{Rate, Timer};
use bus::access;

/// PM1a event block: status, then enable; 4 ports.
pub const PM1A_EVENT_PORT: u16 = 0x600;
/// PM1a control block; 2 ports.
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// The power management timer; 4 ports. It has 32 bits (`TMR_VAL_EXT` of the FADT).
pub const PM_TIMER_PORT: u16 = 0x608;
/// General-purpose event block 0: status, then enable; 4 ports.
pub const GPE0_PORT: u16 = 0x620;
/// The length of [`GPE0_PORT`]'s block in bytes.
pub const GPE0_LEN: u8 = 4;
/// The sleep type of S5 for the DSDT.
pub const S5_SLEEP_TYPE: u8 = 0;

/// ACPI 6.5, 4.8.3.3.
const PM_TIMER: Rate = Rate::hz(3_579_545);

const PM_REGION: usize = 0;
const EVENT_STATUS: u64 = 0;
const EVENT_ENABLE: u64 = 2;
const CONTROL: u64 = 4;
const TIMER_LOW: u64 = 8;
const TIMER_HIGH: u64 = 10;
const GPE_STATUS: u64 = 0;
const GPE_ENABLE: u64 = 2;

/// PM1 status and enable bits (ACPI 6.5, tables 4.13 and 4.14).
const TIMER_EVENT: u16 = 1 << 0;
const GLOBAL_EVENT: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const SLEEP_BUTTON: u16 = 1 << 9;
const RTC_EVENT: u16 = 1 << 10;
const ENABLES: u16 = TIMER_EVENT | GLOBAL_EVENT | POWER_BUTTON | SLEEP_BUTTON | RTC_EVENT;

/// PM1 control bits (table 4.15).
const SCI_EN: u16 = 1 << 0;
const BM_RLD: u16 = 1 << 1;
const SLEEP_TYPE_SHIFT: u32 = 10;
const SLEEP_TYPE: u16 = 7 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u16 = 1 << 13;

/// The power management chip.
pub struct AcpiPm {
    // Glue.
    clock: Arc<dyn Clock>,
    timer: Timer,
    sci: Arc<dyn IrqLine>,
    control: Arc<dyn MachineControl>,
    paused: bool,
    // Volatile.
    state: AcpiPmState,
}

#[derive(Clone, Serialize, Deserialize)]
struct AcpiPmState {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    gpe_inputs: u16,
    /// The time up to which the timer's carries were noted.
    synced: GuestTime,
}

impl Saved for AcpiPmState {
    const NAME: &'static str = "acpi-pm";
    const VERSION: u16 = 2;
}

impl AcpiPmState {
    fn new(now: GuestTime) -> Self {
        Self {
            status: 0,
            enable: 0,
            control: SCI_EN,
            gpe_status: 0,
            gpe_enable: 0,
            gpe_inputs: 0,
            synced: now,
        }
    }
}

/// See [`AcpiPm::event_line`].
struct EventLine {
    chip: Arc<Mutex<AcpiPm>>,
    bit: u16,
}

impl IrqLine for EventLine {
    fn set(&self, high: bool) {
        lock(&self.chip).set_event(self.bit, high);
    }
}

/// The number of times that the timer's top bit has changed, each of which is a timer event.
fn carries(time: GuestTime) -> u64 {
    PM_TIMER.ticks_at(time) >> 31
}

impl AcpiPm {
    /// A chip that drives `sci` and reports to `control`.
    pub fn new(
        clock: Arc<dyn Clock>,
        alarm: Arc<dyn Alarm>,
        sci: Arc<dyn IrqLine>,
        control: Arc<dyn MachineControl>,
    ) -> Self {
        let state = AcpiPmState::new(clock.now());
        Self { clock, timer: Timer::new(alarm), sci, control, paused: false, state }
    }

    /// The user presses the power button: the guest is asked to shut down.
    pub fn press_power_button(&mut self) {
        self.state.status |= POWER_BUTTON;
        if !self.paused {
            self.drive();
        }
    }

    /// The input of general-purpose event `number`, of which there are sixteen. While it is high the event's status cannot be cleared, so
    /// that nothing is missed by a guest that looks at it late.
    pub fn event_line(chip: &Arc<Mutex<Self>>, number: u8) -> Arc<dyn IrqLine> {
        Arc::new(EventLine { chip: chip.clone(), bit: 1_u16.checked_shl(number.into()).unwrap_or(0) })
    }

    fn set_event(&mut self, bit: u16, high: bool) {
        let state = &mut self.state;
        state.gpe_inputs = if high { state.gpe_inputs | bit } else { state.gpe_inputs & !bit };
        state.gpe_status |= state.gpe_inputs;
        if !self.paused {
            self.drive();
        }
    }

    /// Notes a carry of the timer; true if there was one.
    fn sync(&mut self) -> bool {
        let now = self.clock.now();
        let carried = carries(now) > carries(self.state.synced);
        if carried {
            self.state.status |= TIMER_EVENT;
        }
        self.state.synced = now;
        carried
    }

    fn drive(&mut self) {
        let state = &self.state;
        let fixed = state.status & state.enable & ENABLES != 0;
        self.sci.set(fixed || state.gpe_status & state.gpe_enable != 0);
        let awaits_carry = state.enable & TIMER_EVENT != 0 && state.status & TIMER_EVENT == 0;
        let next = carries(state.synced).saturating_add(1).saturating_mul(1 << 31);
        self.timer.arm(awaits_carry.then(|| PM_TIMER.time_of(next)));
    }

    fn read_register(&self, region: usize, register: u64) -> u64 {
        let state = &self.state;
        let ticks = PM_TIMER.ticks_at(state.synced);
        let value = match (region, register) {
            (PM_REGION, EVENT_STATUS) => state.status,
            (PM_REGION, EVENT_ENABLE) => state.enable,
            (PM_REGION, CONTROL) => state.control,
            (PM_REGION, TIMER_LOW) => low16(ticks),
            (PM_REGION, TIMER_HIGH) => low16(ticks >> 16),
            (PM_REGION, _) => 0,
            (_, GPE_STATUS) => state.gpe_status,
            (_, GPE_ENABLE) => state.gpe_enable,
            _ => 0,
        };
        u64::from(value)
    }

    fn write_register(&mut self, region: usize, register: u64, value: u64, mask: u64) {
        let (value, mask) = (low16(value), low16(mask));
        let merge = |old: u16| old & !mask | value & mask;
        let state = &mut self.state;
        match (region, register) {
            // Status bits are cleared by writing ones.
            (PM_REGION, EVENT_STATUS) => state.status &= !value,
            (PM_REGION, EVENT_ENABLE) => state.enable = merge(state.enable) & ENABLES,
            (PM_REGION, CONTROL) => {
                let written = merge(state.control);
                state.control = written & (BM_RLD | SLEEP_TYPE) | SCI_EN;
                let sleep_type = (written & SLEEP_TYPE) >> SLEEP_TYPE_SHIFT;
                if written & SLEEP_ENABLE != 0 && sleep_type == u16::from(S5_SLEEP_TYPE) {
                    self.control.request(MachineEvent::PowerOff);
                }
            }
            (PM_REGION, _) => {}
            (_, GPE_STATUS) => state.gpe_status = state.gpe_status & !value | state.gpe_inputs,
            (_, GPE_ENABLE) => state.gpe_enable = merge(state.gpe_enable),
            _ => {}
        }
    }
}

impl Device for AcpiPm {
    fn regions(&self) -> Vec<Region> {
        let pm_len = PM_TIMER_PORT + 4 - PM1A_EVENT_PORT;
        vec![Region::ports(PM1A_EVENT_PORT, pm_len), Region::ports(GPE0_PORT, u16::from(GPE0_LEN))]
    }

    fn read(&mut self, region: usize, offset: u64, data: &mut [u8]) {
        // The timer is read often; nothing else changes by reading.
        if self.sync() {
            self.drive();
        }
        access::read(2, offset, data, |register| self.read_register(region, register));
    }

    fn write(&mut self, region: usize, offset: u64, data: &[u8]) {
        self.sync();
        access::write(2, offset, data, |register, value, mask| {
            self.write_register(region, register, value, mask);
        });
        self.drive();
    }

    fn advance(&mut self, _now: GuestTime) {
        self.timer.forget();
        self.sync();
        self.drive();
    }
}

impl Lifecycle for AcpiPm {
    fn name(&self) -> &'static str {
        AcpiPmState::NAME
    }

    fn reset(&mut self) {
        self.state = AcpiPmState::new(self.clock.now());
        self.drive();
    }

    fn pause(&mut self) {
        self.paused = true;
    }

    fn resume(&mut self) {
        self.paused = false;
        self.drive();
    }

    fn save(&self) -> Record {
        Record::encode(&self.state)
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        self.state = record.decode()?;
        self.timer.forget();
        self.drive();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{self, Requests, Rig};
    use bus::{Latch, ManualClock};

    fn chip() -> (AcpiPm, ManualClock, Latch, Requests) {
        let (clock, sci, requests) = (ManualClock::default(), Latch::default(), Requests::default());
        let alarm = Arc::new(clock.clone());
        let pm =
            AcpiPm::new(Arc::new(clock.clone()), alarm, Arc::new(sci.clone()), Arc::new(requests.clone()));
        (pm, clock, sci, requests)
    }

    fn timer(pm: &mut AcpiPm) -> u32 {
        let mut data = [0; 4];
        pm.read(PM_REGION, TIMER_LOW, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_timer_counts_at_its_frequency_and_wraps() {
        let (mut pm, clock, _, _) = chip();
        clock.step(1_000_000_000);
        assert_eq!(timer(&mut pm), 3_579_545);
        clock.step(1_199_000_000_000);
        assert_eq!(timer(&mut pm), x86::bits::low32(3_579_545 * 1200));
    }

    #[test]
    fn a_carry_of_the_timer_is_an_event() {
        let (mut pm, clock, sci, _) = chip();
        pm.write(PM_REGION, EVENT_ENABLE, &[1, 0]);
        let at = clock.alarm().unwrap();
        clock.step(at.0);
        pm.advance(at);
        assert!(sci.is_high());
        assert_eq!(timer(&mut pm), 1 << 31);
        pm.write(PM_REGION, EVENT_STATUS, &[1, 0]);
        assert!(!sci.is_high());
        assert!(clock.alarm().unwrap() > at);
    }

    #[test]
    fn the_power_button_raises_the_sci() {
        let (mut pm, _, sci, _) = chip();
        pm.write(PM_REGION, EVENT_ENABLE, &POWER_BUTTON.to_le_bytes());
        pm.pause();
        pm.press_power_button();
        assert!(!sci.is_high());
        pm.resume();
        assert!(sci.is_high());
        pm.write(PM_REGION, EVENT_STATUS + 1, &[1]);
        assert!(!sci.is_high());
    }

    #[test]
    fn a_general_purpose_event_raises_the_sci_until_its_cause_has_gone_and_it_is_cleared() {
        let (pm, _, sci, _) = chip();
        let pm = Arc::new(Mutex::new(pm));
        let lines = [0, 1, 16].map(|number| AcpiPm::event_line(&pm, number));
        let write = |register, value| lock(&pm).write(1, register, &[value, 0]);
        write(GPE_ENABLE, 2);
        lines[0].set(true);
        lines[2].set(true);
        assert!(!sci.is_high(), "not enabled, or not there");
        lock(&pm).pause();
        lines[1].set(true);
        assert!(!sci.is_high());
        lock(&pm).resume();
        assert!(sci.is_high());
        write(GPE_STATUS, 2);
        assert!(sci.is_high(), "there is still something to look at");
        lines[1].set(false);
        assert!(sci.is_high());
        write(GPE_STATUS, 2);
        assert!(!sci.is_high());
        write(GPE_ENABLE, 1);
        assert!(sci.is_high(), "it has waited");
    }

    #[test]
    fn sleep_enable_with_the_s5_type_is_power_off() {
        let (mut pm, _, _, requests) = chip();
        pm.write(PM_REGION, CONTROL, &(SLEEP_ENABLE | 5 << SLEEP_TYPE_SHIFT).to_le_bytes());
        assert!(requests.take().is_empty());
        let mut control = [0; 2];
        pm.read(PM_REGION, CONTROL, &mut control);
        assert_eq!(u16::from_le_bytes(control), SCI_EN | 5 << SLEEP_TYPE_SHIFT);
        pm.write(PM_REGION, CONTROL, &0x2000u16.to_le_bytes());
        assert_eq!(requests.take(), [MachineEvent::PowerOff]);
    }

    #[test]
    fn stands_any_access_and_survives_a_save() {
        harness::check(|| {
            let (pm, clock, sci, requests) = chip();
            Rig::new(pm).on_clock(&clock).driving(&[&sci]).reporting(&requests).stimulated(|pm, number| {
                match number % 8 {
                    0 => pm.press_power_button(),
                    1 => pm.set_event(low16(number >> 8), number & 8 != 0),
                    _ => {}
                }
            })
        });
    }
}
