//! Moves between vector registers, memory and general-purpose registers: the most frequent vector instructions, and
//! simple enough not to need the processor for them.

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};
use x86::bits::{low64, mask_of};

use super::arithmetic::number;
use super::environment::Environment;
use super::guard::{Guard, check_alignment};
use crate::op::Mem;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Vector(u8),
    Gpr(u8),
    Memory,
}

/// A move of the low `bytes` bytes; the rest of a destination register becomes zero, of a legacy form's only up to
/// bit 127.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    to: End,
    from: End,
    bytes: u8,
    vex: bool,
}

/// Plans the moves that are plain ones.
pub(crate) fn plan(instruction: &Instruction) -> Option<Move> {
    use Mnemonic as M;
    if instruction.op_count() != 2 {
        return None;
    }
    let vex = match instruction.encoding() {
        EncodingKind::Legacy => false,
        EncodingKind::VEX => true,
        _ => return None,
    };
    let [to, from] = [end(instruction, 0)?, end(instruction, 1)?];
    let memory = to == End::Memory || from == End::Memory;
    let bytes = match instruction.mnemonic() {
        M::Movups | M::Movupd | M::Movaps | M::Movapd | M::Movdqu | M::Movdqa | M::Lddqu => 16,
        M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => 16,
        M::Vmovups
        | M::Vmovupd
        | M::Vmovaps
        | M::Vmovapd
        | M::Vmovdqu
        | M::Vmovdqa
        | M::Vlddqu
        | M::Vmovntps
        | M::Vmovntpd
        | M::Vmovntdq
        | M::Vmovntdqa => {
            let wide =
                |op| instruction.op_kind(op) == OpKind::Register && instruction.op_register(op).is_ymm();
            if wide(0) || wide(1) { 32 } else { 16 }
        }
        M::Movd | M::Vmovd => 4,
        M::Movq | M::Vmovq => 8,
        M::Movss | M::Vmovss if memory => 4,
        M::Movsd | M::Vmovsd if memory => 8,
        _ => return None,
    };
    Some(Move { to, from, bytes, vex })
}

fn end(instruction: &Instruction, index: u32) -> Option<End> {
    let register = match instruction.op_kind(index) {
        OpKind::Memory => return Some(End::Memory),
        OpKind::Register => instruction.op_register(index),
        _ => return None,
    };
    if register.is_xmm() || register.is_ymm() {
        Some(End::Vector(number(register)))
    } else if register.is_gpr32() || register.is_gpr64() {
        Some(End::Gpr(number(register)))
    } else {
        // MMX registers take the general way.
        debug_assert!(register != Register::None);
        None
    }
}

impl Move {
    /// Executes the move.
    #[inline]
    pub(crate) fn execute<E: Environment>(
        &self,
        env: &mut E,
        guard: Guard,
        mem: &Mem,
    ) -> Result<(), E::Break> {
        let bytes = usize::from(self.bytes);
        let value = match self.from {
            End::Memory => {
                check_alignment(env, mem, guard.alignment(), bytes, false)?;
                let mut buffer = [[0; 16]; 2];
                let offset = env.offset(mem);
                env.load(
                    mem.seg,
                    offset,
                    guard.checked_alignment(),
                    &mut buffer.as_flattened_mut()[..bytes],
                )?;
                buffer.map(u128::from_le_bytes)
            }
            End::Vector(n) => {
                let [low, high] = env.vector().ymm[usize::from(n & 15)];
                match self.bytes {
                    32 => [low, high],
                    16 => [low, 0],
                    n => [low & u128::from(mask_of(u32::from(n))), 0],
                }
            }
            End::Gpr(n) => [u128::from(env.gpr(n) & mask_of(u32::from(self.bytes))), 0],
        };
        match self.to {
            End::Memory => {
                check_alignment(env, mem, guard.alignment(), bytes, true)?;
                let offset = env.offset(mem);
                let buffer = value.map(u128::to_le_bytes);
                env.store(mem.seg, offset, guard.checked_alignment(), &buffer.as_flattened()[..bytes])?;
            }
            End::Vector(n) => {
                let register = &mut env.vector().ymm[usize::from(n & 15)];
                if self.vex {
                    *register = value;
                } else {
                    register[0] = value[0];
                }
            }
            End::Gpr(n) => env.set_gpr(n, low64(value[0])),
        }
        Ok(())
    }
}
