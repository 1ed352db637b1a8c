//! Thunks, kept and called.
//!
//! A [`Processor`] belongs to one vCPU. It keeps the thunks of the forms met so far in a bounded piece of code memory; when that is
//! full all of them are dropped and it starts again. A [`Plan`] remembers its thunk together with the *generation* in which it was
//! written; generations are unique in the process, so a plan can neither reach a dropped thunk nor one of another
//! processor. That makes calling a matter of one comparison.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use host::code::CodeMemory;
use host::signal::FixupGuard;
use iced_x86::Instruction;
use x86::fpu::{MXCSR_DEFAULT, MXCSR_MASK, fsw};
use x86::{FpuState, VectorState};

use crate::NativeError;
use crate::context::{Context, Operands, SLOTS};
use crate::plan::{LOADABLE_FLAGS, Operand, Plan};
use crate::thunk::{self, SLOT_BYTES};

/// Thunks kept: a megabyte of code, backed by memory as it fills.
const CAPACITY: u32 = 4096;

type Thunk = unsafe extern "C" fn(*mut Context, *mut [u128; 2]) -> u32;

/// Names a thunk, as long as the generation lasts. The default names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form {
    /// Zero is nobody's.
    generation: u64,
    slot: u32,
}

/// What became of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It completed.
    Done,
    /// An unmasked SIMD floating-point exception: MXCSR has its flags, no destination has changed.
    SimdFault,
    /// An unmasked x87 exception is pending, so nothing was executed: #MF, or the FERR# way (SDM vol. 1, 8.7).
    X87Pending,
}

/// Executes single instructions on given operands.
pub struct Processor {
    /// Before `code`, so that the registration ends before the memory is unmapped.
    _fixup: FixupGuard,
    code: CodeMemory,
    forms: HashMap<Instruction, u32>,
    /// Slots in use; the first is the fault exit.
    used: u32,
    generation: u64,
    pub(crate) context: Box<Context>,
    /// Whether the host's x87 unit holds a guest's state: see `lease.rs`.
    pub(crate) lent: bool,
}

fn new_generation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Processor {
    /// A processor with no thunks yet.
    ///
    /// # Errors
    /// If the host refuses memory for code.
    pub fn new() -> Result<Self, NativeError> {
        Self::with_capacity(CAPACITY)
    }

    pub(crate) fn with_capacity(capacity: u32) -> Result<Self, NativeError> {
        let mut code = CodeMemory::new(u64::from(capacity) * SLOT_BYTES as u64)?;
        code.write(0, &thunk::fault_exit()?)?;
        let start = code.exec_ptr(0) as usize;
        // SAFETY: only thunks run in the range, and of a thunk only the guest's instruction can raise SIGFPE. RDI is
        // the context then, the stack as at the thunk's entry, which is all that the fault exit relies on. Nothing
        // runs in `code` while `self`, and with it the guard, is being dropped.
        let fixup = unsafe { host::signal::register_fpe_fixup(start..start + code.len(), start)? };
        Ok(Self {
            _fixup: fixup,
            code,
            forms: HashMap::new(),
            used: 1,
            generation: new_generation(),
            context: Box::new(Context::new()),
            lent: false,
        })
    }

    /// The operands that the caller marshals, and the results.
    #[inline]
    pub fn operands(&mut self) -> &mut Operands {
        &mut self.context.operands
    }

    /// Executes a vector or MMX instruction; vector registers and MXCSR are used in place.
    ///
    /// # Errors
    /// [`NativeError::NotArithmetic`] for an x87 plan, or one that cannot be assembled.
    pub fn run_vector(&mut self, plan: &Plan, vector: &mut VectorState) -> Result<Outcome, NativeError> {
        if plan.x87 {
            return Err(NativeError::NotArithmetic(plan.canonical.code()));
        }
        debug_assert!(!self.lent, "the thunk may end with EMMS");
        let thunk = self.thunk(plan)?;
        let context = &mut *self.context;
        for (place, operand) in context.vector[1..].iter_mut().zip(&plan.operands) {
            if let Operand::Vector { number } = operand {
                *place = u32::from(number & 15) * size_of::<[u128; 2]>() as u32;
            }
        }
        context.operands.flags &= LOADABLE_FLAGS;
        context.mxcsr = vector.mxcsr & MXCSR_MASK;
        // SAFETY: `thunk` was assembled for this plan (see `thunk`). It follows the C ABI, reads and writes the context and, at
        // offsets below 16 * 32, the vector registers; both are exclusively borrowed here. MXCSR has no reserved bit
        // set and the flags are status flags only.
        let fault = unsafe { thunk(context, vector.ymm.as_mut_ptr()) };
        if plan.uses_mxcsr {
            vector.mxcsr = context.mxcsr;
        }
        Ok(if fault == 0 { Outcome::Done } else { Outcome::SimdFault })
    }

    /// Executes an x87 instruction on `fpu`. The last-instruction fields (opcode, instruction and operand pointers)
    /// are the caller's and stay.
    ///
    /// # Errors
    /// [`NativeError::NotArithmetic`] for a plan that is not x87, or cannot be assembled.
    pub fn run_x87(&mut self, plan: &Plan, fpu: &mut FpuState) -> Result<Outcome, NativeError> {
        if !plan.x87 {
            return Err(NativeError::NotArithmetic(plan.canonical.code()));
        }
        if fpu.fsw & !fpu.fcw & fsw::EXCEPTIONS != 0 {
            return Ok(Outcome::X87Pending);
        }
        debug_assert!(!self.lent, "the thunk loads the unit and clears it");
        let thunk = self.thunk(plan)?;
        let context = &mut *self.context;
        write_image(fpu, &mut context.image.0);
        context.operands.flags &= LOADABLE_FLAGS;
        let mut unused = [[0; 2]; SLOTS];
        // SAFETY: as in `run_vector`; an x87 thunk does not use its second argument. The image is a valid one: its MXCSR is
        // the default, its reserved bytes are zero, and no unmasked exception is pending in it.
        unsafe { thunk(context, unused.as_mut_ptr()) };
        read_image(&context.image.0, fpu);
        Ok(Outcome::Done)
    }

    /// The thunk of `plan`, assembled if there is none. That every slot below `used` of the current generation holds
    /// a complete thunk, and that `plan.form` of the current generation names the slot of `plan.canonical`, is the invariant
    /// that calls rest on; both are established here and nowhere else.
    #[inline]
    fn thunk(&mut self, plan: &Plan) -> Result<Thunk, NativeError> {
        let mut form = plan.form.get();
        if form.generation != self.generation {
            form = self.find(plan)?;
            plan.form.set(form);
        }
        let entry = self.code.exec_ptr(form.slot as usize * SLOT_BYTES);
        // SAFETY: a complete thunk begins there, by the invariant above.
        Ok(unsafe { std::mem::transmute::<*const u8, Thunk>(entry) })
    }

    #[cold]
    fn find(&mut self, plan: &Plan) -> Result<Form, NativeError> {
        if let Some(&slot) = self.forms.get(&plan.canonical) {
            return Ok(Form { generation: self.generation, slot });
        }
        let bytes = thunk::assemble(plan)?;
        if self.used as usize * SLOT_BYTES >= self.code.len() {
            self.start_again();
        }
        let slot = self.used;
        self.code.write(slot as usize * SLOT_BYTES, &bytes)?;
        self.used += 1;
        self.forms.insert(plan.canonical, slot);
        Ok(Form { generation: self.generation, slot })
    }

    /// Drops every thunk. (`CodeMemory::write` serialises, so none that was fetched ahead runs any more.)
    fn start_again(&mut self) {
        self.forms.clear();
        self.used = 1;
        self.generation = new_generation();
    }
}

/// Fills an FXSAVE64 image (SDM vol. 1, table 10-2). ES and B follow from the exceptions, none of which is pending.
pub(crate) fn write_image(fpu: &FpuState, image: &mut [u8; 512]) {
    image[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&(fpu.fsw & !(fsw::ES | fsw::B)).to_le_bytes());
    image[4] = fpu.ftw;
    image[5..24].fill(0);
    image[24..28].copy_from_slice(&MXCSR_DEFAULT.to_le_bytes());
    image[28..32].fill(0);
    for (place, value) in image[32..160].chunks_exact_mut(16).zip(&fpu.st) {
        place.copy_from_slice(&(value & ST_MASK).to_le_bytes());
    }
}

/// The 80 bits of an x87 register.
const ST_MASK: u128 = (1 << 80) - 1;

pub(crate) fn read_image(image: &[u8; 512], fpu: &mut FpuState) {
    fpu.fcw = u16::from_le_bytes([image[0], image[1]]);
    fpu.fsw = u16::from_le_bytes([image[2], image[3]]);
    fpu.ftw = image[4];
    for (place, value) in image[32..160].as_chunks::<16>().0.iter().zip(&mut fpu.st) {
        *value = u128::from_le_bytes(*place) & ST_MASK;
    }
}
