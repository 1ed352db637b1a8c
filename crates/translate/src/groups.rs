//! Accesses near each other: one check for all.
//!
//! Compiled code reads and writes several fields of one structure, pushes and pops several registers, uses several
//! slots of one stack frame. Accesses of a block that are relative to the same register, as long as that is only changed by
//! constants, form a *group*; so do those of the same base and index, and those relative to RIP that lie in one page. The
//! first of them checks that the whole range they span lies in one page that allows them; the others are the guest's own
//! instruction with the page's displacement as an index, or at the host's address of the range, and nothing else.
//!
//! When the check fails, because the range crosses into another page or the page is not (or may not be) cached, the
//! block is left for a *plain* translation of the rest of it, in which every access is checked by itself. So a fault
//! is raised by the access that causes it, and never because of one that would have come later.
//!
//! A group that begins with reads takes in a write only if nothing can leave the block in between: else pages that are only
//! read would have to be writable.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::block::Mode;
use crate::branch::is_whole_return;
use crate::catalogue;
use crate::compat::{self, NEAR};
use crate::context::SPANS;
use crate::facts;
use crate::host::Gpr;
use crate::rip::Literal;
use crate::steady::Folded;

/// What the addresses of a group have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Register(Gpr),
    /// The sum of a base and of an index, which is shifted left.
    Indexed {
        base: Gpr,
        index: Gpr,
        shift: u8,
    },
    /// The page so many pages after that of the code.
    Page(i32),
    /// A loop's, which has been checked for many turns: [`crate::steady`].
    Stream(Folded),
}

impl Key {
    fn uses(self, register: usize) -> bool {
        let is = |key: Gpr| usize::from(key.number()) == register;
        match self {
            Self::Register(base) => is(base),
            Self::Indexed { base, index, .. } => is(base) || is(index),
            Self::Page(_) | Self::Stream(_) => false,
        }
    }
}

/// Accesses with one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) key: Key,
    /// The range, relative to what the key came to at the block's beginning (or since a register of it was last set).
    pub(crate) low: i32,
    pub(crate) high: i32,
    pub(crate) write: bool,
    members: u8,
    /// The block could have been left since its first access.
    branched: bool,
}

/// An access of an instruction that belongs to a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) group: u8,
    /// How much the key has been changed since the range's origin.
    pub(crate) shift: i32,
}

/// The groups of a block.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    pub(crate) groups: Vec<Group>,
    /// By instruction.
    members: Vec<Option<Member>>,
    /// By instruction: the registers that it changes, a bit each.
    written: Vec<u16>,
}

/// An access relative to a key.
struct Access {
    key: Key,
    offset: i32,
    bytes: i32,
    write: bool,
}

const PAGE: i32 = 4096;

/// Groups of a block at the most: as many as [`crate::Context::deltas`] has room for.
const MAX_GROUPS: usize = 64;

/// The most that a group may span, in bytes, but for one of a page.
const MAX_SPAN: i32 = SPANS[2] as i32;

impl Groups {
    /// Finds the groups of a run of instructions.
    pub(crate) fn find(run: &[Instruction], mode: Mode) -> Self {
        let (members, written) = (Vec::with_capacity(run.len()), Vec::with_capacity(run.len()));
        let mut finder = Finder { compat: mode.has(Mode::COMPAT), members, written, ..Finder::default() };
        for insn in run {
            let member = access(insn, mode).and_then(|access| finder.join(&access));
            finder.members.push(member);
            let written = finder.follow(insn);
            finder.written.push(written);
        }
        Self { groups: finder.groups, members: finder.members, written: finder.written }
    }

    /// The group of an instruction's access, if it shares it with others.
    pub(crate) fn member(&self, instruction: usize) -> Option<Member> {
        let member = (*self.members.get(instruction)?)?;
        (self.groups.get(usize::from(member.group))?.members >= 2).then_some(member)
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.groups.len()
    }

    /// Adds a group; `None` if there are too many.
    pub(crate) fn add(&mut self, group: Group) -> Option<()> {
        (self.groups.len() < MAX_GROUPS).then(|| self.groups.push(group))
    }

    /// The access of an instruction belongs to that group from now on, whoever else does.
    pub(crate) fn set_member(&mut self, instruction: usize, member: Member) {
        if let Some(slot) = self.members.get_mut(instruction) {
            *slot = Some(member);
        }
    }

    /// The group of a member.
    pub(crate) fn group_of(&self, member: Member) -> Option<Group> {
        self.groups.get(usize::from(member.group)).copied()
    }

    /// The registers that an instruction changes, a bit each.
    pub(crate) fn written(&self, instruction: usize) -> u16 {
        self.written.get(instruction).copied().unwrap_or(u16::MAX)
    }
}

#[derive(Default)]
struct Finder {
    compat: bool,
    groups: Vec<Group>,
    members: Vec<Option<Member>>,
    written: Vec<u16>,
    /// By base register: the group that may still grow, and what has been added to the register since its origin.
    open: [Option<u8>; 16],
    shift: [i32; 16],
    /// Groups of other keys that may still grow.
    others: Vec<u8>,
}

impl Finder {
    fn join(&mut self, access: &Access) -> Option<Member> {
        let shift = self.shift_of(access.key)?;
        let low = shift.checked_add(access.offset)?;
        let high = low.checked_add(access.bytes)?;
        if let Some(open) = self.open_group(access.key)
            && self.groups[usize::from(open)].takes(low, high, access.write)
        {
            return Some(Member { group: open, shift });
        }
        let group = u8::try_from(self.groups.len()).ok().filter(|&group| usize::from(group) < MAX_GROUPS)?;
        if let Key::Register(base) = access.key {
            self.open[usize::from(base.number())] = Some(group);
        } else {
            self.others.push(group);
        }
        self.groups.push(Group {
            key: access.key,
            low,
            high,
            write: access.write,
            members: 1,
            branched: false,
        });
        Some(Member { group, shift })
    }

    /// How much the key has been changed since the origin of its group.
    fn shift_of(&self, key: Key) -> Option<i32> {
        let of = |register: Gpr| self.shift[usize::from(register.number())];
        match key {
            Key::Register(base) => Some(of(base)),
            Key::Indexed { base, index, shift } => of(index).checked_mul(1 << shift)?.checked_add(of(base)),
            Key::Page(_) | Key::Stream(_) => Some(0),
        }
    }

    fn open_group(&self, key: Key) -> Option<u8> {
        if let Key::Register(base) = key {
            return self.open[usize::from(base.number())];
        }
        self.others.iter().rev().copied().find(|&group| self.groups[usize::from(group)].key == key)
    }

    /// Takes note of what an instruction does to registers and to control; the registers that it changes.
    fn follow(&mut self, insn: &Instruction) -> u16 {
        if insn.flow_control() != FlowControl::Next {
            for group in &mut self.groups {
                group.branched = true;
            }
        }
        if matches!(insn.mnemonic(), Mnemonic::Stac | Mnemonic::Clac) {
            self.open = [None; 16];
            self.others.clear();
            return 0;
        }
        let changed = facts::changed(insn);
        let constant = constant_change(insn, self.compat);
        for register in Gpr::of_bits(changed) {
            let number = usize::from(register.number());
            match constant {
                Some((moved, by)) if moved == register => match self.shift[number].checked_add(by) {
                    Some(shift) => self.shift[number] = shift,
                    None => self.forget(number),
                },
                _ => self.forget(number),
            }
        }
        changed
    }

    fn forget(&mut self, number: usize) {
        self.open[number] = None;
        self.shift[number] = 0;
        let groups = &self.groups;
        self.others.retain(|&group| !groups[usize::from(group)].key.uses(number));
    }
}

impl Group {
    /// That of a loop's stream, which needs no second member.
    pub(crate) const fn of_stream(key: Key, low: i32, high: i32, write: bool) -> Self {
        Self { key, low, high, write, members: u8::MAX, branched: false }
    }

    fn takes(&mut self, low: i32, high: i32, write: bool) -> bool {
        let (low, high) = (self.low.min(low), self.high.max(high));
        let too_late = write && !self.write && self.branched;
        let limit = if matches!(self.key, Key::Page(_)) { PAGE } else { MAX_SPAN };
        if high.checked_sub(low).is_none_or(|span| span > limit) || too_late || self.members == u8::MAX {
            return false;
        }
        (self.low, self.high) = (low, high);
        self.write |= write;
        self.members += 1;
        true
    }
}

/// The constant that an instruction adds to a register, all 64 bits of it.
pub(crate) fn constant_change(insn: &Instruction, compat: bool) -> Option<(Gpr, i32)> {
    use Mnemonic as M;
    let mnemonic = insn.mnemonic();
    if insn.is_stack_instruction() && mnemonic != M::Leave {
        // POP RSP sets it.
        let pointer = matches!(insn.op0_register(), Register::RSP | Register::ESP | Register::SP);
        let sets = insn.op_count() == 1 && pointer && mnemonic == M::Pop;
        return (!sets).then(|| (Gpr::RSP, insn.stack_pointer_increment()));
    }
    let width = if compat { 4 } else { 8 };
    if insn.op0_kind() != OpKind::Register || insn.op0_register().size() != width {
        return None;
    }
    let register = Gpr::of(insn.op0_register())?;
    let immediate = || i32::try_from(insn.immediate(1).cast_signed()).ok();
    match mnemonic {
        M::Add if insn.op1_kind() != OpKind::Register && insn.op1_kind() != OpKind::Memory => {
            Some((register, immediate()?))
        }
        M::Sub if insn.op1_kind() != OpKind::Register && insn.op1_kind() != OpKind::Memory => {
            Some((register, immediate()?.checked_neg()?))
        }
        M::Inc => Some((register, 1)),
        M::Dec => Some((register, -1)),
        M::Lea if insn.memory_base() == insn.op0_register() && insn.memory_index() == Register::None => {
            let by = displacement(insn, compat)?;
            Some((register, by))
        }
        _ => None,
    }
}

/// The access of an instruction that can be a member: of a copied instruction with a plain address, or of the stack.
fn access(insn: &Instruction, mode: Mode) -> Option<Access> {
    let compat = mode.has(Mode::COMPAT);
    let word = if compat { 4 } else { 8 };
    let on_stack = |offset, write| Some(Access { key: Key::Register(Gpr::RSP), offset, bytes: word, write });
    let register_or_immediate = insn.op_count() == 0 || insn.op0_kind() != OpKind::Memory;
    match insn.mnemonic() {
        Mnemonic::Push if insn.stack_pointer_increment() == -word && register_or_immediate => {
            return on_stack(-word, true);
        }
        Mnemonic::Pop if insn.stack_pointer_increment() == word && register_or_immediate => {
            return on_stack(0, false);
        }
        Mnemonic::Call if insn.is_call_near() => return on_stack(-word, true),
        Mnemonic::Ret if is_whole_return(insn) => return on_stack(0, false),
        _ => {}
    }
    catalogue::implicit(insn)?;
    if !catalogue::names_memory(insn) {
        return None;
    }
    if matches!(insn.memory_segment(), Register::FS | Register::GS) {
        return None;
    }
    if compat && insn.memory_segment() == Register::CS {
        return None;
    }
    let bytes = i32::try_from(insn.memory_size().size()).ok().filter(|&bytes| bytes > 0)?;
    let offset = displacement(insn, compat)?;
    if compat && !(-NEAR..NEAR).contains(&offset) {
        return None;
    }
    let key = key(insn, compat, offset, bytes)?;
    Some(Access { key, offset, bytes, write: facts::writes_memory(insn) })
}

/// The key of an operand of `bytes` bytes, if it can have one.
fn key(insn: &Instruction, compat: bool, offset: i32, bytes: i32) -> Option<Key> {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    if base == Register::RIP {
        return Literal::at(offset, bytes).map(|literal| Key::Page(literal.page));
    }
    let wide = |register: Register| if compat { register.is_gpr32() } else { register.is_gpr64() };
    if !wide(base) {
        return None;
    }
    let base = Gpr::of(base)?;
    if index == Register::None {
        return Some(Key::Register(base));
    }
    let shift = u8::try_from(insn.memory_index_scale().trailing_zeros()).ok()?;
    (!compat && wide(index)).then_some(Key::Indexed { base, index: Gpr::of(index)?, shift })
}

fn displacement(insn: &Instruction, compat: bool) -> Option<i32> {
    if compat {
        return Some(compat::displacement(insn));
    }
    catalogue::displacement(insn)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    /// Low, high, whether written.
    type Range = (i32, i32, bool);

    fn groups(bytes: &[u8]) -> (Vec<Option<Member>>, Vec<Range>) {
        let run: Vec<_> = Decoder::new(64, bytes, DecoderOptions::NONE).iter().collect();
        let found = Groups::find(&run, Mode::new());
        let members = (0..run.len()).map(|i| found.member(i)).collect();
        (members, found.groups.iter().map(|g| (g.low, g.high, g.write)).collect())
    }

    #[test]
    fn a_prologue_is_one_group() {
        // push rbp; push rbx; sub rsp, 0x18; mov [rsp+8], rax
        let (members, groups) = groups(&[0x55, 0x53, 0x48, 0x83, 0xec, 0x18, 0x48, 0x89, 0x44, 0x24, 0x08]);
        let member = |shift| Some(Member { group: 0, shift });
        assert_eq!(members, [member(0), member(-8), None, member(-40)]);
        assert_eq!(groups, [(-32, 0, true)]);
    }

    #[test]
    fn a_register_that_is_set_ends_its_group() {
        // mov rax, [rdi]; mov rdi, [rdi+8]; mov rcx, [rdi]
        let (members, groups) = groups(&[0x48, 0x8b, 0x07, 0x48, 0x8b, 0x7f, 0x08, 0x48, 0x8b, 0x0f]);
        assert_eq!(members[..2], [Some(Member { group: 0, shift: 0 }), Some(Member { group: 0, shift: 0 })]);
        assert_eq!((members[2], groups[0]), (None, (0, 16, false)));
    }

    #[test]
    fn indexed_operands_and_those_in_one_page_of_data_have_groups() {
        // movdqu xmm0, [rdx+r9]; movdqu xmm1, [rdx+r9+16]; mov rdx, [rip+0x2000]; mov rsi, [rip+0x2000]; mov rax, [rdx+r9]
        let (members, groups) = groups(&[
            0xf3, 0x42, 0x0f, 0x6f, 0x04, 0x0a, 0xf3, 0x42, 0x0f, 0x6f, 0x4c, 0x0a, 0x10, 0x48, 0x8b, 0x15,
            0, 0x20, 0, 0, 0x48, 0x8b, 0x35, 0, 0x20, 0, 0, 0x4a, 0x8b, 0x04, 0x0a,
        ]);
        let member = |group| Some(Member { group, shift: 0 });
        assert_eq!(members, [member(0), member(0), member(1), member(1), None]);
        assert_eq!(groups[..2], [(0, 32, false), (0x2014, 0x2023, false)]);
    }

    #[test]
    fn a_write_behind_a_branch_is_another_group() {
        // mov rax, [rdi]; mov rcx, [rdi+8]; je +0; mov [rdi], rax; mov [rdi+8], rax
        let (members, groups) =
            groups(&[0x48, 0x8b, 0x07, 0x48, 0x8b, 0x4f, 8, 0x74, 0, 0x48, 0x89, 0x07, 0x48, 0x89, 0x47, 8]);
        assert_eq!(members[3], Some(Member { group: 1, shift: 0 }));
        assert_eq!(groups, [(0, 16, false), (0, 16, true)]);
    }
}
