//! The x87 and vector registers as an image in the standard form of XSAVE (SDM vol. 1, 13.4), for whoever has them loaded elsewhere.

use x86::control::xcr0;
use x86::{FpuState, VectorState};

use super::fxsave::{self, REGION};
use super::xsave::{self, AVX_AT, HEADER, HEADER_AT};

/// All of the vector registers, in 64-bit mode.
const REGISTERS: usize = 16;

/// Writes them; components above AVX are in their initial state. An image without room for AVX is one of a processor without.
pub(crate) fn put(fpu: &FpuState, vector: &VectorState, image: &mut [u8]) {
    xsave::put_registers(image, fpu, vector, true, REGISTERS);
    let avx = if image.len() > AVX_AT { xcr0::AVX } else { 0 };
    if let Some(header) = image.get_mut(HEADER_AT..HEADER_AT + HEADER) {
        header.fill(0);
        header[..8].copy_from_slice(&(xcr0::X87 | xcr0::SSE | avx).to_le_bytes());
    }
}

/// Reads them.
pub(crate) fn get(fpu: &mut FpuState, vector: &mut VectorState, image: &[u8]) {
    if let Some(region) = image.first_chunk::<REGION>() {
        fxsave::get_x87(region, fpu, true, false);
        fxsave::get_xmm(region, vector, REGISTERS);
        vector.mxcsr = fxsave::get_mxcsr(region);
    }
    let upper = image.get(AVX_AT..).unwrap_or_default();
    for (place, ymm) in upper.as_chunks::<16>().0.iter().zip(&mut vector.ymm) {
        ymm[1] = u128::from_le_bytes(*place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_got() {
        let mut fpu = FpuState { fcw: 0x27f, fsw: 0x3800, ftw: 0x81, ..FpuState::default() };
        fpu.st[3] = 0x3fff_8000_0000_0000_0000;
        let mut vector = VectorState { mxcsr: 0x1fa0, ..VectorState::default() };
        vector.ymm[15] = [7, 9];
        let mut image = [0xff; AVX_AT + 256 + 100];
        put(&fpu, &vector, &mut image);
        let (mut fpu_then, mut vector_then) = (FpuState::default(), VectorState::default());
        get(&mut fpu_then, &mut vector_then, &image);
        assert_eq!((fpu_then, vector_then), (fpu, vector));
        assert!(image[HEADER_AT + 1..AVX_AT].iter().all(|&byte| byte == 0));
    }
}
