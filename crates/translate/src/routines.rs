//! Code that every translation shares: the look-ups behind the anchors, and the exit that nobody foresaw.
//!
//! # Exits
//! Every site of a block pushes its number on the shadow stack and jumps to one of the exits ([`Way`]), which do what
//! the site would have to do before it leaves.
//!
//! # Look-ups
//! A look-up is called by the cold path of an access whose anchor did not fit, with RAX the linear address less the
//! anchor's page. Behind the call lie
//!
//! - a TEST of EAX with 32 bits that say which anchor it is (low eight) and how far into its page the access may begin
//!   (high sixteen), which executes as nothing at all;
//! - a jump back to the access, reached if the TLB has the translation: RAX is the host address then, and the anchor is the
//!   page's from now on;
//! - the site to leave by, reached if it has not: RAX is the linear address.
//!
//! RCX stays as it was. Status flags are lost, so they have to be in memory.
//!
//! # Finders
//! A finder is called by the cold path of a jump whose target is not in the jump cache: RAX is the target, RCX the offset
//! of its slot. Other address spaces, or this one a while ago, may have found the code already: the target's page leads
//! to its frame (code pages), the place in the frame to the code (entrances), and the slot is filled. Behind the call
//! lie a jump back to the probe, and the site to leave by if nothing was found. RAX and RCX stay as they were.

use crate::asm::{Asm, Condition, Op};
use crate::block::{UNFORESEEN, Way};
use crate::context::{
    ANCHOR_BYTES, ANCHOR_SHIFT, CODE_PAGES, ENTRANCE_STIR, JUMP_BYTES, JUMP_GROUP, SPANS, Table, at,
    tlb_index,
};
use crate::host::Gpr;

/// All of them, placed one behind the other from the beginning of the code cache.
#[derive(Clone, Debug)]
pub struct Routines {
    /// The code.
    pub code: Vec<u8>,
    /// Where the exit begins that is numbered [`UNFORESEEN`]: what a return arrives at that pops the bottom of a shadow
    /// stack.
    pub unforeseen: u32,
    /// Where the look-ups begin: by [`Table`], reads and writes.
    pub look_ups: [[u32; 2]; 3],
    /// Where the finders begin, by [`Table`].
    pub finders: [u32; 3],
    /// Where the exits begin, by [`Way`].
    pub exits: [u32; Way::COUNT],
}

/// Makes them.
pub fn routines(bmi2: bool) -> Routines {
    let mut asm = Asm::default();
    let unforeseen = asm.here();
    asm.push_imm(UNFORESEEN.cast_signed());
    let mut exits = [0; Way::COUNT];
    let tags = TABLES.into_iter().flat_map(|table| [Some((table, false)), Some((table, true))]);
    for tag in std::iter::once(None).chain(tags) {
        for flags in [false, true] {
            let way = Way { tag, flags };
            exits[way.number()] = exit(&mut asm, way);
        }
    }
    let look_ups = TABLES.map(|table| [at::READ, at::WRITE].map(|tag| look_up(&mut asm, table, tag, bmi2)));
    let finders = TABLES.map(|table| finder(&mut asm, table));
    Routines { code: asm.finish(), unforeseen, look_ups, finders, exits }
}

const TABLES: [Table; 3] = [Table::Supervisor, Table::SupervisorAc, Table::User];

/// An exit: what the way is, then the site's number from the shadow stack.
fn exit(asm: &mut Asm, way: Way) -> u32 {
    let start = asm.here();
    if way.flags {
        asm.gs_store(at::KEPT, Gpr::RAX);
        asm.flags_to_ax();
        asm.gs_store16(at::STATUS, Gpr::RAX);
        asm.gs_load(Gpr::RAX, at::KEPT);
    }
    if let Some((table, write)) = way.tag {
        let tag = at::tlb(table) + if write { at::WRITE } else { at::READ };
        asm.gs_op_at(Op::Add, Gpr::RAX, Gpr::RCX, tag);
    }
    asm.gs_pop(at::SITE);
    asm.gs_jmp(at::EXIT);
    start
}

/// `to` = the byte offset of the slot of `from`.
pub(crate) fn index(asm: &mut Asm, to: Gpr, from: Gpr, table: Table, bmi2: bool) {
    let (rotation, mask) = tlb_index(table);
    if bmi2 {
        asm.rorx(to, from, rotation);
    } else {
        asm.mov(to, from);
        asm.shr(to, rotation);
    }
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
    asm.op32_imm(Op::And, Gpr::RCX, 0xff);
    asm.shl32(Gpr::RCX, ANCHOR_SHIFT);
    asm.shr(Gpr::RBX, 16);
    let anchor = |field| at::anchors(table) + field;
    asm.gs_op_at(Op::Add, Gpr::RAX, Gpr::RCX, anchor(at::ANCHOR_PAGE));
    asm.gs_store(kept_rax, Gpr::RAX);
    index(asm, Gpr::RDX, Gpr::RAX, table, bmi2);
    asm.gs_op_at(Op::Sub, Gpr::RAX, Gpr::RDX, tlb + tag);
    asm.op(Op::Cmp, Gpr::RAX, Gpr::RBX);
    let miss = asm.jcc(Condition::ABOVE);
    asm.gs_op_at(Op::Mov, Gpr::RBX, Gpr::RDX, tlb + at::GFN);
    asm.gs_store_at(Gpr::RCX, anchor(at::ANCHOR_GFN), Gpr::RBX);
    asm.gs_op_at(Op::Mov, Gpr::RBX, Gpr::RDX, tlb + tag);
    asm.gs_store_at(Gpr::RCX, anchor(at::ANCHOR_PAGE), Gpr::RBX);
    asm.gs_op_at(Op::Mov, Gpr::RDX, Gpr::RDX, tlb + at::BASE);
    asm.gs_store_at(Gpr::RCX, anchor(at::ANCHOR_BASE), Gpr::RDX);
    asm.op(Op::Add, Gpr::RAX, Gpr::RDX);
    asm.op(Op::Sub, Gpr::RDX, Gpr::RBX);
    asm.gs_store_at(Gpr::RCX, anchor(at::ANCHOR_DELTA), Gpr::RDX);
    for (span, limit) in SPANS.into_iter().zip((anchor(at::ANCHOR_LIMIT)..).step_by(8)) {
        asm.gs_store_imm_at(Gpr::RCX, limit, 4097 - i32::from(span));
    }
    let restore = |asm: &mut Asm| {
        asm.gs_load(Gpr::RDX, kept_rdx);
        asm.gs_load(Gpr::RBX, kept_rbx);
        asm.gs_load(Gpr::RCX, kept_rcx);
    };
    restore(asm);
    asm.ret();
    let here = asm.here();
    asm.fill(miss, here);
    restore(asm);
    return_to_site(asm, TEST_AND_JUMP);
    start
}

/// Bytes between a look-up's return address and its site.
const TEST_AND_JUMP: i32 = 10;
/// Bytes between a finder's return address and its site.
const JUMP: i32 = 5;

/// Returns to `ahead` bytes behind the return address, with the RAX that was kept.
fn return_to_site(asm: &mut Asm, ahead: i32) {
    asm.pop(Gpr::RAX);
    asm.lea(Gpr::RAX, Gpr::RAX, ahead);
    asm.push(Gpr::RAX);
    asm.gs_load(Gpr::RAX, at::KEPT);
    asm.ret();
}

fn finder(asm: &mut Asm, table: Table) -> u32 {
    let start = asm.here();
    let jumps = at::jumps(table);
    let (pages, groups) = (jumps + at::JUMP_PAGES, jumps + at::JUMP_GROUPS);
    let [kept_rax, kept_rdx, kept_rbx] = [0, 8, 16].map(|offset| at::KEPT + offset);
    asm.gs_store(kept_rax, Gpr::RAX);
    asm.gs_store(kept_rdx, Gpr::RDX);
    asm.gs_store(kept_rbx, Gpr::RBX);
    asm.mov(Gpr::RDX, Gpr::RAX);
    asm.op_imm(Op::Or, Gpr::RDX, 0xfff);
    asm.op32(Op::Mov, Gpr::RBX, Gpr::RAX);
    asm.shr(Gpr::RBX, 12);
    asm.op32_imm(Op::And, Gpr::RBX, i32::try_from(CODE_PAGES - 1).unwrap_or(0));
    asm.shl32(Gpr::RBX, 4);
    asm.gs_op_at(Op::Cmp, Gpr::RDX, Gpr::RBX, pages);
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
    let here = asm.here();
    asm.fill(found, here);
    asm.load32(Gpr::RDX, Gpr::RBX, at::ENTRANCE_CODE);
    asm.op_imm(Op::Cmp, Gpr::RDX, 0);
    let closed = asm.jcc(Condition::EQUAL);
    asm.gs_op(Op::Add, Gpr::RDX, at::CODE);
    asm.gs_load(Gpr::RAX, kept_rax);
    asm.gs_store_at(Gpr::RCX, jumps, Gpr::RAX);
    asm.gs_store_at(Gpr::RCX, jumps + at::JUMP_CODE, Gpr::RDX);
    asm.op32(Op::Mov, Gpr::RBX, Gpr::RCX);
    asm.shr(Gpr::RBX, GROUP_SHIFT);
    asm.shl32(Gpr::RBX, 3);
    asm.gs_store_imm_at(Gpr::RBX, groups, 1);
    asm.gs_load(Gpr::RDX, kept_rdx);
    asm.gs_load(Gpr::RBX, kept_rbx);
    asm.ret();
    let here = asm.here();
    for hole in [no_page, free, closed] {
        asm.fill(hole, here);
    }
    asm.gs_load(Gpr::RDX, kept_rdx);
    asm.gs_load(Gpr::RBX, kept_rbx);
    return_to_site(asm, JUMP);
    start
}

/// How far right a slot's offset is shifted to give its group's number.
#[allow(clippy::cast_possible_truncation)]
const GROUP_SHIFT: u8 = (JUMP_GROUP * JUMP_BYTES).trailing_zeros() as u8;

/// What lies behind the call of a look-up: the anchor at displacement `anchor`, the room.
pub(crate) fn look_up_operand(table: Table, anchor: i32, room: i32) -> i32 {
    let number = (anchor - at::anchors(table)) / i32::try_from(ANCHOR_BYTES).unwrap_or(1);
    number & 0xff | room << 16
}
