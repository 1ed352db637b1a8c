//! The device's side against a driver, and against drivers that lie.

pub(crate) mod driver;
mod lies;

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use driver::{AREAS, Buffer, Driver, Wish, memory};

#[derive(Clone, Debug)]
enum Op {
    Offer { readable: usize, writable: usize, indirect: bool },
    Pop,
    Push { which: usize, written: u32 },
    Collect,
    Listen,
    Ignore,
    Wish(Wish),
    Decide,
}

fn op() -> impl Strategy<Value = Op> {
    let wish = prop_oneof![Just(Wish::Always), Just(Wish::Never), (0..80u16).prop_map(Wish::After),];
    prop_oneof![
        6 => (0..5usize, 0..5usize, any::<bool>())
            .prop_map(|(readable, writable, indirect)| Op::Offer { readable, writable, indirect }),
        5 => Just(Op::Pop),
        5 => (any::<usize>(), 0..1000u32).prop_map(|(which, written)| Op::Push { which, written }),
        4 => Just(Op::Collect),
        2 => Just(Op::Listen),
        1 => Just(Op::Ignore),
        1 => wish.prop_map(Op::Wish),
        3 => Just(Op::Decide),
    ]
}

/// A chain on its way: its name, its buffers.
type Offered = (u16, Vec<Buffer>);

/// Everything on either side, and what has to come of it.
struct Model<'a> {
    memory: &'a GuestMemory,
    driver: Driver<'a>,
    queue: Queue,
    features: RingFeatures,
    size: u16,
    waiting: VecDeque<Offered>,
    out: Vec<(u16, Ticket)>,
    given: VecDeque<(u16, u32)>,
    /// The device has said that it wants to hear of the next chain, and has not heard since.
    listening: bool,
    wish: Wish,
    /// Chains (places) used since the driver last said its wish, then since the last decision.
    used_since_wish: u32,
    used_since_decision: u32,
    serial: u64,
}

impl Model<'_> {
    fn offer(&mut self, readable: usize, writable: usize, indirect: bool) -> Result<(), TestCaseError> {
        let indirect = indirect && self.features.indirect;
        let count = (readable + writable).max(1);
        let buffer = |n: usize| {
            self.serial += 1;
            (self.serial << 12, (self.serial % 5000) as u32, n >= readable)
        };
        let buffers: Vec<Buffer> = (0..count).map(buffer).collect();
        let Some(name) = self.driver.offer(&buffers, indirect) else { return Ok(()) };
        let places = self.driver.places(name);
        if self.listening {
            prop_assert!(self.driver.must_notify(places), "a device that listens is told");
            self.listening = false;
        }
        self.waiting.push_back((name, buffers));
        Ok(())
    }

    fn pop(&mut self) -> Result<(), TestCaseError> {
        let popped = self.queue.pop(self.memory).unwrap();
        let Some((name, buffers)) = self.waiting.pop_front() else {
            prop_assert!(popped.is_none());
            return Ok(());
        };
        let chain = popped.expect("a chain waits");
        prop_assert_eq!(chain.ticket.id, name);
        let of = |writable: bool| -> Vec<(u64, u64)> {
            buffers.iter().filter(|b| b.2 == writable).map(|b| (b.0, b.1.into())).collect()
        };
        let seen = |b: &Buffers| -> Vec<(u64, u64)> { b.ranges().iter().map(|r| (r.gpa.0, r.len)).collect() };
        prop_assert_eq!((seen(&chain.readable), seen(&chain.writable)), (of(false), of(true)));
        self.out.push((name, chain.ticket));
        Ok(())
    }

    fn push(&mut self, which: usize, written: u32) {
        let Some(index) = which.checked_rem(self.out.len()) else { return };
        let (name, ticket) = self.out.remove(index);
        let places = u32::from(self.driver.places(name));
        self.queue.push(self.memory, ticket, written).unwrap();
        self.used_since_wish += places;
        self.used_since_decision += places;
        self.given.push_back((name, written));
    }

    /// What the specification says about an interrupt now.
    fn expected(&self) -> bool {
        let now = self.used_since_wish;
        // An old wish comes true again when indices, or places with their wrap counters, come round.
        let round = if self.features.packed { 2 * u32::from(self.size) } else { 1 << 16 };
        let mut used = now - self.used_since_decision..now;
        match self.wish {
            Wish::Always => !used.is_empty(),
            Wish::Never => false,
            Wish::After(places) => used.any(|place| place % round == u32::from(places)),
        }
    }

    fn step(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match *op {
            Op::Offer { readable, writable, indirect } => self.offer(readable, writable, indirect)?,
            Op::Pop => self.pop()?,
            Op::Push { which, written } => self.push(which, written),
            Op::Collect => prop_assert_eq!(self.driver.collect(), self.given.pop_front()),
            Op::Listen => {
                let more = self.queue.listen(self.memory).unwrap();
                prop_assert_eq!(more, !self.waiting.is_empty());
                self.listening = !more;
            }
            Op::Ignore => {
                self.queue.ignore(self.memory).unwrap();
                self.listening = false;
            }
            Op::Wish(wish) => {
                // A wish is about what the driver has not seen, and it has seen all here.
                while let Some(given) = self.given.pop_front() {
                    prop_assert_eq!(self.driver.collect(), Some(given));
                }
                self.decide()?;
                let wish = match wish {
                    Wish::After(n) if self.features.event_index => Wish::After(n % self.size),
                    Wish::After(_) => Wish::Always,
                    // With an event index, a split ring's flags mean nothing.
                    _ if self.features.event_index && !self.features.packed => Wish::After(0),
                    wish => wish,
                };
                self.driver.wish(wish);
                (self.wish, self.used_since_wish) = (wish, 0);
            }
            Op::Decide => self.decide()?,
        }
        Ok(())
    }

    fn decide(&mut self) -> Result<(), TestCaseError> {
        let wanted = self.queue.wants_interrupt(self.memory).unwrap();
        prop_assert_eq!(wanted, self.expected());
        self.used_since_decision = 0;
        Ok(())
    }
}

fn features() -> impl Strategy<Value = RingFeatures> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(packed, event_index, indirect)| RingFeatures {
        packed,
        event_index,
        indirect,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a driver does that it may: every chain arrives once, in order, as it was; comes back once; nobody who wants
    /// to be told is not told.
    #[test]
    fn chains_pass_and_come_back(
        features in features(),
        size in (0..7u32, 0..64u16),
        start in prop_oneof![Just(0), 0xffe0..=0xffff_u16],
        ops in prop::collection::vec(op(), 0..300),
    ) {
        let size = if features.packed { size.1 + 1 } else { 1 << size.0 };
        let memory = memory();
        let driver = Driver::new(&memory, size, features, start);
        let mut queue = Queue::new(size, &AREAS, features).unwrap();
        if !features.packed {
            queue.resume_at(Progress { avail: start, used: start, wraps: (false, false) });
        }
        // An event index of 0 in fresh memory is a wish for the first chain of all.
        let wish = if features.event_index && !features.packed { Wish::After(0) } else { Wish::Always };
        driver.wish(wish);
        let mut model = Model {
            memory: &memory, driver, queue, features, size, waiting: VecDeque::new(), out: Vec::new(),
            given: VecDeque::new(), listening: false, wish, used_since_wish: 0, used_since_decision: 0, serial: 0,
        };
        for op in &ops {
            model.step(op)?;
        }
        // All that is out comes back; then the queue's progress is all there is to save.
        while !model.waiting.is_empty() {
            model.pop()?;
        }
        model.pop()?;
        while !model.out.is_empty() {
            model.push(0, 1);
        }
        let mut other = Queue::new(size, &AREAS, features).unwrap();
        prop_assert!(other.resume_at(model.queue.progress()));
        prop_assert_eq!(other.progress(), model.queue.progress());
        model.queue = other;
        model.used_since_decision = 0;
        while let Some(given) = model.given.pop_front() {
            prop_assert_eq!(model.driver.collect(), Some(given));
        }
        model.offer(1, 1, false)?;
        model.pop()?;
    }
}
