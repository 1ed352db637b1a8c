//! From a guest instruction to its *form*, and what has to be marshalled for it.
//!
//! A form is the instruction with its operands made canonical: the vector register of explicit operand *i* becomes
//! XMM/YMM*(i+1)*, an MMX register MM*(i+1)*, a general-purpose one R*(8+i)*, a memory operand `[rdi+…]` inside the
//! context. Implicit XMM0, RAX, RCX, RDX and the x87 stack stay. So `paddd xmm3, xmm9` and `paddd xmm0, xmm1` share a thunk, which
//! only needs to be told where the operands are.
//!
//! Admission is by what the instruction *is*, never by trust in the caller: of an admitted set, no control
//! transfer, no privilege, memory only through the one rewritten operand, registers only those that the thunk loads and
//! stores. Since iced's encoder rejects operands that do not fit the code, and the finished bytes are decoded again and
//! must give back the canonical instruction, a thunk is safe to run on any operand values.

use std::cell::Cell;
use std::sync::OnceLock;

use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, MemorySize, Mnemonic,
    OpAccess, OpKind, Register,
};
use x86::rflags;

use crate::NativeError;
use crate::context::{MEMORY_BYTES, SLOTS, at};
use crate::features::{self, Offer};
use crate::processor::Form;

/// What an explicit operand is, and where the guest has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Operand {
    /// An immediate, a place on the x87 stack, the memory operand, or no operand: nothing to marshal.
    #[default]
    None,
    /// XMM or YMM register `number`; the thunk reads and writes it in place.
    Vector {
        /// Its number.
        number: u8,
    },
    /// MMX register `number`: goes through [`Operands::mm`](crate::Operands::mm).
    Mmx {
        /// Its number.
        number: u8,
        /// Whether it is a result.
        written: bool,
    },
    /// A general-purpose register: goes through [`Operands::gpr`](crate::Operands::gpr).
    Gpr {
        /// The guest's register.
        register: Register,
        /// Whether it is a result.
        written: bool,
    },
}

/// The memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOperand {
    /// Bytes accessed.
    pub bytes: usize,
    /// The instruction reads it.
    pub read: bool,
    /// The instruction writes it.
    pub written: bool,
}

/// Which registers an implicit operand touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Implicit {
    /// XMM0 is read.
    pub(crate) xmm0_read: bool,
    /// XMM0 is written.
    pub(crate) xmm0_written: bool,
    /// RAX is read.
    pub rax_read: bool,
    /// RDX is read.
    pub rdx_read: bool,
    /// RCX is written.
    pub rcx_written: bool,
}

/// Everything known in advance about executing one guest instruction.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) canonical: Instruction,
    pub(crate) operands: [Operand; SLOTS],
    pub(crate) stored: [bool; SLOTS],
    pub(crate) implicit: Implicit,
    pub(crate) memory: Option<MemoryOperand>,
    pub(crate) flags_read: bool,
    pub(crate) flags_written: bool,
    pub(crate) uses_mxcsr: bool,
    pub(crate) x87: bool,
    pub(crate) vex: bool,
    pub(crate) mmx: bool,
    pub(crate) form: Cell<Form>,
}

impl Plan {
    /// Plans `instruction`, decoded in any mode.
    ///
    /// # Errors
    /// [`NativeError::NotArithmetic`] if it is not of the kind that thunks execute; the caller then has to know it
    /// by itself, or it does not exist. [`NativeError::NotOffered`] if this processor cannot execute it.
    pub fn new(instruction: &Instruction) -> Result<Self, NativeError> {
        let code = instruction.code();
        let offer = features::offer(code);
        if offer == Offer::Foreign || !code_is_admitted(code) {
            return Err(NativeError::NotArithmetic(code));
        }
        let mut plan = Self {
            canonical: Instruction::new(),
            operands: [Operand::None; SLOTS],
            stored: [false; SLOTS],
            implicit: Implicit::default(),
            memory: None,
            flags_read: instruction.rflags_read() != 0,
            flags_written: instruction.rflags_modified() != 0,
            uses_mxcsr: false,
            x87: code_is_x87(code),
            vex: code.encoding() == EncodingKind::VEX,
            mmx: false,
            form: Cell::new(Form::default()),
        };
        plan.uses_mxcsr = !plan.x87 && reads_mxcsr(instruction.mnemonic());
        plan.canonicalise(instruction).ok_or(NativeError::NotArithmetic(code))?;
        plan.find_implicit().ok_or(NativeError::NotArithmetic(code))?;
        if offer == Offer::Absent { Err(NativeError::NotOffered(code)) } else { Ok(plan) }
    }

    /// The explicit operands by position.
    #[inline]
    pub fn operands(&self) -> &[Operand; SLOTS] {
        &self.operands
    }

    /// The implicit general-purpose registers.
    #[inline]
    pub fn implicit(&self) -> Implicit {
        self.implicit
    }

    /// The memory operand, if there is one.
    #[inline]
    pub fn memory(&self) -> Option<MemoryOperand> {
        self.memory
    }

    /// Whether status flags are an operand.
    #[inline]
    pub fn reads_flags(&self) -> bool {
        self.flags_read
    }

    /// Whether status flags are a result.
    #[inline]
    pub fn writes_flags(&self) -> bool {
        self.flags_written
    }

    /// Whether this is an x87 instruction, for [`run_x87`](crate::Processor::run_x87).
    #[inline]
    pub fn is_x87(&self) -> bool {
        self.x87
    }

    /// Whether an MMX register is among the operands.
    #[inline]
    pub fn is_mmx(&self) -> bool {
        self.mmx
    }

    /// Whether the encoding is VEX: the upper halves of destinations become zero.
    #[inline]
    pub fn is_vex(&self) -> bool {
        self.vex
    }

    fn canonicalise(&mut self, instruction: &Instruction) -> Option<()> {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(instruction);
        let mut canonical = Instruction::new();
        canonical.set_code(instruction.code());
        for index in 0..instruction.op_count() {
            let written = writes(info.op_access(index));
            let kind = instruction.op_kind(index);
            canonical.try_set_op_kind(index, kind).ok()?;
            match kind {
                OpKind::Register => {
                    let (operand, register) = place(instruction.op_register(index), index, written)?;
                    canonical.try_set_op_register(index, register).ok()?;
                    if operand != Operand::None {
                        let slot = index as usize;
                        *self.operands.get_mut(slot)? = operand;
                        self.mmx |= matches!(operand, Operand::Mmx { .. });
                        *self.stored.get_mut(slot)? = written;
                    }
                }
                OpKind::Immediate8 => canonical.set_immediate8(instruction.immediate8()),
                OpKind::Memory => {
                    let access = info.op_access(index);
                    let bytes = memory_bytes(instruction.memory_size());
                    let read = reads(access);
                    if self.memory.is_some()
                        || bytes == 0
                        || bytes > MEMORY_BYTES
                        || !(read || written)
                        || instruction.is_vsib()
                    {
                        return None;
                    }
                    self.memory = Some(MemoryOperand { bytes, read, written });
                    canonical.set_memory_base(Register::RDI);
                    canonical.set_memory_index_scale(1);
                    // The memory operand is the first thing in the context: no displacement.
                    const { assert!(at::MEMORY == 0) };
                }
                _ => return None,
            }
        }
        self.canonical = canonical;
        Some(())
    }

    /// Looks at every register and memory access that iced knows of the canonical form: the explicit ones are
    /// planned for, of the others only those that thunks marshal are allowed.
    fn find_implicit(&mut self) -> Option<()> {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&self.canonical);
        if info.used_memory().len() != usize::from(self.memory.is_some()) {
            return None;
        }
        for used in info.used_registers() {
            let (read, written) = (reads(used.access()), writes(used.access()));
            match used.register() {
                // The decoder names all of the register where a VEX form clears its upper part.
                Register::XMM0 | Register::YMM0 | Register::ZMM0 => {
                    self.implicit.xmm0_read |= read;
                    self.implicit.xmm0_written |= written;
                }
                Register::EAX | Register::RAX if !written => self.implicit.rax_read |= read,
                Register::EDX | Register::RDX if !written => self.implicit.rdx_read |= read,
                Register::ECX | Register::RCX if !read => self.implicit.rcx_written |= written,
                Register::RDI if self.memory.is_some() && !written => {}
                register if self.x87 && (register.is_st() || register.is_mm()) => {}
                register if self.is_planned(register) => {}
                _ => return None,
            }
        }
        Some(())
    }

    fn is_planned(&self, register: Register) -> bool {
        (0..self.canonical.op_count()).any(|index| {
            self.canonical.op_kind(index) == OpKind::Register
                && self.canonical.op_register(index).full_register() == register.full_register()
        })
    }
}

/// Where an operand register goes: what the caller marshals, and its canonical name.
fn place(register: Register, index: u32, written: bool) -> Option<(Operand, Register)> {
    let number = u8::try_from(register.number()).ok()?;
    if register.is_xmm() {
        Some((Operand::Vector { number }, Register::XMM1 + index))
    } else if register.is_ymm() {
        Some((Operand::Vector { number }, Register::YMM1 + index))
    } else if register.is_mm() {
        Some((Operand::Mmx { number, written }, Register::MM1 + index))
    } else if register.is_gpr32() {
        Some((Operand::Gpr { register, written }, Register::R8D + index))
    } else if register.is_gpr64() {
        Some((Operand::Gpr { register, written }, Register::R8 + index))
    } else if register.is_st() {
        Some((Operand::None, register))
    } else {
        None
    }
}

fn reads(access: OpAccess) -> bool {
    matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

fn memory_bytes(size: MemorySize) -> usize {
    size.size()
}

fn code_is_x87(code: Code) -> bool {
    code.cpuid_features()
        .iter()
        .any(|feature| matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387))
}

/// The kinds of instruction that may become thunks; operands are looked at afterwards.
fn code_is_admitted(code: Code) -> bool {
    matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.flow_control() == FlowControl::Next
        && !code.is_privileged()
        && !code.is_save_restore_instruction()
        && code.op_code().mode64()
        && !is_control(code.mnemonic())
}

/// Instructions that are not arithmetic on operands: they handle the unit's state, or touch memory in their own way.
fn is_control(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Wait
            | M::Fninit
            | M::Fnclex
            | M::Fnstcw
            | M::Fnstsw
            | M::Fnstenv
            | M::Fnsave
            | M::Fldcw
            | M::Fldenv
            | M::Frstor
            | M::Finit
            | M::Fclex
            | M::Fstcw
            | M::Fstsw
            | M::Fstenv
            | M::Fsave
            | M::Feni
            | M::Fdisi
            | M::Fsetpm
            | M::Emms
            | M::Femms
            | M::Vzeroall
            | M::Vzeroupper
            | M::Ldmxcsr
            | M::Stmxcsr
            | M::Vldmxcsr
            | M::Vstmxcsr
            | M::Maskmovq
            | M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
            | M::Movnti
    )
}

/// Whether MXCSR is an operand. Only those that are known not to look at it are left out, by the families of their
/// names: a mistake here would cost time, not a result.
fn reads_mxcsr(mnemonic: Mnemonic) -> bool {
    static TABLE: OnceLock<Vec<bool>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        const FREE: [&str; 15] = [
            "P",
            "MOV",
            "AND",
            "OR",
            "XOR",
            "SHUF",
            "UNPCK",
            "BLEND",
            "INSERT",
            "EXTRACT",
            "AES",
            "SHA",
            "LDDQU",
            "BROADCAST",
            "GF2P8",
        ];
        Mnemonic::values()
            .map(|mnemonic| {
                let name = format!("{mnemonic:?}").to_uppercase();
                let name = name.strip_prefix('V').unwrap_or(&name);
                !FREE.iter().any(|family| name.starts_with(family))
            })
            .collect()
    });
    table.get(mnemonic as usize).copied().unwrap_or(true)
}

/// The status flags, all that a thunk may load.
pub(crate) const LOADABLE_FLAGS: u64 = rflags::STATUS;
