//! PAUSE, which stands in loops that wait for another CPU.
//!
//! That CPU's thread may itself be waiting, for the host's processor: there may be more vCPUs than processors, and the host
//! stops any of them anywhere, inside a critical section too. Then the loop would burn the rest of its time slice for
//! nothing. So one PAUSE of many is left to the interpreter, which yields the processor; the others are the host's own.

use iced_x86::Instruction;

use crate::asm::{Condition, Op};
use crate::context::at;
use crate::emit::{Emitter, Result};

/// PAUSEs of which one is left to the interpreter: a few microseconds' worth, longer than a lock is held by who runs.
const PAUSES: u32 = 64;

/// PAUSE.
pub(crate) fn pause(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    e.free_flags();
    e.asm.gs_op32_imm8(Op::Sub, at::PAUSES, 1);
    let more = e.asm.jcc(Condition::NOT_SIGN);
    e.asm.gs_store_imm32(at::PAUSES, PAUSES - 1);
    let hole = e.asm.jmp();
    e.interpret_from(hole);
    let here = e.asm.here();
    e.asm.fill(more, here);
    e.encode(insn)
}

#[cfg(test)]
mod tests {
    use crate::listing::{exits, text};
    use crate::{Exit, Mode};

    #[test]
    fn one_of_many_is_left_to_the_interpreter() {
        assert_eq!(exits(Mode::new(), &[0xf3, 0x90]), [Exit::Interpret]);
        assert_eq!(text(Mode::new(), &[0xf3, 0x90]).iter().filter(|line| *line == "pause").count(), 1);
    }
}
