//! Descriptor-table registers and instructions that inspect descriptors.

use x86::bits::{low16, low32};
use x86::control::cr4;
use x86::descriptor::{attr, system};
use x86::rflags::ZF;
use x86::{DescriptorTable, Exception, Gva, Segment, Selector};

use crate::cpu::Cpu;
use crate::op::{Break, MEMORY, Op, Step};
use crate::operand::{Source, SrcAny};
use crate::system::misc::drain_stores;
use crate::system::segment::Descriptor;

impl Cpu {
    /// UMIP: the store instructions fault above CPL 0 (SDM vol. 3, 2.5).
    pub(crate) fn check_umip(&mut self) -> Step {
        if self.cpl > 0 && self.cr4 & cr4::UMIP != 0 { Err(self.gp0()) } else { Ok(()) }
    }

    /// LLDT and its kin exist in protected mode only.
    fn require_protected(&mut self) -> Step {
        if self.protected() { Ok(()) } else { Err(self.ud()) }
    }
}

fn store_table(cpu: &mut Cpu, op: &Op, table: DescriptorTable) -> Step {
    cpu.check_umip()?;
    let offset = cpu.offset_of(&op.mem);
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let length = if cpu.flat { 10 } else { 6 };
    cpu.store_block(op.mem.seg, offset, 1, &bytes[..length])
}

/// SGDT.
pub(crate) fn sgdt(cpu: &mut Cpu, op: &Op) -> Step {
    store_table(cpu, op, cpu.gdtr)
}

/// SIDT.
pub(crate) fn sidt(cpu: &mut Cpu, op: &Op) -> Step {
    store_table(cpu, op, cpu.idtr)
}

/// Reads the operand of LGDT and LIDT. With 16-bit operands the base has 24 bits.
fn load_table(cpu: &mut Cpu, op: &Op) -> Result<DescriptorTable, Break> {
    if cpu.mode == x86::Mode::V86 {
        return Err(cpu.gp0());
    }
    cpu.require_cpl0()?;
    let offset = cpu.offset_of(&op.mem);
    let limit = low16(cpu.load_at::<u16>(op.mem.seg, offset)?);
    let at = offset.wrapping_add(2);
    let base = if cpu.flat {
        cpu.load_at::<u64>(op.mem.seg, at)?
    } else {
        let base = cpu.load_at::<u32>(op.mem.seg, at)?;
        if op.size == 2 { base & 0xff_ffff } else { base }
    };
    if cpu.flat && !Gva(base).is_canonical() {
        return Err(cpu.gp0());
    }
    Ok(DescriptorTable { base, limit })
}

/// LGDT.
pub(crate) fn lgdt(cpu: &mut Cpu, op: &Op) -> Step {
    drain_stores();
    cpu.gdtr = load_table(cpu, op)?;
    Ok(())
}

/// LIDT.
pub(crate) fn lidt(cpu: &mut Cpu, op: &Op) -> Step {
    drain_stores();
    cpu.idtr = load_table(cpu, op)?;
    Ok(())
}

/// SLDT (selector of LDTR), STR (of TR).
fn store_selector(cpu: &mut Cpu, op: &Op, selector: Selector) -> Step {
    cpu.require_protected()?;
    cpu.check_umip()?;
    let value = u64::from(selector.0);
    match (op.dst, op.size) {
        (MEMORY, _) => cpu.store::<u16>(op, value)?,
        (_, 2) => cpu.put_reg::<u16>(op.dst, value),
        _ => cpu.put_reg::<u64>(op.dst, value),
    }
    Ok(())
}

/// SLDT.
pub(crate) fn sldt(cpu: &mut Cpu, op: &Op) -> Step {
    store_selector(cpu, op, cpu.ldtr.selector)
}

/// STR.
pub(crate) fn str(cpu: &mut Cpu, op: &Op) -> Step {
    store_selector(cpu, op, cpu.tr.selector)
}

fn selector_operand(cpu: &mut Cpu, op: &Op) -> Result<Selector, Break> {
    Ok(Selector(low16(cpu.get::<u16>(op, op.dst)?)))
}

/// LLDT.
pub(crate) fn lldt(cpu: &mut Cpu, op: &Op) -> Step {
    drain_stores();
    cpu.require_protected()?;
    cpu.require_cpl0()?;
    let selector = selector_operand(cpu, op)?;
    if selector.is_null() {
        cpu.ldtr = Segment::null(selector);
        return Ok(());
    }
    if selector.is_local() {
        return Err(cpu.raise(Exception::gp(selector.error_code())));
    }
    let found = cpu.descriptor(selector, Exception::gp)?;
    if !found.segment.is_system(system::LDT) {
        return Err(cpu.raise(Exception::gp(selector.error_code())));
    }
    if !found.segment.usable() {
        return Err(cpu.raise(Exception::np(selector.error_code())));
    }
    let base = found.segment.base | cpu.upper_base(&found, Exception::gp)?;
    cpu.ldtr = Segment { base, ..found.segment };
    Ok(())
}

/// LTR: the TSS becomes busy.
pub(crate) fn ltr(cpu: &mut Cpu, op: &Op) -> Step {
    drain_stores();
    cpu.require_protected()?;
    cpu.require_cpl0()?;
    let selector = selector_operand(cpu, op)?;
    if selector.is_null() {
        return Err(cpu.gp0());
    }
    if selector.is_local() {
        return Err(cpu.raise(Exception::gp(selector.error_code())));
    }
    let found = cpu.descriptor(selector, Exception::gp)?;
    let available = found.segment.is_system(system::TSS_AVAILABLE)
        || found.segment.is_system(system::TSS16_AVAILABLE) && !cpu.long_active();
    if !available {
        return Err(cpu.raise(Exception::gp(selector.error_code())));
    }
    if !found.segment.usable() {
        return Err(cpu.raise(Exception::np(selector.error_code())));
    }
    let base = found.segment.base | cpu.upper_base(&found, Exception::gp)?;
    let slot = cpu.system_slot::<u64>(found.address)?;
    cpu.update_at::<u64>(slot, |raw| raw | u64::from(system::BUSY_BIT) << 40);
    cpu.tr = Segment { base, attr: found.segment.attr | system::BUSY_BIT, ..found.segment };
    Ok(())
}

/// The descriptor that LAR, LSL, VERR and VERW look at, if it is there and visible at this privilege level.
fn visible(cpu: &mut Cpu, selector: Selector) -> Result<Option<Descriptor>, Break> {
    if selector.is_null() {
        return Ok(None);
    }
    let found = match cpu.descriptor(selector, Exception::gp) {
        Ok(found) => found,
        // Beyond the table: not visible. A page fault in the table is a fault all the same.
        Err(_) if cpu.fault.is_some_and(|f| f.cr2.is_none()) => {
            cpu.fault = None;
            return Ok(None);
        }
        Err(fault) => return Err(fault),
    };
    let segment = found.segment;
    let seen = segment.is_conforming() || segment.dpl() >= cpu.cpl.max(selector.rpl());
    Ok(seen.then_some(found))
}

/// System types that LAR (`gates`) and LSL accept (SDM vol. 2, LAR, table 3-53).
fn accepted(cpu: &Cpu, segment: &Segment, gates: bool) -> bool {
    if segment.attr & attr::S != 0 {
        return true;
    }
    let long = cpu.long_active();
    match segment.kind() {
        system::LDT | system::TSS_AVAILABLE | system::TSS_BUSY => true,
        system::TSS16_AVAILABLE | system::TSS16_BUSY => !long,
        system::CALL_GATE => gates,
        system::CALL_GATE16 | system::TASK_GATE => gates && !long,
        _ => false,
    }
}

fn inspect(cpu: &mut Cpu, op: &Op, gates: bool, value: fn(&Descriptor) -> u64) -> Step {
    cpu.require_protected()?;
    let selector = Selector(low16(SrcAny::get::<u16>(cpu, op)?));
    let found = visible(cpu, selector)?.filter(|found| accepted(cpu, &found.segment, gates));
    cpu.put_flag(ZF, found.is_some());
    if let Some(found) = found {
        match op.size {
            2 => cpu.put_reg::<u16>(op.dst, value(&found)),
            4 => cpu.put_reg::<u32>(op.dst, value(&found)),
            _ => cpu.put_reg::<u64>(op.dst, value(&found)),
        }
    }
    Ok(())
}

/// LAR: the second doubleword of the descriptor without base and limit.
pub(crate) fn lar(cpu: &mut Cpu, op: &Op) -> Step {
    inspect(cpu, op, true, |found| found.raw >> 32 & 0x00f0_ff00)
}

/// LSL.
pub(crate) fn lsl(cpu: &mut Cpu, op: &Op) -> Step {
    inspect(cpu, op, false, |found| u64::from(found.segment.limit))
}

fn verify(cpu: &mut Cpu, op: &Op, allowed: fn(&Segment) -> bool) -> Step {
    cpu.require_protected()?;
    let selector = selector_operand(cpu, op)?;
    let found = visible(cpu, selector)?;
    cpu.put_flag(ZF, found.is_some_and(|found| allowed(&found.segment)));
    Ok(())
}

/// VERR.
pub(crate) fn verr(cpu: &mut Cpu, op: &Op) -> Step {
    verify(cpu, op, Segment::readable)
}

/// VERW. (Its side effect on processors, clearing buffers, is the host kernel's business.)
pub(crate) fn verw(cpu: &mut Cpu, op: &Op) -> Step {
    verify(cpu, op, Segment::writable)
}

/// ARPL (outside 64-bit mode).
pub(crate) fn arpl(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_protected()?;
    let source = Selector(low16(cpu.get_reg::<u16>(op.src)));
    let target = Selector(low16(cpu.get::<u16>(op, op.dst)?));
    let raise = target.rpl() < source.rpl();
    if raise {
        cpu.put::<u16>(op, op.dst, u64::from(target.with_rpl(source.rpl()).0))?;
    }
    cpu.put_flag(ZF, raise);
    Ok(())
}

/// BOUND (outside 64-bit mode).
pub(crate) fn bound(cpu: &mut Cpu, op: &Op) -> Step {
    let size = u64::from(op.size);
    let signed = |value| x86::bits::sign_extend(value, low32(size * 8)).cast_signed();
    let index = signed(cpu.reg(op.dst));
    let first = cpu.offset_of(&op.mem);
    // The upper bound is not looked at if the lower one already says no.
    for (limit, upper) in [(first, false), (first.wrapping_add(size) << op.mem.cut >> op.mem.cut, true)] {
        let limit = match size {
            2 => cpu.load_at::<u16>(op.mem.seg, limit)?,
            _ => cpu.load_at::<u32>(op.mem.seg, limit)?,
        };
        let limit = signed(limit);
        if if upper { index > limit } else { index < limit } {
            return Err(cpu.raise(Exception::plain(x86::exception::vector::BR)));
        }
    }
    Ok(())
}
