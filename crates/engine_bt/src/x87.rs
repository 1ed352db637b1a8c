//! The guest's x87 state and where it is: in the processor's own unit while translated code uses it, otherwise in the
//! interpreter's.
//!
//! Translated code asks for the state when it needs it ([`lend`]). The interpreter takes it back by itself before it
//! looks at it, and [`BtVcpu::run`](crate::BtVcpu) before it returns; what else runs in between does not touch the unit.

use interp::InterpVcpu;
use translate::Context;
use x86::bits::low16;
use x86::cpuid::Feature;

/// Lends the state to the processor, if it can run there: true if it is there.
pub(crate) fn lend(slow: &mut InterpVcpu, context: &mut Context) -> bool {
    let (processor, fpu) = slow.x87();
    // SAFETY: until `take_back` this thread runs translated code, the engine and the interpreter, which are Rust, and
    // thunks, before which the interpreter takes it back.
    let lent = unsafe { processor.lend(fpu) };
    if lent {
        (context.x87_page, context.x87_last) = (fpu.fip, u32::from(fpu.fop) << 16);
    }
    lent
}

/// Takes over the last instruction's address, and its opcode on processors that keep everyone's.
pub(crate) fn note_pointer(slow: &mut InterpVcpu, context: &Context) {
    let everyone = !slow.features().has(Feature::FdpExcptnOnly);
    let (processor, fpu) = slow.x87();
    if processor.is_lent() {
        fpu.fip = context.x87_page.wrapping_add((context.x87_last & 0xffff).into());
        if everyone {
            fpu.fop = low16((context.x87_last >> 16).into());
        }
    }
}

/// The state is the interpreter's again.
pub(crate) fn take_back(slow: &mut InterpVcpu) {
    let (processor, fpu) = slow.x87();
    processor.take_back(fpu);
}
