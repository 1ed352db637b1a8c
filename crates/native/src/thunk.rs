//! The bytes of a thunk.
//!
//! A thunk is `extern "C" fn(context: *mut Context, ymm: *mut [u128; 2]) -> u32`: RDI is the context, RSI the guest's
//! vector registers. It loads the operand registers, executes the guest's instruction once, stores what was written.
//! Only registers that a C function may clobber are used (RAX, RCX, RDX, R8 to R11, all vector registers).
//!
//! Every thunk fills one slot of [`SLOT_BYTES`] bytes. One slot holds the *fault exit* ([`fault_exit`]) instead: when
//! the guest's instruction raises an unmasked SIMD exception, the host's SIGFPE handler continues there. It records
//! MXCSR as the processor left it, undoes the environment of whatever thunk it was, and returns 1; no destination has
//! been stored.
//!
//! VEX forms work on YMM registers and end with VZEROUPPER. The others touch the lower halves only, so the guest's
//! upper halves stay as they are in memory, and no transition penalty arises.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, IcedError, Instruction, MemoryOperand, OpKind, Register,
};

use crate::NativeError;
use crate::context::at;
use crate::features::{self, Offer};
use crate::plan::{Operand, Plan};

/// Size and alignment of a slot.
pub(crate) const SLOT_BYTES: usize = 256;

/// Writes the slot for `plan`.
pub(crate) fn assemble(plan: &Plan) -> Result<Vec<u8>, NativeError> {
    let refused = |_| NativeError::NotArithmetic(plan.canonical.code());
    let body = if plan.x87 { x87_body(plan) } else { vector_body(plan) };
    let (mut body, instruction_at) = body.map_err(refused)?;
    verify(plan, body.get(instruction_at..).unwrap_or(&[]))?;
    if body.len() > SLOT_BYTES {
        return Err(NativeError::NotArithmetic(plan.canonical.code()));
    }
    body.resize(SLOT_BYTES, INT3);
    Ok(body)
}

/// Fills what no thunk uses.
const INT3: u8 = 0xcc;

/// The bytes that will be executed must be the instruction that was admitted, and nothing else.
fn verify(plan: &Plan, bytes: &[u8]) -> Result<(), NativeError> {
    let decoded = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    let wanted = &plan.canonical;
    let same = decoded.code() == wanted.code()
        && decoded.op_count() == wanted.op_count()
        && !decoded.has_rep_prefix()
        && !decoded.has_repne_prefix()
        && !decoded.has_lock_prefix()
        && (0..wanted.op_count()).all(|index| {
            decoded.op_kind(index) == wanted.op_kind(index)
                && match wanted.op_kind(index) {
                    OpKind::Register => decoded.op_register(index) == wanted.op_register(index),
                    OpKind::Memory => {
                        decoded.memory_base() == Register::RDI
                            && decoded.memory_index() == Register::None
                            && decoded.memory_displacement64() == 0
                            && decoded.segment_prefix() == Register::None
                    }
                    _ => decoded.immediate(index) == wanted.immediate(index),
                }
        });
    if same { Ok(()) } else { Err(NativeError::NotArithmetic(wanted.code())) }
}

/// Encodes one instruction after the other.
struct Writer {
    encoder: Encoder,
    len: usize,
}

impl Writer {
    fn new() -> Self {
        Self { encoder: Encoder::new(64), len: 0 }
    }

    fn put(&mut self, instruction: &Instruction) -> Result<(), IcedError> {
        self.len += self.encoder.encode(instruction, 0)?;
        Ok(())
    }

    fn op(&mut self, code: Code) -> Result<(), IcedError> {
        self.put(&Instruction::with(code))
    }

    /// `code` with one memory operand in the context.
    fn context(&mut self, code: Code, offset: usize) -> Result<(), IcedError> {
        self.put(&Instruction::with1(code, field(offset))?)
    }

    fn load(&mut self, code: Code, register: Register, from: MemoryOperand) -> Result<(), IcedError> {
        self.put(&Instruction::with2(code, register, from)?)
    }

    fn store(&mut self, code: Code, to: MemoryOperand, register: Register) -> Result<(), IcedError> {
        self.put(&Instruction::with2(code, to, register)?)
    }

    fn load_gpr(&mut self, register: Register, offset: usize) -> Result<(), IcedError> {
        self.load(Code::Mov_r64_rm64, register, field(offset))
    }

    fn store_gpr(&mut self, offset: usize, register: Register) -> Result<(), IcedError> {
        self.store(Code::Mov_rm64_r64, field(offset), register)
    }

    /// RAX = where vector operand `slot` is; returns the operand's address.
    fn locate(&mut self, slot: usize) -> Result<MemoryOperand, IcedError> {
        self.load(Code::Mov_r32_rm32, Register::EAX, field(at::VECTOR + 4 * slot))?;
        Ok(MemoryOperand::with_base_index(Register::RSI, Register::RAX))
    }

    fn ret(mut self, result: i32) -> Result<Vec<u8>, IcedError> {
        self.put(&Instruction::with2(Code::Mov_r32_imm32, Register::EAX, result)?)?;
        self.op(Code::Retnq)?;
        Ok(self.encoder.take_buffer())
    }
}

fn field(offset: usize) -> MemoryOperand {
    // The context is far smaller than 2 GiB.
    MemoryOperand::with_base_displ(Register::RDI, i64::try_from(offset).unwrap_or(0))
}

/// Where an unmasked SIMD exception continues. EMMS and VZEROUPPER do no harm after a thunk that needs neither.
pub(crate) fn fault_exit() -> Result<Vec<u8>, NativeError> {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut w = Writer::new();
        w.context(Code::Stmxcsr_m32, at::MXCSR)?;
        w.context(Code::Ldmxcsr_m32, at::HOST_MXCSR)?;
        w.op(Code::Emms)?;
        if features::offer(Code::VEX_Vzeroupper) == Offer::Here {
            w.op(Code::VEX_Vzeroupper)?;
        }
        w.ret(1)
    };
    assemble().map_err(|_| NativeError::NotArithmetic(Code::INVALID))
}

/// Undoes the environment of a vector form.
fn leave(w: &mut Writer, plan: &Plan) -> Result<(), IcedError> {
    if plan.uses_mxcsr {
        w.context(Code::Ldmxcsr_m32, at::HOST_MXCSR)?;
    }
    if plan.mmx {
        w.op(Code::Emms)?;
    }
    if plan.vex {
        w.op(Code::VEX_Vzeroupper)?;
    }
    Ok(())
}

fn vector_body(plan: &Plan) -> Result<(Vec<u8>, usize), IcedError> {
    let mut w = Writer::new();
    let (load, store) = if plan.vex {
        (Code::VEX_Vmovdqu_ymm_ymmm256, Code::VEX_Vmovdqu_ymmm256_ymm)
    } else {
        (Code::Movdqu_xmm_xmmm128, Code::Movdqu_xmmm128_xmm)
    };
    let vector = |slot: usize| (if plan.vex { Register::YMM0 } else { Register::XMM0 }) + slot as u32;
    if plan.implicit.xmm0_read || plan.implicit.xmm0_written {
        let from = w.locate(0)?;
        w.load(load, vector(0), from)?;
    }
    for (index, operand) in plan.operands.iter().enumerate() {
        match operand {
            Operand::Vector { .. } => {
                let from = w.locate(index + 1)?;
                w.load(load, vector(index + 1), from)?;
            }
            Operand::Mmx { .. } => {
                w.load(Code::Movq_mm_mmm64, Register::MM1 + index as u32, field(at::MM + 8 * index))?;
            }
            Operand::Gpr { .. } => w.load_gpr(Register::R8 + index as u32, at::GPR + 8 * index)?,
            Operand::None => {}
        }
    }
    if plan.uses_mxcsr {
        w.context(Code::Ldmxcsr_m32, at::MXCSR)?;
    }
    if plan.implicit.rdx_read {
        w.load_gpr(Register::RDX, at::RDX)?;
    }
    if plan.implicit.rax_read {
        w.load_gpr(Register::RAX, at::RAX)?;
    }
    let instruction_at = run(&mut w, plan)?;
    if plan.implicit.rcx_written {
        w.store_gpr(at::RCX, Register::RCX)?;
    }
    if plan.uses_mxcsr {
        w.context(Code::Stmxcsr_m32, at::MXCSR)?;
    }
    if plan.implicit.xmm0_written {
        let to = w.locate(0)?;
        w.store(store, to, vector(0))?;
    }
    for (index, operand) in plan.operands.iter().enumerate().filter(|&(index, _)| plan.stored[index]) {
        match operand {
            Operand::Vector { .. } => {
                let to = w.locate(index + 1)?;
                w.store(store, to, vector(index + 1))?;
            }
            Operand::Mmx { .. } => {
                w.store(Code::Movq_mmm64_mm, field(at::MM + 8 * index), Register::MM1 + index as u32)?;
            }
            Operand::Gpr { .. } => w.store_gpr(at::GPR + 8 * index, Register::R8 + index as u32)?,
            Operand::None => {}
        }
    }
    leave(&mut w, plan)?;
    Ok((w.ret(0)?, instruction_at))
}

/// The whole unit is loaded and stored; FXRSTOR takes the host's own MXCSR from the image, FNINIT leaves the unit as
/// Rust code expects it. None of the three looks at pending exceptions.
fn x87_body(plan: &Plan) -> Result<(Vec<u8>, usize), IcedError> {
    let mut w = Writer::new();
    w.context(Code::Fxrstor64_m512byte, at::IMAGE)?;
    let instruction_at = run(&mut w, plan)?;
    w.context(Code::Fxsave64_m512byte, at::IMAGE)?;
    w.op(Code::Fninit)?;
    Ok((w.ret(0)?, instruction_at))
}

/// The guest's instruction, between the flags it reads and the flags it writes. Returns where it is.
fn run(w: &mut Writer, plan: &Plan) -> Result<usize, IcedError> {
    if plan.flags_read || plan.flags_written {
        w.context(Code::Push_rm64, at::FLAGS)?;
        w.op(Code::Popfq)?;
    }
    let instruction_at = w.len;
    w.put(&plan.canonical)?;
    if plan.flags_written {
        w.op(Code::Pushfq)?;
        w.context(Code::Pop_rm64, at::FLAGS)?;
    }
    Ok(instruction_at)
}
