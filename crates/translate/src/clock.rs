//! The time stamp counter, and IA32_TSC_AUX beside it.
//!
//! The guest's counter is the host's plus an offset, which changes only while no translated code runs.

use iced_x86::Instruction;

use crate::asm::Op;
use crate::context::at;
use crate::emit::{Emitter, Result, Unsupported};
use crate::host::Gpr;

/// RDTSC; RDTSCP, which waits for the instructions before it and reads IA32_TSC_AUX too.
pub(crate) fn time_stamp(e: &mut Emitter<'_>, with_aux: bool) -> Result {
    let (low, aux) = (Gpr::RAX.home().ok_or(Unsupported)?, Gpr::RCX.home().ok_or(Unsupported)?);
    e.free_flags();
    if with_aux {
        e.asm.lfence();
    }
    e.asm.rdtsc();
    e.asm.shl(Gpr::RDX, 32);
    e.asm.op(Op::Or, Gpr::RAX, Gpr::RDX);
    e.asm.gs_op(Op::Add, Gpr::RAX, at::TSC_OFFSET);
    e.asm.mov(Gpr::RDX, Gpr::RAX);
    e.asm.shr(Gpr::RDX, 32);
    e.asm.op32(Op::Mov, low, Gpr::RAX);
    if with_aux {
        e.asm.gs_load(aux, at::TSC_AUX);
    }
    Ok(())
}

/// RDPID.
pub(crate) fn processor_id(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let guest = Gpr::of(insn.op0_register()).ok_or(Unsupported)?;
    e.asm.gs_load(Gpr::RCX, at::TSC_AUX);
    e.write(guest, Gpr::RCX);
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::listing::{exits, text};
    use crate::{Exit, Mode};

    #[test]
    fn the_counter_is_read_where_it_may_be() {
        assert_eq!(exits(Mode::new(), &[0x0f, 0x31]), [Exit::Interpret]);
        assert_eq!(exits(Mode::TSC, &[0x0f, 0x31]), [], "rdtsc");
        assert_eq!(exits(Mode::TSC, &[0x0f, 0x01, 0xf9]), [], "rdtscp");
        assert_eq!(exits(Mode::new(), &[0xf3, 0x0f, 0xc7, 0xfe]), [], "rdpid rsi");
        assert!(text(Mode::TSC, &[0x0f, 0x01, 0xf9]).windows(2).any(|pair| pair == ["lfence", "rdtsc"]));
    }
}
