//! One block: decoding, the form its flags begin in, instruction after instruction.
//!
//! A block is a run of instructions within one page, from a point that something jumped to up to an instruction that
//! ends it: an unconditional transfer, a backward conditional one, one that is left to the interpreter, or the end of
//! the page. Forward conditional jumps end it only behind the second, or not at all in a loop. The code depends on nothing but the bytes, their place in the
//! page and the mode, so one translation serves every mapping of its page.

use iced_x86::{DecoderError, FlowControl, Instruction, Mnemonic};

use crate::block::{Block, Form, MOST_CODE, Mode, Source};
use crate::branch::{Flow, branch, enter_by_jump_cache, go_on, target_of};
use crate::catalogue;
use crate::compat;
use crate::copy::{copy, lea};
use crate::emit::{Emitter, Result, Tools, Unsupported};
use crate::facts;
use crate::flags::{effect, is_invalid};
use crate::groups::Groups;
use crate::lodgers::Lodgers;
use crate::self_check::{self, MAX_STORES};
use crate::special::special;
use crate::stack::stack;
use crate::steady::Steady;
use crate::survey::{Head, close};
use crate::system::system;
use crate::x87;

/// Instructions in a block at the most.
const MAX_INSTRUCTIONS: usize = 64;
/// Forward conditional jumps inside a block at the most: what follows them is the beginning of another block for whoever
/// jumps there, and would be translated twice.
const MAX_EXITS: usize = 2;
/// The same inside a loop.
const MAX_EXITS_OF_LOOP: usize = 8;
/// Instructions of a loop with more exits than another block may have.
const MAX_LOOP: usize = 48;

/// Translates blocks, one after the other.
#[derive(Default)]
pub struct Translator {
    tools: Tools,
}

impl Translator {
    /// Translates the block at the beginning of `source`; `None` if its first instruction does not lie in its bytes as a
    /// whole, or it would become too large.
    pub fn translate(&mut self, source: &Source<'_>) -> Option<Block> {
        translate(source, &mut self.tools).filter(|block| block.code.len() <= MOST_CODE)
    }
}

fn translate(source: &Source<'_>, tools: &mut Tools) -> Option<Block> {
    let run = decode(source);
    let form = first_form(&run);
    // An instruction that is left to the interpreter after all shows the flags that were thought dead.
    if form == Form::Dead {
        return block(source, tools, &run, form).or_else(|| block(source, tools, &run, Form::Memory));
    }
    block(source, tools, &run, form)
}

/// The translation of `run` with the flags first in a form, if there is a choice; `None` if that is [`Form::Dead`] and
/// cannot be.
fn block(source: &Source<'_>, tools: &mut Tools, run: &[Instruction], form: Form) -> Option<Block> {
    let end = page_offset(run.last()?.next_ip());
    let mut e = Emitter::new(source, tools);
    let mut block = Block { map: Vec::with_capacity(run.len()), ..Block::default() };
    if source.check.is_some() {
        begin_checking(&mut e, run, end, &mut block)?;
    } else if run.first().is_some_and(crosses) {
        begin_across(&mut e, &mut block).ok()?;
    } else {
        begin(&mut e, form, &mut block);
        block.entry_jump = block.entry_memory;
    }
    let lodgers = Lodgers::find(run, source);
    let renamed;
    let mut run = run;
    if !lodgers.is_empty() {
        renamed = lodgers.renamed(run);
        run = &renamed;
        e.lodgers = lodgers;
        e.let_in();
        e.head = Some(Head::here(&e));
    }
    e.one_page = run.iter().any(needs_one_page);
    e.groups = Groups::find(run, source.mode);
    let steady = Steady::find(run, source.mode);
    // Where it is plain, accesses across pages are to be expected, which only the look-ups of anchors can make.
    let plain = source.mode.has(Mode::PLAIN);
    let looping = is_loop(run) || plain;
    // A block that checks itself does so at each turn.
    let head =
        steady.as_ref().filter(|_| source.check.is_none()).and_then(|steady| Head::begin(&mut e, steady));
    let mut flow = Flow::Next;
    for (number, insn) in run.iter().enumerate() {
        e.streaming = match &steady {
            Some(steady) if !plain => steady.is_near(number),
            _ => looping,
        };
        block.map.push((e.asm.here(), page_offset(insn.ip())));
        block.instructions += 1;
        block.guest_bytes = page_offset(insn.next_ip()) - source.offset;
        if let Some(steady) = steady.as_ref().filter(|_| number + 1 == run.len())
            && let Some(head) = head
            && close(&mut e, run, steady, head, &mut block.map, |e, number, insn| {
                turn(e, steady, number, insn)
            })
            .is_ok()
        {
            flow = Flow::End;
            break;
        }
        let mark = e.mark();
        let shadowed = e.shadow;
        flow = match step(&mut e, number, insn) {
            Ok(flow) => flow,
            Err(Unsupported) if mark.form() == Form::Dead => return None,
            Err(Unsupported) => {
                e.roll_back(&mark);
                e.interpret();
                Flow::End
            }
        };
        if shadowed {
            e.shadow = false;
        }
        if flow == Flow::End {
            break;
        }
        self_check::after(&mut e, insn, end);
    }
    if flow == Flow::Next {
        go_on(&mut e, source.offset + block.guest_bytes).ok()?;
    }
    Some(e.finish(block))
}

/// Emits an instruction of the run.
fn step(e: &mut Emitter<'_>, number: usize, insn: &Instruction) -> Result<Flow> {
    let plain = e.source.mode.has(Mode::PLAIN);
    e.member = e.groups.member(number).filter(|_| !plain);
    e.at = page_offset(insn.ip());
    e.next = page_offset(insn.next_ip());
    prepare(e, insn, e.groups.written(number));
    instruction(e, insn)
}

/// Emits an instruction of a steady loop.
fn turn(e: &mut Emitter<'_>, steady: &Steady, number: usize, insn: &Instruction) -> Result {
    e.streaming = steady.is_near(number);
    match step(e, number, insn)? {
        Flow::Next => Ok(()),
        Flow::End => Err(Unsupported),
    }
}

/// Offsets in a page are below 4096, the one past its end included they fit.
fn page_offset(ip: u64) -> u16 {
    x86::bits::low16(ip)
}

/// The instructions of the block, as far as they could go; their addresses are offsets in the page.
fn decode(source: &Source<'_>) -> Vec<Instruction> {
    let mut decoder = source.mode.decoder(source.code, u64::from(source.offset));
    let mut run = Vec::with_capacity(16);
    let (mut exits, mut stores) = (0, 0);
    let mut unless_loop = None;
    while run.len() < if exits < MAX_EXITS { MAX_INSTRUCTIONS } else { MAX_LOOP } && decoder.can_decode() {
        let insn = decoder.decode();
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        if crosses(&insn) {
            // By itself or not at all.
            if run.is_empty() {
                run.push(insn);
            }
            break;
        }
        run.push(insn);
        if is_invalid(&insn) || ends(&insn) {
            break;
        }
        exits += usize::from(insn.is_jcc_short_or_near());
        stores += usize::from(source.check.is_some() && facts::writes_memory(&insn));
        if exits == MAX_EXITS {
            unless_loop.get_or_insert(run.len());
        }
        if exits == MAX_EXITS_OF_LOOP || stores == MAX_STORES {
            break;
        }
    }
    if let Some(length) = unless_loop.filter(|_| !is_loop(&run)) {
        run.truncate(length);
    }
    run
}

/// Whether the run jumps back into itself.
fn is_loop(run: &[Instruction]) -> bool {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return false };
    let inside = |target| (first.ip().cast_signed()..=last.ip().cast_signed()).contains(&target);
    last.is_jcc_short_or_near() && target_of(last).is_ok_and(inside)
}

/// Whether an instruction reaches into the next page.
fn crosses(insn: &Instruction) -> bool {
    insn.next_ip() > 4096
}

/// Emits the entries of a block that is one instruction across two pages.
fn begin_across(e: &mut Emitter<'_>, block: &mut Block) -> Result {
    block.entry_host = e.asm.here();
    e.save_flags();
    block.entry_memory = e.asm.here();
    block.host_leads_to_memory = true;
    e.form = Form::Memory;
    enter_by_jump_cache(e)?;
    block.entry_jump = e.asm.here();
    Ok(())
}

/// Emits the entries of a block that checks itself; `None` if its first instruction does not lie in its page as a whole.
fn begin_checking(e: &mut Emitter<'_>, run: &[Instruction], end: u16, block: &mut Block) -> Option<()> {
    if run.first().is_some_and(crosses) {
        return None;
    }
    block.entry_host = e.asm.here();
    e.save_flags();
    block.entry_memory = e.asm.here();
    block.entry_jump = block.entry_memory;
    block.host_leads_to_memory = true;
    e.form = Form::Memory;
    self_check::enter(e, end);
    block.checked_bytes = end - e.source.offset;
    block.fields = run.iter().filter_map(self_check::field).collect();
    Some(())
}

fn ends(insn: &Instruction) -> bool {
    match insn.flow_control() {
        FlowControl::Next => false,
        FlowControl::ConditionalBranch => target_of(insn).is_ok_and(|to| to <= insn.ip().cast_signed()),
        _ => true,
    }
}

/// Emits the two entries, in the order that suits the block's first dealings with the flags.
fn begin(e: &mut Emitter<'_>, form: Form, block: &mut Block) {
    match form {
        Form::Host => {
            block.entry_memory = e.asm.here();
            e.form = Form::Memory;
            e.load_flags();
            block.entry_host = e.asm.here();
            block.host_is_free = true;
            e.form = Form::Host;
        }
        Form::Dead => {
            // The same code, but two entries: each can be diverted to where its form of the flags is right.
            block.entry_host = e.asm.here();
            e.asm.nop5();
            block.entry_memory = e.asm.here();
            e.form = Form::Dead;
        }
        _ => {
            block.entry_host = e.asm.here();
            e.save_flags();
            block.entry_memory = e.asm.here();
            block.host_leads_to_memory = true;
            e.form = Form::Memory;
        }
    }
}

/// Which form the flags should have at the block's beginning.
fn first_form(run: &[Instruction]) -> Form {
    for insn in run {
        let effect = effect(insn);
        let plain = catalogue::implicit(insn).is_some() && !catalogue::names_memory(insn)
            || insn.mnemonic() == Mnemonic::Lea;
        if insn.is_jcc_short_or_near() {
            return Form::Host;
        }
        match (plain, effect.needs, effect.changes) {
            (false, ..) if is_silent(insn) => {}
            (false, ..) => return Form::Memory,
            (true, true, _) => return Form::Host,
            (true, false, true) => return Form::Dead,
            (true, false, false) => {}
        }
    }
    Form::Memory
}

/// Whether its accesses have to lie in one page each: atomic ones, and the elements of strings, which are counted so.
fn needs_one_page(insn: &Instruction) -> bool {
    insn.has_lock_prefix() || insn.mnemonic() == Mnemonic::Xchg || insn.is_string_instruction()
}

/// Whether an instruction that is not copied is translated to nothing.
fn is_silent(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Nop | Mnemonic::Endbr64)
}

/// Sees to it that the flags are not lost with the registers that an instruction changes.
fn prepare(e: &mut Emitter<'_>, insn: &Instruction, written: u16) {
    if catalogue::implicit(insn).is_some() {
        let effect = effect(insn);
        // What replaces all flags is the end of what computed them before.
        e.changes = if effect.changes && !effect.needs { 0 } else { written };
    } else {
        e.before_change(written, insn.mnemonic() != Mnemonic::Lea);
    }
}

fn instruction(e: &mut Emitter<'_>, insn: &Instruction) -> Result<Flow> {
    if is_invalid(insn) || !(e.source.offered)(insn) || e.is_compat() && compat::is_different(insn) {
        return Err(Unsupported);
    }
    if self_check::is_loose(e, insn) {
        return self_check::loose_move(e, insn).map(|()| Flow::Next);
    }
    let vector = catalogue::is_plain_vector(insn);
    if vector && !e.source.mode.has(if catalogue::is_vex_vector(insn) { Mode::AVX } else { Mode::SSE }) {
        return Err(Unsupported);
    }
    if let Some(kind) = x87::kind(insn) {
        return x87::translate(e, insn, kind).map(|()| Flow::Next);
    }
    if catalogue::implicit(insn).is_some() {
        return copy(e, insn).map(|()| Flow::Next);
    }
    if insn.mnemonic() == Mnemonic::Lea {
        return lea(e, insn).map(|()| Flow::Next);
    }
    if insn.is_stack_instruction() && stack(e, insn).is_ok() {
        return Ok(Flow::Next);
    }
    if is_silent(insn) {
        return Ok(Flow::Next);
    }
    if !insn.is_jcc_short_or_near() {
        e.delta = None;
    }
    if special(e, insn).is_ok() {
        return Ok(Flow::Next);
    }
    match insn.flow_control() {
        FlowControl::Next | FlowControl::Call | FlowControl::Return if !is_near_branch(insn) => {
            system(e, insn)
        }
        _ => branch(e, insn),
    }
}

/// Whether the control flow is that of a call or return within the code segment.
fn is_near_branch(insn: &Instruction) -> bool {
    insn.is_call_near() || insn.is_call_near_indirect() || insn.mnemonic() == Mnemonic::Ret
}
