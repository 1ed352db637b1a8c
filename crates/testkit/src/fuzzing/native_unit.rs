//! The arithmetic unit: whatever the bytes decode to, on any operands.
//!
//! This is where a guest's instruction is executed by the host's processor. A signal, a changed stack or a register that
//! Rust relied on ends the process; so does a form that is admitted and should not be.

use arbitrary::{Result, Unstructured};
use iced_x86::{Decoder, DecoderOptions};
use native::{NativeError, Outcome, Plan, Processor};
use x86::fpu::{MXCSR_MASK, fsw};
use x86::{FpuState, VectorState};

use crate::oracle::random::Random;

pub(super) fn run(data: &[u8]) {
    let _ = attempt(data);
}

fn attempt(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    let (bitness, seed, mxcsr, fcw, status): (u8, u32, u32, u16, u16) = u.arbitrary()?;
    let mut random = Random::new(seed.into(), 3);
    let mut processor = Processor::new().expect("code memory");
    let mut vector = VectorState { mxcsr, ..VectorState::default() };
    vector.ymm.iter_mut().for_each(|ymm| *ymm = random.vector());
    let mut fpu = FpuState { fcw, fsw: status, ftw: random.bits() as u8, ..FpuState::default() };
    fpu.st.iter_mut().for_each(|st| *st = if random.one_in(8) { u128::MAX } else { random.extended() });
    let bitness = [16, 32, 64, 64][usize::from(bitness & 3)];
    let bytes = u.take_rest();
    let mut decoder = Decoder::new(bitness, bytes, DecoderOptions::NONE);
    while decoder.can_decode() {
        let Ok(plan) = Plan::new(&decoder.decode()) else { continue };
        operands(&mut processor, &mut random);
        // Twice: the second time the thunk is there.
        for _ in 0..2 {
            if plan.is_x87() {
                x87(&mut processor, &plan, &mut fpu);
            } else {
                simd(&mut processor, &plan, &mut vector);
            }
        }
        if random.one_in(4) {
            vector.mxcsr = random.mxcsr() ^ (random.bits() as u32 & 0x1f80);
            (fpu.fcw, fpu.fsw) = (random.bits() as u16, random.bits() as u16);
        }
    }
    // The host's own floating point is as it was.
    assert_eq!(std::hint::black_box(1.0f64) / std::hint::black_box(0.0), f64::INFINITY);
    Ok(())
}

fn operands(processor: &mut Processor, random: &mut Random) {
    let operands = processor.operands();
    operands.memory.0.iter_mut().for_each(|byte| *byte = random.bits() as u8);
    for (at, lane) in operands.memory.0.chunks_exact_mut(8).enumerate() {
        if at & 1 == 0 {
            lane.copy_from_slice(&random.lane().to_le_bytes());
        }
    }
    operands.flags = random.bits();
    operands.mm = [(); 4].map(|()| random.lane());
    operands.gpr = [(); 4].map(|()| random.integer());
    (operands.rax, operands.rcx, operands.rdx) = (random.integer(), random.integer(), random.integer());
}

fn simd(processor: &mut Processor, plan: &Plan, vector: &mut VectorState) {
    let before = vector.clone();
    match processor.run_vector(plan, vector) {
        Ok(Outcome::Done) => {}
        Ok(Outcome::SimdFault) => {
            assert_eq!(vector.ymm, before.ymm, "a fault has no results: {plan:?}");
            let unmasked = vector.mxcsr & !(vector.mxcsr >> 7) & 0x3f;
            assert_ne!(unmasked, 0, "a fault has a reason: {plan:?}");
        }
        Ok(Outcome::X87Pending) => panic!("no x87: {plan:?}"),
        Err(NativeError::NotArithmetic(_)) => {}
        Err(error) => panic!("{error}: {plan:?}"),
    }
    assert_eq!(vector.mxcsr & !MXCSR_MASK & !before.mxcsr, 0);
}

fn x87(processor: &mut Processor, plan: &Plan, fpu: &mut FpuState) {
    let before = fpu.clone();
    match processor.run_x87(plan, fpu) {
        Ok(Outcome::Done) => {}
        Ok(Outcome::X87Pending) => {
            assert_eq!(*fpu, before);
            fpu.fsw &= !fsw::EXCEPTIONS;
        }
        Ok(Outcome::SimdFault) => panic!("no SIMD: {plan:?}"),
        Err(NativeError::NotArithmetic(_)) => {}
        Err(error) => panic!("{error}: {plan:?}"),
    }
}
