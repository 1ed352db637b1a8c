//! Slots as the methods of the DSDT use them, and as nobody should.

use bus::Latch;
use proptest::prelude::*;

use super::*;
use crate::harness::{self, Requests, Rig};

/// A function of one word.
#[derive(Default)]
struct Word {
    value: u32,
    paused: bool,
}

#[derive(Serialize, Deserialize)]
struct WordState(u32);

impl Saved for WordState {
    const NAME: &'static str = "word";
    const VERSION: u16 = 1;
}

impl Lifecycle for Word {
    fn name(&self) -> &'static str {
        WordState::NAME
    }
    fn reset(&mut self) {
        self.value = 0;
    }
    fn pause(&mut self) {
        self.paused = true;
    }
    fn resume(&mut self) {
        self.paused = false;
    }
    fn save(&self) -> Record {
        Record::encode(&WordState(self.value))
    }
    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        let WordState(value) = record.decode()?;
        if value == u32::MAX {
            return Err(StateError::Damaged { name: "word", reason: "all ones".into() });
        }
        self.value = value;
        Ok(())
    }
}

impl Device for Word {
    fn regions(&self) -> Vec<Region> {
        Vec::new()
    }
    fn read(&mut self, _: usize, _: u64, _: &mut [u8]) {}
    fn write(&mut self, _: usize, _: u64, _: &[u8]) {}
}

impl Function for Word {
    fn read_config(&mut self, _: u64, data: &mut [u8]) {
        data.fill(7);
    }
    fn write_config(&mut self, _: u64, _: &[u8]) {}
}

#[derive(Default)]
struct Basket(Mutex<Vec<usize>>);

impl Keeper for Basket {
    fn ejected(&self, slot: usize, _function: Arc<Mutex<dyn Function>>) {
        self.0.lock().unwrap().push(slot);
    }
}

impl Basket {
    fn take(&self) -> Vec<usize> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

const IDS: [FunctionId; 3] = [FunctionId::on_root(31), FunctionId::on_root(30), FunctionId::on_root(29)];

struct Board {
    chip: Slots,
    pci: Arc<Mutex<Pci>>,
    basket: Arc<Basket>,
    line: Latch,
}

impl Board {
    fn new() -> Self {
        let pci = Arc::new(Mutex::new(Pci::new(Arc::new(Requests::default()))));
        let basket = Arc::<Basket>::default();
        let line = Latch::default();
        let chip = Slots::new(pci.clone(), &IDS, Arc::new(line.clone()), basket.clone());
        Self { chip, pci, basket, line }
    }

    fn insert(&mut self, slot: usize, value: u32) -> (bool, Arc<Mutex<Word>>) {
        let word = Arc::new(Mutex::new(Word { value, paused: false }));
        (self.chip.insert(slot, word.clone()), word)
    }

    fn get(&mut self, register: u64) -> u16 {
        let mut data = [0; 2];
        self.chip.read(0, register, &mut data);
        u16::from_le_bytes(data)
    }

    fn put(&mut self, register: u64, value: u16) {
        self.chip.write(0, register, &value.to_le_bytes());
    }

    /// Whether a function answers on the bus.
    fn answers(&self, slot: usize) -> bool {
        let mut data = [0xff; 4];
        lock(&self.pci).read(2, u64::from(IDS[slot].0) << 12, &mut data);
        data == [7; 4]
    }
}

#[test]
fn a_function_comes_is_asked_for_and_goes() {
    let mut board = Board::new();
    assert!(board.insert(1, 5).0 && !board.insert(1, 6).0 && !board.insert(3, 6).0);
    assert!(board.answers(1) && !board.answers(0));
    assert_eq!((board.get(INSERTED), board.get(WANTED), board.get(EJECT)), (2, 0, 2));
    assert!(board.line.is_high());
    board.put(INSERTED, 2);
    assert!(!board.line.is_high());
    assert_eq!((board.get(INSERTED), board.chip.occupancy(1)), (0, Occupancy::New));
    board.put(HEARD, 2);
    assert_eq!(board.chip.occupancy(1), Occupancy::Known);
    assert!(board.chip.request(1) && !board.chip.request(0));
    assert_eq!((board.get(WANTED), board.chip.occupancy(1)), (2, Occupancy::Leaving));
    board.put(WANTED, 2);
    board.put(HEARD, 2);
    assert!(board.answers(1) && board.basket.take().is_empty());
    board.put(EJECT, 2);
    assert!(!board.answers(1));
    assert_eq!((board.basket.take(), board.chip.occupancy(1)), (vec![1], Occupancy::Empty));
    board.put(EJECT, 0xffff);
    assert!(board.basket.take().is_empty(), "once");
    assert!(board.insert(1, 6).0);
}

#[test]
fn a_slot_that_was_emptied_by_force_waits_for_the_guest() {
    let mut board = Board::new();
    board.insert(0, 1);
    assert!(board.chip.take(0) && !board.chip.take(0) && !board.answers(0));
    assert_eq!((board.basket.take(), board.get(WANTED), board.get(EJECT)), (vec![0], 1, 0));
    assert!(!board.insert(0, 2).0, "an eject may still be coming");
    board.put(EJECT, 1);
    assert!(board.insert(0, 2).0 && board.basket.take().is_empty());
    assert!(board.chip.take(0));
    board.chip.reset();
    assert_eq!((board.chip.occupancy(0), board.get(WANTED)), (Occupancy::Empty, 0));
}

#[test]
fn a_reset_takes_out_what_was_asked_for_and_keeps_the_rest() {
    let mut board = Board::new();
    let (_, kept) = board.insert(0, 1);
    board.insert(2, 1);
    board.chip.request(2);
    board.chip.pause();
    assert!(kept.lock().unwrap().paused);
    board.chip.reset();
    assert_eq!((board.basket.take(), board.get(INSERTED), board.get(EJECT)), (vec![2], 0, 1));
    assert_eq!((board.chip.occupancy(0), kept.lock().unwrap().value), (Occupancy::Known, 0));
    board.chip.resume();
    assert!(!kept.lock().unwrap().paused);
}

#[test]
fn a_record_is_for_the_same_functions_and_is_taken_over_whole_or_not_at_all() {
    let mut board = Board::new();
    board.insert(0, 1);
    board.insert(1, u32::MAX);
    let record = board.chip.save();
    let mut other = Board::new();
    let says = |board: &mut Board| board.chip.restore(&record).unwrap_err().to_string();
    assert!(says(&mut other).contains("slot 1 had a device in it, and has no device now"));
    let (_, first) = other.insert(0, 2);
    other.insert(1, 3);
    assert!(says(&mut other).contains("all ones"));
    assert_eq!(first.lock().unwrap().value, 2, "as it was");
    other.insert(2, 3);
    assert!(says(&mut other).contains("slot 3 had no device in it"));
    let lie = SlotState { occupancy: Occupancy::Known, inserted: false, wanted: false, function: None };
    let lie = Record::encode(&SlotsState(vec![lie.clone(), lie.clone(), lie]));
    assert!(Board::new().chip.restore(&lie).is_err());
}

#[test]
fn empty_slots_stand_any_access_and_survive_a_save() {
    harness::check(|| {
        let board = Board::new();
        Rig::new(board.chip).driving(&[&board.line])
    });
}

#[derive(Clone, Debug)]
enum Op {
    Insert(usize),
    Request(usize),
    Take(usize),
    Write(u64, Vec<u8>),
    Reset,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => (0..4usize).prop_map(Op::Insert),
        2 => (0..4usize).prop_map(Op::Request),
        1 => (0..4usize).prop_map(Op::Take),
        6 => (0..8u64, prop::collection::vec(any::<u8>(), 1..=2))
            .prop_map(|(at, bytes)| Op::Write(at.min(8 - bytes.len() as u64), bytes)),
        1 => Just(Op::Reset),
    ];
    prop::collection::vec(op, 0..40)
}

proptest! {
    #[test]
    fn whatever_a_guest_writes_costs_it_its_own_functions_at_most(ops in ops()) {
        let mut board = Board::new();
        let mut inside = 0;
        for op in ops {
            match op {
                Op::Insert(slot) => inside += usize::from(board.insert(slot, 9).0),
                Op::Request(slot) => drop(board.chip.request(slot)),
                Op::Take(slot) => drop(board.chip.take(slot)),
                Op::Write(at, bytes) => board.chip.write(0, at, &bytes),
                Op::Reset => board.chip.reset(),
            }
            inside -= board.basket.take().len();
            let there: Vec<_> = (0..IDS.len()).filter(|slot| board.chip.occupancy(*slot).is_function()).collect();
            prop_assert_eq!(there.len(), inside, "each is handed over once");
            for slot in 0..IDS.len() {
                prop_assert_eq!(board.answers(slot), board.chip.occupancy(slot).is_function());
            }
            let news = board.get(INSERTED) | board.get(WANTED);
            prop_assert_eq!(board.line.is_high(), news != 0);
            // The same elsewhere.
            let record = board.chip.save();
            let mut other = Board::new();
            there.into_iter().for_each(|slot| drop(other.insert(slot, 0)));
            prop_assert!(other.chip.restore(&record).is_ok());
            prop_assert_eq!(other.chip.save(), record);
        }
    }
}
