//! The bytes of the translator's own sequences.
//!
//! The guest's instructions are re-encoded by `iced-x86`; what surrounds them is a small, fixed vocabulary (SDM vol. 2),
//! written here byte by byte because it is most of the output and translation time is time that the guest waits.
//!
//! Operand sizes are 64 bits unless a name says otherwise. `gs_…` methods name memory at a displacement from GS.

use crate::host::Gpr;

/// Grows at its end.
#[derive(Debug)]
pub(crate) struct Asm {
    bytes: Vec<u8>,
}

/// Bytes that most blocks have room in.
const ROOM: usize = 1024;

impl Default for Asm {
    fn default() -> Self {
        Self { bytes: Vec::with_capacity(ROOM) }
    }
}

/// A 32-bit displacement to be filled in: the offset of its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct Hole(u32);

/// An 8-bit displacement to be filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct ShortHole(u32);

/// Conditions by their number in encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition(pub(crate) u8);

impl Condition {
    pub(crate) const BELOW: Self = Self(2);
    pub(crate) const ABOVE_EQUAL: Self = Self(3);
    pub(crate) const EQUAL: Self = Self(4);
    pub(crate) const NOT_EQUAL: Self = Self(5);
    pub(crate) const BELOW_EQUAL: Self = Self(6);
    pub(crate) const ABOVE: Self = Self(7);
    pub(crate) const NOT_SIGN: Self = Self(9);
}

/// How a string instruction is repeated, as its prefix; of those that compare nothing, either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    WhileUnequal = 0xf2,
    WhileEqual = 0xf3,
}

/// Two-operand instructions with the opcode `register ← register op register/memory`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Add = 0x03,
    Or = 0x0b,
    And = 0x23,
    Sub = 0x2b,
    Xor = 0x33,
    Cmp = 0x3b,
    Mov = 0x8b,
}

/// The /digit of the immediate forms.
impl Op {
    const fn digit(self) -> u8 {
        (self as u8) >> 3 & 7
    }
}

/// `[base + index + disp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) base: Gpr,
    /// Not RSP.
    pub(crate) index: Option<Gpr>,
    pub(crate) disp: i32,
}

impl Place {
    /// `[base]`.
    pub(crate) const fn at(base: Gpr) -> Self {
        Self { base, index: None, disp: 0 }
    }
}

/// A prefix for GS.
const GS: u8 = 0x65;

impl Asm {
    /// Bytes so far.
    pub(crate) fn here(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    /// Takes back everything from `length` on.
    pub(crate) fn truncate(&mut self, length: u32) {
        self.bytes.truncate(length as usize);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// Appends an instruction that somebody else encoded.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn imm32(&mut self, value: i32) {
        self.raw(&value.to_le_bytes());
    }

    /// REX for a 64-bit (or, without `wide`, 32-bit) operation; left out if it would say nothing.
    fn rex(&mut self, wide: bool, reg: u8, index: u8, base: u8) {
        let rex = u8::from(wide) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        if rex != 0 {
            self.raw(&[0x40 | rex]);
        }
    }

    /// ModRM for two registers.
    fn direct(&mut self, reg: u8, rm: u8) {
        self.raw(&[0xc0 | (reg & 7) << 3 | rm & 7]);
    }

    /// ModRM, SIB and displacement for `[base + disp]`.
    fn based(&mut self, reg: u8, base: Gpr, disp: i32) {
        self.placed(reg, Place { base, index: None, disp });
    }

    /// The same with an index.
    fn placed(&mut self, reg: u8, place: Place) {
        let Place { base, index, disp } = place;
        let (reg, low) = ((reg & 7) << 3, base.number() & 7);
        let (mode, short) = match i8::try_from(disp) {
            // RBP and R13 as a base need a displacement.
            Ok(0) if low != 5 => (0, None),
            Ok(short) => (0x40, Some(short)),
            Err(_) => (0x80, None),
        };
        match index {
            Some(index) => self.raw(&[mode | reg | 4, (index.number() & 7) << 3 | low]),
            // RSP and R12 as a base need an SIB byte.
            None if low == 4 => self.raw(&[mode | reg | low, 0x24]),
            None => self.raw(&[mode | reg | low]),
        }
        match short {
            Some(short) => self.raw(&short.to_le_bytes()),
            None if mode == 0x80 => self.imm32(disp),
            None => {}
        }
    }

    /// ModRM and SIB for an absolute displacement: the form without base.
    fn absolute(&mut self, reg: u8, disp: i32) {
        self.raw(&[(reg & 7) << 3 | 4, 0x25]);
        self.imm32(disp);
    }

    // ---- moves and arithmetic ------------------------------------------------------------------------------------

    pub(crate) fn mov(&mut self, to: Gpr, from: Gpr) {
        self.op(Op::Mov, to, from);
    }

    pub(crate) fn op(&mut self, op: Op, to: Gpr, from: Gpr) {
        self.rex(true, to.number(), 0, from.number());
        self.raw(&[op as u8]);
        self.direct(to.number(), from.number());
    }

    /// The 32-bit form: clears the upper half of `to`.
    pub(crate) fn op32(&mut self, op: Op, to: Gpr, from: Gpr) {
        self.rex(false, to.number(), 0, from.number());
        self.raw(&[op as u8]);
        self.direct(to.number(), from.number());
    }

    /// With a sign-extended immediate.
    pub(crate) fn op_imm(&mut self, op: Op, to: Gpr, value: i32) {
        self.rex(true, 0, 0, to.number());
        self.imm_form(op, to, value);
    }

    /// With an immediate, 32-bit.
    pub(crate) fn op32_imm(&mut self, op: Op, to: Gpr, value: i32) {
        self.rex(false, 0, 0, to.number());
        self.imm_form(op, to, value);
    }

    fn imm_form(&mut self, op: Op, to: Gpr, value: i32) {
        match i8::try_from(value) {
            Ok(short) => {
                self.raw(&[0x83]);
                self.direct(op.digit(), to.number());
                self.raw(&short.to_le_bytes());
            }
            Err(_) => {
                self.raw(&[0x81]);
                self.direct(op.digit(), to.number());
                self.imm32(value);
            }
        }
    }

    /// MOV r64, imm32 sign-extended.
    pub(crate) fn mov_imm_sx(&mut self, to: Gpr, value: i32) {
        self.rex(true, 0, 0, to.number());
        self.raw(&[0xc7]);
        self.direct(0, to.number());
        self.imm32(value);
    }

    /// MOV r64, imm64.
    pub(crate) fn mov_imm64(&mut self, to: Gpr, value: u64) {
        self.rex(true, 0, 0, to.number());
        self.raw(&[0xb8 | to.number() & 7]);
        self.raw(&value.to_le_bytes());
    }

    /// MOV r32, imm32.
    pub(crate) fn mov_imm32(&mut self, to: Gpr, value: u32) {
        self.rex(false, 0, 0, to.number());
        self.raw(&[0xb8 | to.number() & 7]);
        self.raw(&value.to_le_bytes());
    }

    /// SHL r32, imm8.
    pub(crate) fn shl32(&mut self, to: Gpr, count: u8) {
        self.rex(false, 0, 0, to.number());
        self.raw(&[0xc1]);
        self.direct(4, to.number());
        self.raw(&[count]);
    }

    /// SAR, 64-bit or 32-bit.
    pub(crate) fn sar(&mut self, wide: bool, to: Gpr, count: u8) {
        self.rex(wide, 0, 0, to.number());
        self.raw(&[0xc1]);
        self.direct(7, to.number());
        self.raw(&[count]);
    }

    /// MOVSXD r64, r32.
    pub(crate) fn movsxd(&mut self, to: Gpr, from: Gpr) {
        self.rex(true, to.number(), 0, from.number());
        self.raw(&[0x63]);
        self.direct(to.number(), from.number());
    }

    /// RORX r64, r64, imm8 (BMI2): a rotation that leaves the flags alone.
    pub(crate) fn rorx(&mut self, to: Gpr, from: Gpr, count: u8) {
        let (r, b) = (to.number() >> 3 ^ 1, from.number() >> 3 ^ 1);
        self.raw(&[0xc4, r << 7 | 0x40 | b << 5 | 3, 0xfb, 0xf0]);
        self.direct(to.number(), from.number());
        self.raw(&[count]);
    }

    /// SHR r64, imm8.
    pub(crate) fn shr(&mut self, to: Gpr, count: u8) {
        self.rex(true, 0, 0, to.number());
        self.raw(&[0xc1]);
        self.direct(5, to.number());
        self.raw(&[count]);
    }

    /// LEA to, [base + disp], 64-bit or 32-bit; MOV, which takes no time, if nothing is added.
    pub(crate) fn lea_based(&mut self, wide: bool, to: Gpr, base: Gpr, disp: i32) {
        match (wide, disp) {
            (true, 0) => self.mov(to, base),
            (false, 0) => self.op32(Op::Mov, to, base),
            (true, _) => self.lea(to, base, disp),
            (false, _) => self.lea32(to, base, disp),
        }
    }

    /// LEA to, [base + disp].
    pub(crate) fn lea(&mut self, to: Gpr, base: Gpr, disp: i32) {
        self.rex(true, to.number(), 0, base.number());
        self.raw(&[0x8d]);
        self.based(to.number(), base, disp);
    }

    /// LEA to, [base + index << scale + disp], 64-bit or 32-bit. The index is not RSP.
    pub(crate) fn lea_indexed(
        &mut self,
        wide: bool,
        to: Gpr,
        base: Option<Gpr>,
        index: Gpr,
        scale: u8,
        disp: i32,
    ) {
        let base_number = base.map_or(5, Gpr::number);
        self.rex(wide, to.number(), index.number(), base.map_or(0, Gpr::number));
        let sib = scale << 6 | (index.number() & 7) << 3 | base_number & 7;
        let short = i8::try_from(disp).ok().filter(|_| base.is_some());
        // Without a base the displacement is 32 bits wide and the mode 0.
        let mode = if short.is_some() {
            0x40
        } else if base.is_some() {
            0x80
        } else {
            0
        };
        self.raw(&[0x8d, mode | (to.number() & 7) << 3 | 4, sib]);
        match short {
            Some(short) => self.raw(&short.to_le_bytes()),
            None => self.imm32(disp),
        }
    }

    /// LEA r32, [base + disp].
    pub(crate) fn lea32(&mut self, to: Gpr, base: Gpr, disp: i32) {
        self.rex(false, to.number(), 0, base.number());
        self.raw(&[0x8d]);
        self.based(to.number(), base, disp);
    }

    /// RDTSC.
    pub(crate) fn rdtsc(&mut self) {
        self.raw(&[0x0f, 0x31]);
    }

    /// LFENCE.
    pub(crate) fn lfence(&mut self) {
        self.raw(&[0x0f, 0xae, 0xe8]);
    }

    /// MFENCE.
    pub(crate) fn mfence(&mut self) {
        self.raw(&[0x0f, 0xae, 0xf0]);
    }

    /// SHL r64, imm8.
    pub(crate) fn shl(&mut self, to: Gpr, count: u8) {
        self.rex(true, 0, 0, to.number());
        self.raw(&[0xc1]);
        self.direct(4, to.number());
        self.raw(&[count]);
    }

    /// NEG r32.
    pub(crate) fn neg32(&mut self, to: Gpr) {
        self.rex(false, 0, 0, to.number());
        self.raw(&[0xf7]);
        self.direct(3, to.number());
    }

    /// RDGSBASE r64.
    pub(crate) fn rdgsbase(&mut self, to: Gpr) {
        self.raw(&[0xf3]);
        self.rex(true, 0, 0, to.number());
        self.raw(&[0x0f, 0xae]);
        self.direct(1, to.number());
    }

    /// IMUL r64, r64, imm32.
    pub(crate) fn imul_imm(&mut self, to: Gpr, by: i32) {
        self.rex(true, to.number(), 0, to.number());
        self.raw(&[0x69]);
        self.direct(to.number(), to.number());
        self.imm32(by);
    }

    /// XCHG r64, r64.
    pub(crate) fn xchg(&mut self, a: Gpr, b: Gpr) {
        self.rex(true, a.number(), 0, b.number());
        self.raw(&[0x87]);
        self.direct(a.number(), b.number());
    }

    /// CMOVcc r64, r64.
    pub(crate) fn cmov(&mut self, condition: Condition, to: Gpr, from: Gpr) {
        self.rex(true, to.number(), 0, from.number());
        self.raw(&[0x0f, 0x40 | condition.0]);
        self.direct(to.number(), from.number());
    }

    /// A repeated string instruction by its opcode for wide elements and the logarithm of an element's bytes.
    pub(crate) fn string(&mut self, opcode: u8, shift: u8, repeat: Repeat) {
        self.raw(&[repeat as u8]);
        match shift {
            0 => self.raw(&[opcode & !1]),
            1 => self.raw(&[0x66, opcode]),
            2 => self.raw(&[opcode]),
            _ => self.raw(&[0x48, opcode]),
        }
    }

    // ---- memory --------------------------------------------------------------------------------------------------

    /// MOV to, [place], 64-bit or 32-bit.
    pub(crate) fn load_from(&mut self, wide: bool, to: Gpr, place: Place) {
        self.rex(wide, to.number(), place.index.map_or(0, Gpr::number), place.base.number());
        self.raw(&[Op::Mov as u8]);
        self.placed(to.number(), place);
    }

    /// MOV [place], from, 64-bit or 32-bit.
    pub(crate) fn store_to(&mut self, wide: bool, place: Place, from: Gpr) {
        self.rex(wide, from.number(), place.index.map_or(0, Gpr::number), place.base.number());
        self.raw(&[0x89]);
        self.placed(from.number(), place);
    }

    /// MOV [place], imm32 sign-extended, 64-bit or 32-bit.
    pub(crate) fn store_imm_to(&mut self, wide: bool, place: Place, value: i32) {
        self.rex(wide, 0, place.index.map_or(0, Gpr::number), place.base.number());
        self.raw(&[0xc7]);
        self.placed(0, place);
        self.imm32(value);
    }

    /// MOV to, [base + disp].
    pub(crate) fn load(&mut self, to: Gpr, base: Gpr, disp: i32) {
        self.op_based(Op::Mov, to, base, disp);
    }

    /// MOV r32, [base + disp].
    pub(crate) fn load32(&mut self, to: Gpr, base: Gpr, disp: i32) {
        self.rex(false, to.number(), 0, base.number());
        self.raw(&[0x8b]);
        self.based(to.number(), base, disp);
    }

    /// MOVZX r32, byte [base + disp].
    pub(crate) fn load8(&mut self, to: Gpr, base: Gpr, disp: i32) {
        self.rex(false, to.number(), 0, base.number());
        self.raw(&[0x0f, 0xb6]);
        self.based(to.number(), base, disp);
    }

    /// MOVZX r32, word [base + disp].
    pub(crate) fn load16(&mut self, to: Gpr, base: Gpr, disp: i32) {
        self.rex(false, to.number(), 0, base.number());
        self.raw(&[0x0f, 0xb7]);
        self.based(to.number(), base, disp);
    }

    /// `to` op= [base + disp].
    pub(crate) fn op_based(&mut self, op: Op, to: Gpr, base: Gpr, disp: i32) {
        self.rex(true, to.number(), 0, base.number());
        self.raw(&[op as u8]);
        self.based(to.number(), base, disp);
    }

    /// MOV to, gs:[disp].
    pub(crate) fn gs_load(&mut self, to: Gpr, disp: i32) {
        self.gs_op(Op::Mov, to, disp);
    }

    /// MOV r32, gs:[disp].
    pub(crate) fn gs_load32(&mut self, to: Gpr, disp: i32) {
        self.gs_op32(Op::Mov, to, disp);
    }

    /// MOVZX r32, word gs:[disp].
    pub(crate) fn gs_load16(&mut self, to: Gpr, disp: i32) {
        self.raw(&[GS]);
        self.rex(false, to.number(), 0, 0);
        self.raw(&[0x0f, 0xb7]);
        self.absolute(to.number(), disp);
    }

    /// `to` op= gs:[disp].
    pub(crate) fn gs_op(&mut self, op: Op, to: Gpr, disp: i32) {
        self.raw(&[GS]);
        self.rex(true, to.number(), 0, 0);
        self.raw(&[op as u8]);
        self.absolute(to.number(), disp);
    }

    /// `to` op= gs:[disp], 32-bit.
    pub(crate) fn gs_op32(&mut self, op: Op, to: Gpr, disp: i32) {
        self.raw(&[GS]);
        self.rex(false, to.number(), 0, 0);
        self.raw(&[op as u8]);
        self.absolute(to.number(), disp);
    }

    /// `to` op= gs:[index + disp].
    pub(crate) fn gs_op_at(&mut self, op: Op, to: Gpr, index: Gpr, disp: i32) {
        self.raw(&[GS]);
        self.rex(true, to.number(), 0, index.number());
        self.raw(&[op as u8]);
        self.based(to.number(), index, disp);
    }

    /// MOV gs:[disp], from.
    pub(crate) fn gs_store(&mut self, disp: i32, from: Gpr) {
        self.raw(&[GS]);
        self.rex(true, from.number(), 0, 0);
        self.raw(&[0x89]);
        self.absolute(from.number(), disp);
    }

    /// OR gs:[disp], from.
    pub(crate) fn gs_or_store(&mut self, disp: i32, from: Gpr) {
        self.raw(&[GS]);
        self.rex(true, from.number(), 0, 0);
        self.raw(&[0x09]);
        self.absolute(from.number(), disp);
    }

    /// MOV dword gs:[disp], from.
    pub(crate) fn gs_store32(&mut self, disp: i32, from: Gpr) {
        self.raw(&[GS]);
        self.rex(false, from.number(), 0, 0);
        self.raw(&[0x89]);
        self.absolute(from.number(), disp);
    }

    /// MOV word gs:[disp], from.
    pub(crate) fn gs_store16(&mut self, disp: i32, from: Gpr) {
        self.raw(&[GS, 0x66]);
        self.rex(false, from.number(), 0, 0);
        self.raw(&[0x89]);
        self.absolute(from.number(), disp);
    }

    /// MOV gs:[index + disp], from.
    pub(crate) fn gs_store_at(&mut self, index: Gpr, disp: i32, from: Gpr) {
        self.raw(&[GS]);
        self.rex(true, from.number(), 0, index.number());
        self.raw(&[0x89]);
        self.based(from.number(), index, disp);
    }

    /// MOV qword gs:[index + disp], imm32 sign-extended.
    pub(crate) fn gs_store_imm_at(&mut self, index: Gpr, disp: i32, value: i32) {
        self.raw(&[GS]);
        self.rex(true, 0, 0, index.number());
        self.raw(&[0xc7]);
        self.based(0, index, disp);
        self.imm32(value);
    }

    /// MOV byte gs:[index + disp], 1.
    pub(crate) fn gs_set_byte_at(&mut self, index: Gpr, disp: i32) {
        self.raw(&[GS]);
        self.rex(false, 0, 0, index.number());
        self.raw(&[0xc6]);
        self.based(0, index, disp);
        self.raw(&[1]);
    }

    /// MOV dword gs:[disp], imm32. Returns where the immediate is.
    pub(crate) fn gs_store_imm32(&mut self, disp: i32, value: u32) -> u32 {
        self.raw(&[GS, 0xc7]);
        self.absolute(0, disp);
        self.raw(&value.to_le_bytes());
        self.here() - 4
    }

    /// CMP dword gs:[disp], 0.
    pub(crate) fn gs_is_zero32(&mut self, disp: i32) {
        self.gs_op32_imm8(Op::Cmp, disp, 0);
    }

    /// `op` dword gs:[disp], imm8.
    pub(crate) fn gs_op32_imm8(&mut self, op: Op, disp: i32, value: u8) {
        self.raw(&[GS, 0x83]);
        self.absolute(op.digit(), disp);
        self.raw(&[value]);
    }

    /// `op` qword gs:[disp], imm32 sign-extended.
    pub(crate) fn gs_op_imm(&mut self, op: Op, disp: i32, value: i32) {
        self.raw(&[GS, 0x48, 0x81]);
        self.absolute(op.digit(), disp);
        self.imm32(value);
    }

    /// LDMXCSR gs:[disp].
    pub(crate) fn gs_ldmxcsr(&mut self, disp: i32) {
        self.raw(&[GS, 0x0f, 0xae]);
        self.absolute(2, disp);
    }

    /// TEST dword gs:[disp], imm32.
    pub(crate) fn gs_test32(&mut self, disp: i32, value: u32) {
        self.raw(&[GS, 0xf7]);
        self.absolute(0, disp);
        self.raw(&value.to_le_bytes());
    }

    /// TEST r8, imm8, of RAX to RBX.
    pub(crate) fn test_low_bits(&mut self, register: Gpr, mask: u8) {
        self.raw(&[0xf6]);
        self.direct(0, register.number() & 3);
        self.raw(&[mask]);
    }

    /// TEST r32, imm32.
    pub(crate) fn test32_imm(&mut self, register: Gpr, value: i32) {
        self.rex(false, 0, 0, register.number());
        self.raw(&[0xf7]);
        self.direct(0, register.number());
        self.imm32(value);
    }

    /// TEST r64, imm32.
    pub(crate) fn test_imm(&mut self, register: Gpr, value: i32) {
        self.rex(true, 0, 0, register.number());
        self.raw(&[0xf7]);
        self.direct(0, register.number());
        self.imm32(value);
    }

    // ---- flags ---------------------------------------------------------------------------------------------------

    /// LAHF; SETO AL.
    pub(crate) fn flags_to_ax(&mut self) {
        self.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// ADD AL, 127; SAHF: what [`Asm::flags_to_ax`] left, back in the flags.
    pub(crate) fn ax_to_flags(&mut self) {
        self.raw(&[0x04, 0x7f, 0x9e]);
    }

    // ---- control -------------------------------------------------------------------------------------------------

    pub(crate) fn jcc(&mut self, condition: Condition) -> Hole {
        self.raw(&[0x0f, 0x80 | condition.0]);
        self.hole()
    }

    pub(crate) fn jmp(&mut self) -> Hole {
        self.raw(&[0xe9]);
        self.hole()
    }

    pub(crate) fn call(&mut self) -> Hole {
        self.raw(&[0xe8]);
        self.hole()
    }

    /// CMP register, [what the hole leads to].
    pub(crate) fn cmp_literal(&mut self, register: Gpr) -> Hole {
        self.rex(true, register.number(), 0, 0);
        self.raw(&[Op::Cmp as u8, (register.number() & 7) << 3 | 5]);
        self.hole()
    }

    /// JRCXZ.
    pub(crate) fn jrcxz(&mut self) -> ShortHole {
        self.raw(&[0xe3, 0]);
        ShortHole(self.here() - 1)
    }

    /// JMP gs:[disp].
    pub(crate) fn gs_jmp(&mut self, disp: i32) {
        self.raw(&[GS, 0xff]);
        self.absolute(4, disp);
    }

    /// JMP gs:[index + disp].
    pub(crate) fn gs_jmp_at(&mut self, index: Gpr, disp: i32) {
        self.raw(&[GS]);
        self.rex(false, 0, 0, index.number());
        self.raw(&[0xff]);
        self.based(4, index, disp);
    }

    /// CALL gs:[disp].
    pub(crate) fn gs_call(&mut self, disp: i32) {
        self.raw(&[GS, 0xff]);
        self.absolute(2, disp);
    }

    pub(crate) fn push(&mut self, register: Gpr) {
        self.rex(false, 0, 0, register.number());
        self.raw(&[0x50 | register.number() & 7]);
    }

    /// PUSH imm32 sign-extended, always five bytes.
    pub(crate) fn push_imm(&mut self, value: i32) {
        self.raw(&[0x68]);
        self.imm32(value);
    }

    pub(crate) fn pop(&mut self, register: Gpr) {
        self.rex(false, 0, 0, register.number());
        self.raw(&[0x58 | register.number() & 7]);
    }

    /// POP qword gs:[disp].
    pub(crate) fn gs_pop(&mut self, disp: i32) {
        self.raw(&[GS, 0x8f]);
        self.absolute(0, disp);
    }

    /// TEST EAX, imm32.
    pub(crate) fn test_eax(&mut self, value: i32) {
        self.raw(&[0xa9]);
        self.imm32(value);
    }

    /// NOP of five bytes.
    pub(crate) fn nop5(&mut self) {
        self.raw(&[0x0f, 0x1f, 0x44, 0, 0]);
    }

    pub(crate) fn ret(&mut self) {
        self.raw(&[0xc3]);
    }

    fn hole(&mut self) -> Hole {
        self.imm32(0);
        Hole(self.here() - 4)
    }

    /// Makes a jump lead here.
    pub(crate) fn land(&mut self, hole: Hole) {
        let here = self.here();
        self.fill(hole, here);
    }

    /// Lets a hole's jump arrive at `target`.
    pub(crate) fn fill(&mut self, hole: Hole, target: u32) {
        let at = hole.0 as usize;
        let displacement = target.wrapping_sub(hole.0 + 4).to_le_bytes();
        if let Some(slot) = self.bytes.get_mut(at..at + 4) {
            slot.copy_from_slice(&displacement);
        }
    }

    /// Lets a short hole's jump arrive here. False if that is too far away.
    #[must_use]
    pub(crate) fn fill_short(&mut self, hole: ShortHole) -> bool {
        let Ok(distance) = i8::try_from(self.here() - (hole.0 + 1)) else { return false };
        if let Some(slot) = self.bytes.get_mut(hole.0 as usize) {
            *slot = distance.to_le_bytes()[0];
        }
        true
    }
}

impl Hole {
    /// Where the displacement is.
    pub(crate) const fn position(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests;
