//! The code of steady loops ([`crate::steady`]): the survey, and the translation that checks nothing.

use iced_x86::Instruction;

use crate::asm::{Condition, Hole, Op};
use crate::block::Form;
use crate::branch::{condition_of, go_on, poll_freely};
use crate::context::at;
use crate::emit::{Emitter, Result, Unsupported};
use crate::groups::{Group, Key, Member};
use crate::host::Gpr;
use crate::steady::{Folded, Foreseen, Place, Steady, Stream, Term};

/// Turns between surveys, less one, where no stream advances.
const MAX_TURNS: i32 = 255;
/// Turns without a survey: most loops end before one would have paid.
const FIRST_TURNS: u32 = 3;

/// Where a turn of the first translation begins, and the form of the flags there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    at: u32,
    form: Form,
}

impl Head {
    /// Begins the first translation, if there may be a steady one.
    pub(crate) fn begin(e: &mut Emitter<'_>, steady: &Steady) -> Option<Self> {
        steady.counter?;
        e.asm.gs_store_imm32(at::TURNS, FIRST_TURNS.wrapping_neg());
        Some(Self::here(e))
    }

    /// Turns begin here.
    pub(crate) fn here(e: &Emitter<'_>) -> Self {
        Self { at: e.asm.here(), form: e.form }
    }
}

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
            steady.pointers().filter(|(_, pointer)| pointer.instruction == number).for_each(
                |(pointer, brought)| {
                    compare(e, pointer, brought);
                },
            );
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
    go_on(e, e.next)?;
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
        e.load_delta(Gpr::RAX);
        let group = i32::try_from(first + number).map_err(|_| Unsupported)?;
        let delta = at::DELTAS + 8 * group;
        let from_here = |(_, pointer): &(u8, &Foreseen)| usize::from(pointer.stream) == number;
        if steady.pointers().any(|pointer| from_here(&pointer)) {
            e.asm.gs_store(delta, Gpr::RAX);
            for (pointer, &Foreseen { constant, .. }) in steady.pointers().filter(from_here) {
                stream_address(e, &Stream { low: constant, ..*stream })?;
                e.asm.gs_op(Op::Add, Gpr::RAX, delta);
                e.asm.load(Gpr::RAX, Gpr::RAX, 0);
                e.asm.gs_store(foreseen(pointer), Gpr::RAX);
            }
            e.asm.gs_load(Gpr::RAX, delta);
        }
        match stream.place.folded {
            Folded::Nothing => {}
            Folded::Page => e.asm.gs_op(Op::Add, Gpr::RAX, at::PAGE),
            Folded::Register(register) => {
                let register = e.read(register, Gpr::RCX);
                e.asm.op(Op::Add, Gpr::RAX, register);
            }
            Folded::Foreseen(_, pointer) => e.asm.gs_op(Op::Add, Gpr::RAX, foreseen(pointer)),
        }
        e.asm.gs_store(delta, Gpr::RAX);
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
            let base = term(e, base, Gpr::RAX);
            e.asm.lea(Gpr::RAX, base, low);
        }
        (base, Some((index, shift))) => {
            let index = term(e, index, Gpr::RCX);
            let base = term(e, base.ok_or(Unsupported)?, Gpr::RAX);
            e.asm.lea_indexed(true, Gpr::RAX, Some(base), index, shift, low);
        }
    }
    Ok(())
}

/// Where a term is: its home, or `scratch`.
fn term(e: &mut Emitter<'_>, term: Term, scratch: Gpr) -> Gpr {
    match term {
        Term::Register(register) => e.read(register, scratch),
        Term::Foreseen(pointer) => {
            e.asm.gs_load(scratch, foreseen(pointer));
            scratch
        }
    }
}

/// Where a foreseen pointer is kept.
fn foreseen(pointer: u8) -> i32 {
    at::FORESEEN + 8 * i32::from(pointer)
}

/// Leaves the loop if an instruction has brought another pointer than was foreseen.
fn compare(e: &mut Emitter<'_>, pointer: u8, brought: &Foreseen) {
    e.spare_flags();
    let register = e.read(brought.register, Gpr::RAX);
    e.asm.gs_op(Op::Cmp, register, foreseen(pointer));
    let another = e.asm.jcc(Condition::NOT_EQUAL);
    // No link: the flags may have to be computed on the way out.
    e.onward_from(another);
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

/// A jump that is taken with the flags as in `flags` leads to the next turn of the first translation.
pub(crate) fn turn_again(
    e: &mut Emitter<'_>,
    taken: Hole,
    flags: (Form, Option<crate::again::Again>),
    head: Head,
) {
    let agreed = match head.form {
        Form::Host => matches!(flags.0, Form::Host | Form::Both),
        Form::Dead => true,
        _ => matches!(flags.0, Form::Memory | Form::Both),
    };
    if agreed {
        e.asm.fill(taken, head.at);
        return;
    }
    e.asm.land(taken);
    e.set_flags(flags);
    next_turn(e, head);
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
