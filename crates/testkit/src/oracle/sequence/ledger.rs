//! Who has which register.
//!
//! An instruction of the single oracle is built together with the registers that lead its operands somewhere. In a
//! sequence, and in each turn of a loop, registers hold what was computed before. So a register is one of three: *kept* (it
//! begins with a value that addresses rely on, and nothing writes it), *written* (whoever needs a value there moves it there
//! first), or neither yet.

use iced_x86::{Code, Instruction, InstructionInfoFactory, OpAccess, Register};

use super::super::build::RSP;
use super::super::case::Registers;

/// See the head of the file.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    pub(super) bits: u32,
    /// What the sequence begins with.
    pub(super) registers: Registers,
    kept: u32,
    written: u32,
    vectors_written: u32,
}

impl Ledger {
    pub(super) fn new(bits: u32, registers: Registers) -> Self {
        // The stack pointer is set at the beginning of every turn, and whenever something else has been in it.
        Self { bits, registers, kept: 0, written: 1 << RSP, vectors_written: 0 }
    }

    /// How many general-purpose registers there are.
    pub(super) const fn names(&self) -> usize {
        if self.bits == 64 { 16 } else { 8 }
    }

    /// Registers whose value never changes.
    pub(super) fn bases(&self) -> Vec<usize> {
        (0..self.names()).filter(|n| self.kept >> n & 1 != 0).collect()
    }

    /// Whether the instruction may write what it writes; `reserved` are registers that nothing may.
    pub(super) fn allows(&self, writes: u32, reserved: u32) -> bool {
        writes & (self.kept | reserved) == 0
    }

    /// Notes that registers are written.
    pub(super) fn write(&mut self, writes: u32) {
        self.written |= writes;
    }

    /// Notes which vector registers are written.
    pub(super) fn write_vectors(&mut self, writes: u32) {
        self.vectors_written |= writes;
    }

    /// Takes the contents of a vector register, an index of a gather, if nothing has been in it yet.
    pub(super) fn take_vectors(&mut self, wanted: &Registers) {
        for n in 0..16 {
            if self.vectors_written >> n & 1 == 0 {
                self.registers.ymm[n] = wanted.ymm[n];
            }
        }
    }

    /// Makes a register hold a value whenever control comes here: keeps it from the beginning, or returns a move. Nothing if
    /// it can be neither.
    pub(super) fn hold(
        &mut self,
        n: usize,
        value: u64,
        writes: u32,
        reserved: u32,
    ) -> Option<Vec<Instruction>> {
        let bit = 1 << n;
        if self.kept & bit != 0 {
            return (self.registers.gpr[n] == value && writes & bit == 0).then(Vec::new);
        }
        let room = if self.bits == 64 { 5 } else { 2 };
        if (self.written | writes | reserved) & bit == 0 && self.kept.count_ones() < room {
            self.kept |= bit;
            self.registers.gpr[n] = value;
            return Some(Vec::new());
        }
        if reserved & bit != 0 {
            return None;
        }
        self.written |= bit;
        Some(vec![load(self.bits, n, value)])
    }

    /// Suggests a value for the beginning, where nothing depends on it yet.
    pub(super) fn suggest(&mut self, n: usize, value: u64) {
        if (self.kept | self.written) >> n & 1 == 0 {
            self.registers.gpr[n] = value;
        }
    }
}

/// A move of a constant to a general-purpose register.
pub(super) fn load(bits: u32, n: usize, value: u64) -> Instruction {
    let signed = value.cast_signed();
    let made = match (u32::try_from(value), i32::try_from(signed)) {
        _ if bits == 32 => Instruction::with2(Code::Mov_r32_imm32, Register::EAX + n as u32, value as u32),
        (Ok(value), _) => Instruction::with2(Code::Mov_r32_imm32, Register::EAX + n as u32, value),
        (_, Ok(value)) => Instruction::with2(Code::Mov_rm64_imm32, Register::RAX + n as u32, value),
        _ => Instruction::with2(Code::Mov_r64_imm64, Register::RAX + n as u32, value),
    };
    // These forms exist.
    made.unwrap_or_default()
}

/// Bits of the general-purpose and of the vector registers that the instruction may write.
pub(super) fn writes(instruction: &Instruction) -> [u32; 2] {
    let mut factory = InstructionInfoFactory::new();
    let mut found = [0, 0];
    for used in factory.info(instruction).used_registers() {
        let writes = matches!(
            used.access(),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        );
        let register = used.register().full_register();
        if writes && register.is_gpr64() {
            found[0] |= 1 << register.number();
        } else if writes && register.is_vector_register() {
            found[1] |= 1 << (register.number() & 15);
        }
    }
    found
}
