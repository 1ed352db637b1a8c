//! RDMSR and WRMSR (SDM vol. 4). What the vCPU does not hold itself belongs to the platform; what nobody knows is
//! #GP(0).

use engine::MsrAccess;
use x86::bits::{high32, low32};
use x86::msr;
use x86::{Gva, SegmentIndex};

use crate::cpu::Cpu;
use crate::op::{Break, Op, Step};
use crate::system::misc::drain_stores;

const FS: usize = SegmentIndex::Fs as usize;
const GS: usize = SegmentIndex::Gs as usize;

/// Eight variable MTRRs, fixed ones, no write-combining.
const MTRR_CAPABILITIES: u64 = 8 | 1 << 8;

/// The place of a fixed-range MTRR in the saved array.
fn fixed_mtrr(index: u32) -> Option<usize> {
    let at = match index {
        msr::MTRR_FIX64K_00000 => 0,
        msr::MTRR_FIX16K_80000 => 1,
        msr::MTRR_FIX16K_A0000 => 2,
        msr::MTRR_FIX4K_C0000..=msr::MTRR_FIX4K_F8000 => 3 + index - msr::MTRR_FIX4K_C0000,
        _ => return None,
    };
    usize::try_from(at).ok()
}

/// A memory type of MTRR and PAT; PAT adds UC- (7).
fn memory_type(value: u64, pat: bool) -> bool {
    matches!(value, 0 | 1 | 4..=6) || pat && value == 7
}

fn every_byte(value: u64, test: impl Fn(u64) -> bool) -> bool {
    value.to_le_bytes().into_iter().all(|byte| test(u64::from(byte)))
}

impl Cpu {
    fn read_msr(&mut self, index: u32) -> Result<u64, Break> {
        let m = &self.msrs;
        Ok(match index {
            msr::IA32_TSC => self.tsc(),
            msr::IA32_TSC_ADJUST => m.tsc_adjust,
            msr::EFER => m.efer,
            msr::STAR => m.star,
            msr::LSTAR => m.lstar,
            msr::CSTAR => m.cstar,
            msr::SFMASK => m.sfmask,
            msr::FS_BASE => self.seg[FS].base,
            msr::GS_BASE => self.seg[GS].base,
            msr::KERNEL_GS_BASE => m.kernel_gs_base,
            msr::TSC_AUX => m.tsc_aux,
            msr::IA32_SYSENTER_CS => m.sysenter_cs,
            msr::IA32_SYSENTER_ESP => m.sysenter_esp,
            msr::IA32_SYSENTER_EIP => m.sysenter_eip,
            msr::IA32_PAT => m.pat,
            msr::IA32_MISC_ENABLE => m.misc_enable,
            msr::MTRR_CAP => MTRR_CAPABILITIES,
            msr::MTRR_DEF_TYPE => m.mtrr_def_type,
            msr::MTRR_PHYSBASE0..=msr::MTRR_PHYSMASK7 => {
                m.mtrr_variable.get((index - msr::MTRR_PHYSBASE0) as usize).copied().unwrap_or(0)
            }
            msr::IA32_MCG_CAP | msr::IA32_PLATFORM_ID => 0,
            // Locked with nothing enabled, as firmware leaves it on a processor without VMX and SGX.
            msr::IA32_FEATURE_CONTROL => 1,
            msr::IA32_BIOS_SIGN_ID => 0xffff_ffff << 32,
            msr::IA32_MCG_STATUS => m.mcg_status,
            msr::IA32_XSS => m.xss,
            _ => match fixed_mtrr(index) {
                Some(at) => m.mtrr_fixed.get(at).copied().unwrap_or(0),
                None => match self.platform.read_msr(self.id, index) {
                    // The platform counts in the TSC before IA32_TSC_ADJUST. Zero means disarmed.
                    MsrAccess::Done(value) if index == msr::IA32_TSC_DEADLINE && value != 0 => {
                        value.wrapping_add(self.msrs.tsc_adjust)
                    }
                    MsrAccess::Done(value) => value,
                    MsrAccess::Fault | MsrAccess::Unknown => return Err(self.gp0()),
                },
            },
        })
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Step {
        match index {
            msr::EFER => return self.set_efer(value),
            msr::IA32_TSC => {
                // Writing the counter adjusts the adjustment by as much (SDM vol. 3, 18.17.3).
                let change = value.wrapping_sub(self.tsc());
                self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(change);
            }
            msr::IA32_TSC_ADJUST => self.msrs.tsc_adjust = value,
            msr::STAR => self.msrs.star = value,
            msr::SFMASK => self.msrs.sfmask = value & 0xffff_ffff,
            msr::LSTAR => self.msrs.lstar = self.canonical(value)?,
            msr::CSTAR => self.msrs.cstar = self.canonical(value)?,
            msr::FS_BASE => self.seg[FS].base = self.canonical(value)?,
            msr::GS_BASE => self.seg[GS].base = self.canonical(value)?,
            msr::KERNEL_GS_BASE => self.msrs.kernel_gs_base = self.canonical(value)?,
            msr::TSC_AUX => self.msrs.tsc_aux = self.fits32(value)?,
            msr::IA32_SYSENTER_CS => self.msrs.sysenter_cs = value & 0xffff_ffff,
            msr::IA32_SYSENTER_ESP => self.msrs.sysenter_esp = self.canonical(value)?,
            msr::IA32_SYSENTER_EIP => self.msrs.sysenter_eip = self.canonical(value)?,
            msr::IA32_PAT if every_byte(value, |t| memory_type(t, true)) => self.msrs.pat = value,
            msr::IA32_MISC_ENABLE => self.msrs.misc_enable = value,
            msr::MTRR_DEF_TYPE if memory_type(value & 0xff, false) && value & !0xcff == 0 => {
                self.msrs.mtrr_def_type = value;
            }
            msr::MTRR_PHYSBASE0..=msr::MTRR_PHYSMASK7 => self.set_variable_mtrr(index, value)?,
            msr::IA32_BIOS_SIGN_ID => {}
            msr::IA32_MCG_STATUS if value == 0 => self.msrs.mcg_status = 0,
            msr::IA32_XSS if value == 0 => {}
            msr::IA32_PAT | msr::MTRR_DEF_TYPE | msr::IA32_MCG_STATUS | msr::IA32_XSS => {
                return Err(self.gp0());
            }
            _ => match fixed_mtrr(index) {
                Some(at) if every_byte(value, |t| memory_type(t, false)) => {
                    if let Some(slot) = self.msrs.mtrr_fixed.get_mut(at) {
                        *slot = value;
                    }
                }
                Some(_) => return Err(self.gp0()),
                None => return self.write_platform_msr(index, value),
            },
        }
        self.refresh();
        Ok(())
    }

    fn write_platform_msr(&mut self, index: u32, value: u64) -> Step {
        self.look = true;
        let value = match (index, value) {
            (msr::IA32_TSC_DEADLINE, 1..) => value.wrapping_sub(self.msrs.tsc_adjust).max(1),
            _ => value,
        };
        match self.platform.write_msr(self.id, index, value) {
            MsrAccess::Done(()) => Ok(()),
            MsrAccess::Fault | MsrAccess::Unknown => Err(self.gp0()),
        }
    }

    fn set_variable_mtrr(&mut self, index: u32, value: u64) -> Step {
        let is_base = index.is_multiple_of(2);
        let reserved = if is_base { 0xf00 } else { 0x7ff };
        let bad_type = is_base && !memory_type(value & 0xff, false);
        if value >> self.cpuid.phys_bits() != 0 || value & reserved != 0 || bad_type {
            return Err(self.gp0());
        }
        if let Some(slot) = self.msrs.mtrr_variable.get_mut((index - msr::MTRR_PHYSBASE0) as usize) {
            *slot = value;
        }
        Ok(())
    }

    fn canonical(&mut self, value: u64) -> Result<u64, Break> {
        if Gva(value).is_canonical() { Ok(value) } else { Err(self.gp0()) }
    }

    fn fits32(&mut self, value: u64) -> Result<u64, Break> {
        if high32(value) == 0 { Ok(value) } else { Err(self.gp0()) }
    }
}

/// RDMSR.
pub(crate) fn rdmsr(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.require_cpl0()?;
    let value = cpu.read_msr(low32(cpu.reg(1)))?;
    *cpu.reg_mut(0) = u64::from(low32(value));
    *cpu.reg_mut(2) = u64::from(high32(value));
    Ok(())
}

/// WRMSR.
pub(crate) fn wrmsr(cpu: &mut Cpu, _: &Op) -> Step {
    drain_stores();
    cpu.require_cpl0()?;
    let value = cpu.get_reg::<u32>(2) << 32 | cpu.get_reg::<u32>(0);
    cpu.write_msr(low32(cpu.reg(1)), value)
}
