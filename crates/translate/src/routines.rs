//! Code that every translation shares: the look-ups behind the anchors, and the exit that nobody foresaw.
//!
//! # Exits
//! Every site of a block, and every entry of one that is no longer good, calls one of the exits ([`Way`]), which do what
//! the site would have to do before it leaves. The return address says which site it was.
//!
//! # Look-ups
//! A look-up is called by the cold path of an access whose anchor did not fit, with RAX the linear address less the
//! anchor's page. Behind the call lie
//!
//! - a TEST of EAX with 32 bits that say which anchor it is (low ten), whether the access has to lie in one page (the
//!   next), whether a copy will do (the next), and how far into its page it may begin (high sixteen), which executes as
//!   nothing at all;
//! - a jump back to the access, reached if the TLB has the translation: RAX is the host address then, and the anchor is the
//!   page's from now on. An access across two pages is found if the TLB has both and they are neighbours in the host's
//!   memory too: then it is one access of the host's. Locked ones are not, which are the bus lock's (`memory`'s `bus_lock`);
//! - the site to leave by, reached if it has not: RAX is the linear address.
//!
//! RCX stays as it was. Status flags are lost, so they have to be in memory.
//!
//! # Callers
//! A caller makes the call whose target a finder has found, where what a block knows of its stack is not at hand: the far side of
//! a bridge ([`crate::bridge`]). Behind its call lie a TEST of EAX with the page offset of the next instruction, at which the
//! host's return arrives, a jump to the landing, and the site that it goes to if the guest's stack is not in the TLB.
//!
//! # Finders
//! A finder is called with a linear address in RAX whose code is to be entered, and leaves the code's host address and the
//! page's linear address in [`at::TEMP`]. First it asks the jump cache. What that does not know, other address spaces, or
//! this one a while ago, may have found already: the page leads to its frame (code pages), the place in the frame to
//! the code (entrances), and the jump cache knows it from then on. If there is none, it leaves, RAX as it was: its call is
//! a site. RCX and status flags are lost.

use crate::asm::{Asm, Condition, Hole, Op, Place};
use crate::block::{UNFORESEEN, Way};
use crate::context::{
    ANCHOR_BYTES, ANCHOR_SHIFT, BOUNCE, CODE_PAGE_BYTES, CODE_PAGES, ENTRANCE_STIR, ENTRY_BYTES, JUMP_BYTES,
    JUMP_GROUP, JUMP_SHIFT, JUMP_SPREAD, JUMP_STIR, JUMPS, SHADOW_BYTES, SPANS, Table, at, tlb_index,
};
use crate::host::Gpr;
use x86::bits::low32;

/// All of them, placed one behind the other from the beginning of the code cache.
#[derive(Clone, Debug)]
pub struct Routines {
    /// The code.
    pub code: Vec<u8>,
    /// Where the exit begins that is [`UNFORESEEN`]: what a return arrives at that pops the bottom of a shadow
    /// stack.
    pub unforeseen: u32,
    /// Where the look-ups begin: by [`Table`], reads and writes.
    pub look_ups: [[u32; 2]; 3],
    /// Where the callers begin, by [`Table`].
    pub callers: [u32; 3],
    /// Where the exits begin, by [`Way`].
    exits: [u32; Way::COUNT],
}

impl Routines {
    /// Where a shared exit begins.
    pub const fn exit(&self, way: Way) -> u32 {
        self.exits[way.number()]
    }
}

/// Makes them.
pub fn routines(bmi2: bool) -> Routines {
    let mut asm = Asm::default();
    let unforeseen = asm.here();
    asm.push_imm(low32(UNFORESEEN).cast_signed());
    let mut exits = [0; Way::COUNT];
    let mut add = |way: Way, at: u32| exits[way.number()] = at;
    for flags in [false, true] {
        add(Way::Leave { tag: None, flags }, exit(&mut asm, None, flags));
        for tag in TABLES.into_iter().flat_map(|table| [(table, false), (table, true)]) {
            add(Way::Leave { tag: Some(tag), flags }, exit(&mut asm, Some(tag), flags));
        }
    }
    for table in TABLES {
        add(Way::Find(table), finder(&mut asm, table, bmi2));
    }
    let look_ups = TABLES.map(|table| [at::READ, at::WRITE].map(|tag| look_up(&mut asm, table, tag, bmi2)));
    let callers = TABLES.map(|table| caller(&mut asm, table, bmi2));
    Routines { code: asm.finish(), unforeseen, look_ups, callers, exits }
}

const TABLES: [Table; 3] = [Table::Supervisor, Table::SupervisorAc, Table::User];

/// An exit: the site's return address is on the shadow stack.
fn exit(asm: &mut Asm, tag: Option<(Table, bool)>, flags: bool) -> u32 {
    let start = asm.here();
    if flags {
        asm.gs_store(at::KEPT, Gpr::RAX);
        asm.flags_to_ax();
        asm.gs_store16(at::STATUS, Gpr::RAX);
        asm.gs_load(Gpr::RAX, at::KEPT);
    }
    if let Some((table, write)) = tag {
        let tag = at::tlb(table) + if write { at::WRITE } else { at::READ };
        asm.gs_op_at(Op::Add, Gpr::RAX, Gpr::RCX, tag);
    }
    leave(asm);
    start
}

fn leave(asm: &mut Asm) {
    asm.gs_pop(at::SITE);
    asm.gs_jmp(at::EXIT);
}

/// `to` = `from` shifted right, but for the bits that come in on the left.
fn shifted(asm: &mut Asm, to: Gpr, from: Gpr, by: u8, bmi2: bool) {
    if bmi2 {
        asm.rorx(to, from, by);
    } else {
        asm.mov(to, from);
        asm.shr(to, by);
    }
}

/// `to` = the byte offset of the slot of `from`.
pub(crate) fn index(asm: &mut Asm, to: Gpr, from: Gpr, table: Table, bmi2: bool) {
    let (rotation, mask) = tlb_index(table);
    shifted(asm, to, from, rotation, bmi2);
    asm.op32_imm(Op::And, to, mask.cast_signed());
}

fn look_up(asm: &mut Asm, table: Table, tag: i32, bmi2: bool) -> u32 {
    let start = asm.here();
    let tlb = at::tlb(table);
    let [kept_rax, kept_rdx, kept_rbx, kept_rcx] = [0, 8, 16, 24].map(|offset| at::KEPT + offset);
    asm.gs_store(kept_rdx, Gpr::RDX);
    asm.gs_store(kept_rcx, Gpr::RCX);
    asm.gs_store(kept_rbx, Gpr::RBX);
    // RCX = the anchor's offset, RBX = the room.
    asm.load(Gpr::RDX, Gpr::RSP, 0);
    asm.load32(Gpr::RBX, Gpr::RDX, 1);
    asm.op32(Op::Mov, Gpr::RCX, Gpr::RBX);
    asm.op32_imm(Op::And, Gpr::RCX, NUMBER);
    asm.shl32(Gpr::RCX, ANCHOR_SHIFT);
    asm.shr(Gpr::RBX, 16);
    let anchor = |field| at::anchors(table) + field;
    asm.gs_op_at(Op::Add, Gpr::RAX, Gpr::RCX, anchor(at::ANCHOR_PAGE));
    asm.gs_store(kept_rax, Gpr::RAX);
    index(asm, Gpr::RDX, Gpr::RAX, table, bmi2);
    asm.gs_op_at(Op::Sub, Gpr::RAX, Gpr::RDX, tlb + tag);
    asm.op(Op::Cmp, Gpr::RAX, Gpr::RBX);
    let beyond = asm.jcc(Condition::ABOVE);
    let found = asm.here();
    asm.gs_op_at(Op::Mov, Gpr::RBX, Gpr::RDX, tlb + tag);
    asm.gs_store_at(Gpr::RCX, anchor(at::ANCHOR_PAGE), Gpr::RBX);
    asm.lea(Gpr::RBX, Gpr::RBX, 1);
    asm.gs_store_at(Gpr::RCX, anchor(at::ANCHOR_TAG), Gpr::RBX);
    asm.gs_op_at(Op::Mov, Gpr::RBX, Gpr::RDX, tlb + at::DELTA);
    asm.gs_store_at(Gpr::RCX, anchor(at::ANCHOR_DELTA), Gpr::RBX);
    asm.gs_op_at(Op::Mov, Gpr::RDX, Gpr::RDX, tlb + at::BASE);
    asm.gs_store_at(Gpr::RCX, anchor(at::ANCHOR_BASE), Gpr::RDX);
    asm.op(Op::Add, Gpr::RAX, Gpr::RDX);
    for (span, limit) in SPANS.into_iter().zip((anchor(at::ANCHOR_LIMIT)..).step_by(8)) {
        asm.gs_store_imm_at(Gpr::RCX, limit, 4097 - i32::from(span));
    }
    asm.shr(Gpr::RCX, ANCHOR_SHIFT);
    asm.gs_set_byte_at(Gpr::RCX, anchor(at::ANCHOR_MARKS));
    let restore = |asm: &mut Asm| {
        asm.gs_load(Gpr::RDX, kept_rdx);
        asm.gs_load(Gpr::RBX, kept_rbx);
        asm.gs_load(Gpr::RCX, kept_rcx);
    };
    restore(asm);
    asm.ret();
    asm.land(beyond);
    let (apart, mut misses) = neighbours(asm, table, tag);
    let both = asm.jmp();
    asm.fill(both, found);
    asm.land(apart);
    if tag == at::READ {
        misses.push(bounce(asm, table));
        restore(asm);
        asm.ret();
    }
    misses.into_iter().for_each(|miss| asm.land(miss));
    restore(asm);
    asm.pop(Gpr::RAX);
    asm.lea(Gpr::RAX, Gpr::RAX, TEST_AND_JUMP);
    asm.push(Gpr::RAX);
    asm.gs_load(Gpr::RAX, kept_rax);
    asm.ret();
    start
}

/// Goes on if the access, which is not in one page, may be in two that are neighbours: RAX is its offset in the page whose
/// slot's offset RDX is. The first jump is taken if both pages are known, but are no neighbours, RBX being the slot's offset
/// of the second; the others if it is another matter.
fn neighbours(asm: &mut Asm, table: Table, tag: i32) -> (Hole, Vec<Hole>) {
    let (_, mask) = tlb_index(table);
    let tlb = at::tlb(table);
    asm.op_imm(Op::Cmp, Gpr::RAX, 4095);
    let another = asm.jcc(Condition::ABOVE);
    asm.load(Gpr::RBX, Gpr::RSP, 0);
    asm.load32(Gpr::RBX, Gpr::RBX, 1);
    asm.test32_imm(Gpr::RBX, ONE_PAGE);
    let one_page = asm.jcc(Condition::NOT_EQUAL);
    asm.lea(Gpr::RBX, Gpr::RDX, i32::try_from(ENTRY_BYTES).unwrap_or(0));
    asm.op32_imm(Op::And, Gpr::RBX, mask.cast_signed());
    let [unknown, apart] = [tag, at::BASE].map(|field| {
        asm.gs_op_at(Op::Mov, Gpr::RAX, Gpr::RBX, tlb + field);
        asm.lea(Gpr::RAX, Gpr::RAX, -4096);
        asm.gs_op_at(Op::Cmp, Gpr::RAX, Gpr::RDX, tlb + field);
        asm.jcc(Condition::NOT_EQUAL)
    });
    asm.gs_load(Gpr::RAX, at::KEPT);
    asm.gs_op_at(Op::Sub, Gpr::RAX, Gpr::RDX, tlb + tag);
    (apart, vec![another, one_page, unknown])
}

/// RAX = the host address of a copy of what is read from two pages, whose slots' offsets are RDX and RBX. The jump is taken
/// if a copy will not do.
fn bounce(asm: &mut Asm, table: Table) -> Hole {
    let tlb = at::tlb(table);
    asm.load(Gpr::RAX, Gpr::RSP, 0);
    asm.load32(Gpr::RAX, Gpr::RAX, 1);
    asm.test32_imm(Gpr::RAX, COPY);
    let refused = asm.jcc(Condition::EQUAL);
    let half = i32::from(BOUNCE);
    for (slot, from, to) in [(Gpr::RBX, 0, half), (Gpr::RDX, 4096 - half, 0)] {
        asm.gs_op_at(Op::Mov, Gpr::RBX, slot, tlb + at::BASE);
        for word in (0..half).step_by(8) {
            asm.load(Gpr::RAX, Gpr::RBX, from + word);
            asm.gs_store(at::BOUNCE + to + word, Gpr::RAX);
        }
    }
    asm.gs_load(Gpr::RAX, at::KEPT);
    asm.gs_op_at(Op::Sub, Gpr::RAX, Gpr::RDX, tlb + at::READ);
    asm.rdgsbase(Gpr::RBX);
    asm.lea_indexed(true, Gpr::RAX, Some(Gpr::RAX), Gpr::RBX, 0, at::BOUNCE + half - 4096);
    refused
}

/// Bit of a look-up's operand: the access may be made to a copy of what it reads.
const COPY: i32 = 1 << 11;

/// Bit of a look-up's operand: the access has to lie in one page.
const ONE_PAGE: i32 = 1 << 10;

/// Bits of a look-up's operand: the number of the anchor.
const NUMBER: i32 = (1 << 10) - 1;
const _: () = assert!(NUMBER as usize + 1 >= crate::context::ANCHORS);

/// Bytes between a look-up's return address and its site.
const TEST_AND_JUMP: i32 = 10;

/// RCX = the byte offset of RAX's slot in a table's jump cache; jumps away unless the slot is RAX's.
pub(crate) fn probe(asm: &mut Asm, table: Table, bmi2: bool) -> Hole {
    shifted(asm, Gpr::RCX, Gpr::RAX, JUMP_STIR, bmi2);
    asm.lea_indexed(true, Gpr::RCX, Some(Gpr::RCX), Gpr::RAX, JUMP_SPREAD, 0);
    asm.op32_imm(Op::And, Gpr::RCX, last(JUMPS) << JUMP_SHIFT);
    asm.gs_op_at(Op::Cmp, Gpr::RAX, Gpr::RCX, at::jumps(table));
    asm.jcc(Condition::NOT_EQUAL)
}

/// The last index of a table whose size is a power of two.
fn last(size: usize) -> i32 {
    i32::try_from(size - 1).unwrap_or(0)
}

/// RCX or another register = the byte offset of the slot that the page of `from` has among a table's code pages, which lie at
/// the displacement that is given. The upper half of `from` is not asked.
pub(crate) fn code_page(asm: &mut Asm, to: Gpr, from: Gpr, table: Table, bmi2: bool) -> i32 {
    shifted(asm, to, from, PAGE_SHIFT - CODE_PAGE_SHIFT, bmi2);
    asm.op32_imm(Op::And, to, last(CODE_PAGES) << CODE_PAGE_SHIFT);
    at::jumps(table) + at::JUMP_PAGES
}

const PAGE_SHIFT: u8 = 12;

/// Binary logarithm of [`CODE_PAGE_BYTES`].
#[allow(clippy::cast_possible_truncation)]
const CODE_PAGE_SHIFT: u8 = CODE_PAGE_BYTES.trailing_zeros() as u8;

fn caller(asm: &mut Asm, table: Table, bmi2: bool) -> u32 {
    let start = asm.here();
    let tlb = at::tlb(table);
    let word = 8;
    // The home of the guest's RSP.
    let stack = Gpr::R15;
    asm.load(Gpr::RCX, Gpr::RSP, 0);
    asm.load32(Gpr::RAX, Gpr::RCX, 1);
    asm.gs_op(Op::Add, Gpr::RAX, at::PAGE);
    asm.gs_store(at::KEPT, Gpr::RAX);
    asm.lea(Gpr::RAX, stack, -word);
    index(asm, Gpr::RCX, Gpr::RAX, table, bmi2);
    asm.gs_op_at(Op::Sub, Gpr::RAX, Gpr::RCX, tlb + at::WRITE);
    asm.op_imm(Op::Cmp, Gpr::RAX, 4096 - word);
    let miss = asm.jcc(Condition::ABOVE);
    asm.gs_op_at(Op::Add, Gpr::RAX, Gpr::RCX, tlb + at::BASE);
    asm.gs_load(Gpr::RCX, at::KEPT);
    asm.store_to(true, Place::at(Gpr::RAX), Gpr::RCX);
    asm.lea(stack, stack, -word);
    // The host's return address goes above the guest's.
    asm.pop(Gpr::RAX);
    asm.op_imm(Op::Or, Gpr::RSP, low32(SHADOW_BYTES as u64).cast_signed());
    asm.push(Gpr::RCX);
    asm.push(Gpr::RAX);
    asm.gs_load(Gpr::RAX, at::TEMP);
    asm.gs_store(at::PAGE, Gpr::RAX);
    asm.gs_jmp(at::TEMP + 8);
    asm.land(miss);
    asm.pop(Gpr::RAX);
    asm.lea(Gpr::RAX, Gpr::RAX, TEST_AND_JUMP);
    asm.push(Gpr::RAX);
    asm.ret();
    start
}

fn finder(asm: &mut Asm, table: Table, bmi2: bool) -> u32 {
    let start = asm.here();
    let jumps = at::jumps(table);
    let unknown = probe(asm, table, bmi2);
    let found = asm.here();
    asm.gs_op_at(Op::Mov, Gpr::RCX, Gpr::RCX, jumps + at::JUMP_CODE);
    asm.gs_store(at::TEMP + 8, Gpr::RCX);
    asm.op_imm(Op::And, Gpr::RAX, -4096);
    asm.gs_store(at::TEMP, Gpr::RAX);
    asm.ret();
    asm.land(unknown);
    let [kept_rax, kept_rdx, kept_rbx] = [0, 8, 16].map(|offset| at::KEPT + offset);
    asm.gs_store(kept_rax, Gpr::RAX);
    asm.gs_store(kept_rdx, Gpr::RDX);
    asm.gs_store(kept_rbx, Gpr::RBX);
    let nowhere = entrance(asm, table, bmi2);
    asm.gs_load(Gpr::RAX, kept_rax);
    asm.gs_store_at(Gpr::RCX, jumps, Gpr::RAX);
    asm.gs_store_at(Gpr::RCX, jumps + at::JUMP_CODE, Gpr::RDX);
    asm.op32(Op::Mov, Gpr::RBX, Gpr::RCX);
    asm.shr(Gpr::RBX, GROUP_SHIFT);
    asm.gs_set_byte_at(Gpr::RBX, jumps + at::JUMP_GROUPS);
    asm.gs_load(Gpr::RDX, kept_rdx);
    asm.gs_load(Gpr::RBX, kept_rbx);
    let known = asm.jmp();
    asm.fill(known, found);
    nowhere.into_iter().for_each(|hole| asm.land(hole));
    asm.gs_load(Gpr::RAX, kept_rax);
    asm.gs_load(Gpr::RDX, kept_rdx);
    asm.gs_load(Gpr::RBX, kept_rbx);
    leave(asm);
    start
}

/// RDX = the host address of the code at the linear address in RAX, by code pages and entrances; jumps away if there is none. RAX
/// and RBX are lost.
fn entrance(asm: &mut Asm, table: Table, bmi2: bool) -> [Hole; 3] {
    asm.mov(Gpr::RDX, Gpr::RAX);
    asm.op_imm(Op::And, Gpr::RDX, -4096);
    let pages = code_page(asm, Gpr::RBX, Gpr::RAX, table, bmi2);
    asm.gs_op_at(Op::Cmp, Gpr::RDX, Gpr::RBX, pages + at::CODE_PAGE);
    let no_page = asm.jcc(Condition::NOT_EQUAL);
    // RDX = the key, RBX = the entrance.
    asm.op32(Op::Mov, Gpr::RDX, Gpr::RAX);
    asm.op32_imm(Op::And, Gpr::RDX, 0xfff);
    asm.shl32(Gpr::RDX, 16);
    asm.gs_op_at(Op::Or, Gpr::RDX, Gpr::RBX, pages + at::KEY);
    asm.mov(Gpr::RBX, Gpr::RDX);
    asm.shr(Gpr::RBX, ENTRANCE_STIR);
    asm.op(Op::Xor, Gpr::RBX, Gpr::RDX);
    asm.shr(Gpr::RBX, 16);
    asm.gs_op(Op::And, Gpr::RBX, at::ENTRANCES + 8);
    asm.shl32(Gpr::RBX, 4);
    asm.gs_op(Op::Add, Gpr::RBX, at::ENTRANCES);
    let next = asm.here();
    asm.load(Gpr::RAX, Gpr::RBX, 0);
    asm.op(Op::Cmp, Gpr::RAX, Gpr::RDX);
    let found = asm.jcc(Condition::EQUAL);
    asm.op_imm(Op::Cmp, Gpr::RAX, 0);
    let free = asm.jcc(Condition::EQUAL);
    asm.lea(Gpr::RBX, Gpr::RBX, 16);
    let again = asm.jmp();
    asm.fill(again, next);
    asm.land(found);
    asm.load32(Gpr::RDX, Gpr::RBX, at::ENTRANCE_CODE);
    asm.op_imm(Op::Cmp, Gpr::RDX, 0);
    let closed = asm.jcc(Condition::EQUAL);
    asm.gs_op(Op::Add, Gpr::RDX, at::CODE);
    [no_page, free, closed]
}

/// How far right a slot's offset is shifted to give its group's number.
#[allow(clippy::cast_possible_truncation)]
const GROUP_SHIFT: u8 = (JUMP_GROUP * JUMP_BYTES).trailing_zeros() as u8;

/// What may become of an access across two pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Across {
    /// Nothing but what the interpreter makes of it.
    Nothing,
    /// An access, if the pages are neighbours.
    Neighbours,
    /// The same, or one to a copy.
    Copy,
}

/// What lies behind the call of a look-up: the anchor at displacement `anchor`, the room.
pub(crate) fn look_up_operand(table: Table, anchor: i32, room: i32, across: Across) -> i32 {
    let number = (anchor - at::anchors(table)) / i32::try_from(ANCHOR_BYTES).unwrap_or(1);
    let across = match across {
        Across::Nothing => ONE_PAGE,
        Across::Neighbours => 0,
        Across::Copy => COPY,
    };
    number & NUMBER | across | room << 16
}
