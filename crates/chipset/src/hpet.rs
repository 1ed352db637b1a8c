//! The high-precision event timer.
//!
//! A 64-bit counter of 10 ns ticks and three comparators, each one-shot or periodic, edge or level. The counter is
//! not counted up: each access first moves it to now and lets the comparators see what it has passed; matches that
//! nobody had time to see merge into one interrupt.
//!
//! Comparator 0 and 1 stand in for the PIT and the RTC under legacy replacement ([`LegacyRoute`]); otherwise each
//! drives the interrupt input that its configuration names, of those that the board has wired. Interrupts as messages
//! (FSB) are not offered.
//!
//! Reference: IA-PC HPET specification 1.0a.

mod comparator;
mod route;

use std::sync::Arc;

use bus::{Alarm, Clock, Device, GuestTime, IrqLine, Lifecycle, Region};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};
use x86::bits::index;

use crate::timer::{MIN_PERIODIC_GAP_NS, Timer};
use bus::access;
use comparator::Comparator;
pub use route::LegacyRoute;

/// Where the timer's registers are.
pub const HPET_BASE: u64 = 0xfed0_0000;
/// The low half of the capabilities, also the "event timer block id" of the ACPI table: vendor 8086, legacy
/// replacement, 64-bit counter, three comparators, revision 1.
pub const HPET_BLOCK_ID: u32 = 0x8086_a201;

const LEN: u64 = 0x400;
const COMPARATORS: usize = 3;
const TICK_NS: u64 = 10;
const TICK_FS: u64 = TICK_NS * 1_000_000;

const CAPABILITIES: u64 = 0x000;
const CONFIG: u64 = 0x010;
const STATUS: u64 = 0x020;
const COUNTER: u64 = 0x0f0;
const FIRST_COMPARATOR: u64 = 0x100;
const COMPARATOR_STRIDE: u64 = 0x20;
const COMPARATOR_CONFIG: u64 = 0x00;
const COMPARATOR_VALUE: u64 = 0x08;

const CONFIG_ENABLE: u64 = 1 << 0;
const CONFIG_LEGACY: u64 = 1 << 1;

/// Where the interrupts go.
pub struct HpetWiring {
    /// IRQ 0, shared with the PIT.
    pub irq0: Arc<LegacyRoute>,
    /// IRQ 8, shared with the RTC.
    pub irq8: Arc<LegacyRoute>,
    /// The interrupt controller's inputs (0 to 31) that the comparators may drive directly.
    pub inputs: Vec<(u8, Arc<dyn IrqLine>)>,
}

/// The event timer.
pub struct Hpet {
    // Static: a bit for each wired input.
    routes: u32,
    // Glue.
    clock: Arc<dyn Clock>,
    timer: Timer,
    wiring: HpetWiring,
    // Volatile.
    state: HpetState,
}

#[derive(Clone, Serialize, Deserialize)]
struct HpetState {
    config: u64,
    /// Level interrupts that wait to be acknowledged.
    status: u64,
    /// The counter at `synced`.
    counter: u64,
    comparators: [Comparator; COMPARATORS],
    synced: GuestTime,
}

impl Saved for HpetState {
    const NAME: &'static str = "hpet";
    const VERSION: u16 = 1;
}

impl HpetState {
    fn new(now: GuestTime) -> Self {
        let comparators = [const { Comparator::new() }; COMPARATORS];
        Self { config: 0, status: 0, counter: 0, comparators, synced: now }
    }

    fn runs(&self) -> bool {
        self.config & CONFIG_ENABLE != 0
    }
}

/// A comparator's way out.
enum Output<'a> {
    Legacy(&'a LegacyRoute),
    Input(&'a dyn IrqLine),
}

impl Output<'_> {
    fn set(&self, high: bool) {
        match self {
            Self::Legacy(route) => route.set_hpet(high),
            Self::Input(line) => line.set(high),
        }
    }
}

impl Hpet {
    /// An event timer. Inputs above 31 cannot be named by the guest and are left out.
    pub fn new(clock: Arc<dyn Clock>, alarm: Arc<dyn Alarm>, wiring: HpetWiring) -> Self {
        let routes =
            wiring.inputs.iter().filter(|(input, _)| *input < 32).fold(0, |all, (i, _)| all | 1 << i);
        let state = HpetState::new(clock.now());
        Self { routes, clock, timer: Timer::new(alarm), wiring, state }
    }

    /// Where comparator `number` sends its interrupt.
    fn output(&self, number: usize) -> Option<Output<'_>> {
        match number {
            0 if self.state.config & CONFIG_LEGACY != 0 => Some(Output::Legacy(&self.wiring.irq0)),
            1 if self.state.config & CONFIG_LEGACY != 0 => Some(Output::Legacy(&self.wiring.irq8)),
            _ => {
                let route = self.state.comparators.get(number)?.route();
                let (_, line) = self.wiring.inputs.iter().find(|(input, _)| *input == route)?;
                Some(Output::Input(line.as_ref()))
            }
        }
    }

    /// Moves the counter to now and delivers what it has passed; true if that was anything.
    fn sync(&mut self) -> bool {
        let now = self.clock.now();
        let ticks = (now.0 / TICK_NS).saturating_sub(self.state.synced.0 / TICK_NS);
        self.state.synced = now;
        if !self.state.runs() {
            return false;
        }
        let mut fired = false;
        let from = self.state.counter;
        self.state.counter = from.wrapping_add(ticks);
        for number in 0..COMPARATORS {
            let Some(comparator) = self.state.comparators.get_mut(number) else { continue };
            if !comparator.pass(from, ticks) {
                continue;
            }
            fired = true;
            if comparator.is_level() {
                self.state.status |= 1 << number;
            } else if comparator.is_enabled()
                && let Some(output) = self.output(number)
            {
                output.set(true);
                output.set(false);
            }
        }
        fired
    }

    /// Whether comparator `number` holds its line high.
    fn asserts(&self, number: usize) -> bool {
        let comparator = self.state.comparators.get(number);
        comparator.is_some_and(|c| c.is_level() && c.is_enabled()) && self.state.status >> number & 1 != 0
    }

    /// Drives lines and alarm from the state.
    fn drive(&mut self) {
        let legacy = self.state.config & CONFIG_LEGACY != 0;
        for (number, route) in [&self.wiring.irq0, &self.wiring.irq8].into_iter().enumerate() {
            route.set_hpet(legacy && self.asserts(number));
            route.connect_hpet(legacy);
        }
        for (input, line) in &self.wiring.inputs {
            let drives = |number: usize| {
                let routed = self.state.comparators.get(number).is_some_and(|c| c.route() == *input);
                routed && !(legacy && number < 2) && self.asserts(number)
            };
            line.set((0..COMPARATORS).any(drives));
        }
        let next = if self.state.runs() { self.next_match() } else { None };
        self.timer.arm(next);
    }

    fn next_match(&self) -> Option<GuestTime> {
        let state = &self.state;
        let soonest = state.synced.after_ns(MIN_PERIODIC_GAP_NS);
        let waiting = state.comparators.iter().enumerate();
        let waiting = waiting.filter(|(number, c)| c.is_enabled() && !self.asserts(*number));
        // A match beyond the end of time needs no alarm.
        let times = waiting.filter_map(|(_, comparator)| {
            let tick = (state.synced.0 / TICK_NS).checked_add(comparator.distance(state.counter))?;
            let at = GuestTime(tick.checked_mul(TICK_NS)?);
            let short = comparator.period().is_some_and(|ticks| ticks < MIN_PERIODIC_GAP_NS / TICK_NS);
            Some(if short { at.max(soonest) } else { at })
        });
        times.min()
    }

    fn comparator(register: u64) -> Option<(usize, u64)> {
        let offset = register.checked_sub(FIRST_COMPARATOR)?;
        let number = index(offset / COMPARATOR_STRIDE);
        (number < COMPARATORS).then_some((number, offset % COMPARATOR_STRIDE))
    }

    fn read_register(&self, register: u64) -> u64 {
        match register {
            CAPABILITIES => TICK_FS << 32 | u64::from(HPET_BLOCK_ID),
            CONFIG => self.state.config,
            STATUS => self.state.status,
            COUNTER => self.state.counter,
            _ => {
                let Some((number, offset)) = Self::comparator(register) else { return 0 };
                match (self.state.comparators.get(number), offset) {
                    (Some(comparator), COMPARATOR_CONFIG) => comparator.config(self.routes),
                    (Some(comparator), COMPARATOR_VALUE) => comparator.value(),
                    _ => 0,
                }
            }
        }
    }

    fn write_register(&mut self, register: u64, value: u64, mask: u64) {
        let state = &mut self.state;
        match register {
            CONFIG => {
                state.config = access::merge(state.config, value, mask) & (CONFIG_ENABLE | CONFIG_LEGACY);
            }
            STATUS => state.status &= !value,
            COUNTER => state.counter = access::merge(state.counter, value, mask),
            _ => {
                let Some((number, offset)) = Self::comparator(register) else { return };
                let Some(comparator) = state.comparators.get_mut(number) else { return };
                match offset {
                    COMPARATOR_CONFIG => {
                        comparator.write_config(value, mask, self.routes);
                        if !comparator.is_level() {
                            state.status &= !(1 << number);
                        }
                    }
                    COMPARATOR_VALUE => comparator.write_value(value, mask),
                    _ => {}
                }
            }
        }
    }
}

impl Device for Hpet {
    fn regions(&self) -> Vec<Region> {
        vec![Region::mmio(HPET_BASE, LEN)]
    }

    fn read(&mut self, _region: usize, offset: u64, data: &mut [u8]) {
        // The counter is read often; nothing else changes by reading.
        if self.sync() {
            self.drive();
        }
        access::read(8, offset, data, |register| self.read_register(register));
    }

    fn write(&mut self, _region: usize, offset: u64, data: &[u8]) {
        self.sync();
        access::write(8, offset, data, |register, value, mask| self.write_register(register, value, mask));
        self.drive();
    }

    fn advance(&mut self, _now: GuestTime) {
        self.timer.forget();
        self.sync();
        self.drive();
    }
}

impl Lifecycle for Hpet {
    fn name(&self) -> &'static str {
        HpetState::NAME
    }

    fn reset(&mut self) {
        self.state = HpetState::new(self.clock.now());
        self.drive();
    }

    fn save(&self) -> Record {
        Record::encode(&self.state)
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        let state: HpetState = record.decode()?;
        let status_fits = state.status >> COMPARATORS == 0;
        let config_fits = state.config & !(CONFIG_ENABLE | CONFIG_LEGACY) == 0;
        if !status_fits || !config_fits || !state.comparators.iter().all(Comparator::is_valid) {
            return Err(StateError::Damaged {
                name: HpetState::NAME,
                reason: "a bit that cannot be set".into(),
            });
        }
        self.state = state;
        self.timer.forget();
        self.drive();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
