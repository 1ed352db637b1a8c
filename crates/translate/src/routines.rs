//! Code that every translation shares: the look-ups behind the anchors, and the exit that nobody foresaw.
//!
//! A routine is called by the cold path of an access whose anchor did not fit, with
//!
//! - RAX: the linear address, RCX: the anchor's displacement from GS;
//! - [`Context::room`](crate::Context::room): how far into its page the access may begin;
//! - [`Context::site`](crate::Context::site): the exit to take if the TLB has no such translation.
//!
//! - [`Context::kept`](crate::Context::kept): in its last element, what RCX held before.
//!
//! It returns the host address in RAX, RCX as it was before, and the anchor is the page's from now on; or it leaves, RAX
//! and RCX as they were. Status flags are lost, so they have to be in memory.

use crate::asm::{Asm, Condition, Op};
use crate::block::UNFORESEEN;
use crate::context::{SPANS, Table, at, tlb_index};
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
}

/// Makes them.
pub fn routines(bmi2: bool) -> Routines {
    let mut asm = Asm::default();
    let unforeseen = asm.here();
    asm.gs_store_imm32(at::SITE, UNFORESEEN);
    asm.gs_jmp(at::EXIT);
    let look_ups = [Table::Supervisor, Table::SupervisorAc, Table::User]
        .map(|table| [at::READ, at::WRITE].map(|tag| look_up(&mut asm, table, tag, bmi2)));
    Routines { code: asm.finish(), unforeseen, look_ups }
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
    asm.gs_store(kept_rax, Gpr::RAX);
    asm.gs_store(kept_rdx, Gpr::RDX);
    index(asm, Gpr::RDX, Gpr::RAX, table, bmi2);
    asm.gs_op_at(Op::Sub, Gpr::RAX, Gpr::RDX, tlb + tag);
    asm.gs_op(Op::Cmp, Gpr::RAX, at::ROOM);
    let miss = asm.jcc(Condition::ABOVE);
    asm.gs_store(kept_rbx, Gpr::RBX);
    asm.gs_op_at(Op::Mov, Gpr::RBX, Gpr::RDX, tlb + at::GFN);
    asm.gs_store_at(Gpr::RCX, at::ANCHOR_GFN, Gpr::RBX);
    asm.gs_op_at(Op::Mov, Gpr::RBX, Gpr::RDX, tlb + tag);
    asm.gs_store_at(Gpr::RCX, at::ANCHOR_PAGE, Gpr::RBX);
    asm.gs_op_at(Op::Mov, Gpr::RDX, Gpr::RDX, tlb + at::BASE);
    asm.gs_store_at(Gpr::RCX, at::ANCHOR_BASE, Gpr::RDX);
    asm.op(Op::Add, Gpr::RAX, Gpr::RDX);
    asm.op(Op::Sub, Gpr::RDX, Gpr::RBX);
    asm.gs_store_at(Gpr::RCX, at::ANCHOR_DELTA, Gpr::RDX);
    for (span, limit) in SPANS.into_iter().zip((at::ANCHOR_LIMIT..).step_by(8)) {
        asm.gs_store_imm_at(Gpr::RCX, limit, 4097 - i32::from(span));
    }
    asm.gs_load(Gpr::RDX, kept_rdx);
    asm.gs_load(Gpr::RBX, kept_rbx);
    asm.gs_load(Gpr::RCX, kept_rcx);
    asm.ret();
    let here = asm.here();
    asm.fill(miss, here);
    asm.gs_load(Gpr::RAX, kept_rax);
    asm.gs_load(Gpr::RDX, kept_rdx);
    asm.gs_load(Gpr::RCX, kept_rcx);
    // The return address is not needed.
    asm.lea(Gpr::RSP, Gpr::RSP, 8);
    asm.gs_jmp(at::EXIT);
    start
}
