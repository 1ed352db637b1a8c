//! VGATHER and VPGATHER (SDM vol. 2C).
//!
//! Elements are fetched from the lowest up. Each one that arrives is written and its mask cleared, so that after a
//! fault the instruction goes on where it stopped. When it is done, the mask and what lies above the last element are
//! zero. Alignment is not checked (exceptions of type 12).

use iced_x86::Instruction;
use x86::bits::{low64, mask_of, sign_extend};

use super::arithmetic::number;
use super::environment::Environment;
use super::guard::Guard;
use crate::op::{Mem, ZERO};

/// A gather.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gather {
    guard: Guard,
    data: u8,
    mask: u8,
    index: u8,
    /// Power of two.
    scale: u8,
    /// Bytes of an element of the data and the mask.
    element: u8,
    /// Bytes of an element of the index.
    index_element: u8,
    count: u8,
    /// Bytes of the longer of data and index registers: the vector length.
    bytes: u8,
}

/// Plans a VEX gather. (Forms whose three registers are not different ones are undefined: the decoder says so.)
pub(crate) fn plan(instruction: &Instruction) -> Option<Gather> {
    let guard = Guard::of(instruction);
    if !guard.is_vex() || instruction.op_count() != 3 {
        return None;
    }
    let (data, mask, index) =
        (instruction.op0_register(), instruction.op2_register(), instruction.memory_index());
    let bytes = |register: iced_x86::Register| u8::try_from(register.size()).ok();
    let element = u8::try_from(instruction.memory_size().element_size()).ok().filter(|&size| size != 0)?;
    let index_element = if instruction.is_vsib64() { 8 } else { 4 };
    Some(Gather {
        guard,
        data: number(data),
        mask: number(mask),
        index: number(index),
        scale: u8::try_from(instruction.memory_index_scale().trailing_zeros()).ok()?,
        element,
        index_element,
        count: (bytes(data)? / element).min(bytes(index)? / index_element),
        bytes: bytes(data)?.max(bytes(index)?),
    })
}

impl Gather {
    /// Executes the gather.
    pub(crate) fn execute<E: Environment>(&self, env: &mut E, mem: &Mem) -> Result<(), E::Break> {
        self.guard.check(env)?;
        let base = env.offset(&Mem { index: ZERO, ..*mem });
        let indices = env.units().vector.ymm[usize::from(self.index & 15)];
        self.spread_mask(&mut env.units().vector.ymm[usize::from(self.mask & 15)]);
        for lane in 0..self.count {
            let mask = get(&env.units().vector.ymm[usize::from(self.mask & 15)], lane, self.element);
            if mask != 0 {
                let index = get(&indices, lane, self.index_element);
                let index = sign_extend(index, u32::from(self.index_element) * 8);
                let offset = base.wrapping_add(index << self.scale) << mem.cut >> mem.cut;
                let mut value = [0; 8];
                env.load(mem.seg, offset, 1, &mut value[..usize::from(self.element)])?;
                let data = &mut env.units().vector.ymm[usize::from(self.data & 15)];
                set(data, lane, self.element, u64::from_le_bytes(value));
                if self.bytes == 16 {
                    data[1] = 0;
                }
            }
            set(&mut env.units().vector.ymm[usize::from(self.mask & 15)], lane, self.element, 0);
        }
        let ymm = &mut env.units().vector.ymm;
        ymm[usize::from(self.mask & 15)] = [0; 2];
        let data = &mut ymm[usize::from(self.data & 15)];
        match self.count * self.element {
            8 => *data = [u128::from(low64(data[0])), 0],
            16 => data[1] = 0,
            _ => {}
        }
        Ok(())
    }
}

impl Gather {
    /// The first thing that happens, and stays even if an element faults: each mask within the vector length becomes all
    /// ones or all zeros by its top bit, and there is nothing above.
    fn spread_mask(&self, mask: &mut [u128; 2]) {
        let bits = u32::from(self.element) * 8;
        let mut spread = [0; 2];
        for lane in 0..self.bytes / self.element {
            if get(mask, lane, self.element) >> (bits - 1) & 1 != 0 {
                set(&mut spread, lane, self.element, u64::MAX);
            }
        }
        *mask = spread;
    }
}

fn get(register: &[u128; 2], lane: u8, bytes: u8) -> u64 {
    let bit = u32::from(lane) * u32::from(bytes) * 8;
    let half = if bit < 128 { register[0] } else { register[1] };
    low64(half >> (bit % 128)) & mask_of(u32::from(bytes))
}

fn set(register: &mut [u128; 2], lane: u8, bytes: u8, value: u64) {
    let bit = u32::from(lane) * u32::from(bytes) * 8;
    let half = if bit < 128 { &mut register[0] } else { &mut register[1] };
    let mask = u128::from(mask_of(u32::from(bytes)));
    *half = *half & !(mask << (bit % 128)) | (u128::from(value) & mask) << (bit % 128);
}
