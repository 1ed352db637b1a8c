//! SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM vol. 2).

use x86::bits::{low16, low32};
use x86::control::{cr0, efer};
use x86::cpuid::Vendor;
use x86::descriptor::attr;
use x86::rflags::{IF, RF, TF, VM};
use x86::{Gva, Mode, Segment, SegmentIndex, Selector};

use crate::cpu::Cpu;
use crate::op::{Op, Step};

const CS: usize = SegmentIndex::Cs as usize;
const SS: usize = SegmentIndex::Ss as usize;

/// A flat code segment as these instructions load it, without looking at a table.
fn flat_code(selector: u16, dpl: u16, long: bool) -> Segment {
    let size = if long { attr::L } else { attr::DB };
    let kind = attr::P | attr::S | attr::CODE | attr::READABLE | attr::ACCESSED | attr::G;
    Segment {
        selector: Selector(selector),
        attr: kind | size | dpl << attr::DPL_SHIFT,
        limit: u32::MAX,
        base: 0,
    }
}

fn flat_stack(selector: u16, dpl: u16) -> Segment {
    let kind = attr::P | attr::S | attr::WRITABLE | attr::ACCESSED | attr::G | attr::DB;
    Segment { selector: Selector(selector), attr: kind | dpl << attr::DPL_SHIFT, limit: u32::MAX, base: 0 }
}

/// Whether the processor poses as one of AMD's, which differ: SYSCALL works in compatibility mode, and in long mode
/// SYSENTER does not (APM vol. 3, SYSCALL and SYSENTER).
fn amd(cpu: &Cpu) -> bool {
    cpu.cpuid.vendor() == Vendor::Amd
}

/// SYSCALL: in 64-bit mode, and on AMD's processors in compatibility mode.
pub(crate) fn syscall(cpu: &mut Cpu, _: &Op) -> Step {
    let target = match cpu.mode {
        Mode::Long => cpu.msrs.lstar,
        Mode::Protected16 | Mode::Protected32 if cpu.long_active() && amd(cpu) => cpu.msrs.cstar,
        _ => return Err(cpu.ud()),
    };
    if cpu.msrs.efer & efer::SCE == 0 {
        return Err(cpu.ud());
    }
    *cpu.reg_mut(1) = cpu.rip();
    *cpu.reg_mut(11) = cpu.flags & !RF;
    cpu.set_rip(target);
    cpu.flags = cpu.flags & !(cpu.msrs.sfmask | RF) | x86::rflags::FIXED;
    // Single step looks at TF as the mask leaves it.
    cpu.step_suppressed = !cpu.flag(TF);
    syscall_segments(cpu);
    cpu.refresh();
    Ok(())
}

/// CS as SYSCALL loads it.
pub(crate) fn syscall_code(star: u64) -> Segment {
    flat_code(low16(star >> 32) & !3, 0, true)
}

/// SS as SYSCALL loads it.
pub(crate) fn syscall_stack(star: u64) -> Segment {
    flat_stack((low16(star >> 32) & !3).wrapping_add(8), 0)
}

/// CS as SYSRET loads it.
pub(crate) fn sysret_code(star: u64, long: bool) -> Segment {
    let base = low16(star >> 48);
    flat_code(if long { base.wrapping_add(16) } else { base } | 3, 3, long)
}

/// SS as SYSRET loads it.
pub(crate) fn sysret_stack(star: u64) -> Segment {
    flat_stack(low16(star >> 48).wrapping_add(8) | 3, 3)
}

/// CS and SS as SYSCALL loads them.
pub(crate) fn syscall_segments(cpu: &mut Cpu) {
    cpu.seg[CS] = syscall_code(cpu.msrs.star);
    cpu.seg[SS] = syscall_stack(cpu.msrs.star);
}

/// CS and SS as SYSRET loads them.
pub(crate) fn sysret_segments(cpu: &mut Cpu, long: bool) {
    cpu.seg[CS] = sysret_code(cpu.msrs.star, long);
    cpu.seg[SS] = sysret_stack(cpu.msrs.star);
}

/// SYSRET, to 64-bit code if the operand size says so. The target is checked first: #GP at CPL 0.
pub(crate) fn sysret(cpu: &mut Cpu, op: &Op) -> Step {
    let long = op.size == 8;
    if cpu.mode != Mode::Long || cpu.msrs.efer & efer::SCE == 0 {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    let target = cpu.reg(1);
    if long && !Gva(target).is_canonical() {
        return Err(cpu.gp0());
    }
    cpu.set_rip(if long { target } else { u64::from(low32(target)) });
    const RESTORED: u64 = 0x003c_7fd7;
    cpu.flags = cpu.reg(11) & RESTORED | x86::rflags::FIXED;
    sysret_segments(cpu, long);
    cpu.refresh();
    cpu.look = true;
    Ok(())
}

/// SYSENTER.
pub(crate) fn sysenter(cpu: &mut Cpu, _: &Op) -> Step {
    if cpu.long_active() && amd(cpu) {
        return Err(cpu.ud());
    }
    let selector = low16(cpu.msrs.sysenter_cs) & !3;
    if cpu.cr0 & cr0::PE == 0 || selector == 0 {
        return Err(cpu.gp0());
    }
    let long = cpu.long_active();
    cpu.flags &= !(VM | IF | RF);
    cpu.seg[CS] = flat_code(selector, 0, long);
    cpu.seg[SS] = flat_stack(selector.wrapping_add(8), 0);
    let narrow = |value: u64| if long { value } else { u64::from(low32(value)) };
    cpu.set_rip(narrow(cpu.msrs.sysenter_eip));
    *cpu.reg_mut(4) = narrow(cpu.msrs.sysenter_esp);
    cpu.refresh();
    Ok(())
}

/// SYSEXIT.
pub(crate) fn sysexit(cpu: &mut Cpu, op: &Op) -> Step {
    let long = op.size == 8;
    let selector = low16(cpu.msrs.sysenter_cs) & !3;
    if cpu.cr0 & cr0::PE == 0 || selector == 0 {
        return Err(cpu.gp0());
    }
    cpu.require_cpl0()?;
    let (rip, rsp) = (cpu.reg(2), cpu.reg(1));
    if long && !(Gva(rip).is_canonical() && Gva(rsp).is_canonical()) {
        return Err(cpu.gp0());
    }
    let narrow = |value: u64| if long { value } else { u64::from(low32(value)) };
    let step = if long { 32 } else { 16 };
    cpu.set_rip(narrow(rip));
    *cpu.reg_mut(4) = narrow(rsp);
    cpu.seg[CS] = flat_code(selector.wrapping_add(step) | 3, 3, long);
    cpu.seg[SS] = flat_stack(selector.wrapping_add(step + 8) | 3, 3);
    cpu.refresh();
    Ok(())
}
