//! From a form and a random generator to a case: operands, an encoding, and registers that make its addresses land
//! where it is interesting.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, FlowControl, Instruction, Mnemonic, OpCodeOperandKind, OpKind,
    Register,
};
use x86::rflags;

use super::case::{CODE, CODE_BYTES, DATA, DATA_BYTES, Input, PATCH, Registers, WRITABLE_BYTES};
use super::random::Random;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

/// What is the same in every case of a run.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// The base of FS in the child and so in the guest.
    pub fs_base: u64,
    /// The base of GS.
    pub gs_base: u64,
}

/// Makes a case of `code`, or nothing if the choice of operands has no encoding.
pub fn build(random: &mut Random, code: Code, world: &World) -> Option<Input> {
    let registers = random_registers(random);
    let mut b = Builder {
        random,
        world,
        code,
        instruction: Instruction::new(),
        registers,
        pinned: 0,
        target: None,
        patch: Vec::new(),
    };
    b.instruction.set_code(code);
    b.ask_for_components();
    b.operands()?;
    b.prefixes();
    b.adjust();
    b.finish()
}

fn random_registers(random: &mut Random) -> Registers {
    let mut r = Registers::ZERO;
    r.gpr.iter_mut().for_each(|gpr| *gpr = random.integer());
    r.rflags = random.flags();
    r.ymm.iter_mut().for_each(|ymm| *ymm = random.vector());
    r.st.iter_mut().for_each(|st| *st = random.extended());
    r.mxcsr = random.mxcsr();
    let masks = if random.one_in(10) { random.below(0x40) } else { 0x3f };
    r.fcw = (masks | random.below(0x20) << 8 | 0x40) as u16;
    if random.one_in(2) {
        r.fcw |= 0x300;
    }
    let flags = if random.one_in(4) { random.below(0x80) } else { 0 };
    r.fsw = (flags | random.bits() & 0x7f00) as u16;
    if u64::from(r.fsw & !r.fcw) & 0x3f != 0 {
        r.fsw |= 0x8080;
    }
    r.ftw = if random.one_in(3) { random.below(256) as u16 } else { 0xff };
    r.fip = random.bits() >> 17;
    r.fdp = random.bits() >> 17;
    r.fop = random.below(0x800) as u16;
    r
}

struct Builder<'a> {
    random: &'a mut Random,
    world: &'a World,
    code: Code,
    instruction: Instruction,
    registers: Registers,
    /// General-purpose registers whose value is settled.
    pinned: u32,
    /// Where the memory operand is.
    target: Option<u64>,
    /// What is put there.
    patch: Vec<u8>,
}

impl Builder<'_> {
    fn mnemonic(&self) -> Mnemonic {
        self.code.mnemonic()
    }

    fn operands(&mut self) -> Option<()> {
        for index in 0..self.code.op_code().op_count() {
            self.operand(index, self.code.op_code().op_kind(index))?;
        }
        Some(())
    }

    fn operand(&mut self, index: u32, kind: OpCodeOperandKind) -> Option<()> {
        use OpCodeOperandKind as K;
        let n = self.random.below(16) as u32;
        let low = n % 8;
        let memory = self.random.one_in(2);
        let register = match kind {
            K::mem | K::mem_offs => return self.memory(index, kind),
            K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y => {
                return self.vsib(index, kind);
            }
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
                if memory =>
            {
                return self.memory(index, kind);
            }
            K::r8_or_mem | K::r8_reg | K::r8_opcode => {
                let all = [
                    Register::AL,
                    Register::CL,
                    Register::DL,
                    Register::BL,
                    Register::AH,
                    Register::CH,
                    Register::DH,
                    Register::BH,
                    Register::SPL,
                    Register::BPL,
                    Register::SIL,
                    Register::DIL,
                    Register::R8L,
                    Register::R9L,
                    Register::R13L,
                    Register::R15L,
                ];
                all[n as usize]
            }
            K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => Register::AX + n,
            K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv => Register::EAX + n,
            K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv => Register::RAX + n,
            K::seg_reg => Register::ES + n % 6,
            K::mm_or_mem | K::mm_reg | K::mm_rm => Register::MM0 + low,
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => Register::XMM0 + n,
            K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => Register::YMM0 + n,
            K::fs => Register::FS,
            K::gs => Register::GS,
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            K::st0 => Register::ST0,
            K::sti_opcode => Register::ST0 + low,
            K::cr_reg => self.random.pick(&[Register::CR0, Register::CR2, Register::CR3, Register::CR4]),
            K::dr_reg => self.random.pick(&[Register::DR0, Register::DR3, Register::DR6, Register::DR7]),
            _ => return self.immediate(index, kind),
        };
        self.instruction.try_set_op_kind(index, OpKind::Register).ok()?;
        self.instruction.try_set_op_register(index, register).ok()
    }

    fn immediate(&mut self, index: u32, kind: OpCodeOperandKind) -> Option<()> {
        use OpCodeOperandKind as K;
        let value = self.random.integer();
        let wide = self.random.one_in(8);
        let i = &mut self.instruction;
        let op_kind = match kind {
            K::imm8 => {
                if index > 0 && i.try_op_kind(index - 1).ok()? == OpKind::Immediate16 {
                    OpKind::Immediate8_2nd
                } else {
                    OpKind::Immediate8
                }
            }
            K::imm8_const_1 => OpKind::Immediate8,
            K::imm8sex16 => OpKind::Immediate8to16,
            K::imm8sex32 => OpKind::Immediate8to32,
            K::imm8sex64 => OpKind::Immediate8to64,
            K::imm16 => OpKind::Immediate16,
            K::imm32 => OpKind::Immediate32,
            K::imm32sex64 => OpKind::Immediate32to64,
            K::imm64 => OpKind::Immediate64,
            K::seg_rSI => {
                if wide {
                    OpKind::MemorySegESI
                } else {
                    OpKind::MemorySegRSI
                }
            }
            K::es_rDI => {
                if wide {
                    OpKind::MemoryESEDI
                } else {
                    OpKind::MemoryESRDI
                }
            }
            K::seg_rDI => {
                if wide {
                    OpKind::MemorySegEDI
                } else {
                    OpKind::MemorySegRDI
                }
            }
            K::seg_rBX_al => OpKind::Memory,
            K::br64_1 | K::br64_4 => OpKind::NearBranch64,
            _ => return None,
        };
        i.try_set_op_kind(index, op_kind).ok()?;
        match op_kind {
            OpKind::Immediate8 if kind == K::imm8_const_1 => i.set_immediate8(1),
            OpKind::Immediate8 => i.set_immediate8(value as u8),
            OpKind::Immediate8_2nd => i.set_immediate8_2nd(value as u8),
            OpKind::Immediate8to16 => i.set_immediate8to16(i16::from(value as i8)),
            OpKind::Immediate8to32 => i.set_immediate8to32(i32::from(value as i8)),
            OpKind::Immediate8to64 => i.set_immediate8to64(i64::from(value as i8)),
            OpKind::Immediate16 => i.set_immediate16(value as u16),
            OpKind::Immediate32 => i.set_immediate32(value as u32),
            OpKind::Immediate32to64 => i.set_immediate32to64(i64::from(value as i32)),
            OpKind::Immediate64 => i.set_immediate64(value),
            _ => {}
        }
        Some(())
    }

    /// The number of bytes that the memory operand has, as far as the decoder's table tells.
    fn size(&self) -> u64 {
        match self.mnemonic() {
            Mnemonic::Fxsave | Mnemonic::Fxsave64 | Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => 512,
            Mnemonic::Xsave
            | Mnemonic::Xsave64
            | Mnemonic::Xsaveopt
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xsavec
            | Mnemonic::Xsavec64
            | Mnemonic::Xrstor
            | Mnemonic::Xrstor64 => 832,
            _ => match self.code.op_code().memory_size().size() as u64 {
                0 => 8,
                size => size,
            },
        }
    }

    /// An address for `size` bytes: mostly in the data, sometimes across an edge of it, rarely nowhere.
    fn choose_target(&mut self, size: u64) -> u64 {
        let inside = 64 + self.random.below(WRITABLE_BYTES as u64 - 128 - size);
        let back = self.random.below(size + 1);
        match self.random.below(24) {
            0 | 1 => DATA + 0x1000 - back,
            2 => DATA + 0x2000 - back,
            3 => DATA + 0x2800 - back,
            4 => DATA + DATA_BYTES as u64 - back,
            5 => DATA - back,
            6 if self.random.one_in(4) => {
                self.random.pick(&[0x8000_0000_0000, 0x1234_5678_9abc_def0, 0xffff_7fff_ffff_fff8])
            }
            7..16 => DATA + (inside & !63),
            _ => DATA + inside,
        }
    }

    fn pin(&mut self, register: usize, value: u64) {
        self.registers.gpr[register] = value;
        self.pinned |= 1 << register;
    }

    fn free_register(&mut self) -> usize {
        loop {
            let n = self.random.below(16) as usize;
            if self.pinned >> n & 1 == 0 {
                return n;
            }
        }
    }

    fn memory(&mut self, index: u32, kind: OpCodeOperandKind) -> Option<()> {
        let size = self.size();
        let mut target = self.choose_target(size);
        if self.mnemonic() == Mnemonic::Xchg || self.code.op_code().can_use_lock_prefix() {
            // A locked access across cache lines may be trapped by the host.
            target &= !(size.next_power_of_two() - 1);
        }
        self.target = Some(target);
        self.instruction.try_set_op_kind(index, OpKind::Memory).ok()?;
        let segment = match self.random.below(16) {
            0 => Register::FS,
            1 => Register::GS,
            2 => self.random.pick(&[Register::ES, Register::CS, Register::SS, Register::DS]),
            _ => Register::None,
        };
        self.instruction.set_segment_prefix(segment);
        let base = match segment {
            Register::FS => self.world.fs_base,
            Register::GS => self.world.gs_base,
            _ => 0,
        };
        self.address(target.wrapping_sub(base), kind)
    }

    /// Makes base, index and displacement add up to `offset`.
    fn address(&mut self, offset: u64, kind: OpCodeOperandKind) -> Option<()> {
        let reaches_32 = u32::try_from(offset).is_ok();
        let reaches_disp = i32::try_from(offset.cast_signed()).is_ok();
        let narrow = reaches_32 && self.random.one_in(8);
        if kind == OpCodeOperandKind::mem_offs {
            self.instruction.set_memory_displ_size(if narrow { 4 } else { 8 });
            self.instruction.set_memory_displacement64(offset);
            return Some(());
        }
        let name = |n: usize| if narrow { Register::EAX + n as u32 } else { Register::RAX + n as u32 };
        let wrap = |value: u64| if narrow { value & 0xffff_ffff } else { value };
        let disp = match self.random.below(3) {
            0 => 0,
            1 => i64::from(self.random.bits() as i8),
            _ => i64::from(self.random.bits() as i32),
        };
        let i = &mut self.instruction;
        match self.random.below(8) {
            0 if reaches_disp => {
                i.set_memory_base(if narrow { Register::EIP } else { Register::RIP });
                i.set_memory_displacement64(offset);
                i.set_memory_displ_size(if narrow { 4 } else { 8 });
                return Some(());
            }
            1 if reaches_disp => {
                i.set_memory_displacement64(offset);
                i.set_memory_displ_size(if narrow { 4 } else { 8 });
                return Some(());
            }
            _ => {}
        }
        i.set_memory_displacement64(wrap(disp.cast_unsigned()));
        i.set_memory_displ_size(if disp == 0 && self.random.one_in(2) { 0 } else { 1 });
        let mut rest = offset.wrapping_sub(disp.cast_unsigned());
        if self.random.one_in(2) {
            let n = self.free_register();
            if n != RSP {
                let scale = 1 << self.random.below(4);
                let value = self.registers.gpr[n];
                self.pin(n, value);
                self.instruction.set_memory_index(name(n));
                self.instruction.set_memory_index_scale(scale);
                rest = rest.wrapping_sub(wrap(value).wrapping_mul(u64::from(scale)));
            }
        }
        let n = self.free_register();
        // The bits that a 32-bit address does not look at are anything.
        let above = if narrow { self.registers.gpr[n] & !0xffff_ffff } else { 0 };
        self.pin(n, wrap(rest) | above);
        self.instruction.set_memory_base(name(n));
        Some(())
    }

    fn vsib(&mut self, index: u32, kind: OpCodeOperandKind) -> Option<()> {
        use OpCodeOperandKind as K;
        let lanes_32 = matches!(kind, K::mem_vsib32x | K::mem_vsib32y);
        let file =
            if matches!(kind, K::mem_vsib32x | K::mem_vsib64x) { Register::XMM0 } else { Register::YMM0 };
        let n = self.random.below(16) as usize;
        let scale = 1u64 << self.random.below(4);
        let target = DATA + 0x1000;
        let mut lanes = [0u8; 32];
        let width = if lanes_32 { 4 } else { 8 };
        for lane in lanes.chunks_exact_mut(width) {
            let reach = if self.random.one_in(12) { 0x5000 } else { 0xf00 };
            let value =
                (self.random.below(2 * reach).cast_signed() - reach.cast_signed()) / scale.cast_signed();
            lane.copy_from_slice(&value.to_le_bytes()[..width]);
        }
        let (low, high) = lanes.split_at(16);
        let half = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, &byte| value << 8 | u128::from(byte));
        self.registers.ymm[n] = [half(low), half(high)];
        self.instruction.try_set_op_kind(index, OpKind::Memory).ok()?;
        self.instruction.set_memory_index(file + n as u32);
        self.instruction.set_memory_index_scale(scale as u32);
        let base = self.free_register();
        self.pin(base, target);
        self.instruction.set_memory_base(Register::RAX + base as u32);
        Some(())
    }

    fn prefixes(&mut self) {
        let description = self.code.op_code();
        if description.can_use_lock_prefix()
            && self.instruction.op0_kind() == OpKind::Memory
            && self.random.one_in(3)
        {
            self.instruction.set_has_lock_prefix(true);
        }
        let repeat = self.random.below(3);
        if description.can_use_repne_prefix() && repeat == 0 {
            self.instruction.set_has_repne_prefix(true);
        } else if description.can_use_rep_prefix() && repeat == 1 {
            self.instruction.set_has_rep_prefix(true);
        }
    }

    /// Replaces what random values would make dull or unanswerable.
    fn adjust(&mut self) {
        self.adjust_strings();
        self.adjust_stack();
        self.adjust_flow();
        self.adjust_arithmetic();
        self.adjust_images();
    }

    fn adjust_strings(&mut self) {
        let count = if self.random.one_in(16) { self.random.below(0x4000) } else { self.random.below(12) };
        for index in 0..self.instruction.op_count() {
            let register = match self.instruction.op_kind(index) {
                OpKind::MemorySegRSI | OpKind::MemorySegESI => RSI,
                OpKind::MemoryESRDI | OpKind::MemoryESEDI | OpKind::MemorySegRDI | OpKind::MemorySegEDI => {
                    RDI
                }
                _ => continue,
            };
            let narrow = matches!(
                self.instruction.op_kind(index),
                OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegEDI
            );
            // Masked stores to nowhere are undefined when the mask is empty.
            let masked = register == RDI && self.instruction.op_count() == 3;
            let target = if masked { DATA + 64 + self.random.below(0x1f00) } else { self.choose_target(8) };
            let above = if narrow { self.random.bits() & !0xffff_ffff } else { 0 };
            let target = if narrow { target & 0xffff_ffff } else { target };
            self.pin(register, target | above);
            if !masked {
                let above = if narrow { self.random.bits() & !0xffff_ffff } else { 0 };
                self.pin(RCX, count | above);
            }
        }
        if self.mnemonic() == Mnemonic::Xlatb {
            self.instruction.set_memory_base(Register::RBX);
            self.instruction.set_memory_index(Register::AL);
            let target = self.choose_target(1);
            let al = self.registers.gpr[RAX] & 0xff;
            self.pin(RBX, target.wrapping_sub(al));
        }
    }

    fn adjust_stack(&mut self) {
        use Mnemonic as M;
        let stack = match self.mnemonic() {
            M::Push | M::Pop | M::Pushf | M::Pushfq | M::Popf | M::Popfq | M::Enter => RSP,
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
            M::Popf | M::Popfq => self.random.bits() & !(rflags::TF | rflags::NT),
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
        match self.random.below(16) {
            0 => self.random.pick(&[0x8000_0000_0000, CODE + CODE_BYTES as u64]),
            _ => CODE + self.random.below(CODE_BYTES as u64),
        }
    }

    fn adjust_flow(&mut self) {
        let address = self.code_address();
        match self.code.flow_control() {
            FlowControl::IndirectBranch | FlowControl::IndirectCall => match self.instruction.op0_kind() {
                OpKind::Register => {
                    let register = self.instruction.op0_register().number();
                    self.registers.gpr[register] = address;
                }
                _ => self.patch = address.to_le_bytes().to_vec(),
            },
            FlowControl::ConditionalBranch if self.random.one_in(2) => {
                // Loops and JRCXZ.
                self.registers.gpr[RCX] = self.random.below(3) | (self.random.bits() & !0xffff_ffff);
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
                if self.instruction.op0_kind() == OpKind::Memory
                    && self.instruction.op1_kind() == OpKind::Register
                {
                    let n = self.instruction.op1_register().full_register().number();
                    if self.pinned >> n & 1 == 0 {
                        r.gpr[n] = self.random.below(0x1000).wrapping_sub(0x800);
                    }
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
                self.patch =
                    (0..9).map(|_| (self.random.below(10) | self.random.below(10) << 4) as u8).collect()
            }
            M::Fld if self.code == Code::Fld_m80fp => {
                self.patch = self.random.extended().to_le_bytes()[..10].to_vec();
            }
            _ => {}
        }
    }

    /// The XSAVE family is asked only for components that both sides have.
    fn ask_for_components(&mut self) {
        use Mnemonic as M;
        if matches!(
            self.mnemonic(),
            M::Xsave
                | M::Xsave64
                | M::Xsaveopt
                | M::Xsaveopt64
                | M::Xsavec
                | M::Xsavec64
                | M::Xrstor
                | M::Xrstor64
        ) {
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

    fn finish(mut self) -> Option<Input> {
        let mut input = Input::EMPTY;
        let offset = match self.random.below(16) {
            // Across the page boundary, or against the end.
            0 => 0x1000 - self.random.below(16),
            1 if self.random.one_in(4) => 0x2000 - self.random.below(16),
            _ => 0x200 + self.random.below(0x1c00),
        };
        let rip = CODE + offset;
        if self.instruction.op_count() > 0 && self.instruction.op0_kind() == OpKind::NearBranch64 {
            let near = self.code.op_code().op_kind(0) == OpCodeOperandKind::br64_1;
            let reach = if near { 0x70 } else { 0x1000 };
            let target = rip.wrapping_add(self.random.below(2 * reach)).wrapping_sub(reach);
            self.instruction.set_near_branch64(target);
        }
        let mut encoder = Encoder::new(64);
        let len = encoder.encode(&self.instruction, rip).ok()?;
        let code = encoder.take_buffer();
        let decoded = Decoder::with_ip(64, &code, rip, DecoderOptions::NONE).decode();
        if decoded.code() != self.code || decoded.len() != len {
            return None;
        }
        // A branch onto itself would not end.
        if decoded.op_count() > 0
            && decoded.op0_kind() == OpKind::NearBranch64
            && (rip..rip + len as u64).contains(&decoded.near_branch64())
        {
            return None;
        }
        input.code[..len].copy_from_slice(&code);
        input.code_len = len as u32;
        self.registers.rip = rip;
        input.registers = self.registers;
        if self.patch.is_empty() {
            let lanes = self.size().div_ceil(8);
            self.patch = (0..lanes).flat_map(|_| self.random.lane().to_le_bytes()).collect();
        }
        if let Some(target) =
            self.target.map(|target| target.wrapping_sub(DATA)).filter(|at| *at < DATA_BYTES as u64)
        {
            let len = self.patch.len().min(PATCH).min(DATA_BYTES - target as usize);
            input.patch_at = target as u32;
            input.patch_len = len as u32;
            input.patch[..len].copy_from_slice(&self.patch[..len]);
        }
        Some(input)
    }
}
