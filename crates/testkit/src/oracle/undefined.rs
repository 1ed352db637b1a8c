//! What the manual leaves undefined, and so is not compared. One line per family, citing the page that says so
//! ("Flags Affected" in SDM vol. 2, unless noted). A unit test holds the table against the decoder's own.

use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::rflags::{AF, CF, OF, PF, SF, ZF};

use super::case::Registers;

/// The flags that `instruction`, executed on `before`, leaves undefined.
pub fn flags(instruction: &Instruction, before: &Registers) -> u64 {
    use Mnemonic as M;
    match instruction.mnemonic() {
        // "The state of the AF flag is undefined" (AND, OR, XOR, TEST).
        M::And | M::Or | M::Xor | M::Test => AF,
        // "The SF, ZF, AF, and PF flags are undefined" (MUL, IMUL).
        M::Mul | M::Imul => SF | ZF | AF | PF,
        // "The CF, OF, SF, ZF, AF, and PF flags are undefined" (DIV, IDIV).
        M::Div | M::Idiv => CF | OF | SF | ZF | AF | PF,
        // "The CF flag … is undefined for SHL and SHR instructions where the count is greater than or equal to the
        // size of the destination operand"; "The OF flag is affected only for 1-bit shifts; otherwise, it is
        // undefined"; "for a non-zero count, the AF flag is undefined" (SAL/SAR/SHL/SHR).
        M::Shl | M::Shr | M::Sar | M::Sal => {
            let (count, bits) = shift(instruction, before);
            let carry = if instruction.mnemonic() != M::Sar && count >= bits { CF } else { 0 };
            by_count(count, AF | carry, OF)
        }
        // "If the count is greater than the operand size, the flags are undefined"; "for shifts greater than 1 bit,
        // the OF flag is undefined"; "If a shift occurs, the AF flag is undefined" (SHLD, SHRD).
        M::Shld | M::Shrd => {
            let (count, bits) = shift(instruction, before);
            let all = if count > bits { CF | ZF | SF | PF | OF } else { 0 };
            by_count(count, AF | all, OF)
        }
        // "The OF flag is affected only for single-bit rotates; it is undefined for multi-bit rotates"
        // (RCL/RCR/ROL/ROR).
        M::Rcl | M::Rcr | M::Rol | M::Ror => by_count(shift(instruction, before).0, 0, OF),
        // "The CF, OF, SF, AF, and PF flags are undefined" (BSF, BSR).
        M::Bsf | M::Bsr => CF | OF | SF | AF | PF,
        // "The OF, SF, AF, and PF flags are undefined" (BT, BTC, BTR, BTS).
        M::Bt | M::Btc | M::Btr | M::Bts => OF | SF | AF | PF,
        // "OF, SF, PF, and AF flags are undefined" (LZCNT, TZCNT).
        M::Lzcnt | M::Tzcnt => OF | SF | PF | AF,
        // "AF and PF flags are undefined" (ANDN, BLSI, BLSMSK, BLSR, BZHI).
        M::Andn | M::Blsi | M::Blsmsk | M::Blsr | M::Bzhi => AF | PF,
        // "AF, SF, and PF are undefined" (BEXTR).
        M::Bextr => AF | SF | PF,
        // "The OF flag is undefined" (DAA, DAS).
        M::Daa | M::Das => OF,
        // "The OF, SF, ZF, and PF flags are undefined" (AAA, AAS).
        M::Aaa | M::Aas => OF | SF | ZF | PF,
        // "The OF, AF, and CF flags are undefined" (AAD, AAM).
        M::Aad | M::Aam => OF | AF | CF,
        _ => 0,
    }
}

/// Whether the destination register is undefined: a double shift by more than the operand has bits (SHLD, SHRD:
/// "the result in the destination operand is undefined").
pub fn destination(instruction: &Instruction, before: &Registers) -> bool {
    if !matches!(instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) {
        return false;
    }
    let (count, bits) = shift(instruction, before);
    count > bits
}

/// Whether the memory operand is accessed in parts whose order the manual does not tell: state images, and vectors under
/// a mask.
pub fn is_in_parts(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    stores_in_parts(instruction)
        || restores_in_parts(instruction)
        || matches!(
            instruction.mnemonic(),
            M::Fldenv
                | M::Frstor
                | M::Maskmovq
                | M::Maskmovdqu
                | M::Vmaskmovdqu
                | M::Vmaskmovps
                | M::Vmaskmovpd
                | M::Vpmaskmovd
                | M::Vpmaskmovq
        )
}

/// Whether the memory operand is written in parts, some of which stay when a later one faults. (The manual promises that
/// the instruction can be restarted, not that memory is as before.)
pub fn stores_in_parts(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Fstp => instruction.memory_size().size() == 10,
        Mnemonic::Call | Mnemonic::Fbstp => true,
        mnemonic => stores_state(mnemonic),
    }
}

/// Whether the instruction stores the x87 or vector state, or what there is beside the x87 registers.
pub const fn stores_state(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Fnsave | M::Fnstenv | M::Fxsave | M::Fxsave64) || stores_components(mnemonic)
}

/// Whether the instruction is one of the XSAVE family that stores.
pub const fn stores_components(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64)
}

/// Whether the instruction loads the x87 and vector state in parts, some of which may be loaded already when a later one
/// faults.
pub fn restores_in_parts(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(instruction.mnemonic(), M::Fxrstor | M::Fxrstor64 | M::Xrstor | M::Xrstor64)
}

/// Whether registers are loaded in parts, some of which stay when a later one faults: POPA, which can be restarted all the
/// same, since only ESP counts.
pub fn pops_in_parts(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Popa | Mnemonic::Popad)
}

/// The bits of register `number` that are compared. A string instruction with 32-bit addresses counts and points with ECX,
/// ESI and EDI; whether the upper halves survive when it does not get through an element, or has none to do, is not told.
pub fn register_mask(instruction: &Instruction, number: usize) -> u64 {
    let narrow = (0..instruction.op_count())
        .any(|index| matches!(instruction.op_kind(index), OpKind::MemorySegESI | OpKind::MemoryESEDI));
    let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    match number {
        1 if narrow && repeated => 0xffff_ffff,
        6 | 7 if narrow && repeated => 0xffff_ffff,
        _ => u64::MAX,
    }
}

fn by_count(count: u32, always: u64, beyond_one: u64) -> u64 {
    match count {
        0 => 0,
        1 => always,
        _ => always | beyond_one,
    }
}

/// The masked count and the width of the first operand, in bits.
fn shift(instruction: &Instruction, before: &Registers) -> (u32, u32) {
    let bits = match instruction.op0_kind() {
        OpKind::Register => 8 * instruction.op0_register().size() as u32,
        _ => 8 * instruction.memory_size().size() as u32,
    };
    let last = instruction.op_count().saturating_sub(1);
    let count = match instruction.op_kind(last) {
        OpKind::Register => before.gpr[1] as u32,
        _ => instruction.immediate(last) as u32,
    };
    (count & if bits == 64 { 63 } else { 31 }, bits)
}
