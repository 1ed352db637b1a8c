//! The properties every chip is held to, in one place.
//!
//! [`check`] drives a device with random accesses of all widths at all offsets, with time passing and the alarm going
//! off late or on time. Two things must hold: nothing panics, and a device that is saved in the middle and restored
//! into a fresh one goes on exactly as the first: the same values read, the same lines, the same requests. And no
//! interrupt waits for an access: with the alarm served, another look at the time raises no line.

use std::sync::{Arc, Mutex};

use bus::{Device, Latch, ManualClock, Region};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::control::{MachineControl, MachineEvent};
use crate::timer::MIN_PERIODIC_GAP_NS;

/// Records what devices ask of the machine.
#[derive(Clone, Default)]
pub(crate) struct Requests(Arc<Mutex<Vec<MachineEvent>>>);

impl Requests {
    /// The requests since the last call.
    pub(crate) fn take(&self) -> Vec<MachineEvent> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl MachineControl for Requests {
    fn request(&self, event: MachineEvent) {
        self.0.lock().unwrap().push(event);
    }
}

/// Outside stimulus that is not a register access, such as input from the host; gets a random number.
type Stimulus<D> = fn(&mut D, u64);

/// A device with all that surrounds it.
pub(crate) struct Rig<D> {
    device: D,
    clock: ManualClock,
    lines: Vec<Latch>,
    requests: Requests,
    stimulus: Stimulus<D>,
    regions: Vec<Region>,
}

impl<D: Device> Rig<D> {
    /// A rig for a device without clock, lines or requests; the methods below add those.
    pub(crate) fn new(device: D) -> Self {
        let regions = device.regions();
        Self {
            device,
            clock: ManualClock::default(),
            lines: Vec::new(),
            requests: Requests::default(),
            stimulus: |_, _| {},
            regions,
        }
    }

    /// The device runs on this clock.
    pub(crate) fn on_clock(mut self, clock: &ManualClock) -> Self {
        self.clock = clock.clone();
        self
    }

    /// The device drives these lines.
    pub(crate) fn driving(mut self, lines: &[&Latch]) -> Self {
        self.lines = lines.iter().copied().cloned().collect();
        self
    }

    /// The device reports to these requests.
    pub(crate) fn reporting(mut self, requests: &Requests) -> Self {
        self.requests = requests.clone();
        self
    }

    /// The device also gets this stimulus.
    pub(crate) fn stimulated(mut self, stimulus: Stimulus<D>) -> Self {
        self.stimulus = stimulus;
        self
    }

    fn perform(&mut self, op: &Op) -> Seen {
        let mut seen = Seen::default();
        match *op {
            Op::Read { region, offset, width } => {
                if let Some((region, offset, width)) = self.place(region, offset, width) {
                    let mut data = [0xff; 8];
                    self.device.read(region, offset, &mut data[..width]);
                    seen.data = data;
                }
            }
            Op::Write { region, offset, width, value } => {
                if let Some((region, offset, width)) = self.place(region, offset, width) {
                    self.device.write(region, offset, &value.to_le_bytes()[..width]);
                }
            }
            Op::Wait(ns) => {
                let now = self.clock.step(ns);
                // The alarm's owner calls once per setting; a setting in the past goes off at once.
                for _ in 0..4 {
                    match self.clock.alarm() {
                        Some(at) if at <= now => {
                            bus::Alarm::set(&self.clock, None);
                            self.device.advance(now);
                        }
                        _ => break,
                    }
                }
            }
            Op::Poke(number) => (self.stimulus)(&mut self.device, number),
        }
        seen.lines = self.lines.iter().map(|line| (line.is_high(), line.edges())).collect();
        seen.requests = self.requests.take();
        seen.alarm = self.clock.alarm();
        seen
    }

    /// Turns random numbers into an access that lies within a region, as the router guarantees.
    fn place(&self, region: usize, offset: u64, width: usize) -> Option<(usize, u64, usize)> {
        let index = region.checked_rem(self.regions.len())?;
        let len = self.regions[index].len;
        let width = width.min(usize::try_from(len).unwrap_or(8));
        Some((index, offset % (len - width as u64 + 1), width))
    }
}

#[derive(Clone, Debug)]
enum Op {
    Read { region: usize, offset: u64, width: usize },
    Write { region: usize, offset: u64, width: usize, value: u64 },
    Wait(u64),
    Poke(u64),
}

/// What an operation let the outside see.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    data: [u8; 8],
    lines: Vec<(bool, u64)>,
    requests: Vec<MachineEvent>,
    alarm: Option<bus::GuestTime>,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let width = prop_oneof![4 => Just(1usize), 2 => Just(2), 3 => Just(4), 2 => Just(8), 1 => 1..=8usize];
    // Low offsets hold most registers; all others get their share.
    let offset = prop_oneof![4 => 0..8u64, 2 => (0..0x40u64).prop_map(|n| n * 8), 1 => any::<u64>()];
    let value = prop_oneof![2 => 0..0x100u64, 1 => 0..0x10000u64, 1 => any::<u64>()];
    let wait =
        prop_oneof![4 => 0..2_000u64, 4 => 0..2_000_000u64, 2 => 0..3_000_000_000u64, 1 => 0..1u64 << 50];
    let op = prop_oneof![
        4 => (any::<usize>(), offset.clone(), width.clone())
            .prop_map(|(region, offset, width)| Op::Read { region, offset, width }),
        6 => (any::<usize>(), offset, width, value)
            .prop_map(|(region, offset, width, value)| Op::Write { region, offset, width, value }),
        3 => wait.prop_map(Op::Wait),
        1 => any::<u64>().prop_map(Op::Poke),
    ];
    prop::collection::vec(op, 0..80)
}

fn hold<S: Strategy>(strategy: S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let mut runner = TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
    if let Err(error) = runner.run(&strategy, property) {
        panic!("{error}");
    }
}

/// Holds the device that `make` builds to the properties above.
pub(crate) fn check<D: Device>(make: impl Fn() -> Rig<D>) {
    hold((ops(), ops()), |(before, after)| {
        let mut first = make();
        first.device.reset();
        for op in &before {
            first.perform(op);
        }
        let record = first.device.save();
        let mut second = make();
        second.clock.step(bus::Clock::now(&first.clock).0);
        second.device.restore(&record).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(second.device.save(), record);
        prop_assert!(second.requests.take().is_empty(), "a restore is not a request");

        let offsets: Vec<u64> =
            first.lines.iter().zip(&second.lines).map(|(a, b)| a.edges().wrapping_sub(b.edges())).collect();
        for op in &after {
            let (a, mut b) = (first.perform(op), second.perform(op));
            for ((_, edges), offset) in b.lines.iter_mut().zip(&offsets) {
                *edges = edges.wrapping_add(*offset);
            }
            prop_assert_eq!(a, b);
        }
        first.device.reset();
        Ok(())
    });
    hold(ops(), |ops| {
        let mut rig = make();
        for op in &ops {
            let seen = rig.perform(op);
            let now = bus::Clock::now(&rig.clock);
            // Timers that run faster than their alarm have some interrupt due at any time.
            let soon = now.after_ns(MIN_PERIODIC_GAP_NS);
            if matches!(op, Op::Wait(_)) && seen.alarm.is_none_or(|at| at > soon) {
                rig.device.advance(now);
                let edges: Vec<u64> = rig.lines.iter().map(Latch::edges).collect();
                let expected: Vec<u64> = seen.lines.iter().map(|(_, edges)| *edges).collect();
                prop_assert_eq!(edges, expected);
            }
        }
        Ok(())
    });
}
