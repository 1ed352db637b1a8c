//! The unit as a whole: known results, refusals, and a sweep over every form there is.

use iced_x86::{
    Code, Decoder, DecoderOptions, Instruction, MemoryOperand, OpCodeOperandKind, OpKind, Register,
};
use x86::{FpuState, VectorState, fpu::fsw};

use super::*;

fn decode(bytes: &[u8]) -> Instruction {
    Decoder::new(64, bytes, DecoderOptions::NONE).decode()
}

fn plan(bytes: &[u8]) -> Plan {
    Plan::new(&decode(bytes)).unwrap()
}

/// Vector registers that differ from each other in every byte.
fn vectors() -> VectorState {
    let mut v = VectorState::default();
    for (n, ymm) in (1u128..).zip(v.ymm.iter_mut()) {
        let bytes = n * 0x0101_0101_0101_0101_0101_0101_0101_0101;
        *ymm = [bytes, !bytes];
    }
    v
}

#[test]
fn legacy_forms_keep_upper_halves_and_vex_forms_clear_them() {
    let mut p = Processor::new().unwrap();
    let mut v = vectors();
    let before = v.clone();
    // paddb xmm3, xmm9
    p.run_vector(&plan(&[0x66, 0x41, 0x0f, 0xfc, 0xd9]), &mut v).unwrap();
    assert_eq!(v.ymm[3], [0x0e0e_0e0e_0e0e_0e0e_0e0e_0e0e_0e0e_0e0e, before.ymm[3][1]]);
    if is_x86_feature_detected!("avx2") {
        // vpaddb xmm3, xmm0, xmm15
        p.run_vector(&plan(&[0xc4, 0xc1, 0x79, 0xfc, 0xdf]), &mut v).unwrap();
        assert_eq!(v.ymm[3], [0x1111_1111_1111_1111_1111_1111_1111_1111, 0]);
    }
    let unchanged = |n: &usize| v.ymm[*n] == before.ymm[*n];
    assert_eq!((0..16).filter(unchanged).count(), 15);
}

#[test]
fn memory_and_general_registers_are_marshalled() {
    let mut p = Processor::new().unwrap();
    let mut v = vectors();
    // pinsrd xmm1, [rbx+rcx*4+0x12345678], 3
    let insert = plan(&[0x66, 0x0f, 0x3a, 0x22, 0x8c, 0x8b, 0x78, 0x56, 0x34, 0x12, 3]);
    assert_eq!(insert.memory(), Some(crate::MemoryOperand { bytes: 4, read: true, written: false }));
    p.operands().memory.0[..4].copy_from_slice(&[1, 2, 3, 4]);
    p.run_vector(&insert, &mut v).unwrap();
    assert_eq!(v.ymm[1][0] >> 96, 0x0403_0201);
    // movmskps r11d, xmm1
    let mask = plan(&[0x44, 0x0f, 0x50, 0xd9]);
    assert_eq!(mask.operands()[0], Operand::Gpr { register: Register::R11D, written: true });
    v.ymm[1][0] = 0x8000_0000_0000_0000_8000_0000_8000_0000;
    p.run_vector(&mask, &mut v).unwrap();
    assert_eq!(p.operands().gpr[0], 0b1011);
}

#[test]
fn implicit_registers_and_flags_are_marshalled() {
    let mut p = Processor::new().unwrap();
    let mut v = vectors();
    // pcmpestri xmm1, xmm2, 0x18: equal each, masked; RAX and RDX are lengths, RCX the index.
    let compare = plan(&[0x66, 0x0f, 0x3a, 0x61, 0xca, 0x18]);
    let implicit = compare.implicit();
    assert!(implicit.rax_read && implicit.rdx_read && implicit.rcx_written && compare.writes_flags());
    v.ymm[1][0] = 0x4141_4141;
    v.ymm[2][0] = 0x4142_4141;
    (p.operands().rax, p.operands().rdx) = (16, 16);
    p.run_vector(&compare, &mut v).unwrap();
    assert_eq!(p.operands().rcx, 2);
    assert_eq!(p.operands().flags & x86::rflags::CF, 1);
    if is_x86_feature_detected!("avx") {
        // vpcmpistrm xmm1, xmm2, 0x40: a byte mask of equal-any into xmm0, all of which it writes.
        (v.ymm[1][0], v.ymm[2][0]) = (0x42, 0x42_41_42);
        p.run_vector(&plan(&[0xc4, 0xe3, 0x79, 0x62, 0xca, 0x40]), &mut v).unwrap();
        assert_eq!(v.ymm[0], [0xff_00_ff, 0]);
    }
    // blendvps xmm4, xmm5 under xmm0
    v.ymm[0][0] = 0x8000_0000;
    let [four, five] = [v.ymm[4][0], v.ymm[5][0]];
    p.run_vector(&plan(&[0x66, 0x0f, 0x38, 0x14, 0xe5]), &mut v).unwrap();
    assert_eq!(v.ymm[4][0], four & !0xffff_ffff | five & 0xffff_ffff);
}

#[test]
fn an_unmasked_simd_exception_changes_only_mxcsr() {
    let mut p = Processor::new().unwrap();
    // divps xmm1, xmm2
    let divide = plan(&[0x0f, 0x5e, 0xca]);
    for round in 0..3 {
        let mut v = vectors();
        v.ymm[2][0] = 0;
        let before = v.clone();
        v.mxcsr = 0x1d80;
        assert_eq!(p.run_vector(&divide, &mut v).unwrap(), Outcome::SimdFault, "round {round}");
        assert_eq!((v.mxcsr, v.ymm), (0x1d84, before.ymm));
        v.mxcsr = 0x1f80;
        assert_eq!(p.run_vector(&divide, &mut v).unwrap(), Outcome::Done);
        assert_eq!((v.mxcsr, v.ymm[1][0]), (0x1f84, 0x7f80_0000_7f80_0000_7f80_0000_7f80_0000));
    }
    // The host's environment is as it was.
    assert!((1.0f32 / std::hint::black_box(0.0)).is_infinite());
}

#[test]
fn rounding_modes_of_the_guest_apply() {
    let mut p = Processor::new().unwrap();
    // cvtsd2si rax, xmm1
    let convert = plan(&[0xf2, 0x48, 0x0f, 0x2d, 0xc1]);
    for (mode, wanted) in [(0, 2), (1, 2), (2, 3), (3, 2)] {
        let mut v = vectors();
        v.ymm[1][0] = u128::from(2.5f64.to_bits());
        v.mxcsr |= mode << 13;
        p.run_vector(&convert, &mut v).unwrap();
        assert_eq!(p.operands().gpr[0], wanted);
    }
}

#[test]
fn mmx_operands_are_marshalled() {
    let mut p = Processor::new().unwrap();
    // paddb mm2, mm7
    let add = plan(&[0x0f, 0xfc, 0xd7]);
    assert!(add.is_mmx());
    assert_eq!(add.operands()[1], Operand::Mmx { number: 7, written: false });
    p.operands().mm[..2].copy_from_slice(&[0x0102_03ff, 0x0101_0101]);
    p.run_vector(&add, &mut VectorState::default()).unwrap();
    assert_eq!(p.operands().mm[0], 0x0203_0400);
}

#[test]
fn x87_instructions_see_and_leave_the_whole_unit() {
    let mut p = Processor::new().unwrap();
    let mut f = FpuState { fcs: 3, fip: 5, ..FpuState::default() };
    p.run_x87(&plan(&[0xd9, 0xe8]), &mut f).unwrap(); // fld1
    assert_eq!((f.top(), f.ftw, f.st[0]), (7, 0x80, 0x3fff_8000_0000_0000_0000));
    p.operands().memory.0[..8].copy_from_slice(&0.0f64.to_le_bytes());
    p.run_x87(&plan(&[0xdc, 0x30]), &mut f).unwrap(); // fdiv qword [rax]: masked
    assert_eq!((f.st[0], f.fsw & 0xff), (0x7fff_8000_0000_0000_0000, 4));
    f.fsw &= !fsw::EXCEPTIONS;
    f.fcw = 0x37b;
    let before = f.clone();
    p.run_x87(&plan(&[0xd9, 0xe8]), &mut f).unwrap();
    p.run_x87(&plan(&[0xdc, 0x30]), &mut f).unwrap(); // unmasked: pending now, result not stored
    assert_eq!(f.st[0], 0x3fff_8000_0000_0000_0000);
    assert_eq!(f.fsw & (fsw::ES | fsw::B | fsw::EXCEPTIONS), fsw::ES | fsw::B | 4);
    let pending = f.clone();
    assert_eq!(p.run_x87(&plan(&[0xd9, 0xe8]), &mut f).unwrap(), Outcome::X87Pending);
    assert_eq!(f, pending);
    assert_eq!((f.fcs, f.fip), (before.fcs, before.fip));
    // fcmovb st, st1 reads CF; fcomi writes flags.
    let mut f = FpuState { ftw: 0xff, ..FpuState::default() };
    f.st[1] = 0x3fff_8000_0000_0000_0000;
    p.operands().flags = x86::rflags::CF | x86::rflags::IF;
    p.run_x87(&plan(&[0xda, 0xc1]), &mut f).unwrap();
    assert_eq!(f.st[0], f.st[1]);
    p.run_x87(&plan(&[0xdb, 0xf1]), &mut f).unwrap();
    assert_eq!(p.operands().flags & x86::rflags::STATUS, x86::rflags::ZF);
}

#[test]
fn a_state_that_is_lent_comes_back() {
    let mut p = Processor::new().unwrap();
    let mut f = FpuState { fip: 5, ftw: 0xc0, fsw: 6 << fsw::TOP_SHIFT, ..FpuState::default() };
    f.st[0] = 0x4000_8000_0000_0000_0000;
    f.st[1] = 0x3fff_8000_0000_0000_0000;
    let before = f.clone();
    // SAFETY: nothing but the instruction in between uses the unit.
    unsafe {
        assert!(p.lend(&f) && p.is_lent());
        // 2 + 1; `FpuState` does not see it yet.
        core::arch::asm!("faddp", options(nomem, nostack, preserves_flags));
    }
    assert_eq!(f, before);
    p.take_back(&mut f);
    assert!(!p.is_lent());
    assert_eq!((f.st[0], f.ftw, f.top()), (0x4000_c000_0000_0000_0000, 0x80, 7));
    assert_eq!((f.fcw, f.fip), (0x37f, 5));
    let after = f.clone();
    p.take_back(&mut f);
    assert_eq!(f, after);
}

#[test]
fn a_state_with_an_unmasked_exception_is_not_lent() {
    let mut p = Processor::new().unwrap();
    // SAFETY: the unit is not lent.
    assert!(!unsafe { p.lend(&FpuState { fcw: 0x37e, ..FpuState::default() }) });
    assert!(!p.is_lent());
}

#[test]
fn what_is_not_arithmetic_is_refused() {
    let refused: [&[u8]; 22] = [
        &[0x90],                               // nop
        &[0x01, 0xd8],                         // add eax, ebx
        &[0x0f, 0x05],                         // syscall
        &[0xeb, 0xfe],                         // jmp $
        &[0xc3],                               // ret
        &[0xa4],                               // movsb
        &[0xf4],                               // hlt
        &[0x0f, 0xf7, 0xca],                   // maskmovq
        &[0x66, 0x0f, 0xf7, 0xca],             // maskmovdqu
        &[0xc4, 0xe2, 0x71, 0x2c, 0x10],       // vmaskmovps
        &[0xc4, 0xe2, 0x69, 0x92, 0x04, 0x08], // vgatherdps
        &[0x0f, 0x77],                         // emms
        &[0xc5, 0xf8, 0x77],                   // vzeroupper
        &[0x0f, 0xae, 0x10],                   // ldmxcsr
        &[0x0f, 0xae, 0x18],                   // stmxcsr
        &[0x0f, 0xae, 0x00],                   // fxsave
        &[0x0f, 0xae, 0x20],                   // xsave
        &[0xd9, 0x28],                         // fldcw
        &[0xdf, 0xe0],                         // fnstsw ax
        &[0xdd, 0x30],                         // fnsave
        &[0x9b],                               // wait
        &[0x62, 0xf1, 0x75, 0x48, 0xfe, 0xc2], // vpaddd zmm
    ];
    for bytes in refused {
        let instruction = decode(bytes);
        assert!(matches!(Plan::new(&instruction), Err(NativeError::NotArithmetic(_))), "{instruction}");
    }
    assert!(Plan::new(&Instruction::new()).is_err());
    let mut p = Processor::new().unwrap();
    assert!(p.run_x87(&plan(&[0x0f, 0x5e, 0xca]), &mut FpuState::default()).is_err());
    assert!(p.run_vector(&plan(&[0xd9, 0xe8]), &mut VectorState::default()).is_err());
}

#[test]
fn inconsistent_instructions_are_refused() {
    // An instruction whose operands do not fit its code cannot be encoded.
    let mut lie = decode(&[0x0f, 0x5e, 0xca]);
    lie.set_op1_register(Register::MM3);
    let Ok(planned) = Plan::new(&lie) else { return };
    assert!(Processor::new().unwrap().run_vector(&planned, &mut VectorState::default()).is_err());
}

#[test]
fn a_full_cache_starts_again_and_plans_follow() {
    let mut p = Processor::with_capacity(16).unwrap();
    let mut other = Processor::with_capacity(16).unwrap();
    // pshufd xmm1, xmm2, imm: more forms than there is room for.
    let plans: Vec<_> = (0..=255u8).map(|order| plan(&[0x66, 0x0f, 0x70, 0xca, order])).collect();
    for round in 0..3 {
        for (order, plan) in (0u32..).zip(&plans) {
            let mut v = vectors();
            v.ymm[2][0] = 0x0000_0003_0000_0002_0000_0001_0000_0000;
            let unit = if (order + round) % 3 == 0 { &mut other } else { &mut p };
            unit.run_vector(plan, &mut v).unwrap();
            let wanted = (0..4).fold(0, |sum, lane| sum | u128::from(order >> (2 * lane) & 3) << (32 * lane));
            assert_eq!(v.ymm[1][0], wanted);
        }
    }
}

/// An instruction of `code` with a memory operand where it can have one and `memory` is set.
fn sample(code: Code, memory: bool) -> Option<Instruction> {
    use OpCodeOperandKind as K;
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    let description = code.op_code();
    for index in 0..description.op_count() {
        let mut register = |register| {
            instruction.set_op_kind(index, OpKind::Register);
            instruction.set_op_register(index, register);
        };
        match description.op_kind(index) {
            K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => register(Register::XMM0),
            K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => register(Register::YMM0),
            K::mm_reg | K::mm_rm => register(Register::MM7),
            K::r32_reg | K::r32_rm | K::r32_vvvv => register(Register::EBX),
            K::r64_reg | K::r64_rm | K::r64_vvvv => register(Register::RSP),
            K::st0 => register(Register::ST0),
            K::sti_opcode => register(Register::ST3),
            K::imm8 | K::imm8_const_1 => {
                instruction.set_op_kind(index, OpKind::Immediate8);
                instruction.set_immediate8(1);
            }
            K::xmm_or_mem | K::ymm_or_mem | K::mm_or_mem | K::r32_or_mem | K::r64_or_mem if !memory => {
                register(match description.op_kind(index) {
                    K::xmm_or_mem => Register::XMM0,
                    K::ymm_or_mem => Register::YMM0,
                    K::mm_or_mem => Register::MM7,
                    K::r32_or_mem => Register::EBX,
                    _ => Register::RSP,
                });
            }
            K::mem | K::xmm_or_mem | K::ymm_or_mem | K::mm_or_mem | K::r32_or_mem | K::r64_or_mem => {
                let operand = MemoryOperand::with_base_index(Register::RBX, Register::R9);
                instruction.set_op_kind(index, OpKind::Memory);
                instruction.set_memory_base(operand.base);
                instruction.set_memory_index(operand.index);
            }
            _ => return None,
        }
    }
    Some(instruction)
}

#[test]
fn every_admitted_form_assembles_and_runs() {
    let mut p = Processor::new().unwrap();
    let mut ran = 0;
    for code in Code::values() {
        for memory in [false, true] {
            let Some(instruction) = sample(code, memory) else { continue };
            let Ok(plan) = Plan::new(&instruction) else { continue };
            let (mut vector, mut fpu) = (vectors(), FpuState::default());
            *p.operands() = Operands::default();
            let outcome =
                if plan.is_x87() { p.run_x87(&plan, &mut fpu) } else { p.run_vector(&plan, &mut vector) };
            assert_eq!(outcome.unwrap(), Outcome::Done, "{instruction}");
            ran += 1;
        }
    }
    // SSE2 and x87 alone are more than that.
    assert!(ran > 700, "{ran}");
}
