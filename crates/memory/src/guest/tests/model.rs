//! Random operations on memory of random layout, against a model that is a vector of bytes and a few maps.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Fill(u64, u64, u8),
    ReadWord(u64, u8),
    WriteWord(u64, u8, u64),
    /// The flag: whether to expect what is there.
    Exchange(u64, u8, u64, bool),
    SetKind(u64, FrameKind),
    Logging(bool),
    TakeDirty,
    MayCacheWrites(u64),
    Watch(u64),
}

/// What memory should be, byte by byte.
struct Model {
    /// Backed frames: kind and contents.
    frames: BTreeMap<u64, (FrameKind, Vec<u8>)>,
    logging: bool,
    dirty: BTreeSet<u64>,
    /// The version of each watched frame.
    watched: BTreeMap<u64, u32>,
    /// Frames that a writable translation may be cached of.
    writable: BTreeSet<u64>,
    /// Whether the operation under way has to raise the epoch.
    raised: bool,
}

impl Model {
    fn new(ranges: &[RamRange]) -> Self {
        let frames = ranges.iter().flat_map(|r| r.base.0..r.end().0);
        Self {
            frames: frames.map(|gfn| (gfn, (FrameKind::Ram, vec![0; 4096]))).collect(),
            logging: false,
            dirty: BTreeSet::new(),
            watched: BTreeMap::new(),
            writable: BTreeSet::new(),
            raised: false,
        }
    }

    fn kind(&self, gfn: u64) -> FrameKind {
        self.frames.get(&gfn).map_or(FrameKind::Mmio, |frame| frame.0)
    }

    fn log(&mut self, gfn: u64) {
        if self.logging {
            self.dirty.insert(gfn);
        }
    }

    fn written(&mut self, gfn: u64) {
        self.log(gfn);
        self.raised |= self.watched.remove(&gfn).is_some();
    }

    /// The byte at `gpa`; `None` if it cannot be read.
    fn load(&self, gpa: u64) -> Option<u8> {
        let (kind, bytes) = self.frames.get(&(gpa / 4096))?;
        match kind {
            FrameKind::Ram | FrameKind::ReadOnly | FrameKind::Shared => Some(bytes[index(gpa % 4096)]),
            FrameKind::Ballooned => Some(0),
            _ => None,
        }
    }

    /// Stores a byte; `None` if it cannot be written.
    fn store(&mut self, gpa: u64, byte: u8) -> Option<()> {
        let (kind, bytes) = self.frames.get_mut(&(gpa / 4096))?;
        match *kind {
            FrameKind::Ram => {}
            FrameKind::Ballooned => {
                *kind = FrameKind::Ram;
                self.raised = true;
            }
            _ => return None,
        }
        bytes[index(gpa % 4096)] = byte;
        self.written(gpa / 4096);
        Some(())
    }

    /// Loads until the end or a refusal.
    fn load_all(&self, gpa: u64, len: u64) -> Option<Vec<u8>> {
        gpa.checked_add(len.saturating_sub(1))?;
        (0..len).map(|i| self.load(gpa + i)).collect()
    }

    /// Stores until the end or a refusal.
    fn store_all(&mut self, gpa: u64, len: u64, byte: impl Fn(u64) -> u8) -> Option<()> {
        gpa.checked_add(len.saturating_sub(1))?;
        (0..len).try_for_each(|i| self.store(gpa + i, byte(i)))
    }

    fn set_kind(&mut self, gfn: u64, new: FrameKind) -> Option<()> {
        let (kind, bytes) = self.frames.get_mut(&gfn)?;
        if *kind == new {
            return Some(());
        }
        *kind = new;
        self.raised = true;
        if new == FrameKind::Ballooned {
            bytes.fill(0);
            self.written(gfn);
        }
        Some(())
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

fn exchange<W: Word>(memory: &GuestMemory, model: &mut Model, gpa: u64, new: u64, right: bool) {
    let size = W::BYTES as u64;
    let there = model.load_all(gpa, size).map(|bytes| word(&bytes));
    let expected = W::from_u64(there.unwrap_or(0) ^ u64::from(!right));
    let new = W::from_u64(new);
    let outcome = memory.mark_entry(Gpa(gpa), expected, new);
    let writable = matches!(model.kind(gpa / 4096), FrameKind::Ram | FrameKind::Ballooned);
    if gpa % 4096 + size > 4096 || !writable {
        assert!(outcome.is_err());
        return;
    }
    if right {
        assert_eq!(outcome.unwrap(), Ok(expected));
        let bytes = new.into_u64().to_le_bytes();
        model.store_all(gpa, size, |i| bytes[index(i)]).unwrap();
    } else {
        assert_eq!(outcome.unwrap().unwrap_err().into_u64(), there.unwrap());
        model.set_kind(gpa / 4096, FrameKind::Ram).unwrap();
    }
}

fn read_word<W: Word>(memory: &GuestMemory, model: &Model, gpa: u64) {
    let expected = model.load_all(gpa, W::BYTES as u64).map(|bytes| word(&bytes));
    assert_eq!(memory.read_word::<W>(Gpa(gpa)).ok().map(Word::into_u64), expected);
}

fn write_word<W: Word>(memory: &GuestMemory, model: &mut Model, gpa: u64, value: u64) {
    let done = memory.write_word(Gpa(gpa), W::from_u64(value)).ok();
    let bytes = value.to_le_bytes();
    assert_eq!(model.store_all(gpa, W::BYTES as u64, |i| bytes[index(i)]), done);
}

/// Does the same to both and compares what comes back.
fn apply(memory: &GuestMemory, model: &mut Model, op: Op) {
    match op {
        Op::Read(gpa, len) => {
            let mut bytes = vec![0xee; len];
            let done = memory.read(Gpa(gpa), &mut bytes).ok();
            assert_eq!(model.load_all(gpa, len as u64), done.map(|()| bytes));
        }
        Op::Write(gpa, bytes) => {
            let done = memory.write(Gpa(gpa), &bytes).ok();
            assert_eq!(model.store_all(gpa, bytes.len() as u64, |i| bytes[index(i)]), done);
        }
        Op::Fill(gpa, len, byte) => {
            assert_eq!(memory.fill(Gpa(gpa), len, byte).ok(), model.store_all(gpa, len, |_| byte));
        }
        Op::ReadWord(gpa, size) => match size {
            0 => read_word::<u8>(memory, model, gpa),
            1 => read_word::<u16>(memory, model, gpa),
            2 => read_word::<u32>(memory, model, gpa),
            _ => read_word::<u64>(memory, model, gpa),
        },
        Op::WriteWord(gpa, size, value) => match size {
            0 => write_word::<u8>(memory, model, gpa, value),
            1 => write_word::<u16>(memory, model, gpa, value),
            2 => write_word::<u32>(memory, model, gpa, value),
            _ => write_word::<u64>(memory, model, gpa, value),
        },
        Op::Exchange(gpa, size, new, right) => match size {
            0 => exchange::<u8>(memory, model, gpa, new, right),
            1 => exchange::<u16>(memory, model, gpa, new, right),
            2 => exchange::<u32>(memory, model, gpa, new, right),
            _ => exchange::<u64>(memory, model, gpa, new, right),
        },
        Op::SetKind(gfn, kind) => {
            assert_eq!(memory.set_kind(Gfn(gfn), kind).ok(), model.set_kind(gfn, kind));
        }
        Op::Logging(true) => {
            memory.start_dirty_log();
            (model.logging, model.raised) = (true, true);
            model.dirty.clear();
        }
        Op::Logging(false) => {
            memory.stop_dirty_log();
            model.logging = false;
        }
        Op::TakeDirty => {
            let dirty = std::mem::take(&mut model.dirty);
            model.raised |= !dirty.is_empty();
            assert_eq!(memory.take_dirty(), dirty.into_iter().map(Gfn).collect::<Vec<_>>());
        }
        Op::MayCacheWrites(gfn) => {
            if model.frames.contains_key(&gfn) {
                let allowed = memory.may_cache_writes(Gfn(gfn), memory.entry(Gfn(gfn)).mfn);
                assert_eq!(allowed, !model.watched.contains_key(&gfn));
                if allowed {
                    model.writable.insert(gfn);
                    model.log(gfn);
                }
            }
        }
        Op::Watch(gfn) => {
            if model.frames.contains_key(&gfn) {
                let mfn = memory.entry(Gfn(gfn)).mfn;
                let Watch { version, settled } = memory.watch_code(mfn);
                assert!(settled, "nobody has a seat");
                memory.mark_code(mfn, 0, 4096);
                model.raised = model.writable.remove(&gfn);
                assert_eq!(*model.watched.entry(gfn).or_insert(version), version);
            }
        }
    }
}

/// Addresses near the edges of frames, of the layout and of everything.
fn address() -> impl Strategy<Value = u64> {
    let near = (0u64..40, -20i64..20).prop_map(|(gfn, off)| (gfn * 4096).wrapping_add_signed(off));
    let far = prop_oneof![Just(1u64 << 44), Just(1 << 52), Just(u64::MAX - 10)];
    prop_oneof![8 => near, 8 => 0u64..40 * 4096, 1 => (far, 0u64..16).prop_map(|(a, b)| a.wrapping_add(b))]
}

fn frame() -> impl Strategy<Value = u64> {
    prop_oneof![30 => 0u64..40, 1 => any::<u64>()]
}

fn kind() -> impl Strategy<Value = FrameKind> {
    use FrameKind::{Absent, Ballooned, Mmio, Ram, ReadOnly, Shared, Swapped};
    prop_oneof![
        4 => Just(Ram), 1 => Just(ReadOnly), 1 => Just(Mmio), 1 => Just(Absent),
        2 => Just(Ballooned), 1 => Just(Shared), 1 => Just(Swapped)
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..100),
        (any::<u8>(), 0u64..10_000)
            .prop_map(|(start, len)| (0..len).map(|i| start.wrapping_add(x86::bits::low8(i))).collect())
    ];
    prop_oneof![
        4 => (address(), 0usize..10_000).prop_map(|(a, n)| Op::Read(a, n)),
        4 => (address(), bytes).prop_map(|(a, b)| Op::Write(a, b)),
        2 => (address(), 0u64..10_000, any::<u8>()).prop_map(|(a, n, b)| Op::Fill(a, n, b)),
        6 => (address(), 0u8..4).prop_map(|(a, s)| Op::ReadWord(a, s)),
        6 => (address(), 0u8..4, any::<u64>()).prop_map(|(a, s, v)| Op::WriteWord(a, s, v)),
        4 => (address(), 0u8..4, any::<u64>(), any::<bool>()).prop_map(|(a, s, v, r)| Op::Exchange(a, s, v, r)),
        3 => (frame(), kind()).prop_map(|(g, k)| Op::SetKind(g, k)),
        1 => any::<bool>().prop_map(Op::Logging),
        2 => Just(Op::TakeDirty),
        3 => frame().prop_map(Op::MayCacheWrites),
        3 => frame().prop_map(Op::Watch),
    ]
}

/// One to three ranges below frame 40, some touching, some apart.
fn layout() -> impl Strategy<Value = Vec<RamRange>> {
    prop::collection::vec((0u64..6, 1u64..8), 1..4).prop_map(|gaps| {
        let mut next = 0;
        let place = |(gap, frames): (u64, u64)| {
            let placed = range(next + gap, frames);
            next = placed.end().0;
            placed
        };
        gaps.into_iter().map(place).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn memory_does_what_the_model_does(ranges in layout(), ops in prop::collection::vec(op(), 1..60)) {
        let memory = GuestMemory::new(&ranges).unwrap();
        let mut model = Model::new(&ranges);
        for op in ops {
            let epoch = memory.epoch();
            model.raised = false;
            apply(&memory, &mut model, op);
            prop_assert_eq!(memory.epoch() != epoch, model.raised, "the epoch rises exactly when it must");
            for gfn in 0..41 {
                let entry = memory.entry(Gfn(gfn));
                prop_assert_eq!(entry.kind, model.kind(gfn));
                if model.frames.contains_key(&gfn) {
                    let watched = model.watched.get(&gfn);
                    prop_assert_eq!(memory.is_code(entry.mfn), watched.is_some());
                    prop_assert!(watched.is_none_or(|&version| version == memory.code_version(entry.mfn)));
                }
            }
        }
        // Every byte, whatever became of its frame.
        for (&gfn, (_, bytes)) in &model.frames {
            memory.set_kind(Gfn(gfn), FrameKind::Ram).unwrap();
            let mut page = [0; 4096];
            memory.read(Gfn(gfn).base(), &mut page).unwrap();
            prop_assert_eq!(&page[..], &bytes[..]);
        }
    }
}
