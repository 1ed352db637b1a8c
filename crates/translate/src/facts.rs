//! What instructions do with registers and memory, by the decoder's account, asked once for each kind of instruction.
//!
//! The decoder's account of one instruction costs as much as decoding it several times over, and the same few hundred kinds
//! come again and again. So it is asked about a *plain* 64-bit instruction of the kind, whose registers are all different, whose
//! count is not zero and that is not repeated, and the answer is kept in a word. It may say a little too much of an instruction that is not
//! plain: XOR of a register with itself reads nothing, a shift by zero changes nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use iced_x86::{CodeSize, Instruction, InstructionInfoFactory, OpAccess, OpKind, UsedMemory};

use crate::catalogue::{self, Implicit};
use crate::host::Gpr;

/// What was found, in a word: see [`Facts`]. Zero: not asked yet. Whoever finds it anew finds the same.
static KINDS: [AtomicU64; 1 << 13] = [const { AtomicU64::new(0) }; 1 << 13];

/// What a kind of instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The operands that are written, perhaps, a bit each.
    written: u8,
    /// Those that are not read.
    only_written: u8,
    /// The general-purpose registers that it changes without naming them, a bit each.
    unnamed: u16,
    /// It writes memory that no operand names.
    stores: bool,
    /// Of one that may be copied, a number for its implicit registers.
    implicit: u8,
}

/// Of an instruction that may not be copied.
const NOT_COPIED: u8 = u8::MAX;
/// Bit of a word in [`KINDS`].
const KNOWN: u64 = 1 << 63;
/// The registers that a plain instruction names are these, by operand. No instruction changes them without naming them, and
/// none has a fifth operand that is one.
const NAMES: u8 = 12;
/// Their bits.
const NAMED: u16 = 0b1111 << NAMES;

impl Facts {
    /// What an instruction's kind does.
    pub(crate) fn of(insn: &Instruction) -> Self {
        let slot = &KINDS[insn.code() as usize % KINDS.len()];
        let word = slot.load(Ordering::Relaxed);
        if word & KNOWN != 0 {
            return Self::from_word(word);
        }
        let facts = Self::find(insn);
        slot.store(facts.word(), Ordering::Relaxed);
        facts
    }

    fn find(insn: &Instruction) -> Self {
        let plain = plain(insn);
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&plain);
        let accesses = [0, 1, 2, 3, 4].map(|i| info.op_access(i));
        let bits = |of: fn(OpAccess) -> bool| {
            (0..5u8).zip(accesses).filter(|&(_, access)| of(access)).fold(0, |bits, (i, _)| bits | 1 << i)
        };
        let written: u8 = bits(writes);
        let unnamed = info
            .used_registers()
            .iter()
            .filter(|used| writes(used.access()))
            .filter_map(|used| Gpr::of(used.register()))
            .fold(0, |bits, register| bits | 1 << register.number());
        let named_stores = (0..plain.op_count())
            .filter(|&i| plain.op_kind(i) == OpKind::Memory && written >> i & 1 != 0)
            .count();
        let stored = |memory: &&UsedMemory| writes(memory.access());
        let implicit = catalogue::look_up(insn).map_or(NOT_COPIED, Implicit::number);
        Self {
            written,
            only_written: bits(|access| access == OpAccess::Write),
            unnamed: unnamed & !NAMED,
            stores: info.used_memory().iter().filter(stored).count() > named_stores,
            implicit,
        }
    }

    const fn word(self) -> u64 {
        KNOWN
            | self.written as u64
            | (self.only_written as u64) << 8
            | (self.unnamed as u64) << 16
            | (self.stores as u64) << 32
            | (self.implicit as u64) << 40
    }

    #[allow(clippy::cast_possible_truncation)]
    const fn from_word(word: u64) -> Self {
        Self {
            written: word as u8,
            only_written: (word >> 8) as u8,
            unnamed: (word >> 16) as u16,
            stores: word >> 32 & 1 != 0,
            implicit: (word >> 40) as u8,
        }
    }

    /// Whether an operand is written, perhaps.
    pub(crate) const fn writes(self, operand: u32) -> bool {
        self.written >> operand & 1 != 0
    }

    /// Whether an operand is read.
    pub(crate) const fn reads(self, operand: u32) -> bool {
        self.only_written >> operand & 1 == 0
    }

    /// The implicit registers of an instruction that may be copied; `None` if it may not.
    pub(crate) fn implicit(self) -> Option<Implicit> {
        (self.implicit != NOT_COPIED).then(|| Implicit::numbered(self.implicit))
    }
}

/// The general-purpose registers that an instruction changes, a bit each.
pub(crate) fn changed(insn: &Instruction) -> u16 {
    let facts = Facts::of(insn);
    let counted = insn.is_string_instruction() && (insn.has_rep_prefix() || insn.has_repne_prefix());
    let named = (0..insn.op_count())
        .filter(|&i| facts.writes(i) && insn.op_kind(i) == OpKind::Register)
        .filter_map(|i| Gpr::of(insn.op_register(i)))
        .fold(0, |bits, register| bits | 1 << register.number());
    facts.unnamed | named | u16::from(counted) << Gpr::RCX.number()
}

/// Whether it writes memory.
pub(crate) fn writes_memory(insn: &Instruction) -> bool {
    // What is not only read must be writable, whether written this time or not (SDM vol. 2, CMPXCHG).
    let facts = Facts::of(insn);
    facts.stores || (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory && facts.writes(i))
}

const fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// An instruction of the kind about which the most is to be said.
fn plain(insn: &Instruction) -> Instruction {
    let mut plain = *insn;
    plain.set_code_size(CodeSize::Code64);
    plain.set_has_rep_prefix(false);
    plain.set_has_repne_prefix(false);
    for i in 0..insn.op_count() {
        match insn.op_kind(i) {
            OpKind::Register if insn.op_register(i).is_gpr() => {
                let name = Gpr::new(x86::bits::low8(u64::from(i)) + NAMES);
                plain.set_op_register(i, name.sized(insn.op_register(i).size()));
            }
            OpKind::Immediate8 => plain.set_immediate8(1),
            _ => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic};

    use super::*;

    /// What the decoder says of this very instruction.
    fn asked(insn: &Instruction) -> (u16, bool) {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(insn);
        let changed = info
            .used_registers()
            .iter()
            .filter(|used| !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None))
            .filter_map(|used| Gpr::of(used.register()))
            .fold(0, |bits, register| bits | 1 << register.number());
        let reads = [OpAccess::Read, OpAccess::CondRead, OpAccess::NoMemAccess, OpAccess::None];
        (changed, info.used_memory().iter().any(|memory| !reads.contains(&memory.access())))
    }

    /// Whether more may be said of its kind than of the instruction.
    fn is_odd(insn: &Instruction) -> bool {
        let shift = matches!(insn.op1_kind(), OpKind::Immediate8) || insn.op2_kind() == OpKind::Immediate8;
        let alike = insn.op_count() >= 2 && insn.op0_register() == insn.op1_register();
        shift || alike || insn.mnemonic() == Mnemonic::Enter
    }

    #[test]
    fn the_kind_does_what_the_instruction_does() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 33
        };
        let (mut seen, mut exact) = (std::collections::BTreeSet::new(), 0);
        for _ in 0..200_000 {
            let mut bytes: [u8; 12] = std::array::from_fn(|_| x86::bits::low8(next()));
            // Half of them from the second page of the opcode map.
            if next() % 2 == 0 {
                bytes[0] = 0x0f;
            }
            let insn = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
            if insn.is_invalid() {
                continue;
            }
            seen.insert(insn.code() as usize);
            let (changed_here, stores_here) = asked(&insn);
            let (changed, stores) = (changed(&insn), writes_memory(&insn));
            assert_eq!(changed_here & !changed, 0, "{insn}: {bytes:02x?}");
            assert!(stores || !stores_here, "{insn}: {bytes:02x?}");
            if !is_odd(&insn) {
                assert_eq!((changed, stores), (changed_here, stores_here), "{insn}: {bytes:02x?}");
                exact += 1;
            }
        }
        assert!(seen.len() > 900 && exact > 50_000, "{} kinds, {exact}", seen.len());
    }

    #[test]
    fn every_kind_has_a_word_of_its_own() {
        assert!(Code::values().all(|code| (code as usize) < KINDS.len()));
        let insn = Decoder::new(64, &[0x48, 0x01, 0xd8], DecoderOptions::NONE).decode();
        let facts = Facts::of(&insn);
        assert_eq!(Facts::from_word(facts.word()), facts);
        assert!(facts.writes(0) && facts.reads(0) && !facts.writes(1));
    }
}
