//! IRETQ, where it returns to what the fast system calls know: user's code, or the supervisor's own.
//!
//! Segments are loaded from the descriptor table in memory, which the guest may change at any time. So the code compares
//! the two descriptors there with those that stand for what SYSCALL and SYSRET load without looking; if they agree, what
//! IRET loads is what those load ([`fast_segments`]). The engine says which selectors that may be, and none if
//! the return would do more: make NMIs known again, take data segments away from user code ([`crate::context::Return`]).
//!
//! Everything is checked and every word of the frame read, once, before anything changes. IRET is a serializing
//! instruction: stores are drained, and whoever wants attention gets it first.
//!
//! RF, which only holds off breakpoints, is not set: where there are breakpoints nothing is translated.

use x86::rflags;

use crate::asm::{Condition, Hole, Op};
use crate::block::Mode;
use crate::branch::{self, Flow};
use crate::context::{Returns, at, fast_segments};
use crate::emit::{Emitter, Result, Unsupported};
use crate::host::Gpr;
use crate::system::{load_status, mask, unless_nothing_waits};

/// Offsets in the frame.
const RIP: i32 = 0;
const CS: i32 = 8;
const FLAGS: i32 = 16;
const RSP: i32 = 24;
const SS: i32 = 32;
/// Bytes of it.
const FRAME: usize = 40;

/// An image with any of these is left to the interpreter.
const UNUSUAL: u64 =
    rflags::TF | rflags::NT | rflags::AC | rflags::VM | rflags::IOPL | rflags::VIF | rflags::VIP;
/// The flags, other than status flags, that others may set.
const RESTORED: u64 = rflags::DF | rflags::IF | rflags::ID;

/// Translates it, in supervisor mode.
pub(crate) fn iret(e: &mut Emitter<'_>) -> Result<Flow> {
    // Behind STI nobody may be let in yet; accesses with AC use another table than those of descriptors.
    if e.shadow || e.mode.has(Mode::AC) {
        return Err(Unsupported);
    }
    e.free_flags();
    branch::poll_freely(e);
    unless_nothing_waits(e);
    e.asm.gs_test32(at::SYSTEM_FLAGS, x86::bits::low32(rflags::NT));
    interpret_if(e, Condition::NOT_EQUAL);
    read_frame(e)?;
    for to in [Returns::User, Returns::Supervisor, Returns::Nested] {
        e.asm.gs_op(Op::Cmp, Gpr::RAX, at::returns(to) + at::RETURN_SELECTORS);
        let other = e.asm.jcc(Condition::NOT_EQUAL);
        compare_descriptors(e, to)?;
        return_to(e, to)?;
        e.asm.land(other);
    }
    e.interpret();
    Ok(Flow::End)
}

fn interpret_if(e: &mut Emitter<'_>, condition: Condition) {
    let hole: Hole = e.asm.jcc(condition);
    e.interpret_from(hole);
}

/// RAX = the selectors of CS and, from bit 32 on, SS; the frame's address and the image of the flags are kept.
fn read_frame(e: &mut Emitter<'_>) -> Result {
    let stack = Gpr::RSP.home().ok_or(Unsupported)?;
    e.asm.mov(Gpr::RAX, stack);
    e.check_stack(FRAME, false)?;
    e.asm.gs_store(at::FRAME, Gpr::RAX);
    e.asm.load(Gpr::RCX, Gpr::RAX, FLAGS);
    e.asm.gs_store(at::IMAGE, Gpr::RCX);
    e.asm.test32_imm(Gpr::RCX, mask(UNUSUAL));
    interpret_if(e, Condition::NOT_EQUAL);
    e.asm.load16(Gpr::RCX, Gpr::RAX, SS);
    e.asm.shl(Gpr::RCX, 32);
    e.asm.load16(Gpr::RAX, Gpr::RAX, CS);
    e.asm.op(Op::Or, Gpr::RAX, Gpr::RCX);
    Ok(())
}

/// Leaves unless the descriptors are those that are expected. RAX and RCX are lost.
fn compare_descriptors(e: &mut Emitter<'_>, to: Returns) -> Result {
    let at = at::returns(to);
    e.asm.gs_load(Gpr::RAX, at + at::RETURN_DESCRIPTOR);
    // The first access of its own, so that a fault is the one that the instruction raises.
    e.check_kept(8, false)?;
    e.asm.gs_load(Gpr::RCX, at + at::RETURN_CODE);
    e.asm.op_based(Op::Cmp, Gpr::RCX, Gpr::RAX, 0);
    interpret_if(e, Condition::NOT_EQUAL);
    let beside = match to {
        Returns::User => -8,
        Returns::Supervisor => 8,
        Returns::Nested => return Ok(()),
    };
    e.asm.gs_load(Gpr::RCX, at + at::RETURN_STACK);
    e.asm.op_based(Op::Cmp, Gpr::RCX, Gpr::RAX, beside);
    interpret_if(e, Condition::NOT_EQUAL);
    Ok(())
}

/// Returns, if the code there is known.
fn return_to(e: &mut Emitter<'_>, to: Returns) -> Result {
    let mode = e.mode.with(Mode::USER, to == Returns::User);
    e.asm.gs_load(Gpr::RAX, at::FRAME);
    e.asm.load(Gpr::RAX, Gpr::RAX, RIP);
    e.find_or_interpret(mode);
    // From here on nothing leaves.
    e.asm.gs_load(Gpr::RAX, at::FRAME);
    let stack = Gpr::RSP.home().ok_or(Unsupported)?;
    e.asm.load(stack, Gpr::RAX, RSP);
    e.asm.mfence();
    let form = e.form;
    e.asm.gs_load(Gpr::RAX, at::IMAGE);
    e.asm.op32(Op::Mov, Gpr::RCX, Gpr::RAX);
    e.asm.op32_imm(Op::And, Gpr::RCX, mask(RESTORED));
    e.asm.op32_imm(Op::Or, Gpr::RCX, mask(rflags::FIXED));
    e.asm.gs_store(at::SYSTEM_FLAGS, Gpr::RCX);
    load_status(e);
    // The other ways go on with the flags as they were.
    e.form = form;
    let (selectors, segments) = match to {
        Returns::User => (at::SYSRET_SELECTORS, fast_segments::SYSRET),
        Returns::Supervisor => (at::SYSCALL_SELECTORS, fast_segments::SYSCALL),
        Returns::Nested => (at::SYSCALL_SELECTORS, fast_segments::NESTED),
    };
    if to == Returns::Nested {
        e.asm.gs_load16(Gpr::RAX, selectors);
    } else {
        e.asm.gs_load32(Gpr::RAX, selectors);
    }
    e.asm.gs_store32(at::SELECTORS + 2, Gpr::RAX);
    e.asm.gs_store_imm32(at::SEGMENTS, segments);
    if to == Returns::User {
        branch::change_shadow(e, mode);
    }
    branch::go_to_found(e);
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::listing::{exits, text};
    use crate::{Exit, Mode};

    const IRETQ: [u8; 2] = [0x48, 0xcf];

    #[test]
    fn everything_is_checked_before_anything_changes() {
        let code = text(Mode::new(), &IRETQ);
        let places = |what: &str| {
            let holds = |(place, line): (usize, &String)| line.contains(what).then_some(place);
            code.iter().enumerate().filter_map(holds).collect::<Vec<_>>()
        };
        // Each of the three returns: nothing conditional between the load of the stack pointer and the jump.
        let loads = places("mov r15,");
        assert_eq!(loads.len(), 3);
        let fences = places("mfence");
        for (load, fence) in loads.into_iter().zip(fences) {
            assert_eq!(fence, load + 1);
            let rest = &code[load..];
            let end = rest.iter().position(|line| line.starts_with("jmp")).unwrap();
            assert!(rest[..end].iter().all(|line| !line.starts_with('j')), "{rest:?}");
        }
    }

    #[test]
    fn where_it_is_left_to_the_interpreter() {
        let alone = [Exit::Interpret];
        assert_eq!(exits(Mode::USER, &IRETQ), alone);
        assert_eq!(exits(Mode::AC, &IRETQ), alone);
        assert_eq!(exits(Mode::new(), &[0xcf]), alone, "iretd");
        let all = exits(Mode::new(), &IRETQ);
        let user = Mode::USER;
        assert_eq!(all.iter().filter(|exit| matches!(exit, Exit::Transfer { .. })).count(), 3);
        assert!(all.iter().any(|exit| matches!(exit, Exit::Transfer { mode, .. } if *mode == user)));
        assert!(all.contains(&Exit::Attention));
    }
}
