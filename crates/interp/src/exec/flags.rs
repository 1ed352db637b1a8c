//! Instructions that move or set flags.

use x86::Mode;
use x86::control::cr4;
use x86::rflags::{AC, AF, CF, DF, FIXED, ID, IF, IOPL, NT, OF, PF, RF, SF, TF, VIF, VIP, VM, ZF};

use crate::cpu::Cpu;
use crate::op::{Break, Op, Step};
use crate::width::Width;

/// CLC, STC, CLD, STD: the flag is the immediate, set if [`Op::src`] is 1.
pub(crate) fn assign(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.put_flag(op.imm, op.src == 1);
    Ok(())
}

/// CMC.
pub(crate) fn cmc(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.flags ^= CF;
    Ok(())
}

const LOW: u64 = SF | ZF | AF | PF | CF;

/// LAHF.
pub(crate) fn lahf(cpu: &mut Cpu, _: &Op) -> Step {
    let value = cpu.flags & LOW | FIXED;
    cpu.put_reg::<u8>(crate::op::HIGH_BYTE, value);
    Ok(())
}

/// SAHF.
pub(crate) fn sahf(cpu: &mut Cpu, _: &Op) -> Step {
    let value = cpu.get_reg::<u8>(crate::op::HIGH_BYTE);
    cpu.set_flags(LOW, value);
    Ok(())
}

/// SALC (undocumented, outside 64-bit mode): AL becomes all carries.
pub(crate) fn salc(cpu: &mut Cpu, _: &Op) -> Step {
    let value = if cpu.flag(CF) { 0xff } else { 0 };
    cpu.put_reg::<u8>(0, value);
    Ok(())
}

/// PUSHF, PUSHFD, PUSHFQ. In virtual-8086 mode IOPL decides (SDM vol. 2, PUSHF).
pub(crate) fn pushf<W: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    let mut image = cpu.flags & !(VM | RF);
    if cpu.mode == Mode::V86 && cpu.iopl() < 3 {
        if W::BITS != 16 || cpu.cr4 & cr4::VME == 0 {
            return Err(cpu.gp0());
        }
        image = image & !IF | IOPL | if cpu.flag(VIF) { IF } else { 0 };
    }
    cpu.push::<W>(image)
}

/// POPF, POPFD, POPFQ: IOPL changes only at CPL 0, IF only at CPL <= IOPL (SDM vol. 2, POPF).
pub(crate) fn popf<W: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    let image = cpu.peek::<W>(0)?;
    let virtual8086 = cpu.mode == Mode::V86;
    if virtual8086 && cpu.iopl() < 3 {
        popf_vme::<W>(cpu, image)?;
    } else {
        let mut allowed = CF | PF | AF | ZF | SF | TF | DF | OF | NT | AC | ID;
        if cpu.cpl == 0 {
            allowed |= IOPL;
        }
        if cpu.cpl <= cpu.iopl() {
            allowed |= IF;
        }
        if W::BITS == 16 {
            allowed &= 0xffff;
        }
        cpu.flags = cpu.flags & !(allowed | RF) | image & allowed;
    }
    cpu.drop_stack(W::SIZE);
    cpu.refresh_access();
    cpu.look = true;
    Ok(())
}

/// POPF with virtual interrupts: IF goes to VIF.
fn popf_vme<W: Width>(cpu: &mut Cpu, image: u64) -> Step {
    let blocked = image & IF != 0 && cpu.flag(VIP) || image & TF != 0;
    if W::BITS != 16 || cpu.cr4 & cr4::VME == 0 || blocked {
        return Err(cpu.gp0());
    }
    let allowed = (CF | PF | AF | ZF | SF | TF | DF | OF | NT) & 0xffff;
    let vif = if image & IF != 0 { VIF } else { 0 };
    cpu.flags = cpu.flags & !(allowed | VIF) | image & allowed | vif;
    Ok(())
}

/// Whether virtual interrupts apply to CLI and STI: VME in virtual-8086 mode, PVI at CPL 3.
fn virtual_interrupts(cpu: &Cpu) -> bool {
    match cpu.mode {
        Mode::Real => false,
        Mode::V86 => cpu.cr4 & cr4::VME != 0,
        _ => cpu.cpl == 3 && cpu.cr4 & cr4::PVI != 0,
    }
}

/// The flag that CLI and STI may change, or #GP(0) (SDM vol. 2, CLI, table 3-7).
fn interrupt_flag(cpu: &mut Cpu) -> Result<u64, Break> {
    if cpu.cpl <= cpu.iopl() {
        Ok(IF)
    } else if virtual_interrupts(cpu) {
        Ok(VIF)
    } else {
        Err(cpu.gp0())
    }
}

/// CLI.
pub(crate) fn cli(cpu: &mut Cpu, _: &Op) -> Step {
    let flag = interrupt_flag(cpu)?;
    cpu.flags &= !flag;
    Ok(())
}

/// STI: interrupts are let in after the next instruction.
pub(crate) fn sti(cpu: &mut Cpu, _: &Op) -> Step {
    let flag = interrupt_flag(cpu)?;
    if flag == VIF && cpu.flag(VIP) {
        return Err(cpu.gp0());
    }
    if flag == IF && !cpu.flag(IF) {
        cpu.pending.sti_shadow = true;
    }
    cpu.flags |= flag;
    cpu.look = true;
    Ok(())
}

/// STAC (immediate 1) and CLAC.
pub(crate) fn set_ac(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.cpl != 0 {
        return Err(cpu.ud());
    }
    cpu.put_flag(AC, op.imm == 1);
    cpu.refresh_access();
    Ok(())
}
