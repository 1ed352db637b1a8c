//! MXCSR, the clearing of upper halves, and the end of MMX code.

use iced_x86::{Instruction, Mnemonic};
use x86::fpu::MXCSR_MASK;
use x86::{Exception, Mode};

use super::environment::Environment;
use super::mmx;
use crate::op::Mem;

/// One of these instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// LDMXCSR, VLDMXCSR.
    LoadMxcsr,
    /// STMXCSR, VSTMXCSR.
    StoreMxcsr,
    /// VZEROALL.
    ZeroAll,
    /// VZEROUPPER.
    ZeroUpper,
    /// EMMS.
    EndMmx,
}

/// Plans them.
pub(crate) fn plan(instruction: &Instruction) -> Option<Control> {
    match instruction.mnemonic() {
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => Some(Control::LoadMxcsr),
        Mnemonic::Stmxcsr | Mnemonic::Vstmxcsr => Some(Control::StoreMxcsr),
        Mnemonic::Vzeroall => Some(Control::ZeroAll),
        Mnemonic::Vzeroupper => Some(Control::ZeroUpper),
        Mnemonic::Emms => Some(Control::EndMmx),
        _ => None,
    }
}

impl Control {
    /// Executes it.
    pub(crate) fn execute<E: Environment>(self, env: &mut E, mem: &Mem) -> Result<(), E::Break> {
        match self {
            Self::LoadMxcsr => {
                let offset = env.offset(mem);
                let mut value = [0; 4];
                env.load(mem.seg, offset, 4, &mut value)?;
                let value = u32::from_le_bytes(value);
                if value & !MXCSR_MASK != 0 {
                    return Err(env.raise(Exception::gp(0)));
                }
                env.vector().mxcsr = value;
            }
            Self::StoreMxcsr => {
                let offset = env.offset(mem);
                let value = env.vector().mxcsr;
                env.store(mem.seg, offset, 4, &value.to_le_bytes())?;
            }
            Self::ZeroAll => {
                let registers = registers(env);
                env.vector().ymm[..registers].fill([0; 2]);
            }
            Self::ZeroUpper => {
                let registers = registers(env);
                env.vector().ymm[..registers].iter_mut().for_each(|ymm| ymm[1] = 0);
            }
            Self::EndMmx => {
                let fpu = env.units().fpu;
                mmx::set_top(fpu, 0);
                fpu.ftw = 0;
            }
        }
        Ok(())
    }
}

/// How many vector registers the mode can name.
pub(crate) fn registers<E: Environment>(env: &E) -> usize {
    if env.control().mode == Mode::Long { 16 } else { 8 }
}
