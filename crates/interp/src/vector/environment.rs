//! What vector and x87 instructions need of the processor around them.
//!
//! They are written against this trait and not against the processor itself: the interpreter's core implements it
//! once, tests implement it with a few lines of plain memory.

use native::Processor;
use x86::cpuid::Feature;
use x86::{Exception, FpuState, Mode, SegmentIndex, VectorState};

use crate::op::Mem;

/// The control state that decides whether an instruction may execute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Control {
    pub(crate) cr0: u64,
    pub(crate) cr4: u64,
    pub(crate) xcr0: u64,
    pub(crate) mode: Mode,
    pub(crate) cpl: u8,
}

/// The arithmetic unit and the registers it works on, borrowed together.
pub(crate) struct Units<'a> {
    pub(crate) processor: &'a mut Processor,
    pub(crate) vector: &'a mut VectorState,
    pub(crate) fpu: &'a mut FpuState,
}

/// The processor, seen from an instruction of this wing.
pub(crate) trait Environment {
    /// Why an instruction was left early.
    type Break;

    /// Raises an exception as a fault.
    fn raise(&mut self, exception: Exception) -> Self::Break;
    /// An unmasked x87 exception met a waiting instruction: #MF, or with CR0.NE = 0 whatever FERR# is wired to.
    fn x87_error(&mut self) -> Self::Break;

    /// A general-purpose register, all 64 bits.
    fn gpr(&self, number: u8) -> u64;
    /// Writes all 64 bits of a general-purpose register.
    fn set_gpr(&mut self, number: u8, value: u64);
    /// RFLAGS.
    fn flags(&self) -> u64;
    /// Replaces CF, PF, AF, ZF, SF and OF.
    fn set_status_flags(&mut self, flags: u64);

    /// Control registers and mode.
    fn control(&self) -> Control;
    /// XSETBV, already checked.
    fn set_xcr0(&mut self, value: u64);
    /// The XCR0 bits that exist.
    fn xcr0_supported(&self) -> u64;
    /// Whether the processor has a feature.
    fn has(&self, feature: Feature) -> bool;
    /// RIP of the instruction being executed.
    fn instruction_pointer(&self) -> u64;
    /// A segment's selector.
    fn selector(&self, segment: SegmentIndex) -> u16;

    /// The vector registers.
    fn vector(&mut self) -> &mut VectorState;
    /// The arithmetic unit with the register files, those that an engine keeps elsewhere included.
    fn units(&mut self) -> Units<'_>;

    /// The offset that a memory operand names, cut to the address size.
    fn offset(&self, mem: &Mem) -> u64;
    /// The linear address of `size` bytes at an offset of a segment, checked as segmentation does; not for being
    /// canonical.
    fn linear(&mut self, seg: u8, offset: u64, size: u64, write: bool) -> Result<u64, Self::Break>;
    /// Reads at most a page. `align` is what #AC demands, where alignment is checked (SDM vol. 3, table 6-7).
    fn load(&mut self, seg: u8, offset: u64, align: u64, buffer: &mut [u8]) -> Result<(), Self::Break>;
    /// Writes at most a page.
    fn store(&mut self, seg: u8, offset: u64, align: u64, bytes: &[u8]) -> Result<(), Self::Break>;
    /// #GP or #SS for an address that is not canonical, then #AC for a misaligned one where alignment is checked.
    fn check_alignment(&mut self, seg: u8, offset: u64, align: u64) -> Result<(), Self::Break>;
    /// Makes sure that a [`store`](Environment::store) of `size` bytes cannot fault.
    fn probe_write(&mut self, seg: u8, offset: u64, align: u64, size: u64) -> Result<(), Self::Break>;
}
