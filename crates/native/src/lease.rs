//! The x87 unit on loan: a guest's state stays in the host's own unit from one instruction to the next.
//!
//! Loading and storing the whole unit around each instruction costs more than the instruction. An engine whose code the
//! processor executes directly *lends* the state to the unit once and *takes it back* when somebody wants to look at it.
//! In between [`FpuState`] is out of date, but for the last-instruction fields: the unit's own pointers are about
//! the host's code, and not every processor stores them, so they are the engine's to keep.

use x86::FpuState;
use x86::fpu::fsw;

use crate::processor::{Processor, read_image, write_image};

/// The six exception masks of the control word.
const MASKS: u16 = 0x3f;

impl Processor {
    /// Whether the unit holds a guest's state.
    #[inline]
    pub fn is_lent(&self) -> bool {
        self.lent
    }

    /// Loads `fpu` into the host's unit, if all its exceptions are masked, so that nothing it computes can trap; true if the
    /// unit holds it now.
    ///
    /// # Safety
    /// Until [`take_back`](Processor::take_back), on this thread, runs no code that expects the unit as the C calling
    /// convention has it: Rust's own floating-point arithmetic does not use it, C's `long double` does.
    pub unsafe fn lend(&mut self, fpu: &FpuState) -> bool {
        if !self.lent && fpu.fcw & MASKS == MASKS {
            write_image(fpu, &mut self.context.image.0);
            let image = &raw const self.context.image;
            // SAFETY: the image is as large and as aligned as FXRSTOR wants it, its MXCSR is Rust's own and its reserved
            // bytes are zero. All of the registers that it loads are declared; the x87 ones are the caller's promise.
            unsafe {
                core::arch::asm!(
                    "fxrstor64 [{}]",
                    in(reg) image,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                    out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                    out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    options(nostack, preserves_flags, readonly),
                );
            }
            self.lent = true;
        }
        self.lent
    }

    /// Stores the unit's state into `fpu`, if it was lent, and leaves the unit as Rust code expects it. The last-instruction
    /// fields stay.
    #[inline]
    pub fn take_back(&mut self, fpu: &mut FpuState) {
        if self.lent {
            self.store_unit(fpu);
        }
    }

    #[cold]
    fn store_unit(&mut self, fpu: &mut FpuState) {
        let image = &raw mut self.context.image;
        // SAFETY: FXSAVE writes the image, which has its size and alignment; FNINIT changes nothing but the unit,
        // which is what Rust code expects of it afterwards.
        unsafe {
            core::arch::asm!("fxsave64 [{}]", "fninit", in(reg) image, options(nostack, preserves_flags));
        };
        read_image(&self.context.image.0, fpu);
        fpu.fsw &= !(fsw::ES | fsw::B);
        self.lent = false;
    }
}
