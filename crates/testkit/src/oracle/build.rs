//! From a form and a random generator to a case: operands, an encoding, and registers that make its addresses land
//! where it is interesting.

use super::case::{CODE, DATA, DATA_BYTES, Input, Registers, WRITABLE_BYTES};
use super::forms::Form;
use super::random::Random;
use super::vendor::Host;
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register,
};

pub(super) const RAX: usize = 0;
pub(super) const RCX: usize = 1;
pub(super) const RDX: usize = 2;
pub(super) const RBX: usize = 3;
pub(super) const RSP: usize = 4;
pub(super) const RBP: usize = 5;
pub(super) const RSI: usize = 6;
pub(super) const RDI: usize = 7;

/// What is the same in every case of a run.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// The base of FS in the child and so in the guest.
    pub fs_base: u64,
    /// The base of GS.
    pub gs_base: u64,
    /// The processor.
    pub host: Host,
}

/// Makes a case of `form`, or nothing if the choice of operands has no encoding.
pub fn build(random: &mut Random, form: Form, world: &World) -> Option<Input> {
    let registers = random_registers(random, form.bits, world);
    draft(random, form, world, &Setting { registers, bases: &[], calm: false })?.finish()
}

/// What an instruction is built for.
pub(super) struct Setting<'a> {
    /// The registers before it, which the builder changes to its needs.
    pub(super) registers: Registers,
    /// Registers that may serve as they are as bases of addresses.
    pub(super) bases: &'a [usize],
    /// Whether memory operands are mostly aligned and within the data that can be written.
    pub(super) calm: bool,
}

/// An instruction of `form` with what it wants of registers and memory; not yet encoded.
pub(super) fn draft<'a>(
    random: &'a mut Random,
    form: Form,
    world: &'a World,
    setting: &'a Setting<'a>,
) -> Option<Builder<'a>> {
    let mut b = Builder {
        random,
        world,
        code: form.code,
        bits: form.bits,
        instruction: Instruction::new(),
        registers: setting.registers,
        bases: setting.bases,
        calm: setting.calm,
        pinned: 0,
        target: None,
        jump: None,
        patch: Vec::new(),
    };
    b.instruction.set_code(form.code);
    b.ask_for_components();
    b.operands()?;
    b.prefixes();
    b.adjust();
    Some(b)
}

/// Registers that a case of so many bits may begin with.
pub(super) fn random_registers(random: &mut Random, bits: u32, world: &World) -> Registers {
    let mut r = Registers::ZERO;
    let seen = if bits == 64 { u64::MAX } else { 0xffff_ffff };
    r.gpr.iter_mut().for_each(|gpr| *gpr = random.integer() & seen);
    r.rflags = random.flags() & !world.host.refused_flags();
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

pub(super) struct Builder<'a> {
    pub(super) random: &'a mut Random,
    pub(super) world: &'a World,
    pub(super) code: Code,
    pub(super) bits: u32,
    pub(super) instruction: Instruction,
    pub(super) registers: Registers,
    bases: &'a [usize],
    calm: bool,
    /// General-purpose registers whose value is settled.
    pub(super) pinned: u32,
    /// Where the memory operand is.
    pub(super) target: Option<u64>,
    /// Where the instruction jumps to.
    pub(super) jump: Option<u64>,
    /// What is put at the memory operand's place.
    pub(super) patch: Vec<u8>,
}

impl Builder<'_> {
    pub(super) fn mnemonic(&self) -> Mnemonic {
        self.code.mnemonic()
    }

    /// How many registers of each kind can be named.
    fn names(&self) -> u64 {
        if self.bits == 64 { 16 } else { 8 }
    }

    fn operands(&mut self) -> Option<()> {
        for index in 0..self.code.op_code().op_count() {
            self.operand(index, self.code.op_code().op_kind(index))?;
        }
        Some(())
    }

    fn operand(&mut self, index: u32, kind: OpCodeOperandKind) -> Option<()> {
        use OpCodeOperandKind as K;
        let n = self.random.below(self.names()) as u32;
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
            K::es => Register::ES,
            K::cs => Register::CS,
            K::ss => Register::SS,
            K::ds => Register::DS,
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
        // 16-bit addresses reach nothing without a segment.
        let address_bits = match (self.bits, self.random.one_in(8)) {
            (64, false) => 64,
            (64, true) | (_, false) => 32,
            (_, true) => 16,
        };
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
            K::seg_rSI | K::es_rDI => implied(kind, address_bits),
            // Masked stores: 16 bits would only reach where nothing is.
            K::seg_rDI => implied(kind, address_bits.max(32)),
            K::seg_rBX_al => OpKind::Memory,
            K::br64_1 | K::br64_4 => OpKind::NearBranch64,
            K::br32_1 | K::br32_4 => OpKind::NearBranch32,
            K::br16_1 | K::br16_2 => OpKind::NearBranch16,
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
    pub(super) fn size(&self) -> u64 {
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
    pub(super) fn choose_target(&mut self, size: u64) -> u64 {
        let inside = 64 + self.random.below(WRITABLE_BYTES as u64 - 128 - size);
        let back = self.random.below(size + 1);
        let place = self.random.below(24);
        match if self.calm && !self.random.one_in(16) { 7 + place % 14 } else { place } {
            0 | 1 => DATA + 0x1000 - back,
            2 => DATA + 0x2000 - back,
            3 => DATA + 0x2800 - back,
            4 => DATA + DATA_BYTES as u64 - back,
            5 => DATA - back,
            6 if self.bits == 64 && self.random.one_in(4) => {
                self.random.pick(&[0x8000_0000_0000, 0x1234_5678_9abc_def0, 0xffff_7fff_ffff_fff8])
            }
            7..16 => DATA + (inside & !63),
            _ => DATA + inside,
        }
    }

    pub(super) fn pin(&mut self, register: usize, value: u64) {
        self.registers.gpr[register] = value;
        self.pinned |= 1 << register;
    }

    fn free_register(&mut self) -> usize {
        loop {
            let n = self.random.below(self.names()) as usize;
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
            // In 32-bit mode FS is null.
            0 if self.bits == 64 || self.random.one_in(4) => Register::FS,
            1 | 2 => Register::GS,
            4..10 if self.bits == 16 => Register::GS,
            3 => self.random.pick(&[Register::ES, Register::CS, Register::SS, Register::DS]),
            _ => Register::None,
        };
        self.instruction.set_segment_prefix(segment);
        let base = match segment {
            Register::FS if self.bits == 64 => self.world.fs_base,
            Register::GS => self.world.gs_base,
            _ => 0,
        };
        let offset = target.wrapping_sub(base);
        if self.bits != 64 && u16::try_from(offset).is_ok() && (self.bits == 16 || self.random.one_in(2)) {
            self.address_16(offset, kind);
            return Some(());
        }
        self.address(offset, kind)
    }

    /// The same with 16-bit addresses.
    fn address_16(&mut self, offset: u64, kind: OpCodeOperandKind) {
        const FORMS: [(Register, Register); 8] = [
            (Register::BX, Register::SI),
            (Register::BX, Register::DI),
            (Register::BP, Register::SI),
            (Register::BP, Register::DI),
            (Register::SI, Register::None),
            (Register::DI, Register::None),
            (Register::BP, Register::None),
            (Register::BX, Register::None),
        ];
        let disp = self.random.bits() & 0xffff;
        let form = FORMS.into_iter().find(|(base, index)| {
            let free = |r: &Register| *r == Register::None || self.pinned >> r.number() & 1 == 0;
            free(base) && free(index)
        });
        let choice = self.random.pick(&FORMS);
        let free = |r: Register| r == Register::None || self.pinned >> r.number() & 1 == 0;
        let form = if free(choice.0) && free(choice.1) { Some(choice) } else { form };
        let i = &mut self.instruction;
        i.set_memory_displ_size(2);
        let Some((base, index)) =
            form.filter(|_| kind != OpCodeOperandKind::mem_offs && self.random.below(8) != 0)
        else {
            i.set_memory_displacement64(offset);
            return;
        };
        i.set_memory_base(base);
        i.set_memory_displacement64(disp);
        let mut rest = offset.wrapping_sub(disp);
        if index != Register::None {
            i.set_memory_index(index);
            let value = self.registers.gpr[index.number()];
            self.pin(index.number(), value);
            rest = rest.wrapping_sub(value);
        }
        let above = self.registers.gpr[base.number()] & 0xffff_0000;
        self.pin(base.number(), rest & 0xffff | above);
    }

    /// Uses a register as it is as the base, and a displacement for the rest.
    fn address_from_base(&mut self, offset: u64, kind: OpCodeOperandKind) -> bool {
        if self.bases.is_empty() || kind == OpCodeOperandKind::mem_offs || self.random.one_in(3) {
            return false;
        }
        let n = self.random.pick(self.bases);
        let value = self.registers.gpr[n];
        let disp = offset.wrapping_sub(value);
        if self.pinned >> n & 1 != 0 || self.bits == 64 && i32::try_from(disp.cast_signed()).is_err() {
            return false;
        }
        self.pin(n, value);
        let (first, disp) =
            if self.bits == 64 { (Register::RAX, disp) } else { (Register::EAX, disp & 0xffff_ffff) };
        self.instruction.set_memory_base(first + n as u32);
        self.instruction.set_memory_displacement64(disp);
        self.instruction.set_memory_displ_size(1);
        true
    }

    /// Makes base, index and displacement add up to `offset`.
    fn address(&mut self, offset: u64, kind: OpCodeOperandKind) -> Option<()> {
        let reaches_32 = u32::try_from(offset).is_ok();
        let reaches_disp = i32::try_from(offset.cast_signed()).is_ok();
        let narrow = self.bits != 64 || reaches_32 && self.random.one_in(8);
        if self.address_from_base(offset, kind) {
            return Some(());
        }
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
            0 if reaches_disp && self.bits == 64 => {
                i.set_memory_base(if narrow { Register::EIP } else { Register::RIP });
                i.set_memory_displacement64(offset);
                i.set_memory_displ_size(if narrow { 4 } else { 8 });
                return Some(());
            }
            1 if reaches_disp || self.bits != 64 => {
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
        let n = self.random.below(self.names()) as usize;
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
        let first = if self.bits == 64 { Register::RAX } else { Register::EAX };
        self.instruction.set_memory_base(first + base as u32);
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

    fn finish(mut self) -> Option<Input> {
        let mut input = Input::EMPTY;
        let offset = match self.random.below(16) {
            // Across the page boundary, or against the end.
            0 => 0x1000 - self.random.below(16),
            1 if self.random.one_in(4) => 0x2000 - self.random.below(16),
            _ => 0x200 + self.random.below(0x1c00),
        };
        let rip = if self.bits == 16 { offset } else { CODE + offset };
        self.set_branch_target(rip);
        let mut encoder = Encoder::new(self.bits);
        let len = encoder.encode(&self.instruction, rip).ok()?;
        let code = encoder.take_buffer();
        let decoded = Decoder::with_ip(self.bits, &code, rip, DecoderOptions::NONE).decode();
        if decoded.code() != self.code || decoded.len() != len {
            return None;
        }
        // A branch onto itself would not end; into itself, it might do anything. (Narrow ones keep 16 bits of an address.)
        if decoded.op_count() > 0 && is_near_branch(decoded.op0_kind()) {
            self.jump = Some(decoded.near_branch_target());
        }
        if self.jump.is_some_and(|target| target.wrapping_sub(rip) & 0xffff < len as u64) {
            return None;
        }
        input.bits = self.bits;
        if !input.set_code(&code) {
            return None;
        }
        self.registers.rip = rip;
        if self.bits != 64 {
            self.registers.gpr.iter_mut().for_each(|gpr| *gpr &= 0xffff_ffff);
        }
        input.registers = self.registers;
        if let Some((target, patch)) = self.take_patch() {
            input.set_memory(target, &patch);
        }
        Some(input)
    }

    /// What the memory operand is, and where, if it is in the data.
    pub(super) fn take_patch(&mut self) -> Option<(u64, Vec<u8>)> {
        if self.patch.is_empty() {
            let lanes = self.size().div_ceil(8);
            self.patch = (0..lanes).flat_map(|_| self.random.lane().to_le_bytes()).collect();
        }
        let target = self.target.filter(|target| target.wrapping_sub(DATA) < DATA_BYTES as u64)?;
        Some((target, std::mem::take(&mut self.patch)))
    }

    fn set_branch_target(&mut self, rip: u64) {
        use OpCodeOperandKind as K;
        if self.instruction.op_count() == 0 || !is_near_branch(self.instruction.op0_kind()) {
            return;
        }
        let near = matches!(self.code.op_code().op_kind(0), K::br64_1 | K::br32_1 | K::br16_1);
        let reach = if near { 0x70 } else { 0x1000 };
        let target = rip.wrapping_add(self.random.below(2 * reach)).wrapping_sub(reach);
        match self.instruction.op0_kind() {
            OpKind::NearBranch64 => self.instruction.set_near_branch64(target),
            OpKind::NearBranch32 => self.instruction.set_near_branch32(target as u32),
            _ => self.instruction.set_near_branch16(target as u16),
        }
    }
}

fn is_near_branch(kind: OpKind) -> bool {
    matches!(kind, OpKind::NearBranch64 | OpKind::NearBranch32 | OpKind::NearBranch16)
}

/// The implied operand of a string instruction with addresses of so many bits.
fn implied(kind: OpCodeOperandKind, bits: u32) -> OpKind {
    use OpCodeOperandKind as K;
    match (kind, bits) {
        (K::seg_rSI, 64) => OpKind::MemorySegRSI,
        (K::seg_rSI, 32) => OpKind::MemorySegESI,
        (K::seg_rSI, _) => OpKind::MemorySegSI,
        (K::es_rDI, 64) => OpKind::MemoryESRDI,
        (K::es_rDI, 32) => OpKind::MemoryESEDI,
        (K::es_rDI, _) => OpKind::MemoryESDI,
        (_, 64) => OpKind::MemorySegRDI,
        (_, 32) => OpKind::MemorySegEDI,
        (_, _) => OpKind::MemorySegDI,
    }
}
