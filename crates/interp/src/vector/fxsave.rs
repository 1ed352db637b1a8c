//! FXSAVE and FXRSTOR, and the legacy region that XSAVE shares with them (SDM vol. 1, 10.5 and 13.4.1).

use iced_x86::{Instruction, Mnemonic};
use x86::bits::{low16, low32};
use x86::control::cr0;
use x86::cpuid::Feature;
use x86::fpu::MXCSR_MASK;
use x86::{Exception, FpuState, VectorState};

use super::control::registers;
use super::environment::Environment;
use super::guard::check_alignment;
use crate::op::Mem;
use crate::x87;

/// Bytes of the whole region.
pub(crate) const REGION: usize = 512;
/// The misalignment that alignment checks see in state images; all other ones are #GP. How wide it is varies with the
/// implementation (SDM vol. 2, FXSAVE).
pub(crate) const CHECKED: u64 = 4;
/// Where MXCSR stands; its mask follows.
pub(crate) const MXCSR_AT: usize = 24;
/// The x87 registers.
const ST_AT: usize = 32;
/// The XMM registers.
const XMM_AT: usize = 160;

/// FXSAVE or FXRSTOR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fxsave {
    restore: bool,
    wide: bool,
}

/// Plans them.
pub(crate) fn plan(instruction: &Instruction) -> Option<Fxsave> {
    let (restore, wide) = match instruction.mnemonic() {
        Mnemonic::Fxsave => (false, false),
        Mnemonic::Fxsave64 => (false, true),
        Mnemonic::Fxrstor => (true, false),
        Mnemonic::Fxrstor64 => (true, true),
        _ => return None,
    };
    Some(Fxsave { restore, wide })
}

/// Where the XMM registers of the current mode end.
pub(crate) fn xmm_end(registers: usize) -> usize {
    XMM_AT + registers * 16
}

/// Writes the x87 part. `wide`: 64-bit instruction pointers, no selectors.
pub(crate) fn put_x87(region: &mut [u8; REGION], fpu: &FpuState, wide: bool) {
    region[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    region[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    region[4] = fpu.ftw;
    region[5] = 0;
    region[6..8].copy_from_slice(&fpu.fop.to_le_bytes());
    let pointer = |pointer: u64, selector: u16| {
        if wide { pointer } else { u64::from(low32(pointer)) | u64::from(selector) << 32 }
    };
    region[8..16].copy_from_slice(&pointer(fpu.fip, fpu.fcs).to_le_bytes());
    region[16..24].copy_from_slice(&pointer(fpu.fdp, fpu.fds).to_le_bytes());
    for (place, value) in region[ST_AT..XMM_AT].chunks_exact_mut(16).zip(&fpu.st) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}

/// Reads the x87 part. Processors that deprecate the selectors (CPUID's ZERO_FCS_FDS) drop them.
pub(crate) fn get_x87(region: &[u8; REGION], fpu: &mut FpuState, wide: bool, selectors: bool) {
    let word = |at: usize| u16::from_le_bytes([region[at], region[at + 1]]);
    let pointer = |at: usize| (0..4).fold(0, |value, i| value | u64::from(word(at + 2 * i)) << (16 * i));
    fpu.ftw = region[4];
    fpu.fop = word(6) & 0x7ff;
    let (fip, fdp) = (pointer(8), pointer(16));
    if wide {
        (fpu.fip, fpu.fdp) = (fip, fdp);
        (fpu.fcs, fpu.fds) = (0, 0);
    } else {
        (fpu.fip, fpu.fdp) = (u64::from(low32(fip)), u64::from(low32(fdp)));
        let selector = |pointer: u64| if selectors { low16(pointer >> 32) } else { 0 };
        (fpu.fcs, fpu.fds) = (selector(fip), selector(fdp));
    }
    for (place, value) in region[ST_AT..XMM_AT].as_chunks::<16>().0.iter().zip(&mut fpu.st) {
        *value = u128::from_le_bytes(*place) & x87::REGISTER;
    }
    x87::load_words(fpu, word(0), word(2));
}

/// Writes MXCSR and its mask.
pub(crate) fn put_mxcsr(region: &mut [u8; REGION], vector: &VectorState) {
    region[MXCSR_AT..MXCSR_AT + 4].copy_from_slice(&vector.mxcsr.to_le_bytes());
    region[MXCSR_AT + 4..MXCSR_AT + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
}

/// Reads MXCSR, unchecked.
pub(crate) fn get_mxcsr(region: &[u8; REGION]) -> u32 {
    let at = MXCSR_AT;
    u32::from_le_bytes([region[at], region[at + 1], region[at + 2], region[at + 3]])
}

/// Writes the XMM registers that the mode can name.
pub(crate) fn put_xmm(region: &mut [u8; REGION], vector: &VectorState, registers: usize) {
    for (place, ymm) in region[XMM_AT..].chunks_exact_mut(16).zip(&vector.ymm[..registers]) {
        place.copy_from_slice(&ymm[0].to_le_bytes());
    }
}

/// Reads them.
pub(crate) fn get_xmm(region: &[u8; REGION], vector: &mut VectorState, registers: usize) {
    for (place, ymm) in region[XMM_AT..].as_chunks::<16>().0.iter().zip(&mut vector.ymm[..registers]) {
        ymm[0] = u128::from_le_bytes(*place);
    }
}

impl Fxsave {
    /// Executes it.
    pub(crate) fn execute<E: Environment>(self, env: &mut E, mem: &Mem) -> Result<(), E::Break> {
        if env.control().cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(env.raise(Exception::nm()));
        }
        let start = env.offset(mem);
        env.check_alignment(mem.seg, start, CHECKED)?;
        check_alignment(env, mem, 16, REGION, !self.restore)?;
        let offset = env.offset(mem);
        let registers = registers(env);
        let mut region = [0; REGION];
        if self.restore {
            env.load(mem.seg, offset, 1, &mut region)?;
            let mxcsr = get_mxcsr(&region);
            if mxcsr & !MXCSR_MASK != 0 {
                return Err(env.raise(Exception::gp(0)));
            }
            let selectors = !env.has(Feature::ZeroFcsFds);
            let units = env.units();
            get_x87(&region, units.fpu, self.wide, selectors);
            get_xmm(&region, units.vector, registers);
            units.vector.mxcsr = mxcsr;
            Ok(())
        } else {
            let units = env.units();
            put_x87(&mut region, units.fpu, self.wide);
            put_mxcsr(&mut region, units.vector);
            put_xmm(&mut region, units.vector, registers);
            env.probe_write(mem.seg, offset, 1, REGION as u64)?;
            // The rest of the region is reserved or the software's own: it is not written.
            env.store(mem.seg, offset, 1, &region[..xmm_end(registers)])
        }
    }
}
