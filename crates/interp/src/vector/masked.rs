//! Moves that touch only the elements of memory that a mask picks; the others cannot fault.
//!
//! VMASKMOVPS/PD and VPMASKMOVD/Q (SDM vol. 2C) and MASKMOVQ, MASKMOVDQU (vol. 2B), the latter with bytes as elements and
//! memory always at DS:rDI, or another segment by prefix.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::arithmetic::number;
use super::environment::Environment;
use super::mmx;
use crate::op::{Mem, ZERO};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Vector `data` from memory; the mask picks what is read, the rest becomes zero.
    Load,
    /// Vector `data` to memory.
    Store,
    /// Vector `data` to memory at rDI: segment and bits cut off by the address size.
    StoreAtRdi { seg: u8, cut: u8 },
    /// The same with MMX registers.
    MmxStoreAtRdi { seg: u8, cut: u8 },
}

/// A masked move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Masked {
    kind: Kind,
    data: u8,
    mask: u8,
    element: u8,
    bytes: u8,
}

/// Plans the masked moves.
pub(crate) fn plan(instruction: &Instruction) -> Option<Masked> {
    use Mnemonic as M;
    let register = |index| number(instruction.op_register(index));
    let element = match instruction.mnemonic() {
        M::Vmaskmovps | M::Vpmaskmovd => 4,
        M::Vmaskmovpd | M::Vpmaskmovq => 8,
        M::Maskmovdqu | M::Vmaskmovdqu | M::Maskmovq => {
            let cut = match instruction.op0_kind() {
                OpKind::MemorySegDI => 48,
                OpKind::MemorySegEDI => 32,
                _ => 0,
            };
            let seg = u8::try_from(instruction.memory_segment().number()).ok()?;
            let mmx = instruction.mnemonic() == M::Maskmovq;
            return Some(Masked {
                kind: if mmx { Kind::MmxStoreAtRdi { seg, cut } } else { Kind::StoreAtRdi { seg, cut } },
                data: register(1),
                mask: register(2),
                element: 1,
                bytes: if mmx { 8 } else { 16 },
            });
        }
        _ => return None,
    };
    let store = instruction.op0_kind() == OpKind::Memory;
    let bytes = if instruction.op_register(1).is_ymm() { 32 } else { 16 };
    Some(Masked {
        kind: if store { Kind::Store } else { Kind::Load },
        data: if store { register(2) } else { register(0) },
        mask: register(1),
        element,
        bytes,
    })
}

const RDI: u8 = 7;

impl Masked {
    /// Executes the move.
    pub(crate) fn execute<E: Environment>(&self, env: &mut E, mem: &Mem) -> Result<(), E::Break> {
        let units = env.units();
        let vector = |n: u8| units.vector.ymm[usize::from(n & 15)].map(u128::to_le_bytes);
        let quad = |n: u8| [u128::from(mmx::read(units.fpu, n)), 0].map(u128::to_le_bytes);
        let at_rdi = |seg, cut| Mem { base: RDI, index: ZERO, seg, cut, ..Mem::default() };
        match self.kind {
            Kind::Load => {
                let mask = vector(self.mask);
                self.load(env, mem, &mask)
            }
            Kind::Store => {
                let (mask, data) = (vector(self.mask), vector(self.data));
                self.store(env, mem, &mask, &data)
            }
            Kind::StoreAtRdi { seg, cut } => {
                let (mask, data) = (vector(self.mask), vector(self.data));
                self.check(env, &at_rdi(seg, cut))?;
                self.store(env, &at_rdi(seg, cut), &mask, &data)
            }
            Kind::MmxStoreAtRdi { seg, cut } => {
                let (mask, data) = (quad(self.mask), quad(self.data));
                mmx::enter(env.units().fpu);
                self.check(env, &at_rdi(seg, cut))?;
                self.store(env, &at_rdi(seg, cut), &mask, &data)
            }
        }
    }

    /// Alignment checks look at 8 bytes, whatever the mask.
    fn check<E: Environment>(&self, env: &mut E, mem: &Mem) -> Result<(), E::Break> {
        let offset = env.offset(mem);
        env.check_alignment(mem.seg, offset, 8)
    }

    fn load<E: Environment>(&self, env: &mut E, mem: &Mem, mask: &[[u8; 16]; 2]) -> Result<(), E::Break> {
        let mut value = [[0; 16]; 2];
        let offset = env.offset(mem);
        for (start, end) in self.picked(mask) {
            let place = &mut value.as_flattened_mut()[start..end];
            env.load(mem.seg, self.step(mem, offset, start), 1, place)?;
        }
        env.units().vector.ymm[usize::from(self.data & 15)] = value.map(u128::from_le_bytes);
        Ok(())
    }

    fn store<E: Environment>(
        &self,
        env: &mut E,
        mem: &Mem,
        mask: &[[u8; 16]; 2],
        data: &[[u8; 16]; 2],
    ) -> Result<(), E::Break> {
        let offset = env.offset(mem);
        for (start, end) in self.picked(mask) {
            env.probe_write(mem.seg, self.step(mem, offset, start), 1, (end - start) as u64)?;
        }
        for (start, end) in self.picked(mask) {
            env.store(mem.seg, self.step(mem, offset, start), 1, &data.as_flattened()[start..end])?;
        }
        Ok(())
    }

    /// The byte ranges of the elements whose mask has its top bit set.
    fn picked<'a>(&self, mask: &'a [[u8; 16]; 2]) -> impl Iterator<Item = (usize, usize)> + use<'a> {
        let element = usize::from(self.element);
        let mask = &mask.as_flattened()[..usize::from(self.bytes)];
        mask.chunks_exact(element)
            .enumerate()
            .filter(|(_, lane)| lane.last().is_some_and(|top| top & 0x80 != 0))
            .map(move |(index, _)| (index * element, (index + 1) * element))
    }

    /// Offsets wrap at the address size.
    fn step(&self, mem: &Mem, offset: u64, bytes: usize) -> u64 {
        offset.wrapping_add(bytes as u64) << mem.cut >> mem.cut
    }
}
