//! Drivers that lie: each lie is found, and none costs more than a bounded walk.

use x86::Gpa;

use super::*;

const SPLIT: RingFeatures = RingFeatures { packed: false, event_index: false, indirect: true };
const PACKED: RingFeatures = RingFeatures { packed: true, event_index: false, indirect: true };

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;

struct Rig {
    memory: GuestMemory,
    queue: Queue,
}

impl Rig {
    fn new(features: RingFeatures) -> Self {
        Self { memory: memory(), queue: Queue::new(4, &AREAS, features).unwrap() }
    }

    fn descriptor(&self, at: u64, gpa: u64, len: u32, third: u16, fourth: u16) {
        self.memory.write_word(Gpa(at), gpa).unwrap();
        self.memory.write_word(Gpa(at + 8), len).unwrap();
        self.memory.write_word(Gpa(at + 12), third).unwrap();
        self.memory.write_word(Gpa(at + 14), fourth).unwrap();
    }

    fn table(&self, number: u64, gpa: u64, len: u32, flags: u16, next: u16) {
        self.descriptor(AREAS.descriptors + 16 * number, gpa, len, flags, next);
    }

    /// Makes `count` heads available in a split ring, all of them `head`.
    fn available(&self, head: u16, count: u16) {
        for place in 0..4 {
            self.memory.write_word(Gpa(AREAS.driver + 4 + 2 * place), head).unwrap();
        }
        self.memory.write_word(Gpa(AREAS.driver + 2), count).unwrap();
    }

    fn lie(&mut self) -> String {
        self.queue.pop(&self.memory).expect_err("a lie").to_string()
    }
}

#[test]
fn setups_that_cannot_be() {
    let says = |size, areas: Areas, features| Queue::new(size, &areas, features).unwrap_err().to_string();
    for (size, features) in [(0, SPLIT), (3, SPLIT), (0x8001, SPLIT), (0, PACKED), (0x8001, PACKED)] {
        assert!(says(size, AREAS, features).contains("size"), "{size}");
    }
    assert!(says(4, Areas { descriptors: 8, ..AREAS }, SPLIT).contains("aligned"));
    assert!(says(4, Areas { driver: 2, ..AREAS }, PACKED).contains("aligned"));
    assert!(says(4, Areas { device: 0u64.wrapping_sub(4), ..AREAS }, SPLIT).contains("address space"));
    let mut nowhere = Queue::new(4, &Areas { driver: 1 << 40, ..AREAS }, SPLIT).unwrap();
    assert!(nowhere.pop(&memory()).is_err());
    let mut packed = Queue::new(4, &AREAS, PACKED).unwrap();
    assert!(!packed.resume_at(Progress { avail: 4, used: 0, wraps: (true, true) }));
}

#[test]
fn split_indices_and_heads() {
    let mut rig = Rig::new(SPLIT);
    rig.available(0, 5);
    assert!(rig.lie().contains("than it holds"));
    rig.available(4, 1);
    assert!(rig.lie().contains("outside the table"));
    // The same head again and again, never given back.
    rig.table(0, 0, 1, 0, 0);
    for count in 1..=4 {
        rig.available(0, count);
        assert!(rig.queue.pop(&rig.memory).unwrap().is_some());
    }
    rig.available(0, 5);
    assert!(rig.lie().contains("given back"));
}

#[test]
fn split_chains() {
    let mut rig = Rig::new(SPLIT);
    rig.available(0, 1);
    rig.table(0, 0, 1, NEXT, 1);
    rig.table(1, 0, 1, NEXT, 0);
    assert!(rig.lie().contains("loop"));
    rig.table(1, 0, 1, NEXT, 9);
    assert!(rig.lie().contains("outside the table"));
    rig.table(0, 0, 1, NEXT | WRITE, 1);
    rig.table(1, 0, 1, 0, 0);
    assert!(rig.lie().contains("behind one to write"));
    rig.table(0, 0, u32::MAX, NEXT, 1);
    rig.table(1, 0, 2, 0, 0);
    assert!(rig.lie().contains("4 GiB"));
    rig.table(0, 0x8000, 16, INDIRECT | NEXT, 1);
    assert!(rig.lie().contains("goes on"));
    for len in [0, 8, 17, 16 * 1025] {
        rig.table(0, 0x8000, len, INDIRECT, 0);
        assert!(rig.lie().contains("length"), "{len}");
    }
    rig.table(0, 1 << 40, 16, INDIRECT, 0);
    assert!(rig.lie().contains("not") || rig.queue.pop(&rig.memory).is_err());
    rig.table(0, 0x8000, 32, INDIRECT, 0);
    rig.descriptor(0x8000, 0, 1, NEXT, 1);
    rig.descriptor(0x8010, 0, 1, NEXT, 0);
    assert!(rig.lie().contains("loop in an indirect table"));
    rig.descriptor(0x8010, 0x9000, 16, INDIRECT, 0);
    assert!(rig.lie().contains("table in a table"));
    rig.descriptor(0x8000, 0, 1, NEXT, 2);
    assert!(rig.lie().contains("outside its indirect table"));
    let mut plain = Rig::new(RingFeatures { indirect: false, ..SPLIT });
    plain.available(0, 1);
    plain.table(0, 0x8000, 16, INDIRECT, 0);
    assert!(plain.lie().contains("not negotiated"));
    // A walk that finds no end is not taken: the chain is still there when it has one.
    rig.descriptor(0x8000, 0, 1, NEXT, 1);
    rig.descriptor(0x8010, 7, 1, WRITE, 2);
    let chain = rig.queue.pop(&rig.memory).unwrap().unwrap();
    assert_eq!((chain.readable.bytes(), chain.writable.ranges()[0].gpa), (1, Gpa(7)));
}

#[test]
fn packed_chains() {
    let mut rig = Rig::new(PACKED);
    assert!(rig.queue.pop(&rig.memory).unwrap().is_none());
    for place in 0..4 {
        rig.table(place, 0, 1, 0, AVAIL | NEXT);
    }
    assert!(rig.lie().contains("no end"));
    rig.table(0, 0x8000, 16, 0, AVAIL | INDIRECT | NEXT);
    assert!(rig.lie().contains("goes on"));
    rig.table(0, 0x8000, 24, 0, AVAIL | INDIRECT);
    assert!(rig.lie().contains("length"));
    rig.table(0, 0, 1, 0, AVAIL | NEXT | WRITE);
    assert!(rig.lie().contains("behind one to write"));
    // Three places, never given back, then three more.
    rig.table(0, 0, 1, 0, AVAIL | NEXT);
    rig.table(2, 0, 1, 0, AVAIL);
    assert!(rig.queue.pop(&rig.memory).unwrap().is_some());
    rig.table(3, 0, 1, 0, AVAIL | NEXT);
    rig.table(0, 0, 1, 0, AVAIL | NEXT);
    rig.table(1, 0, 1, 0, AVAIL);
    assert!(rig.lie().contains("given back"));
}

#[test]
fn wishes_that_cannot_be_are_answers_too() {
    let mut rig = Rig::new(RingFeatures { event_index: true, ..PACKED });
    rig.table(0, 0, 1, 7, AVAIL);
    let chain = rig.queue.pop(&rig.memory).unwrap().unwrap();
    rig.queue.push(&rig.memory, chain.ticket, u32::MAX).unwrap();
    rig.memory.write_word(Gpa(AREAS.driver), 0xffff_u16).unwrap();
    rig.memory.write_word(Gpa(AREAS.driver + 2), 2u16).unwrap();
    let _ = rig.queue.wants_interrupt(&rig.memory).unwrap();
    assert!(!rig.queue.wants_interrupt(&rig.memory).unwrap(), "nothing was used since");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any bytes at all: what comes out stays within bounds.
    #[test]
    fn any_memory_is_a_ring(
        packed in any::<bool>(), event_index in any::<bool>(), indirect in any::<bool>(),
        size in 0..7u32,
        bytes in prop::collection::vec(any::<u8>(), 0x400),
    ) {
        let memory = memory();
        // The areas overlap, so that what the device writes is what it reads next.
        let areas = Areas { descriptors: 0x1000, driver: 0x1040, device: 0x1080 };
        memory.write(Gpa(0x1000), &bytes).unwrap();
        let size = 1u16 << size;
        let mut queue = Queue::new(size, &areas, RingFeatures { packed, event_index, indirect }).unwrap();
        let mut out = 0u32;
        for turn in 0..100 {
            match queue.pop(&memory) {
                Ok(Some(chain)) => {
                    out += 1;
                    prop_assert!(out <= u32::from(size));
                    prop_assert!(chain.readable.ranges().len() + chain.writable.ranges().len() <= MAX_CHAIN);
                    if turn % 3 != 0 {
                        queue.push(&memory, chain.ticket, turn).unwrap();
                        out -= 1;
                        queue.wants_interrupt(&memory).unwrap();
                    }
                }
                Ok(None) => {
                    let _ = queue.listen(&memory);
                }
                Err(_) => break,
            }
        }
    }
}
