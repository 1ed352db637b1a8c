//! The MMX registers, which are the mantissas of the x87 registers (SDM vol. 1, 9.2 and vol. 3, 12.2).
//!
//! MMn is *physical* register n, whereas [`FpuState::st`] is in stack order; so when an MMX instruction sets TOP to 0,
//! the array turns.

use x86::FpuState;
use x86::bits::low64;
use x86::fpu::fsw;

/// Whether an unmasked x87 exception waits for the next waiting instruction.
#[inline]
pub(crate) fn is_pending(fpu: &FpuState) -> bool {
    fpu.fsw & !fpu.fcw & fsw::EXCEPTIONS != 0
}

/// Sets TOP; every physical register keeps its contents.
pub(crate) fn set_top(fpu: &mut FpuState, top: u8) {
    let turn = usize::from(top.wrapping_sub(fpu.top()) & 7);
    fpu.st.rotate_left(turn);
    fpu.fsw = fpu.fsw & !(7 << fsw::TOP_SHIFT) | u16::from(top & 7) << fsw::TOP_SHIFT;
}

/// The contents of MM`number`.
#[inline]
pub(crate) fn read(fpu: &FpuState, number: u8) -> u64 {
    let place = number.wrapping_sub(fpu.top()) & 7;
    low64(fpu.st[usize::from(place)])
}

/// What every MMX instruction but EMMS does: TOP = 0, all registers valid.
#[inline]
pub(crate) fn enter(fpu: &mut FpuState) {
    if fpu.top() != 0 {
        set_top(fpu, 0);
    }
    fpu.ftw = 0xff;
}

/// Writes MM`number`; the exponent becomes all ones. After [`enter`].
#[inline]
pub(crate) fn write(fpu: &mut FpuState, number: u8, value: u64) {
    fpu.st[usize::from(number & 7)] = 0xffff << 64 | u128::from(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physical_registers_stay_when_top_moves() {
        let mut fpu = FpuState { fsw: 5 << fsw::TOP_SHIFT, ..FpuState::default() };
        for (n, st) in (0u8..).zip(fpu.st.iter_mut()) {
            // Physical register p holds p + 100.
            *st = u128::from((n + 5) % 8 + 100);
        }
        let contents = |fpu: &FpuState| [0, 1, 2, 3, 4, 5, 6, 7].map(|n| read(fpu, n));
        let before = contents(&fpu);
        assert_eq!(before, [100, 101, 102, 103, 104, 105, 106, 107]);
        for top in [0, 3, 7, 1] {
            set_top(&mut fpu, top);
            assert_eq!((fpu.top(), contents(&fpu)), (top, before));
        }
        enter(&mut fpu);
        write(&mut fpu, 2, 9);
        assert_eq!((read(&fpu, 2), fpu.ftw, fpu.st[2] >> 64), (9, 0xff, 0xffff));
    }
}
