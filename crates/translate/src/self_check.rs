//! Blocks that check themselves, for pages whose code changes too often to be watched.
//!
//! Nobody tells the engine of writes to such a page; they are as fast as any. Instead a block compares the guest's bytes
//! with those that it was made of: at its entry, and after each of its instructions that writes memory, the bytes of
//! those that follow. So a store that changes an instruction further on, the next one included, is seen by it, as on the
//! processor (SDM vol. 3A, 10.1.3). What other processors and devices write is seen at the next entry, so behind every
//! serializing instruction, which is left to the interpreter.
//!
//! *Loose* fields are immediates that have been seen to change while the code around them stayed the same, as in functions
//! that a compiler at run time stamps out of a pattern. They are not compared: the instruction reads its immediate from
//! the guest's code each time.
//!
//! A comparison takes the host's flags where they are free, and JRCXZ, which needs none, where they are the guest's.

use std::ops::Range;

use iced_x86::{Code, Instruction, OpKind};

use crate::asm::{Condition, Hole, Op};
use crate::block::Form;
use crate::emit::{Emitter, Result, Unsupported};
use crate::facts;
use crate::host::Gpr;

/// Instructions that write memory in a block that checks itself, at the most: each compares what follows.
pub(crate) const MAX_STORES: usize = 2;

/// The check at the entry with the flags in memory. The code up to page offset `end` belongs to the block.
pub(crate) fn enter(e: &mut Emitter<'_>, end: u16) {
    let start = e.source.offset;
    compare(e, start..end, Emitter::changed_from);
}

/// The check behind an instruction, if that writes memory.
pub(crate) fn after(e: &mut Emitter<'_>, insn: &Instruction, end: u16) {
    if e.source.check.is_some() && facts::writes_memory(insn) {
        let next = e.next;
        compare(e, next..end, Emitter::onward_from);
    }
}

/// Compares the guest's bytes in `range` with the block's; `differ` takes jumps to where they differ.
fn compare<'a>(e: &mut Emitter<'a>, range: Range<u16>, mut differ: impl FnMut(&mut Emitter<'a>, Hole)) {
    let Some(check) = e.source.check else { return };
    if range.is_empty() {
        return;
    }
    if e.form == Form::Both {
        e.form = Form::Memory;
    }
    e.delta = None;
    e.asm.mov_imm64(Gpr::RAX, check.page);
    for word in words(range, &check.loose) {
        let expected = bytes_at(e, &word);
        load(e, &word);
        if e.form == Form::Host {
            e.asm.lea32(Gpr::RCX, Gpr::RCX, expected.wrapping_neg());
            let same = e.asm.jrcxz();
            let changed = e.asm.jmp();
            // The jump is five bytes long.
            let _ = e.asm.fill_short(same);
            differ(e, changed);
        } else {
            e.asm.op32_imm(Op::Cmp, Gpr::RCX, expected);
            let changed = e.asm.jcc(Condition::NOT_EQUAL);
            differ(e, changed);
        }
    }
}

/// RCX = the word of the code page that RAX points at, zero-extended.
fn load(e: &mut Emitter<'_>, word: &Range<u16>) {
    let at = i32::from(word.start);
    match word.len() {
        1 => e.asm.load8(Gpr::RCX, Gpr::RAX, at),
        2 => e.asm.load16(Gpr::RCX, Gpr::RAX, at),
        _ => e.asm.load32(Gpr::RCX, Gpr::RAX, at),
    }
}

/// What the block was made of there.
fn bytes_at(e: &Emitter<'_>, word: &Range<u16>) -> i32 {
    let mut bytes = [0; 4];
    for (byte, at) in bytes.iter_mut().zip(word.clone()) {
        let index = usize::from(at.wrapping_sub(e.source.offset));
        *byte = e.source.code.get(index).copied().unwrap_or_default();
    }
    i32::from_le_bytes(bytes)
}

/// A range without its loose fields, in words of 4, 2 and 1 bytes; those of 4 may overlap.
fn words(range: Range<u16>, loose: &[Range<u16>]) -> Vec<Range<u16>> {
    let mut words = Vec::with_capacity(range.len() / 4 + 2);
    let mut at = range.start;
    while at < range.end {
        if let Some(field) = loose.iter().find(|field| field.contains(&at)) {
            at = field.end;
            continue;
        }
        let end = loose.iter().map(|field| field.start).filter(|&start| start > at).fold(range.end, u16::min);
        let begin = at;
        while at < end {
            let bytes = match end - at {
                4.. => 4,
                3 if at > begin => {
                    at -= 1;
                    4
                }
                2.. => 2,
                _ => 1,
            };
            words.push(at..at + bytes);
            at += bytes;
        }
    }
    words
}

/// Where in the page the immediate is that an instruction could read each time.
pub(crate) fn field(insn: &Instruction) -> Option<Range<u16>> {
    let bytes = match insn.code() {
        Code::Mov_r32_imm32 | Code::Mov_rm32_imm32 | Code::Mov_rm64_imm32 => 4,
        Code::Mov_r64_imm64 => 8,
        _ => return None,
    };
    let end = u16::try_from(insn.next_ip()).ok()?;
    (insn.op0_kind() == OpKind::Register).then_some(end - bytes..end)
}

/// Whether the instruction's immediate is loose.
pub(crate) fn is_loose(e: &Emitter<'_>, insn: &Instruction) -> bool {
    e.source.check.is_some_and(|check| field(insn).is_some_and(|field| check.loose.contains(&field)))
}

/// MOV of a loose immediate to a register.
pub(crate) fn loose_move(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let (Some(check), Some(field)) = (e.source.check, field(insn)) else { return Err(Unsupported) };
    let guest = Gpr::of(insn.op0_register()).ok_or(Unsupported)?;
    e.before_copy();
    e.asm.mov_imm64(Gpr::RAX, check.page);
    let (to, at) = (guest.home().unwrap_or(Gpr::RAX), i32::from(field.start));
    match insn.code() {
        Code::Mov_r64_imm64 => e.asm.load(to, Gpr::RAX, at),
        Code::Mov_rm64_imm32 => {
            e.asm.load32(to, Gpr::RAX, at);
            e.asm.movsxd(to, to);
        }
        _ => e.asm.load32(to, Gpr::RAX, at),
    }
    e.write(guest, to);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_cover_what_is_compared_and_nothing_else() {
        for start in 0..3u16 {
            for len in 0..40u16 {
                for loose in [&[][..], &[1..5, 9..17], &[0..4, 4..8]] {
                    let words = words(start..start + len, loose);
                    assert!(words.iter().all(|word| matches!(word.len(), 1 | 2 | 4)));
                    for at in 0..64 {
                        let wanted = (start..start + len).contains(&at)
                            && !loose.iter().any(|field| field.contains(&at));
                        assert_eq!(
                            words.iter().any(|word| word.contains(&at)),
                            wanted,
                            "{start}+{len}: {at}"
                        );
                    }
                }
            }
        }
    }
}
