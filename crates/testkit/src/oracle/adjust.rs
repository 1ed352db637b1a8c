//! Second thoughts on a case: what random values would make dull or unanswerable is replaced.
//!
//! A string instruction needs pointers and a count, a return needs an address to return to, a division that always overflows
//! teaches nothing, and a random state image is never valid.

use iced_x86::{Code, FlowControl, Mnemonic, OpKind, Register};
use x86::rflags;

use super::build::{Builder, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP};
use super::case::{CODE, CODE_BYTES, DATA};
use super::random::Random;
use super::undefined;

impl Builder<'_> {
    /// Replaces what random values would make dull or unanswerable.
    pub(super) fn adjust(&mut self) {
        self.adjust_strings();
        self.adjust_stack();
        self.adjust_flow();
        self.adjust_arithmetic();
        self.adjust_images();
    }

    fn adjust_strings(&mut self) {
        let count = if self.random.one_in(16) { self.random.below(0x4000) } else { self.random.below(12) };
        for index in 0..self.instruction.op_count() {
            let (register, bits) = match self.instruction.op_kind(index) {
                OpKind::MemorySegRSI => (RSI, 64),
                OpKind::MemorySegESI => (RSI, 32),
                OpKind::MemorySegSI => (RSI, 16),
                OpKind::MemoryESRDI | OpKind::MemorySegRDI => (RDI, 64),
                OpKind::MemoryESEDI | OpKind::MemorySegEDI => (RDI, 32),
                OpKind::MemoryESDI | OpKind::MemorySegDI => (RDI, 16),
                _ => continue,
            };
            // Masked stores to nowhere are undefined when the mask is empty.
            let masked = register == RDI && self.instruction.op_count() == 3;
            let target = if masked { DATA + 64 + self.random.below(0x1f00) } else { self.choose_target(8) };
            let pointer = self.below_is(target, bits);
            self.pin(register, pointer);
            if !masked {
                let count = self.below_is(count, bits);
                self.pin(RCX, count);
            }
        }
        if self.mnemonic() == Mnemonic::Xlatb {
            self.instruction.set_memory_base(if self.bits == 64 { Register::RBX } else { Register::EBX });
            self.instruction.set_memory_index(Register::AL);
            let target = self.choose_target(1);
            let al = self.registers.gpr[RAX] & 0xff;
            self.pin(RBX, target.wrapping_sub(al));
        }
    }

    /// `value` in the low bits, anything above.
    fn below_is(&mut self, value: u64, bits: u32) -> u64 {
        let mask = x86::bits::mask_of(bits / 8);
        value & mask | self.random.bits() & !mask
    }

    fn adjust_stack(&mut self) {
        use Mnemonic as M;
        let stack = match self.mnemonic() {
            M::Push
            | M::Pop
            | M::Pushf
            | M::Pushfd
            | M::Pushfq
            | M::Popf
            | M::Popfd
            | M::Popfq
            | M::Enter
            | M::Pusha
            | M::Pushad
            | M::Popa
            | M::Popad => RSP,
            M::Leave => RBP,
            _ if matches!(
                self.code.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall | FlowControl::Return
            ) =>
            {
                RSP
            }
            _ => return,
        };
        if self.pinned >> stack & 1 != 0 {
            return;
        }
        let mut target = self.choose_target(8);
        if self.random.one_in(2) {
            target &= !7;
        }
        self.pin(stack, target);
        let top = match self.mnemonic() {
            // A single step or a nested task would not be seen alike.
            M::Popf | M::Popfd | M::Popfq => {
                self.random.bits() & !(rflags::TF | rflags::NT | self.world.host.refused_flags())
            }
            M::Enter => {
                let depth = self.random.below(5) as u8;
                self.instruction.set_immediate8_2nd(depth);
                self.instruction.set_immediate16(self.random.below(64) as u16);
                let frames = self.choose_target(64);
                self.pin(RBP, frames);
                return;
            }
            M::Ret => self.code_address(),
            _ => return,
        };
        if self.target.is_none() {
            self.target = Some(target);
            self.patch = top.to_le_bytes().to_vec();
        }
    }

    /// A place to jump to: the code pages are full of breakpoints.
    fn code_address(&mut self) -> u64 {
        let start = if self.bits == 16 { 0 } else { CODE };
        let address = match self.random.below(16) {
            0 if self.bits == 64 => self.random.pick(&[0x8000_0000_0000, CODE + CODE_BYTES as u64]),
            _ => start + self.random.below(CODE_BYTES as u64),
        };
        self.jump = Some(address);
        address
    }

    fn adjust_flow(&mut self) {
        match self.code.flow_control() {
            FlowControl::IndirectBranch | FlowControl::IndirectCall => {
                let address = self.code_address();
                match self.instruction.op0_kind() {
                    OpKind::Register => {
                        let register = self.instruction.op0_register().number();
                        self.registers.gpr[register] = address;
                    }
                    _ => self.patch = address.to_le_bytes().to_vec(),
                }
            }
            FlowControl::ConditionalBranch if self.random.one_in(2) => {
                // Loops and JRCXZ.
                let count = self.random.below(3);
                self.registers.gpr[RCX] = self.below_is(count, 32);
            }
            _ => {}
        }
    }

    fn adjust_arithmetic(&mut self) {
        use Mnemonic as M;
        let mnemonic = self.mnemonic();
        let r = &mut self.registers;
        match mnemonic {
            M::Div | M::Idiv if !self.random.one_in(4) => {
                // A dividend small enough for a quotient.
                let shift = self.random.below(64);
                if self.pinned >> RDX & 1 == 0 {
                    r.gpr[RDX] = self.random.pick(&[0, 0, u64::MAX, r.gpr[RDX] >> shift]);
                }
                if self.pinned >> RAX & 1 == 0 {
                    r.gpr[RAX] = r.gpr[RAX].cast_signed().wrapping_shr(shift as u32).cast_unsigned();
                }
            }
            M::Cmpxchg if self.random.one_in(2) => match self.instruction.op0_kind() {
                OpKind::Register => {
                    let n = self.instruction.op0_register().full_register().number();
                    r.gpr[RAX] = r.gpr[n];
                }
                _ => self.patch = r.gpr[RAX].to_le_bytes().to_vec(),
            },
            M::Cmpxchg8b if self.random.one_in(2) => {
                let low = r.gpr[RAX].to_le_bytes();
                let high = r.gpr[RDX].to_le_bytes();
                self.patch = [&low[..4], &high[..4]].concat();
            }
            M::Cmpxchg16b if self.random.one_in(2) => {
                self.patch = [r.gpr[RAX].to_le_bytes(), r.gpr[RDX].to_le_bytes()].concat();
            }
            M::Bt | M::Bts | M::Btr | M::Btc if !self.random.one_in(16) => {
                // The bit offset reaches far from the operand.
                let (to, by) = (self.instruction.op0_kind(), self.instruction.op1_kind());
                let n = self.instruction.op1_register().full_register().number();
                if to == OpKind::Memory && by == OpKind::Register && self.pinned >> n & 1 == 0 {
                    r.gpr[n] = self.random.below(0x1000).wrapping_sub(0x800);
                }
            }
            M::Pcmpestri
            | M::Pcmpestrm
            | M::Pcmpestri64
            | M::Pcmpestrm64
            | M::Vpcmpestri
            | M::Vpcmpestrm
            | M::Vpcmpestri64
            | M::Vpcmpestrm64 => {
                for n in [RAX, RDX] {
                    if self.pinned >> n & 1 == 0 && !self.random.one_in(4) {
                        r.gpr[n] = self.random.below(40).wrapping_sub(20);
                    }
                }
            }
            _ => {}
        }
    }

    /// State images have to make sense, mostly.
    fn adjust_images(&mut self) {
        use Mnemonic as M;
        let good = !self.random.one_in(8);
        match self.mnemonic() {
            M::Ldmxcsr | M::Vldmxcsr if good => self.patch = self.random.mxcsr().to_le_bytes().to_vec(),
            M::Fldcw => self.patch = (self.random.bits() as u16).to_le_bytes().to_vec(),
            M::Fxrstor | M::Fxrstor64 | M::Xrstor | M::Xrstor64 => self.patch = self.image(good),
            M::Fbld if good => {
                let digits = |random: &mut Random| (random.below(10) | random.below(10) << 4) as u8;
                self.patch = (0..9).map(|_| digits(self.random)).collect();
            }
            M::Fld if self.code == Code::Fld_m80fp => {
                self.patch = self.random.extended().to_le_bytes()[..10].to_vec();
            }
            _ => {}
        }
    }

    /// The XSAVE family is asked only for components that both sides have.
    pub(super) fn ask_for_components(&mut self) {
        let name = self.mnemonic();
        if undefined::stores_components(name) || matches!(name, Mnemonic::Xrstor | Mnemonic::Xrstor64) {
            let [low, high] = [RAX, RDX].map(|n| self.registers.gpr[n]);
            self.pin(RAX, low & !0xffff_fff8);
            self.pin(RDX, high & !0xffff_ffff);
        }
    }

    fn image(&mut self, good: bool) -> Vec<u8> {
        let mut image: Vec<u8> = (0..104).flat_map(|_| self.random.lane().to_le_bytes()).collect();
        let mut set = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        if good {
            set(24, &self.random.mxcsr().to_le_bytes());
        }
        if self.random.one_in(2) {
            set(0, &0x37fu16.to_le_bytes());
        }
        // Pointers that any processor keeps: those beyond its linear addresses may come back sign-extended.
        set(8, &(self.random.bits() >> 17).to_le_bytes());
        set(16, &(self.random.bits() >> 17).to_le_bytes());
        let present = self.random.below(8);
        set(512, &[0; 64]);
        set(512, &present.to_le_bytes());
        match self.random.below(4) {
            0 => set(520, &(1 << 63 | present | self.random.below(8)).to_le_bytes()),
            1 if !good => {
                let spoilt = 512 + 8 * self.random.below(8) as usize;
                set(spoilt, &(1u64 << self.random.pick(&[0, 1, 2, 3, 4, 8, 63])).to_le_bytes());
            }
            _ => {}
        }
        image
    }
}
