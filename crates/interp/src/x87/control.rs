//! x87 control instructions: none of them computes, none of them changes the last-instruction pointers except by
//! loading or initialising them.

use iced_x86::{Code, Instruction};
use x86::control::cr0;
use x86::cpuid::Feature;
use x86::fpu::fsw;
use x86::{Exception, FpuState, Mode};

use super::image::{self, Layout};
use super::{check_available, check_pending, load_words};
use crate::op::Mem;
use crate::vector::{Environment, mmx};

/// One of these instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// WAIT.
    Wait,
    /// FNINIT.
    Init,
    /// FNCLEX.
    Clear,
    /// FNENI, FNDISI, FNSETPM: of the 8087 and 287, nothing since.
    Nothing,
    /// FLDCW.
    LoadWordWord,
    /// FNSTCW.
    StoreWordWord,
    /// FNSTSW to memory.
    StoreStatus,
    /// FNSTSW AX.
    StoreStatusAx,
    /// FLDENV, FNSTENV; with the registers FRSTOR, FNSAVE. `wide`: 32-bit operand size.
    Environment { store: bool, wide: bool, registers: bool },
}

/// Plans them.
pub(crate) fn plan(instruction: &Instruction) -> Option<Control> {
    let environment = |store, wide, registers| Control::Environment { store, wide, registers };
    Some(match instruction.code() {
        Code::Wait => Control::Wait,
        Code::Fninit => Control::Init,
        Code::Fnclex => Control::Clear,
        Code::Fneni | Code::Fndisi | Code::Fnsetpm => Control::Nothing,
        Code::Fldcw_m2byte => Control::LoadWordWord,
        Code::Fnstcw_m2byte => Control::StoreWordWord,
        Code::Fnstsw_m2byte => Control::StoreStatus,
        Code::Fnstsw_AX => Control::StoreStatusAx,
        Code::Fldenv_m14byte => environment(false, false, false),
        Code::Fldenv_m28byte => environment(false, true, false),
        Code::Fnstenv_m14byte => environment(true, false, false),
        Code::Fnstenv_m28byte => environment(true, true, false),
        Code::Frstor_m94byte => environment(false, false, true),
        Code::Frstor_m108byte => environment(false, true, true),
        Code::Fnsave_m94byte => environment(true, false, true),
        Code::Fnsave_m108byte => environment(true, true, true),
        _ => return None,
    })
}

const RAX: u8 = 0;
/// The six exception masks.
const FCW_MASKS: u16 = 0x3f;

/// FNINIT: the registers keep their contents, empty, while TOP becomes 0.
fn initialise(fpu: &mut FpuState) {
    mmx::set_top(fpu, 0);
    *fpu = FpuState { st: fpu.st, ..FpuState::default() };
}

impl Control {
    /// Executes it.
    pub(crate) fn execute<E: Environment>(self, env: &mut E, mem: &Mem) -> Result<(), E::Break> {
        if self == Self::Wait {
            let both = cr0::MP | cr0::TS;
            if env.control().cr0 & both == both {
                return Err(env.raise(Exception::nm()));
            }
            return check_pending(env);
        }
        check_available(env)?;
        match self {
            Self::Wait | Self::Nothing => {}
            Self::Init => initialise(env.units().fpu),
            Self::Clear => {
                let fpu = env.units().fpu;
                fpu.fsw &= !(fsw::EXCEPTIONS | fsw::SF | fsw::ES | fsw::B);
            }
            Self::LoadWordWord => {
                check_pending(env)?;
                let mut word = [0; 2];
                let offset = env.offset(mem);
                env.load(mem.seg, offset, 2, &mut word)?;
                let fpu = env.units().fpu;
                let status = fpu.fsw;
                load_words(fpu, u16::from_le_bytes(word), status);
            }
            Self::StoreWordWord => {
                let word = env.units().fpu.fcw.to_le_bytes();
                let offset = env.offset(mem);
                env.store(mem.seg, offset, 2, &word)?;
            }
            Self::StoreStatus => {
                let word = env.units().fpu.fsw.to_le_bytes();
                let offset = env.offset(mem);
                env.store(mem.seg, offset, 2, &word)?;
            }
            Self::StoreStatusAx => {
                let status = env.units().fpu.fsw;
                let rax = env.gpr(RAX);
                env.set_gpr(RAX, rax & !0xffff | u64::from(status));
            }
            Self::Environment { store, wide, registers } => {
                let real = matches!(env.control().mode, Mode::Real | Mode::V86);
                let layout = Layout { wide, real, registers };
                if store { save(env, mem, layout)? } else { load(env, mem, layout)? }
            }
        }
        Ok(())
    }
}

/// FNSTENV masks all exceptions afterwards, FNSAVE initialises the unit.
fn save<E: Environment>(env: &mut E, mem: &Mem, layout: Layout) -> Result<(), E::Break> {
    let (bytes, len) = image::write(env.units().fpu, layout);
    let offset = env.offset(mem);
    env.store(mem.seg, offset, layout.align(), &bytes[..len])?;
    let fpu = env.units().fpu;
    if layout.registers {
        initialise(fpu);
    } else {
        let (control, status) = (fpu.fcw | FCW_MASKS, fpu.fsw);
        load_words(fpu, control, status);
    }
    Ok(())
}

fn load<E: Environment>(env: &mut E, mem: &Mem, layout: Layout) -> Result<(), E::Break> {
    check_pending(env)?;
    let mut bytes = [0; image::MAX];
    let offset = env.offset(mem);
    env.load(mem.seg, offset, layout.align(), &mut bytes[..layout.len()])?;
    let selectors = !env.has(Feature::ZeroFcsFds);
    image::read(env.units().fpu, &bytes, layout, selectors);
    Ok(())
}
