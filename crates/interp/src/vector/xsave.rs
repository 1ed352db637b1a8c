//! XSAVE, XSAVEOPT, XSAVEC, XRSTOR, XGETBV and XSETBV (SDM vol. 1, chapter 13), for the state components x87, SSE and
//! AVX.
//!
//! With no component above AVX, the standard and the compacted form put everything at the same place: the legacy region,
//! the header at 512, the upper halves of the YMM registers at 576. They differ in the header, in what is skipped,
//! and in who owns MXCSR.

use std::ops::Range;

use iced_x86::{Instruction, Mnemonic};
use x86::bits::low32;
use x86::control::{cr0, cr4, xcr0};
use x86::cpuid::Feature;
use x86::fpu::{MXCSR_DEFAULT, MXCSR_MASK};
use x86::{Exception, FpuState, VectorState};

use super::control::registers;
use super::environment::{Environment, Units};
use super::fxsave::{self, MXCSR_AT, REGION};
use super::guard::check_alignment;
use crate::op::Mem;

pub(super) const HEADER_AT: usize = REGION;
pub(super) const HEADER: usize = 64;
pub(super) const AVX_AT: usize = HEADER_AT + HEADER;
const AVX: usize = 256;
/// XCOMP_BV bit 63: the compacted form.
const COMPACTED: u64 = 1 << 63;

/// One of these instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Xsave {
    /// XSAVE, XSAVEOPT, XSAVEC; `wide` with REX.W.
    Save { kind: Save, wide: bool },
    /// XRSTOR.
    Restore { wide: bool },
    /// XGETBV.
    Getbv,
    /// XSETBV.
    Setbv,
}

/// The ways of saving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Save {
    /// XSAVE: everything asked for.
    All,
    /// XSAVEOPT: what is not in its initial configuration.
    Optimised,
    /// XSAVEC: likewise, in compacted form.
    Compacted,
}

/// Plans them.
pub(crate) fn plan(instruction: &Instruction) -> Option<Xsave> {
    use Mnemonic as M;
    let save = |kind, wide| Xsave::Save { kind, wide };
    Some(match instruction.mnemonic() {
        M::Xsave => save(Save::All, false),
        M::Xsave64 => save(Save::All, true),
        M::Xsaveopt => save(Save::Optimised, false),
        M::Xsaveopt64 => save(Save::Optimised, true),
        M::Xsavec => save(Save::Compacted, false),
        M::Xsavec64 => save(Save::Compacted, true),
        M::Xrstor => Xsave::Restore { wide: false },
        M::Xrstor64 => Xsave::Restore { wide: true },
        M::Xgetbv => Xsave::Getbv,
        M::Xsetbv => Xsave::Setbv,
        _ => return None,
    })
}

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;

fn edx_eax<E: Environment>(env: &E) -> u64 {
    u64::from(low32(env.gpr(RAX))) | env.gpr(RDX) << 32
}

impl Xsave {
    /// Executes it.
    pub(crate) fn execute<E: Environment>(self, env: &mut E, mem: &Mem) -> Result<(), E::Break> {
        let control = env.control();
        if control.cr4 & cr4::OSXSAVE == 0 {
            return Err(env.raise(Exception::ud()));
        }
        match self {
            Self::Getbv => return getbv(env),
            Self::Setbv => return setbv(env),
            Self::Save { .. } | Self::Restore { .. } => {}
        }
        if control.cr0 & cr0::TS != 0 {
            return Err(env.raise(Exception::nm()));
        }
        let requested = edx_eax(env) & control.xcr0;
        let write = matches!(self, Self::Save { .. });
        let start = env.offset(mem);
        env.check_alignment(mem.seg, start, fxsave::CHECKED)?;
        check_alignment(env, mem, 64, AVX_AT, write)?;
        match self {
            Self::Save { kind, wide } => save(env, mem, kind, wide, requested),
            _ => restore(env, mem, matches!(self, Self::Restore { wide: true }), requested),
        }
    }
}

/// XINUSE: the components that are not in their initial configuration (SDM vol. 1, 13.6). MXCSR does not count.
fn in_use(fpu: &FpuState, vector: &VectorState, registers: usize) -> u64 {
    let initial = FpuState::default();
    let ymm = &vector.ymm[..registers];
    let mut bits = 0;
    if *fpu != initial {
        bits |= xcr0::X87;
    }
    if ymm.iter().any(|half| half[0] != 0) {
        bits |= xcr0::SSE;
    }
    if ymm.iter().any(|half| half[1] != 0) {
        bits |= xcr0::AVX;
    }
    bits
}

fn save<E: Environment>(
    env: &mut E,
    mem: &Mem,
    kind: Save,
    wide: bool,
    requested: u64,
) -> Result<(), E::Break> {
    let offset = env.offset(mem);
    let at = |bytes: usize| offset.wrapping_add(bytes as u64) << mem.cut >> mem.cut;
    let registers = registers(env);
    let units = env.units();
    let mut used = in_use(units.fpu, units.vector, registers);
    if kind != Save::All && units.vector.mxcsr != MXCSR_DEFAULT {
        // 13.9 and 13.10: a changed MXCSR makes the SSE component one to be saved.
        used |= xcr0::SSE;
    }
    let mut area = image(&units, wide, registers);
    let mut header = HEADER_AT..HEADER_AT + 8;
    let mut in_use = requested & used;
    if kind == Save::Compacted {
        header.end += 8;
        area[HEADER_AT + 8..HEADER_AT + 16].copy_from_slice(&(requested | COMPACTED).to_le_bytes());
    } else {
        let mut old = [0; 8];
        env.load(mem.seg, at(HEADER_AT), 1, &mut old)?;
        in_use |= u64::from_le_bytes(old) & !requested;
    }
    area[HEADER_AT..HEADER_AT + 8].copy_from_slice(&in_use.to_le_bytes());

    let saved = if kind == Save::All { requested } else { requested & used };
    let mxcsr = match kind {
        Save::Compacted => saved & xcr0::SSE,
        _ => requested & (xcr0::SSE | xcr0::AVX),
    };
    // What is not part of a saved component is not touched.
    let mut parts = [
        part(saved & xcr0::X87, 0..MXCSR_AT),
        part(mxcsr, MXCSR_AT..32),
        part(saved & xcr0::X87, 32..160),
        part(saved & xcr0::SSE, 160..fxsave::xmm_end(registers)),
        header,
        part(saved & xcr0::AVX, AVX_AT..AVX_AT + registers * 16),
    ];
    join(&mut parts);
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    for part in parts.clone() {
        // All of the AVX component must be writable, even if the mode has only half of its registers.
        let len = if part.start == AVX_AT { AVX } else { part.len() };
        env.probe_write(mem.seg, at(part.start), 1, len as u64)?;
    }
    for part in parts {
        env.store(mem.seg, at(part.start), 1, &area[part])?;
    }
    Ok(())
}

/// The whole area but for its header.
fn image(units: &Units<'_>, wide: bool, registers: usize) -> [u8; AVX_AT + AVX] {
    let mut area = [0; AVX_AT + AVX];
    put_registers(&mut area, units.fpu, units.vector, wide, registers);
    area
}

/// Writes the registers into an area, which need not have room for those of AVX.
pub(super) fn put_registers(
    area: &mut [u8],
    fpu: &FpuState,
    vector: &VectorState,
    wide: bool,
    registers: usize,
) {
    if let Some(region) = area.first_chunk_mut() {
        fxsave::put_x87(region, fpu, wide);
        fxsave::put_mxcsr(region, vector);
        fxsave::put_xmm(region, vector, registers);
    }
    let upper = area.get_mut(AVX_AT..).unwrap_or_default();
    for (place, ymm) in upper.as_chunks_mut().0.iter_mut().zip(&vector.ymm) {
        *place = ymm[1].to_le_bytes();
    }
}

/// A part of the area, empty unless it is wanted.
fn part(wanted: u64, range: Range<usize>) -> Range<usize> {
    if wanted == 0 { range.start..range.start } else { range }
}

/// Makes one part of those that touch: there is less to translate.
fn join(parts: &mut [Range<usize>]) {
    for i in 1..parts.len() {
        let before = parts[i - 1].clone();
        if before.end == parts[i].start && !before.is_empty() && !parts[i].is_empty() {
            parts[i].start = before.start;
            parts[i - 1].end = before.start;
        }
    }
}

/// What the header of an area says.
struct Components {
    /// The components that are there.
    xstate: u64,
    /// Those that there is room for.
    room: u64,
    compacted: bool,
}

/// Reads a header as XRSTOR does; `None` is #GP (SDM vol. 1, 13.8).
fn components(header: &[u8; HEADER], xcr0: u64, compaction: bool) -> Option<Components> {
    let word =
        |at: usize| header[at..at + 8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
    let (xstate, xcomp) = (word(0), word(8));
    let compacted = xcomp & COMPACTED != 0;
    let fits = if compacted {
        compaction
            && xcomp & !COMPACTED & !xcr0 == 0
            && xstate & !xcomp == 0
            && header[16..].iter().all(|&byte| byte == 0)
    } else {
        xstate & !xcr0 == 0 && header[8..24].iter().all(|&byte| byte == 0)
    };
    let room = if compacted { xcomp } else { xcr0 };
    fits.then_some(Components { xstate, room, compacted })
}

fn restore<E: Environment>(env: &mut E, mem: &Mem, wide: bool, requested: u64) -> Result<(), E::Break> {
    let offset = env.offset(mem);
    let at = |bytes: usize| offset.wrapping_add(bytes as u64) << mem.cut >> mem.cut;
    let registers = registers(env);
    let mut region = [0; REGION];
    if requested != 0 {
        env.load(mem.seg, offset, 1, &mut region)?;
    }
    let mut header = [0; HEADER];
    env.load(mem.seg, at(HEADER_AT), 1, &mut header)?;
    let compaction = env.has(Feature::Xsavec);
    let Some(Components { xstate, room, compacted }) = components(&header, env.control().xcr0, compaction)
    else {
        return Err(env.raise(Exception::gp(0)));
    };
    let loaded = requested & xstate;
    let mut upper = [0; AVX];
    // A component asked for must be readable even if its state is not there, as long as its place is.
    if requested & room & xcr0::AVX != 0 {
        env.load(mem.seg, at(AVX_AT), 1, &mut upper)?;
    }
    if loaded & xcr0::AVX == 0 {
        upper = [0; AVX];
    }
    // In the compacted form MXCSR belongs to the SSE component; in the standard form it is always there.
    let mxcsr = if compacted {
        (requested & xcr0::SSE != 0)
            .then(|| if loaded & xcr0::SSE != 0 { fxsave::get_mxcsr(&region) } else { MXCSR_DEFAULT })
    } else {
        (requested & (xcr0::SSE | xcr0::AVX) != 0).then(|| fxsave::get_mxcsr(&region))
    };
    if mxcsr.is_some_and(|value| value & !MXCSR_MASK != 0) {
        return Err(env.raise(Exception::gp(0)));
    }
    let selectors = !env.has(Feature::ZeroFcsFds);
    let units = env.units();
    if loaded & xcr0::X87 != 0 {
        fxsave::get_x87(&region, units.fpu, wide, selectors);
    } else if requested & xcr0::X87 != 0 {
        *units.fpu = FpuState::default();
    }
    if let Some(value) = mxcsr {
        units.vector.mxcsr = value;
    }
    if loaded & xcr0::SSE != 0 {
        fxsave::get_xmm(&region, units.vector, registers);
    } else if requested & xcr0::SSE != 0 {
        units.vector.ymm[..registers].iter_mut().for_each(|ymm| ymm[0] = 0);
    }
    if requested & xcr0::AVX != 0 {
        // Not loaded: `upper` is zero, the initial configuration.
        for (ymm, place) in units.vector.ymm[..registers].iter_mut().zip(upper.as_chunks::<16>().0) {
            ymm[1] = u128::from_le_bytes(*place);
        }
    }
    Ok(())
}

fn getbv<E: Environment>(env: &mut E) -> Result<(), E::Break> {
    let value = match low32(env.gpr(RCX)) {
        0 => env.control().xcr0,
        1 if env.has(Feature::Xgetbv1) => {
            let registers = registers(env);
            let xcr0 = env.control().xcr0;
            let units = env.units();
            in_use(units.fpu, units.vector, registers) & xcr0
        }
        _ => return Err(env.raise(Exception::gp(0))),
    };
    env.set_gpr(RAX, u64::from(low32(value)));
    env.set_gpr(RDX, value >> 32);
    Ok(())
}

fn setbv<E: Environment>(env: &mut E) -> Result<(), E::Break> {
    let value = edx_eax(env);
    let legal = env.control().cpl == 0
        && low32(env.gpr(RCX)) == 0
        && value & xcr0::X87 != 0
        && value & !env.xcr0_supported() == 0
        && (value & xcr0::AVX == 0 || value & xcr0::SSE != 0);
    if !legal {
        return Err(env.raise(Exception::gp(0)));
    }
    env.set_xcr0(value);
    Ok(())
}
