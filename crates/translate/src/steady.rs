//! Loops whose accesses are checked for many turns at once.
//!
//! A block that jumps back to its own beginning, and whose addresses advance by a constant each turn, is translated
//! twice. The first translation is as any block's. After a few turns its jump back leads to a *survey*: each *stream* of accesses (those of
//! one base and index near each other) is looked up in the TLB, and from what is left of its page follows how many turns
//! it stays there. For the least of these numbers of turns the second translation runs, the *steady* one, whose accesses
//! add the displacement of their stream's page and check nothing; a register that advances with the turns says when they
//! are over, and the survey follows again. If some stream is not to be had, because its page is not cached or a range
//! lies in two, the next turn is the first translation's, which finds out what is the matter.
//!
//! A pointer that is loaded in every turn from one place, as a global variable is whenever the loop writes something
//! that it might alias, is *foreseen*: the survey loads it, streams may go by it, and the steady translation compares
//! what its own load brings and leaves the loop if that is not the same.
//!
//! What cannot be foreseen, such as an index out of a table, is checked turn by turn in both translations. Calls for
//! attention are answered at each survey, which is at most a page's worth of turns away.
//!
//! What a survey has found holds until the loop is left: this vCPU changes no mapping meanwhile, and whatever drops a
//! translation drops the way back into the loop with it.
//!
//! This file finds out what is known of a loop; the code is made by [`crate::survey`].

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::block::Mode;
use crate::branch::target_of;
use crate::catalogue;
use crate::context::FORESEEN;
use crate::facts;
use crate::groups::{Member, constant_change};
use crate::host::Gpr;
use crate::x87;

/// Streams of a loop at the most: what a survey costs has to be won back.
const MAX_STREAMS: usize = 8;
/// The most that a stream may span, in bytes.
const MAX_SPAN: i32 = 512;
/// The most by which a stream may advance in a turn: beyond it there are too few turns to a page.
const MAX_STEP: i32 = 256;

/// What a sum is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Term {
    /// A register as it is at the beginning of a turn.
    Register(Gpr),
    /// A foreseen pointer, by number.
    Foreseen(u8),
}

/// A sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sum {
    base: Option<Term>,
    /// And how far it is shifted left.
    index: Option<(Term, u8)>,
    constant: i32,
}

/// What registers hold.
type Values = [Option<Sum>; 16];

impl Sum {
    const fn of(term: Term) -> Self {
        Self { base: Some(term), index: None, constant: 0 }
    }

    /// The foreseen pointer that it is and nothing else.
    fn foreseen(self) -> Option<u8> {
        match self {
            Self { base: Some(Term::Foreseen(number)), index: None, constant: 0 } => Some(number),
            _ => None,
        }
    }

    fn plus(self, constant: i32) -> Option<Self> {
        Some(Self { constant: self.constant.checked_add(constant)?, ..self })
    }
}

/// Where a stream's accesses are at the beginning of a turn, but for a constant, and what their displacement includes
/// besides the page's: what the operand has no room for next to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) base: Option<Term>,
    pub(crate) index: Option<(Term, u8)>,
    pub(crate) folded: Folded,
}

impl Place {
    fn goes_by(&self, pointer: u8) -> bool {
        let is = |term: Term| term == Term::Foreseen(pointer);
        self.base.is_some_and(is) || self.index.is_some_and(|(index, _)| is(index))
    }
}

/// What a displacement includes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Folded {
    Nothing,
    Register(Gpr),
    /// The foreseen pointer of this number, which this register holds.
    Foreseen(Gpr, u8),
    /// The address of the code's page.
    Page,
}

/// Accesses that are checked together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) place: Place,
    /// Their range.
    pub(crate) low: i32,
    pub(crate) high: i32,
    pub(crate) write: bool,
    /// How far it advances in a turn.
    pub(crate) step: i32,
}

/// A load of a pointer that is foreseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Foreseen {
    /// Which instruction loads it.
    pub(crate) instruction: usize,
    pub(crate) register: Gpr,
    /// The stream that it is loaded from, and where in terms of its place.
    pub(crate) stream: u8,
    pub(crate) constant: i32,
}

/// What is known of a loop.
#[derive(Debug, Default)]
pub(crate) struct Steady {
    pub(crate) streams: Vec<Stream>,
    /// By instruction: the stream of its access, and what the operand's registers come to at the beginning of a turn.
    pub(crate) members: Vec<Option<Member>>,
    /// By instruction: its address is where it was in the turn before, or near it.
    near: Vec<bool>,
    /// By number.
    foreseen: Vec<Foreseen>,
    /// A register that advances, and by how much.
    pub(crate) counter: Option<(Gpr, i32)>,
}

/// A turn, followed instruction by instruction.
struct Turn {
    /// By instruction: what its operand in memory comes to, and what of it a stream's displacement includes.
    accesses: Vec<(Option<Sum>, Option<Folded>)>,
    /// By register: how far it advances.
    steps: [Option<i32>; 16],
}

impl Steady {
    /// What is known of `run`, if it is a loop that jumps back to its first instruction.
    pub(crate) fn find(run: &[Instruction], mode: Mode) -> Option<Self> {
        let (first, last) = (run.first()?, run.last()?);
        let back = last.is_jcc_short_or_near() && target_of(last) == Ok(first.ip().cast_signed());
        if !back || run.len() < 2 || mode.has(Mode::COMPAT) {
            return None;
        }
        let written = run.iter().fold(0, |written, insn| written | facts::changed(insn));
        let mut loads = Vec::new();
        let turn = loop {
            let turn = Turn::follow(run, &loads, written);
            let known = loads.len();
            loads.extend(turn.more_loads(run, &loads));
            if loads.len() == known {
                break turn;
            }
        };
        let mut found = Self::default();
        for (insn, &(sum, folded)) in run.iter().zip(&turn.accesses) {
            let near = sum.and_then(|sum| turn.step_of(&sum)).filter(|step| step.abs() <= MAX_STEP);
            found.near.push(near.is_some());
            let member = near
                .zip(sum)
                .zip(folded)
                .and_then(|((step, sum), folded)| found.join(insn, sum, step, folded));
            found.members.push(member);
        }
        let pointers = loads.iter().map(|&load| found.pointer(run.get(load)?, load, &turn));
        let pointers: Option<Vec<_>> = pointers.collect();
        let may_be_steady =
            pointers.is_some() && !mode.has(Mode::PLAIN) && run[..run.len() - 1].iter().all(is_simple);
        found.foreseen = pointers.unwrap_or_default();
        if may_be_steady && (1..=MAX_STREAMS).contains(&found.streams.len()) {
            let counter =
                |number| Some((Gpr::new(number), turn.steps[usize::from(number)].filter(|&step| step != 0)?));
            found.counter = (0..16).filter_map(counter).find(|(register, _)| register.home().is_some());
        }
        Some(found)
    }

    /// Whether the address of an instruction's access is where it was in the turn before, or near it.
    pub(crate) fn is_near(&self, instruction: usize) -> bool {
        self.near.get(instruction).is_some_and(|&near| near)
    }

    /// The foreseen pointers that a stream goes by, with their numbers.
    pub(crate) fn pointers(&self) -> impl Iterator<Item = (u8, &Foreseen)> {
        (0..)
            .zip(&self.foreseen)
            .filter(|&(number, _)| self.streams.iter().any(|stream| stream.place.goes_by(number)))
    }

    /// The pointer that an instruction loads.
    fn pointer(&self, insn: &Instruction, instruction: usize, turn: &Turn) -> Option<Foreseen> {
        let Member { group: stream, .. } = (*self.members.get(instruction)?)?;
        let constant = turn.accesses.get(instruction)?.0?.constant;
        Some(Foreseen { instruction, register: Gpr::of(insn.op0_register())?, stream, constant })
    }

    /// Adds an access to a stream.
    fn join(&mut self, insn: &Instruction, sum: Sum, step: i32, folded: Folded) -> Option<Member> {
        let shift = sum.constant.checked_sub(catalogue::displacement(insn)?)?;
        let place = Place { base: sum.base, index: sum.index, folded };
        let low = sum.constant;
        let high = low.checked_add(i32::try_from(insn.memory_size().size()).ok()?)?;
        let write = facts::writes_memory(insn);
        for (number, stream) in (0..).zip(&mut self.streams) {
            let (all_low, all_high) = (stream.low.min(low), stream.high.max(high));
            if stream.place == place && all_high.checked_sub(all_low).is_some_and(|span| span <= MAX_SPAN) {
                (stream.low, stream.high) = (all_low, all_high);
                stream.write |= write;
                return Some(Member { group: number, shift });
            }
        }
        self.streams.push(Stream { place, low, high, write, step });
        let group = u8::try_from(self.streams.len() - 1).ok()?;
        Some(Member { group, shift })
    }
}

/// Whether an instruction has an operand in memory that it reads or writes in the copied way.
fn accessed(insn: &Instruction) -> Option<()> {
    let copied = catalogue::implicit(insn).is_some() && insn.memory_size().size() > 0;
    (copied && catalogue::names_memory(insn)).then_some(())
}

/// Whether a steady loop may contain an instruction.
fn is_simple(insn: &Instruction) -> bool {
    let forward = || target_of(insn).is_ok_and(|to| to > insn.ip().cast_signed());
    match insn.flow_control() {
        FlowControl::Next => {
            (catalogue::implicit(insn).is_some() && x87::kind(insn).is_none())
                || matches!(insn.mnemonic(), Mnemonic::Lea | Mnemonic::Nop | Mnemonic::Endbr64)
        }
        FlowControl::ConditionalBranch => insn.is_jcc_short_or_near() && forward(),
        _ => false,
    }
}

/// The address that a memory operand names, by the values of registers.
fn address(insn: &Instruction, values: &Values) -> Option<Sum> {
    if matches!(insn.memory_segment(), Register::FS | Register::GS) {
        return None;
    }
    let constant = catalogue::displacement(insn)?;
    let (base, index) = (insn.memory_base(), insn.memory_index());
    if base == Register::RIP {
        return Some(Sum { base: None, index: None, constant });
    }
    let value = |register: Register| {
        let register = Gpr::of(register).filter(|_| register.is_gpr64())?;
        values[usize::from(register.number())]
    };
    let shift = u8::try_from(insn.memory_index_scale().trailing_zeros()).ok()?;
    match (base, index) {
        (Register::None, _) => None,
        (base, Register::None) => value(base)?.plus(constant),
        (base, index) => {
            let (base, index) = (value(base)?, value(index)?);
            let (Some(scaled), None, None) = (index.base, index.index, base.index) else { return None };
            let constant = index.constant.checked_mul(1 << shift)?.checked_add(constant)?;
            Sum { index: Some((scaled, shift)), ..base }.plus(constant)
        }
    }
}

/// What an instruction makes of the values of registers; it may load the foreseen pointer of this number.
fn follow(insn: &Instruction, pointer: Option<u8>, values: &mut Values) {
    let value = match insn.mnemonic() {
        _ if pointer.is_some() => pointer.map(|number| Sum::of(Term::Foreseen(number))),
        _ if insn.op0_kind() != OpKind::Register || !insn.op0_register().is_gpr64() => None,
        Mnemonic::Lea if insn.memory_base() != Register::RIP => address(insn, values),
        Mnemonic::Mov if insn.op1_kind() == OpKind::Register => {
            Gpr::of(insn.op1_register()).and_then(|from| values[usize::from(from.number())])
        }
        _ => constant_change(insn, false)
            .and_then(|(register, by)| values[usize::from(register.number())]?.plus(by)),
    };
    for register in Gpr::of_bits(facts::changed(insn)) {
        let own = Gpr::of(insn.op0_register()) == Some(register);
        values[usize::from(register.number())] = value.filter(|_| own);
    }
}

impl Turn {
    /// Follows a turn of a loop that writes the registers in `written`, a bit each, and where the instructions in `loads`
    /// bring foreseen pointers.
    fn follow(run: &[Instruction], loads: &[usize], written: u16) -> Self {
        let own = |number: u8| Sum::of(Term::Register(Gpr::new(number)));
        let mut values: Values = std::array::from_fn(|number| u8::try_from(number).ok().map(own));
        let mut accesses = Vec::with_capacity(run.len());
        for (number, insn) in run.iter().enumerate() {
            let sum = accessed(insn).and_then(|()| address(insn, &values));
            accesses.push((sum, sum.and_then(|_| folded(insn, written, &values))));
            let pointer = loads.iter().position(|&load| load == number);
            follow(insn, pointer.and_then(|pointer| u8::try_from(pointer).ok()), &mut values);
        }
        let mut steps = [None; 16];
        for ((number, value), step) in (0..).zip(values).zip(&mut steps) {
            let advanced = value.filter(|&sum| Sum { constant: 0, ..sum } == own(number));
            *step = advanced.map(|sum| sum.constant);
        }
        Self { accesses, steps }
    }

    /// How far an address advances in a turn.
    fn step_of(&self, sum: &Sum) -> Option<i32> {
        let of = |term: Term| match term {
            Term::Register(register) => self.steps[usize::from(register.number())],
            Term::Foreseen(_) => Some(0),
        };
        let base = sum.base.map_or(Some(0), of)?;
        let index = sum.index.map_or(Some(0), |(index, shift)| of(index)?.checked_mul(1 << shift))?;
        base.checked_add(index)
    }

    /// Instructions besides `loads` that bring a pointer from the same place in every turn, which the loop does not write
    /// as far as one can see.
    fn more_loads(&self, run: &[Instruction], loads: &[usize]) -> Vec<usize> {
        let brings = |&(number, insn): &(usize, &Instruction)| {
            let stays = |sum: &Sum| self.step_of(sum) == Some(0) && !self.writes(run, sum);
            is_load(insn) && !loads.contains(&number) && self.place(number).is_some_and(|sum| stays(&sum))
        };
        let room = FORESEEN - loads.len();
        run.iter().enumerate().filter(brings).map(|(number, _)| number).take(room).collect()
    }

    /// What the operand of an instruction comes to, if it can belong to a stream.
    fn place(&self, instruction: usize) -> Option<Sum> {
        let (sum, folded) = *self.accesses.get(instruction)?;
        sum.filter(|_| folded.is_some())
    }

    /// Whether an instruction writes the word at `place`, as far as one can see.
    fn writes(&self, run: &[Instruction], place: &Sum) -> bool {
        let constant = |sum: &Sum| Sum { constant: 0, ..*sum };
        run.iter().zip(&self.accesses).any(|(insn, (sum, _))| {
            let near = |sum: &Sum| sum.constant.abs_diff(place.constant) < NEAR;
            facts::writes_memory(insn)
                && sum.is_some_and(|sum| constant(&sum) == constant(place) && near(&sum))
        })
    }
}

/// Writes so near may be to the same word: no operand is larger.
const NEAR: u32 = 64;

/// Whether an instruction loads a whole register.
fn is_load(insn: &Instruction) -> bool {
    insn.mnemonic() == Mnemonic::Mov && insn.op0_register().is_gpr64() && insn.op1_kind() == OpKind::Memory
}

/// What the displacement of an operand has to include: of two registers one that the loop, which writes those in `written`,
/// leaves alone, or that holds a foreseen pointer.
fn folded(insn: &Instruction, written: u16, values: &Values) -> Option<Folded> {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    if base == Register::RIP {
        return Some(Folded::Page);
    }
    if index == Register::None {
        return Some(Folded::Nothing);
    }
    let unscaled = Gpr::of(index).filter(|_| insn.memory_index_scale() == 1);
    let candidates = || [Gpr::of(base), unscaled].into_iter().flatten();
    let stays = |register: &Gpr| written >> register.number() & 1 == 0;
    let pointer = |register: Gpr| {
        let number = values[usize::from(register.number())]?.foreseen()?;
        Some(Folded::Foreseen(register, number))
    };
    candidates().find(stays).map(Folded::Register).or_else(|| candidates().find_map(pointer))
}
