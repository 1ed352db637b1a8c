//! Turns of the loop that are samples ([`crate::sample`]).

use iced_x86::Instruction;
use x86::bits::index;
use x86::{PAGE_MASK, PAGE_SIZE};

use super::{BtVcpu, LONGEST};
use crate::sample::Turn;

impl BtVcpu {
    /// Makes the turn a sample's, if it is one. The mode must have been set.
    #[inline]
    pub(super) fn take_sample(&mut self) -> bool {
        // Who compares two engines wants the same from both.
        if self.repeatable {
            return false;
        }
        match self.sampler.turn(host::time::monotonic_ns) {
            Turn::Usual => return false,
            Turn::Skip => self.slow.execute_block(),
            Turn::Look => {
                self.look_at_next();
                self.slow.execute_one();
            }
        }
        true
    }

    /// Looks up the accesses of the instruction at RIP in the TLBs of translated code.
    #[cold]
    fn look_at_next(&mut self) {
        let Some(insn) = self.next_instruction() else { return };
        let touches = self.sampler.touches(&insn, &self.slow.registers(), &self.slow.system_registers());
        let (views, table) = (&mut self.views, self.mode.table());
        self.sampler.count(touches, |touch| views.holds(table, touch.va, touch.write));
    }

    /// The instruction at RIP, unless it goes on in another page.
    fn next_instruction(&mut self) -> Option<Instruction> {
        let rip = self.slow.rip();
        let mfn = self.code_frame(rip)?;
        let mut bytes = [0; LONGEST + 1];
        let code = bytes.get_mut(..index(PAGE_SIZE - (rip & PAGE_MASK)).min(LONGEST + 1))?;
        self.slow.memory().frames().copy_out(mfn, rip & PAGE_MASK, code);
        let insn = self.mode.decoder(code, rip).decode();
        (!insn.is_invalid()).then_some(insn)
    }
}
