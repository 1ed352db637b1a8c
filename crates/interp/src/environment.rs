//! The processor as vector and x87 instructions see it.

use x86::cpuid::Feature;
use x86::exception::vector;
use x86::{Exception, SegmentIndex, VectorState};

use crate::cpu::Cpu;
use crate::op::{Break, Mem};
use crate::vector::{Control, Environment, Units};

impl Environment for Cpu {
    type Break = Break;

    fn raise(&mut self, exception: Exception) -> Break {
        Cpu::raise(self, exception)
    }

    fn x87_error(&mut self) -> Break {
        Cpu::raise(self, Exception::plain(vector::MF))
    }

    fn gpr(&self, number: u8) -> u64 {
        self.reg(number)
    }

    fn set_gpr(&mut self, number: u8, value: u64) {
        *self.reg_mut(number) = value;
    }

    fn flags(&self) -> u64 {
        self.flags
    }

    fn set_status_flags(&mut self, flags: u64) {
        self.set_status(flags);
    }

    fn control(&self) -> Control {
        Control { cr0: self.cr0, cr4: self.cr4, xcr0: self.xcr0, mode: self.mode, cpl: self.cpl }
    }

    fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
    }

    fn xcr0_supported(&self) -> u64 {
        use x86::control::xcr0::{AVX, SSE, X87};
        X87 | SSE | if self.has(Feature::Avx) { AVX } else { 0 }
    }

    fn has(&self, feature: Feature) -> bool {
        Cpu::has(self, feature)
    }

    fn instruction_pointer(&self) -> u64 {
        self.vector_rip
    }

    fn selector(&self, segment: SegmentIndex) -> u16 {
        self.segment(segment).selector.0
    }

    fn vector(&mut self) -> &mut VectorState {
        &mut self.vector
    }

    fn units(&mut self) -> Units<'_> {
        self.native.take_back(&mut self.fpu);
        Units { processor: &mut self.native, vector: &mut self.vector, fpu: &mut self.fpu }
    }

    fn offset(&self, mem: &Mem) -> u64 {
        self.offset_of(mem)
    }

    fn linear(&mut self, seg: u8, offset: u64, size: u64, write: bool) -> Result<u64, Break> {
        Cpu::linear(self, seg, offset, size, write)
    }

    fn load(&mut self, seg: u8, offset: u64, align: u64, buffer: &mut [u8]) -> Result<(), Break> {
        self.load_block(seg, offset, align, buffer)
    }

    fn store(&mut self, seg: u8, offset: u64, align: u64, bytes: &[u8]) -> Result<(), Break> {
        self.store_block(seg, offset, align, bytes)
    }

    fn check_alignment(&mut self, seg: u8, offset: u64, align: u64) -> Result<(), Break> {
        let va = Cpu::linear(self, seg, offset, align, false)?;
        self.check_canonical(seg, va, align)?;
        Cpu::check_alignment(self, va, align)
    }

    fn probe_write(&mut self, seg: u8, offset: u64, align: u64, size: u64) -> Result<(), Break> {
        self.probe_block(seg, offset, align, size)
    }
}
