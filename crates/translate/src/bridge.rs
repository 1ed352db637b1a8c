//! Direct jumps and calls to other pages.
//!
//! What lies in another page depends on the address space, so such a jump cannot be linked for good as one within the page
//! is. But a page of code nearly always leads to the same other page, both being pages of one file. A *bridge* goes straight
//! to a block and asks before, in nine instructions, whether the target's linear address is that block's frame now: the code
//! pages ([`crate::context::CodePage`]) tell, which are dropped when a mapping changes. Mode and privilege are part of
//! their keys. No address space needs a bridge of its own, and the processor's predictors see a direct jump.
//!
//! Below the block each bridge has its far side:
//!
//! ```text
//! other frame:  call exit            the site, Exit::Bridge: RAX is the linear address of the target's page
//!               mov rcx, key         never executed: carries what the code pages are compared with ([`Site::KEY`]);
//!                                    as long as nothing has been built, the target's offset in its page
//! other page:   lea rax, [rax + offset]
//!               call finder          the way round ([`Site::ROUND`]), as indirect jumps go: see crate::routines
//!               ...
//! ```
//!
//! A bridge is built when its site is left by for the first time. One that has to lead to a second frame later is given up: its
//! site becomes a jump to the way round.

use crate::asm::{Condition, Hole, Op};
use crate::block::{Block, Exit, Site, Way};
use crate::branch::{go_to_found, push_return};
use crate::context::at;
use crate::emit::{Emitter, Result, Unsupported};
use crate::host::Gpr;
use crate::routines::code_page;

/// What is left to be emitted of a bridge: its far side.
pub(crate) struct FarSide {
    /// The jump that is taken if the target's page is not the one that its slot knows.
    page: Hole,
    /// Where the comparison has the address of the key.
    key: Hole,
    /// The target's offset in its page.
    offset: u16,
    /// What the finder leaves for if it finds nothing.
    exit: Exit,
    crossing: Crossing,
}

#[derive(Clone, Copy)]
enum Crossing {
    Jump,
    /// The host's return arrives at offset `landing`, the guest's at page offset `next`.
    Call {
        landing: u32,
        next: u16,
    },
}

/// The way on, if it is the expected one.
struct Near {
    other_frame: Hole,
    other_page: Hole,
    key: Hole,
}

const PAGE_MASK: i64 = 0xfff;

/// Whether a bridge can lead from here to `target`, counted from the page's start.
pub(crate) fn fits(e: &Emitter<'_>, target: i64) -> bool {
    !e.is_compat() && e.mode == e.source.mode && i32::try_from(target).is_ok()
}

/// RAX = the linear address of the target's page, if its code is in the expected frame. Flags are in memory; RCX is lost.
fn ask(e: &mut Emitter<'_>, target: i64) -> Result<Near> {
    let page = i32::try_from(target & !PAGE_MASK).map_err(|_| Unsupported)?;
    e.asm.gs_load(Gpr::RAX, at::PAGE);
    e.asm.lea(Gpr::RAX, Gpr::RAX, page);
    let pages = code_page(&mut e.asm, Gpr::RCX, Gpr::RAX, e.mode.table(), e.source.host.bmi2);
    e.asm.gs_op_at(Op::Cmp, Gpr::RAX, Gpr::RCX, pages + at::CODE_PAGE);
    let other_page = e.asm.jcc(Condition::NOT_EQUAL);
    e.asm.gs_op_at(Op::Mov, Gpr::RCX, Gpr::RCX, pages + at::KEY);
    let key = e.asm.cmp_literal(Gpr::RCX);
    let other_frame = e.asm.jcc(Condition::NOT_EQUAL);
    Ok(Near { other_frame, other_page, key })
}

fn note(
    e: &mut Emitter<'_>,
    near: &Near,
    jump: Hole,
    target: i64,
    guest: u16,
    exit: Exit,
    crossing: Crossing,
) {
    let bridge = Exit::Bridge { jump: jump.position() };
    // Cut to the offset in the page.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let offset = (target & PAGE_MASK) as u16;
    let far = FarSide { page: near.other_page, key: near.key, offset, exit, crossing };
    e.bridge_from(near.other_frame, guest, bridge, far);
}

/// Jumps to `target`; if the finder has to leave, it is for `exit`. The guest is at the page offset `guest` meanwhile.
pub(crate) fn jump(e: &mut Emitter<'_>, target: i64, guest: u16, exit: Exit) -> Result {
    let near = ask(e, target)?;
    e.asm.gs_store(at::PAGE, Gpr::RAX);
    let jump = e.asm.jmp();
    note(e, &near, jump, target, guest, exit, Crossing::Jump);
    Ok(())
}

/// Calls `target`. The host's return arrives behind the emitted code.
pub(crate) fn call(e: &mut Emitter<'_>, target: i64) -> Result {
    let near = ask(e, target)?;
    let address = push_return(e)?;
    let page = i32::try_from(target & !PAGE_MASK).map_err(|_| Unsupported)?;
    e.asm.lea(Gpr::RAX, address, page - i32::from(e.next));
    e.asm.gs_store(at::PAGE, Gpr::RAX);
    let call = e.asm.call();
    let crossing = Crossing::Call { landing: e.asm.here(), next: e.next };
    note(e, &near, call, target, e.at, Exit::Transfer { mode: e.mode }, crossing);
    Ok(())
}

/// Emits the far side, behind the call of the exit.
pub(crate) fn far_side(e: &mut Emitter<'_>, far: &FarSide, site: &Site, block: &mut Block) {
    let key = e.asm.here() + Site::KEY;
    e.asm.fill(far.key, key);
    e.asm.mov_imm64(Gpr::RCX, far.offset.into());
    e.asm.land(far.page);
    e.asm.lea(Gpr::RAX, Gpr::RAX, far.offset.into());
    let mut leave = |e: &mut Emitter<'_>, exit, way| {
        block.sites.push(Site { exit, way, at: e.asm.here(), ..*site });
        let _completed_when_placed = e.asm.call();
    };
    leave(e, far.exit, Way::Find(site.mode.table()));
    match far.crossing {
        Crossing::Jump => go_to_found(e),
        Crossing::Call { landing, next } => {
            e.asm.gs_call(at::CALLERS + 8 * site.mode.table() as i32);
            e.asm.test_eax(next.into());
            let back = e.asm.jmp();
            e.asm.fill(back, landing);
            leave(e, Exit::Interpret, Way::BARE);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::listing::{block, exits};
    use crate::{Exit, Mode, Site};

    const CALL: [u8; 5] = [0xe8, 0, 0x10, 0, 0];

    #[test]
    fn jumps_out_of_the_page_are_bridges_and_others_are_not() {
        let bridges = |mode: Mode, bytes: &[u8]| {
            exits(mode, bytes).iter().filter(|exit| matches!(exit, Exit::Bridge { .. })).count()
        };
        assert_eq!(bridges(Mode::USER, &CALL), 1);
        assert_eq!(bridges(Mode::USER, &[0xe9, 0, 0x10, 0, 0]), 1, "jmp");
        assert_eq!(bridges(Mode::USER, &[0x0f, 0x84, 0, 0xf0, 0xff, 0xff]), 1, "je");
        assert_eq!(bridges(Mode::USER, &[0xe8, 0, 1, 0, 0]), 0, "in the page");
        assert_eq!(bridges(Mode::USER, &[0xff, 0xd0]), 0, "call rax");
        assert_eq!(bridges(Mode::USER.with(Mode::COMPAT, true), &CALL), 0);
    }

    #[test]
    fn behind_the_site_are_the_targets_offset_and_the_way_round() {
        let block = block(Mode::USER, &CALL);
        let at = block.sites.iter().position(|site| matches!(site.exit, Exit::Bridge { .. })).unwrap();
        let behind = block.sites[at].at + Site::BYTES;
        let key = (behind + Site::KEY) as usize;
        let word = u64::from_le_bytes(block.code[key..key + 8].try_into().unwrap());
        assert_eq!(word, (u64::from(crate::listing::AT) + 5 + 0x1000) & 0xfff);
        assert_eq!(
            behind + Site::ROUND,
            block.sites[at + 1].at - 7,
            "LEA RAX, [RAX + disp32], then the finder's call"
        );
        assert_eq!(block.sites[at + 1].exit, Exit::Transfer { mode: Mode::USER });
    }
}
