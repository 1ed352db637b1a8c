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
//! What cannot be foreseen, such as an index that was loaded, is checked turn by turn in both translations. Calls for
//! attention are answered at each survey, which is at most a page's worth of turns away.
//!
//! What a survey has found holds until the loop is left: this vCPU changes no mapping meanwhile, and whatever drops a
//! translation drops the way back into the loop with it.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::asm::{Condition, Hole, Op};
use crate::block::{Form, Mode};
use crate::branch::{condition_of, go_to, poll_freely, target_of};
use crate::catalogue;
use crate::context::at;
use crate::emit::{Emitter, Result, Unsupported};
use crate::facts;
use crate::groups::{Group, Key, Member, constant_change};
use crate::host::Gpr;
use crate::x87;

/// Streams of a loop at the most: what a survey costs has to be won back.
const MAX_STREAMS: usize = 8;
/// The most that a stream may span, in bytes.
const MAX_SPAN: i32 = 512;
/// The most by which a stream may advance in a turn: beyond it there are too few turns to a page.
const MAX_STEP: i32 = 256;
/// Turns between surveys, less one, where no stream advances.
const MAX_TURNS: i32 = 255;
/// Turns without a survey: most loops end before one would have paid.
const FIRST_TURNS: u32 = 3;

/// A sum of registers as they are at the beginning of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sum {
    base: Option<Gpr>,
    /// And how far it is shifted left.
    index: Option<(Gpr, u8)>,
    constant: i32,
}

impl Sum {
    const fn register(register: Gpr) -> Self {
        Self { base: Some(register), index: None, constant: 0 }
    }

    fn plus(self, constant: i32) -> Option<Self> {
        Some(Self { constant: self.constant.checked_add(constant)?, ..self })
    }
}

/// Where a stream's accesses are at the beginning of a turn, but for a constant, and what their displacement includes
/// besides the page's: what the operand has no room for next to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    base: Option<Gpr>,
    index: Option<(Gpr, u8)>,
    folded: Folded,
}

/// What a displacement includes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Folded {
    Nothing,
    Register(Gpr),
    /// The address of the code's page.
    Page,
}

/// Accesses that are checked together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stream {
    place: Place,
    /// Their range.
    low: i32,
    high: i32,
    write: bool,
    /// How far it advances in a turn.
    step: i32,
}

/// Where a turn of the first translation begins, and the form of the flags there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    at: u32,
    form: Form,
}

/// What is known of a loop.
#[derive(Debug, Default)]
pub(crate) struct Steady {
    streams: Vec<Stream>,
    /// By instruction: the stream of its access, and what the operand's registers come to at the beginning of a turn.
    members: Vec<Option<Member>>,
    /// By instruction: its address is where it was in the turn before, or near it.
    near: Vec<bool>,
    /// A register that advances, and by how much.
    counter: Option<(Gpr, i32)>,
}

impl Steady {
    /// What is known of `run`, if it is a loop that jumps back to its first instruction.
    pub(crate) fn find(run: &[Instruction], mode: Mode) -> Option<Self> {
        let (first, last) = (run.first()?, run.last()?);
        let back = last.is_jcc_short_or_near() && target_of(last) == Ok(first.ip().cast_signed());
        if !back || run.len() < 2 || mode.has(Mode::COMPAT) {
            return None;
        }
        let mut values: [Option<Sum>; 16] =
            std::array::from_fn(|i| u8::try_from(i).ok().map(|number| Sum::register(Gpr::new(number))));
        let (mut addresses, mut written) = (Vec::with_capacity(run.len()), 0);
        for insn in run {
            addresses.push(accessed(insn).and_then(|()| address(insn, &values)));
            written |= follow(insn, &mut values);
        }
        let mut steps = [None; 16];
        for (number, value) in (0..16).zip(values) {
            let own = value.filter(|sum| sum.base == Some(Gpr::new(number)) && sum.index.is_none());
            steps[usize::from(number)] = own.map(|sum| sum.constant);
        }
        let mut found = Self::default();
        for (insn, sum) in run.iter().zip(addresses) {
            let near = sum.and_then(|sum| step_of(&sum, &steps)).filter(|step| step.abs() <= MAX_STEP);
            found.near.push(near.is_some());
            let member = near.zip(sum).and_then(|(step, sum)| found.join(insn, sum, step, written));
            found.members.push(member);
        }
        let may_be_steady = !mode.has(Mode::PLAIN) && run[..run.len() - 1].iter().all(is_simple);
        if may_be_steady && (1..=MAX_STREAMS).contains(&found.streams.len()) {
            let counter =
                |number| Some((Gpr::new(number), steps[usize::from(number)].filter(|&step| step != 0)?));
            found.counter = (0..16).filter_map(counter).find(|(register, _)| register.home().is_some());
        }
        Some(found)
    }

    /// Begins the first translation, if there may be a steady one.
    pub(crate) fn head(&self, e: &mut Emitter<'_>) -> Option<Head> {
        self.counter?;
        e.asm.gs_store_imm32(at::TURNS, FIRST_TURNS.wrapping_neg());
        Some(Head { at: e.asm.here(), form: e.form })
    }

    /// Whether the address of an instruction's access is where it was in the turn before, or near it.
    pub(crate) fn is_near(&self, instruction: usize) -> bool {
        self.near.get(instruction).is_some_and(|&near| near)
    }

    /// Adds an access to a stream; the loop writes the registers in `written`, a bit each.
    fn join(&mut self, insn: &Instruction, sum: Sum, step: i32, written: u16) -> Option<Member> {
        let shift = sum.constant.checked_sub(catalogue::displacement(insn)?)?;
        let place = Place { base: sum.base, index: sum.index, folded: folded(insn, written)? };
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
fn address(insn: &Instruction, values: &[Option<Sum>; 16]) -> Option<Sum> {
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

/// What an instruction makes of the values of registers; those that it writes, a bit each.
fn follow(insn: &Instruction, values: &mut [Option<Sum>; 16]) -> u16 {
    let value = match insn.mnemonic() {
        _ if insn.op0_kind() != OpKind::Register || !insn.op0_register().is_gpr64() => None,
        Mnemonic::Lea if insn.memory_base() != Register::RIP => address(insn, values),
        Mnemonic::Mov if insn.op1_kind() == OpKind::Register => {
            Gpr::of(insn.op1_register()).and_then(|from| values[usize::from(from.number())])
        }
        _ => constant_change(insn, false)
            .and_then(|(register, by)| values[usize::from(register.number())]?.plus(by)),
    };
    let written = facts::changed(insn);
    for register in Gpr::of_bits(written) {
        let own = Gpr::of(insn.op0_register()) == Some(register);
        values[usize::from(register.number())] = value.filter(|_| own);
    }
    written
}

/// How far an address advances in a turn.
fn step_of(sum: &Sum, steps: &[Option<i32>; 16]) -> Option<i32> {
    let of = |register: Gpr| steps[usize::from(register.number())];
    let base = sum.base.map_or(Some(0), of)?;
    let index = sum.index.map_or(Some(0), |(index, shift)| of(index)?.checked_mul(1 << shift))?;
    base.checked_add(index)
}

/// What the displacement of an operand has to include: of two registers one, which must not be in `written`.
fn folded(insn: &Instruction, written: u16) -> Option<Folded> {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    if base == Register::RIP {
        return Some(Folded::Page);
    }
    if index == Register::None {
        return Some(Folded::Nothing);
    }
    let stays =
        |register: Register| Gpr::of(register).filter(|register| written >> register.number() & 1 == 0);
    let index = stays(index).filter(|_| insn.memory_index_scale() == 1);
    stays(base).or(index).map(Folded::Register)
}

// ---- the code ----------------------------------------------------------------------------------------------------

/// Ends the translation of a loop: its last instruction, the survey, and the steady translation of `run`, of whose
/// instructions `body` emits one. The first translation's turns begin at `head`; `map` is
/// the block's. `Err` if it cannot be, with nothing changed.
pub(crate) fn close<'a>(
    e: &mut Emitter<'a>,
    run: &[Instruction],
    steady: &Steady,
    head: Head,
    map: &mut Vec<(u32, u16)>,
    body: impl Fn(&mut Emitter<'a>, usize, &Instruction) -> Result,
) -> Result {
    let ((counter, step), Some(last)) = (steady.counter.ok_or(Unsupported)?, run.last()) else {
        return Err(Unsupported);
    };
    let counter = counter.home().ok_or(Unsupported)?;
    let (mark, mapped, groups) = (e.mark(), map.len(), e.groups.clone());
    let mut attempt = || {
        let before = groups.len();
        join_groups(e, steady)?;
        let survey = jump_back(e, last)?;
        e.asm.land(survey);
        e.at = x86::bits::low16(run[0].ip());
        e.spare_flags();
        let flags = e.flags();
        e.asm.gs_op32_imm8(Op::Add, at::TURNS, 1);
        let worth_it = e.asm.jcc(Condition::NOT_SIGN);
        next_turn(e, head);
        e.set_flags(flags);
        let again = e.asm.here();
        e.asm.fill(worth_it, again);
        poll_freely(e);
        let misses = take_survey(e, steady, counter, step)?;
        let start = e.asm.jmp();
        let top = e.asm.here();
        e.asm.gs_op(Op::Cmp, counter, at::LAST_TURN);
        let over = e.asm.jcc(Condition::EQUAL);
        e.asm.fill(over, again);
        e.asm.land(start);
        e.begin_turn(before);
        for (number, insn) in run[..run.len() - 1].iter().enumerate() {
            map.push((e.asm.here(), x86::bits::low16(insn.ip())));
            body(e, number, insn)?;
        }
        let ended = jump_to_top(e, last, flags, top);
        e.set_flags(flags);
        misses.into_iter().for_each(|miss| e.asm.land(miss));
        // No use to ask again soon; and what is counted must not wrap.
        e.asm.gs_store_imm32(at::TURNS, FIRST_TURNS.wrapping_neg());
        next_turn(e, head);
        ended
    };
    let outcome = attempt();
    if outcome.is_err() {
        e.roll_back(&mark);
        e.groups = groups;
        map.truncate(mapped);
    }
    outcome
}

/// Streams become groups, behind those that there are.
fn join_groups(e: &mut Emitter<'_>, steady: &Steady) -> Result {
    let first = e.groups.len();
    for stream in &steady.streams {
        let key = Key::Stream(stream.place.folded);
        e.groups.add(Group::of_stream(key, stream.low, stream.high, stream.write)).ok_or(Unsupported)?;
    }
    for (number, member) in steady.members.iter().enumerate() {
        let Some(Member { group, shift }) = *member else { continue };
        let group = u8::try_from(first + usize::from(group)).map_err(|_| Unsupported)?;
        e.groups.set_member(number, Member { group, shift });
    }
    Ok(())
}

/// The loop's last instruction: a jump to be filled in if there is another turn, and the way on.
fn jump_back(e: &mut Emitter<'_>, last: &Instruction) -> Result<Hole> {
    e.at = x86::bits::low16(last.ip());
    e.next = x86::bits::low16(last.next_ip());
    e.load_flags();
    let taken = e.asm.jcc(condition_of(last)?);
    let flags = e.flags();
    go_to(e, i64::from(e.next))?;
    e.set_flags(flags);
    Ok(taken)
}

/// The same in the steady translation, which begins a turn at `top` with the flags as in `flags`.
fn jump_to_top(
    e: &mut Emitter<'_>,
    last: &Instruction,
    flags: (Form, Option<crate::again::Again>),
    top: u32,
) -> Result {
    e.load_flags();
    match flags.0 {
        Form::Again if e.form == Form::Host && e.flags().1 == flags.1 => {}
        Form::Memory => {
            if e.form == Form::Host {
                e.save_flags();
            }
        }
        _ => return Err(Unsupported),
    }
    let taken = jump_back(e, last)?;
    e.asm.fill(taken, top);
    Ok(())
}

/// The displacements of all streams, and the counter's value after which a survey is due. The jumps are taken if a
/// stream is not to be had.
fn take_survey(e: &mut Emitter<'_>, steady: &Steady, counter: Gpr, step: i32) -> Result<Vec<Hole>> {
    let first = e.groups.len() - steady.streams.len();
    let mut misses = Vec::with_capacity(steady.streams.len());
    let mut counted = steady.streams.iter().all(|stream| stream.step == 0);
    if counted {
        e.asm.mov_imm_sx(Gpr::RAX, MAX_TURNS);
        e.asm.gs_store(at::TEMP, Gpr::RAX);
    }
    for (number, stream) in steady.streams.iter().enumerate() {
        let room = 4096 - (stream.high - stream.low);
        stream_address(e, stream)?;
        misses.push(e.hashed(room, stream.write));
        if stream.step != 0 {
            count_turns(e, stream, room, counted);
            counted = true;
        }
        e.load_delta(stream.write);
        match stream.place.folded {
            Folded::Nothing => {}
            Folded::Page => e.asm.gs_op(Op::Add, Gpr::RAX, at::PAGE),
            Folded::Register(register) => {
                let register = e.read(register, Gpr::RCX);
                e.asm.op(Op::Add, Gpr::RAX, register);
            }
        }
        let number = i32::try_from(first + number).map_err(|_| Unsupported)?;
        e.asm.gs_store(at::DELTAS + 8 * number, Gpr::RAX);
    }
    e.asm.gs_load(Gpr::RAX, at::TEMP);
    e.asm.imul_imm(Gpr::RAX, step);
    e.asm.lea_indexed(true, Gpr::RAX, Some(counter), Gpr::RAX, 0, step);
    e.asm.gs_store(at::LAST_TURN, Gpr::RAX);
    Ok(misses)
}

/// RAX = the linear address of the first byte of a stream's range.
fn stream_address(e: &mut Emitter<'_>, stream: &Stream) -> Result {
    let Stream { place: Place { base, index, .. }, low, .. } = *stream;
    match (base, index) {
        (None, None) => {
            e.asm.gs_load(Gpr::RAX, at::PAGE);
            e.asm.lea(Gpr::RAX, Gpr::RAX, low);
        }
        (Some(base), None) => {
            let base = e.read(base, Gpr::RAX);
            e.asm.lea(Gpr::RAX, base, low);
        }
        (base, Some((index, shift))) => {
            let index = e.read(index, Gpr::RCX);
            let base = e.read(base.ok_or(Unsupported)?, Gpr::RAX);
            e.asm.lea_indexed(true, Gpr::RAX, Some(base), index, shift, low);
        }
    }
    Ok(())
}

/// At [`at::TEMP`], how many turns there are after the next one: as far as the stream stays in its page, where it is at the
/// offset RAX and may be up to `room`, and if others were `counted` no more than they have. RAX is lost.
fn count_turns(e: &mut Emitter<'_>, stream: &Stream, room: i32, counted: bool) {
    if stream.step > 0 {
        e.asm.op32_imm(Op::Sub, Gpr::RAX, room);
        e.asm.neg32(Gpr::RAX);
    }
    // Rather too few than a division.
    let shift = stream.step.unsigned_abs().next_power_of_two().trailing_zeros();
    if let Ok(shift @ 1..) = u8::try_from(shift) {
        e.asm.shr(Gpr::RAX, shift);
    }
    if !counted {
        e.asm.gs_store(at::TEMP, Gpr::RAX);
        return;
    }
    e.asm.gs_op(Op::Cmp, Gpr::RAX, at::TEMP);
    let more = e.asm.jcc(Condition::ABOVE_EQUAL);
    e.asm.gs_store(at::TEMP, Gpr::RAX);
    e.asm.land(more);
}

/// The next turn is the first translation's.
fn next_turn(e: &mut Emitter<'_>, head: Head) {
    match head.form {
        Form::Host => e.load_flags(),
        Form::Dead => {}
        _ => e.free_flags(),
    }
    let turn = e.asm.jmp();
    e.asm.fill(turn, head.at);
}
