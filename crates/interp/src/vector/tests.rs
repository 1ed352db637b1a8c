//! The wing on its own: a processor made of plain memory around it.

use iced_x86::{Decoder, DecoderOptions, Instruction, Register};
use native::Processor;
use x86::control::{cr0, cr4};
use x86::cpuid::Feature;
use x86::exception::vector as vectors;
use x86::fpu::fsw;
use x86::{Exception, FpuState, Mode, SegmentIndex, VectorState, rflags};

use super::{Control, Environment, Units, VectorOp, plan};
use crate::op::{Mem, ZERO};

/// A processor with memory from 0 to `memory.len()`; everything else page-faults.
pub(crate) struct Machine {
    processor: Processor,
    pub(crate) vector: VectorState,
    pub(crate) fpu: FpuState,
    pub(crate) gpr: [u64; 17],
    pub(crate) flags: u64,
    pub(crate) control: Control,
    pub(crate) memory: Vec<u8>,
    pub(crate) features: Vec<Feature>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self {
            processor: Processor::new().unwrap(),
            vector: VectorState::default(),
            fpu: FpuState::default(),
            gpr: [0; 17],
            flags: rflags::FIXED,
            control: Control {
                cr0: cr0::PE | cr0::NE | cr0::MP,
                cr4: cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE,
                xcr0: 7,
                mode: Mode::Long,
                cpl: 0,
            },
            memory: vec![0; 0x3000],
            features: vec![Feature::Xsavec, Feature::Xgetbv1, Feature::ZeroFcsFds, Feature::FdpExcptnOnly],
        }
    }

    fn range(&mut self, offset: u64, len: usize, error: u32) -> Result<std::ops::Range<usize>, Exception> {
        let start = x86::bits::index(offset);
        let end = start.checked_add(len).filter(|&end| end <= self.memory.len());
        end.map(|end| start..end).ok_or(Exception::page_fault(offset, error))
    }

    /// Decodes and executes one instruction.
    pub(crate) fn run(&mut self, bytes: &[u8]) -> Result<(), Exception> {
        let (op, mem) = prepare(bytes);
        op.execute(self, &mem)
    }
}

fn prepare(bytes: &[u8]) -> (VectorOp, Mem) {
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    let op = plan(&instruction, bytes).unwrap_or_else(|| panic!("{instruction} is not planned"));
    (op, mem_of(&instruction))
}

fn mem_of(instruction: &Instruction) -> Mem {
    let slot = |register: Register| {
        if register.is_gpr64() { u8::try_from(register.number()).unwrap() } else { ZERO }
    };
    Mem {
        disp: instruction.memory_displacement64(),
        base: slot(instruction.memory_base()),
        index: slot(instruction.memory_index()),
        scale: u8::try_from(instruction.memory_index_scale().trailing_zeros()).unwrap(),
        seg: SegmentIndex::Ds as u8,
        cut: 0,
    }
}

impl Environment for Machine {
    type Break = Exception;

    fn raise(&mut self, exception: Exception) -> Exception {
        exception
    }
    fn x87_error(&mut self) -> Exception {
        Exception::plain(vectors::MF)
    }
    fn gpr(&self, number: u8) -> u64 {
        self.gpr[usize::from(number)]
    }
    fn set_gpr(&mut self, number: u8, value: u64) {
        self.gpr[usize::from(number)] = value;
    }
    fn flags(&self) -> u64 {
        self.flags
    }
    fn set_status_flags(&mut self, flags: u64) {
        self.flags = self.flags & !rflags::STATUS | flags;
    }
    fn control(&self) -> Control {
        self.control
    }
    fn set_xcr0(&mut self, value: u64) {
        self.control.xcr0 = value;
    }
    fn xcr0_supported(&self) -> u64 {
        7
    }
    fn has(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }
    fn instruction_pointer(&self) -> u64 {
        0x1234_5678_9abc
    }
    fn selector(&self, _: SegmentIndex) -> u16 {
        0x33
    }
    fn vector(&mut self) -> &mut VectorState {
        &mut self.vector
    }
    fn units(&mut self) -> Units<'_> {
        Units { processor: &mut self.processor, vector: &mut self.vector, fpu: &mut self.fpu }
    }
    fn offset(&self, mem: &Mem) -> u64 {
        self.gpr[usize::from(mem.base)]
            .wrapping_add(self.gpr[usize::from(mem.index)] << mem.scale)
            .wrapping_add(mem.disp)
    }
    fn linear(&mut self, _: u8, offset: u64, _: u64, _: bool) -> Result<u64, Exception> {
        Ok(offset)
    }
    fn load(&mut self, _: u8, offset: u64, _: u64, buffer: &mut [u8]) -> Result<(), Exception> {
        let range = self.range(offset, buffer.len(), 4)?;
        buffer.copy_from_slice(&self.memory[range]);
        Ok(())
    }
    fn store(&mut self, _: u8, offset: u64, _: u64, bytes: &[u8]) -> Result<(), Exception> {
        let range = self.range(offset, bytes.len(), 6)?;
        self.memory[range].copy_from_slice(bytes);
        Ok(())
    }
    fn check_alignment(&mut self, _: u8, _: u64, _: u64) -> Result<(), Exception> {
        Ok(())
    }
    fn probe_write(&mut self, _: u8, offset: u64, _: u64, size: u64) -> Result<(), Exception> {
        self.range(offset, x86::bits::index(size), 6).map(|_| ())
    }
}

const END: u64 = 0x3000;

#[test]
fn availability_is_checked_before_anything_else() {
    let paddb: &[u8] = &[0x66, 0x0f, 0xfc, 0x00]; // paddb xmm0, [rax]
    let vpaddb: &[u8] = &[0xc5, 0xf9, 0xfc, 0x00];
    let paddb_mm: &[u8] = &[0x0f, 0xfc, 0x00];
    let fadd: &[u8] = &[0xd8, 0x00];
    let (ud, nm) = (Err(Exception::ud()), Err(Exception::nm()));
    let with = |change: fn(&mut Control), bytes: &[u8]| {
        let mut m = Machine::new();
        m.gpr[0] = END;
        change(&mut m.control);
        m.run(bytes)
    };
    for bytes in [paddb, vpaddb, paddb_mm, fadd] {
        assert_eq!(with(|_| {}, bytes), Err(Exception::page_fault(END, 4)));
        assert_eq!(with(|c| c.cr0 |= cr0::TS, bytes), nm);
    }
    assert_eq!(with(|c| c.cr0 |= cr0::EM | cr0::TS, paddb), ud);
    assert_eq!(with(|c| c.cr0 |= cr0::EM | cr0::TS, paddb_mm), ud);
    assert_eq!(with(|c| c.cr0 |= cr0::EM, fadd), nm);
    assert_eq!(with(|c| c.cr4 &= !cr4::OSFXSR, paddb), ud);
    assert_eq!(with(|c| c.cr4 &= !cr4::OSFXSR, paddb_mm), Err(Exception::page_fault(END, 4)));
    assert_eq!(with(|c| c.cr4 &= !cr4::OSXSAVE, vpaddb), ud);
    assert_eq!(with(|c| c.xcr0 = 3, vpaddb), ud);
    assert_eq!(with(|c| c.mode = Mode::Real, vpaddb), ud);
}

#[test]
fn alignment_matters_for_whole_legacy_operands_only() {
    let mut m = Machine::new();
    m.gpr[0] = 0x1008;
    assert_eq!(m.run(&[0x66, 0x0f, 0xfc, 0x00]), Err(Exception::gp(0))); // paddb xmm0, [rax]
    assert_eq!(m.run(&[0x0f, 0x28, 0x00]), Err(Exception::gp(0))); // movaps xmm0, [rax]
    assert_eq!(m.run(&[0x0f, 0x29, 0x00]), Err(Exception::gp(0))); // movaps [rax], xmm0
    assert_eq!(m.run(&[0x0f, 0x10, 0x00]), Ok(())); // movups
    assert_eq!(m.run(&[0x66, 0x0f, 0x3a, 0x63, 0x00, 0]), Ok(())); // pcmpistri
    assert_eq!(m.run(&[0xc5, 0xf9, 0xfc, 0x00]), Ok(())); // vpaddb
    m.gpr[0] = 0x1010;
    assert_eq!(m.run(&[0x66, 0x0f, 0xfc, 0x00]), Ok(()));
    assert_eq!(m.run(&[0xc5, 0xfc, 0x28, 0x00]), Err(Exception::gp(0))); // vmovaps ymm0, [rax]
}

#[test]
fn moves_keep_or_clear_what_lies_above() {
    let mut m = Machine::new();
    m.vector.ymm = [[u128::MAX; 2]; 16];
    m.memory[..32].copy_from_slice(&[7; 32]);
    m.run(&[0xf3, 0x0f, 0x10, 0x08]).unwrap(); // movss xmm1, [rax]
    assert_eq!(m.vector.ymm[1], [0x0707_0707, u128::MAX]);
    m.run(&[0xc5, 0xfa, 0x10, 0x10]).unwrap(); // vmovss xmm2, [rax]
    assert_eq!(m.vector.ymm[2], [0x0707_0707, 0]);
    m.run(&[0xf3, 0x0f, 0x7e, 0xcb]).unwrap(); // movq xmm1, xmm3
    assert_eq!(m.vector.ymm[1], [u128::from(u64::MAX), u128::MAX]);
    m.gpr[9] = u64::MAX;
    m.run(&[0x66, 0x41, 0x0f, 0x6e, 0xe1]).unwrap(); // movd xmm4, r9d
    assert_eq!(m.vector.ymm[4], [0xffff_ffff, u128::MAX]);
    m.run(&[0x66, 0x41, 0x0f, 0x7e, 0xd1]).unwrap(); // movd r9d, xmm2
    assert_eq!(m.gpr[9], 0x0707_0707);
    m.run(&[0xf2, 0x0f, 0x10, 0xec]).unwrap(); // movsd xmm5, xmm4: merges
    assert_eq!(m.vector.ymm[5][0], u128::MAX << 64 | 0xffff_ffff);
    m.gpr[0] = 64;
    m.run(&[0xc5, 0xfe, 0x7f, 0x18]).unwrap(); // vmovdqu [rax], ymm3
    assert_eq!(m.memory[64..97], [&[0xff; 32][..], &[0]].concat());
}

#[test]
fn a_numeric_fault_is_xm_or_ud_and_comes_before_stores() {
    let mut m = Machine::new();
    m.vector.mxcsr = 0;
    m.vector.ymm[1][0] = 0x3f80_0000;
    let divss: &[u8] = &[0xf3, 0x0f, 0x5e, 0xca]; // divss xmm1, xmm2
    assert_eq!(m.run(divss), Err(Exception::plain(vectors::XM)));
    assert_eq!((m.vector.mxcsr, m.vector.ymm[1][0]), (4, 0x3f80_0000));
    m.control.cr4 &= !cr4::OSXMMEXCPT;
    assert_eq!(m.run(divss), Err(Exception::ud()));
    // vcvtps2ph [rax], xmm1, 0 with an inexact result: the exception wins; masked, the store's fault leaves the flag.
    m.vector.mxcsr = 0;
    m.vector.ymm[1] = [0x3f80_0001, 0];
    m.gpr[0] = END - 4;
    let convert: &[u8] = &[0xc4, 0xe3, 0x79, 0x1d, 0x08, 0];
    m.control.cr4 |= cr4::OSXMMEXCPT;
    assert_eq!(m.run(convert), Err(Exception::plain(vectors::XM)));
    m.vector.mxcsr = 0x1f80;
    assert_eq!(m.run(convert), Err(Exception::page_fault(END - 4, 6)));
    assert_eq!(m.vector.mxcsr, 0x1fa0);
}

#[test]
fn mmx_instructions_own_the_x87_registers() {
    let mut m = Machine::new();
    m.run(&[0xd9, 0xe8]).unwrap(); // fld1: physical register 7
    m.gpr[3] = 0x1234;
    m.run(&[0x0f, 0x6e, 0xd3]).unwrap(); // movd mm2, ebx
    assert_eq!((m.fpu.top(), m.fpu.ftw, m.fpu.st[2]), (0, 0xff, 0xffff << 64 | 0x1234));
    assert_eq!(m.fpu.st[7], 0x3fff << 64 | 1 << 63);
    m.run(&[0x0f, 0xfd, 0xd2]).unwrap(); // paddw mm2, mm2
    assert_eq!(m.fpu.st[2], 0xffff << 64 | 0x2468);
    m.run(&[0x0f, 0x77]).unwrap(); // emms
    assert_eq!(m.fpu.ftw, 0);
    m.fpu.fsw |= 1;
    m.fpu.fcw &= !1;
    assert_eq!(m.run(&[0x0f, 0xfd, 0xd2]), Err(Exception::plain(vectors::MF)));
}

#[test]
fn x87_exceptions_wait_for_the_next_waiting_instruction() {
    let mut m = Machine::new();
    m.memory[..2].copy_from_slice(&0x37bu16.to_le_bytes());
    m.run(&[0xd9, 0x28]).unwrap(); // fldcw [rax]
    m.run(&[0xd9, 0xe8]).unwrap(); // fld1
    m.gpr[3] = 0x800;
    m.run(&[0xd8, 0x33]).unwrap(); // fdiv dword [rbx]: divides by zero
    assert_eq!(m.fpu.fsw & (fsw::ES | fsw::B | 0x3f), fsw::ES | fsw::B | 4);
    assert_eq!((m.fpu.fop, m.fpu.fdp, m.fpu.fip), (0x033, 0x800, 0x1234_5678_9abc));
    let mf = Err(Exception::plain(vectors::MF));
    assert_eq!(m.run(&[0xd9, 0xe8]), mf);
    assert_eq!(m.run(&[0x9b]), mf);
    m.run(&[0xdf, 0xe0]).unwrap(); // fnstsw ax
    assert_eq!(m.gpr[0], u64::from(m.fpu.fsw));
    m.run(&[0xdb, 0xe2]).unwrap(); // fnclex
    m.run(&[0xd9, 0xe8]).unwrap();
    assert_eq!(m.fpu.fop, 0x033, "only exceptions write the opcode");
}

#[test]
fn a_store_that_faults_leaves_the_stack() {
    let mut m = Machine::new();
    m.run(&[0xd9, 0xe8]).unwrap();
    let before = m.fpu.clone();
    m.gpr[0] = END - 4;
    assert_eq!(m.run(&[0xdd, 0x18]), Err(Exception::page_fault(END - 4, 6))); // fstp qword [rax]
    assert_eq!(m.fpu, before);
    m.gpr[0] = END - 8;
    m.run(&[0xdd, 0x18]).unwrap();
    assert_eq!((m.memory[0x2fff], m.fpu.ftw), (0x3f, 0));
}

#[test]
fn environments_survive_a_round_trip_in_every_layout() {
    for (mode, prefix) in
        [(Mode::Long, None), (Mode::Long, Some(0x66)), (Mode::Real, None), (Mode::Real, Some(0x66))]
    {
        let mut m = Machine::new();
        for bytes in [[0xd9, 0xe8], [0xd9, 0xee], [0xd9, 0xeb]] {
            m.run(&bytes).unwrap(); // fld1, fldz, fldpi
        }
        m.control.mode = mode;
        m.fpu.fip = 0x4567;
        m.fpu.fdp = 0x89ab;
        let before = m.fpu.clone();
        let prefixed = |bytes: &[u8]| prefix.into_iter().chain(bytes.iter().copied()).collect::<Vec<_>>();
        m.run(&prefixed(&[0xdd, 0x30])).unwrap(); // fnsave [rax]
        assert_eq!((m.fpu.top(), m.fpu.ftw, m.fpu.fip), (0, 0, 0));
        m.run(&prefixed(&[0xdd, 0x20])).unwrap(); // frstor [rax]
        assert_eq!(m.fpu, before);
        m.run(&prefixed(&[0xd9, 0x30])).unwrap(); // fnstenv [rax]
        let width = if prefix.is_none() { 4 } else { 2 };
        // 1.0, 0.0 and pi are in registers 7, 6 and 5: valid, zero, valid, the others empty.
        assert_eq!(m.memory[2 * width..2 * width + 2], [0xff, 0b0001_0011]);
        m.run(&prefixed(&[0xd9, 0x20])).unwrap();
        assert_eq!(m.fpu, before);
    }
}

#[test]
fn masked_moves_touch_only_what_the_mask_picks() {
    let mut m = Machine::new();
    m.gpr[0] = END - 8;
    m.memory[0x2ff8..].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    m.vector.ymm[2] = [0x8000_0000 << 32, 0]; // element 1
    m.vector.ymm[1] = [u128::MAX; 2];
    m.run(&[0xc4, 0xe2, 0x69, 0x2c, 0x08]).unwrap(); // vmaskmovps xmm1, xmm2, [rax]
    assert_eq!(m.vector.ymm[1], [0x0807_0605 << 32, 0]);
    m.run(&[0xc4, 0xe2, 0x69, 0x2e, 0x18]).unwrap(); // vmaskmovps [rax], xmm2, xmm3
    assert_eq!(m.memory[0x2ff8..], [1, 2, 3, 4, 0, 0, 0, 0]);
    m.vector.ymm[2] = [1 << 127 | 0x8000_0000 << 32, 0]; // elements 1 and 3
    let before = m.memory.clone();
    m.vector.ymm[3][0] = u128::MAX;
    assert_eq!(m.run(&[0xc4, 0xe2, 0x69, 0x2e, 0x18]), Err(Exception::page_fault(END + 4, 6)));
    assert_eq!(m.memory, before, "nothing is stored before all of it can be");
    m.gpr[7] = END - 1;
    m.vector.ymm[4][0] = 0x80;
    m.run(&[0x66, 0x0f, 0xf7, 0xdc]).unwrap(); // maskmovdqu xmm3, xmm4
    assert_eq!(m.memory[0x2fff], 0xff);
}

#[test]
fn a_gather_restarts_where_it_stopped() {
    let mut m = Machine::new();
    let gather: &[u8] = &[0xc4, 0xe2, 0x69, 0x90, 0x0c, 0x98]; // vpgatherdd xmm1, [rax+xmm3*4], xmm2
    m.gpr[0] = 0x2000;
    for (n, word) in (0u32..).zip(m.memory.chunks_exact_mut(4)) {
        word.copy_from_slice(&n.to_le_bytes());
    }
    m.vector.ymm[1] = [0xdddd_dddd << 64, 7];
    m.vector.ymm[2] = [1 << 127 | 0x8000_0000 << 32 | 0x8000_0000, u128::MAX];
    // Indices 1, -1, (masked), beyond the end.
    m.vector.ymm[3] = [0x400 << 96 | 0xffff_ffff << 32 | 1, 0];
    assert_eq!(m.run(gather), Err(Exception::page_fault(END, 4)));
    assert_eq!(m.vector.ymm[1][0], 0xdddd_dddd << 64 | 0x7ff << 32 | 0x801);
    assert_eq!(m.vector.ymm[2], [0xffff_ffff << 96, 0]);
    m.vector.ymm[3][0] = 2 << 96;
    m.run(gather).unwrap();
    assert_eq!(m.vector.ymm[1], [0x802 << 96 | 0xdddd_dddd << 64 | 0x7ff << 32 | 0x801, 0]);
    assert_eq!(m.vector.ymm[2], [0; 2]);
}

/// A machine with something in every register.
fn full() -> Machine {
    let mut m = Machine::new();
    m.run(&[0xd9, 0xeb]).unwrap();
    for (n, ymm) in (1u128..).zip(m.vector.ymm.iter_mut()) {
        *ymm = [n << 100 | n, n << 64];
    }
    m.vector.mxcsr = 0x1fa0;
    m.gpr[0] = 7;
    m.gpr[3] = 0x1000;
    m
}

#[test]
fn xsave_and_xrstor_are_inverse_in_each_form() {
    let xrstor: &[u8] = &[0x48, 0x0f, 0xae, 0x2b];
    for save in [&[0x48, 0x0f, 0xae, 0x23][..], &[0x48, 0x0f, 0xae, 0x33], &[0x48, 0x0f, 0xc7, 0x23]] {
        let mut m = full();
        m.run(save).unwrap();
        let (fpu, vector) = (m.fpu.clone(), m.vector.clone());
        assert_eq!(m.memory[0x1200], 7, "XSTATE_BV");
        (m.fpu, m.vector) = (FpuState::default(), VectorState::default());
        m.run(xrstor).unwrap();
        assert_eq!((&m.fpu, &m.vector), (&fpu, &vector));
        // Only AVX, and back to its initial configuration.
        m.memory[0x1200] = 3;
        m.gpr[0] = 4;
        m.run(xrstor).unwrap();
        assert!(m.vector.ymm.iter().all(|ymm| ymm[0] != 0 && ymm[1] == 0));
        assert_eq!(m.fpu, fpu);
    }
}

#[test]
fn xrstor_refuses_bad_headers_before_it_changes_anything() {
    let spoil: [fn(&mut Vec<u8>); 6] = [
        |m| m[0x1200] |= 8,                                   // a component that XCR0 does not have
        |m| m[0x1208] = 1,                                    // XCOMP_BV without the compacted bit
        |m| m[0x1210] = 1,                                    // reserved
        |m| m[0x120f] = 0x80, // compacted, and XSTATE_BV is not part of XCOMP_BV
        |m| m[0x101a] = 1,    // a reserved bit of MXCSR
        |m| (m[0x120f], m[0x1208], m[0x1220]) = (0x80, 7, 1), // compacted with bytes behind
    ];
    for spoil in spoil {
        let mut m = full();
        m.run(&[0x48, 0x0f, 0xae, 0x23]).unwrap();
        spoil(&mut m.memory);
        let (fpu, vector) = (m.fpu.clone(), m.vector.clone());
        assert_eq!(m.run(&[0x48, 0x0f, 0xae, 0x2b]), Err(Exception::gp(0)));
        assert_eq!((m.fpu, m.vector), (fpu, vector));
    }
    let mut m = full();
    m.gpr[3] = 0x1020;
    assert_eq!(m.run(&[0x48, 0x0f, 0xae, 0x23]), Err(Exception::gp(0)), "aligned to 64 bytes");
}

#[test]
fn fxsave_leaves_what_belongs_to_software() {
    let mut m = full();
    m.memory[0x1000..0x1200].fill(0xaa);
    m.run(&[0x48, 0x0f, 0xae, 0x03]).unwrap(); // fxsave64 [rbx]
    assert!(m.memory[0x1000 + 416..0x1200].iter().all(|&byte| byte == 0xaa));
    let (fpu, vector) = (m.fpu.clone(), m.vector.clone());
    m.run(&[0xc5, 0xf8, 0x77]).unwrap(); // vzeroupper
    m.run(&[0xdb, 0xe3]).unwrap(); // fninit
    m.run(&[0x48, 0x0f, 0xae, 0x0b]).unwrap(); // fxrstor64 [rbx]
    assert_eq!(m.fpu, fpu);
    assert!(m.vector.ymm.iter().zip(&vector.ymm).all(|(new, old)| *new == [old[0], 0]));
}

#[test]
fn xsetbv_takes_legal_values_from_the_kernel_only() {
    let xsetbv: &[u8] = &[0x0f, 0x01, 0xd1];
    for (value, legal) in [(1, true), (3, true), (7, true), (0, false), (5, false), (0xf, false), (2, false)]
    {
        let mut m = Machine::new();
        m.gpr[0] = value;
        assert_eq!(m.run(xsetbv).is_ok(), legal, "{value}");
        assert_eq!(m.control.xcr0, if legal { value } else { 7 });
        m.control.cpl = 3;
        assert_eq!(m.run(xsetbv), Err(Exception::gp(0)));
    }
}

#[test]
fn reserved_mxcsr_bits_fault() {
    let mut m = Machine::new();
    m.memory[..4].copy_from_slice(&0x1_1f80u32.to_le_bytes());
    assert_eq!(m.run(&[0x0f, 0xae, 0x10]), Err(Exception::gp(0)));
    m.memory[2] = 0;
    assert_eq!(m.run(&[0x0f, 0xae, 0x10]), Ok(()));
}
