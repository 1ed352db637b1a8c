//! Descriptors and the loading of segment registers (SDM vol. 3, 3.4 and 5.6; vol. 2, MOV).

use x86::descriptor::attr;
use x86::{Exception, Mode, Segment, SegmentIndex, Selector};

use crate::cpu::Cpu;
use crate::op::{Break, MEMORY, Op, Step};
use crate::operand::{Source, SrcAny};
use crate::width::Width;

/// A descriptor as found in its table.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    /// The linear address it was read from.
    pub(crate) address: u64,
    /// The eight bytes.
    pub(crate) raw: u64,
    /// The parsed form.
    pub(crate) segment: Segment,
}

/// The exception that a bad selector raises, from its error code: #GP, or #TS during a task or stack switch.
pub(crate) type Blame = fn(u32) -> Exception;

impl Cpu {
    /// Reads the descriptor that a selector names.
    pub(crate) fn descriptor(&mut self, selector: Selector, blame: Blame) -> Result<Descriptor, Break> {
        let (base, limit) = if selector.is_local() {
            if !self.ldtr.usable() {
                return Err(self.raise(blame(selector.error_code())));
            }
            (self.ldtr.base, u64::from(self.ldtr.limit))
        } else {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        };
        if selector.offset() + 7 > limit {
            return Err(self.raise(blame(selector.error_code())));
        }
        let address = base.wrapping_add(selector.offset());
        let raw = self.load_system::<u64>(address)?;
        Ok(Descriptor { address, raw, segment: Segment::from_descriptor(selector, raw) })
    }

    /// The upper half of a system descriptor's base in long mode, where it takes two slots of the table.
    pub(crate) fn upper_base(&mut self, found: &Descriptor, blame: Blame) -> Result<u64, Break> {
        if !self.long_active() {
            return Ok(0);
        }
        let selector = found.segment.selector;
        let limit = if selector.is_local() { u64::from(self.ldtr.limit) } else { u64::from(self.gdtr.limit) };
        if selector.offset() + 15 > limit {
            return Err(self.raise(blame(selector.error_code())));
        }
        let high = self.load_system::<u64>(found.address.wrapping_add(8))?;
        if high >> 40 & 0x1f != 0 {
            return Err(self.raise(blame(selector.error_code())));
        }
        Ok(high << 32)
    }

    /// Sets the accessed bit of a code or data descriptor in memory and in its parsed form.
    pub(crate) fn mark_accessed(&mut self, found: &mut Descriptor) -> Result<(), Break> {
        const ACCESSED: u64 = (attr::ACCESSED as u64) << 40;
        if found.raw & ACCESSED == 0 {
            let slot = self.system_slot::<u64>(found.address)?;
            self.update_at::<u64>(slot, |raw| raw | ACCESSED);
            found.raw |= ACCESSED;
            found.segment.attr |= attr::ACCESSED;
        }
        Ok(())
    }

    /// Loads a segment register other than CS, as MOV and POP do.
    pub(crate) fn load_segment(&mut self, index: SegmentIndex, selector: Selector) -> Result<(), Break> {
        let segment = match self.mode {
            Mode::Real => self.real_segment(index, selector),
            Mode::V86 => v86_segment(selector),
            mode if index == SegmentIndex::Ss => {
                self.stack_segment(selector, self.cpl, mode == Mode::Long, Exception::gp)?
            }
            _ => self.data_segment(selector, Exception::gp)?,
        };
        self.seg[index as usize] = segment;
        self.refresh();
        Ok(())
    }

    /// What a load in real mode gives: the base changes, limit and attributes stay.
    pub(crate) fn real_segment(&self, index: SegmentIndex, selector: Selector) -> Segment {
        Segment { selector, base: u64::from(selector.0) << 4, ..self.seg[index as usize] }
    }

    /// Checks a selector for SS at privilege level `cpl`, of `long` (64-bit) code or other.
    pub(crate) fn stack_segment(
        &mut self,
        selector: Selector,
        cpl: u8,
        long: bool,
        blame: Blame,
    ) -> Result<Segment, Break> {
        if selector.is_null() {
            // 64-bit mode runs on a null SS below CPL 3 (SDM vol. 3, 5.4.1).
            if long && cpl < 3 && selector.rpl() == cpl {
                return Ok(null_stack(selector, cpl));
            }
            return Err(self.raise(blame(0)));
        }
        let mut found = self.descriptor(selector, blame)?;
        let segment = found.segment;
        if selector.rpl() != cpl || !segment.writable() || segment.dpl() != cpl {
            return Err(self.raise(blame(selector.error_code())));
        }
        if !segment.usable() {
            return Err(self.raise(Exception::ss(selector.error_code())));
        }
        self.mark_accessed(&mut found)?;
        Ok(found.segment)
    }

    /// Checks a selector for DS, ES, FS or GS.
    pub(crate) fn data_segment(&mut self, selector: Selector, blame: Blame) -> Result<Segment, Break> {
        if selector.is_null() {
            return Ok(Segment::null(selector));
        }
        let mut found = self.descriptor(selector, blame)?;
        let segment = found.segment;
        let privileged = self.cpl.max(selector.rpl()) > segment.dpl() && !segment.is_conforming();
        if !segment.readable() || privileged {
            return Err(self.raise(blame(selector.error_code())));
        }
        if !segment.usable() {
            return Err(self.raise(Exception::np(selector.error_code())));
        }
        self.mark_accessed(&mut found)?;
        Ok(found.segment)
    }

    /// After a return to an outer ring: data segments that it may not see become null (SDM vol. 2, RET).
    pub(crate) fn drop_privileged_segments(&mut self) {
        use SegmentIndex::{Ds, Es, Fs, Gs};
        for index in [Es, Ds, Fs, Gs] {
            let segment = self.seg[index as usize];
            let guarded = segment.is_data() || segment.is_code() && !segment.is_conforming();
            if segment.usable() && guarded && segment.dpl() < self.cpl {
                self.seg[index as usize] = Segment::null(Selector(0));
            }
        }
    }
}

/// A null SS still carries the privilege level.
pub(crate) fn null_stack(selector: Selector, cpl: u8) -> Segment {
    Segment { attr: u16::from(cpl) << attr::DPL_SHIFT, ..Segment::null(selector) }
}

/// Any segment register in virtual-8086 mode (SDM vol. 3, 21.2.1).
pub(crate) fn v86_segment(selector: Selector) -> Segment {
    let mut segment = Segment::real(selector.0);
    segment.attr |= 3 << attr::DPL_SHIFT;
    segment
}

/// The segment register that an operand code names.
fn index_of(code: u8) -> Option<SegmentIndex> {
    SegmentIndex::ALL.get(code as usize).copied()
}

fn load_into(cpu: &mut Cpu, code: u8, selector: u64) -> Step {
    let Some(index) = index_of(code).filter(|&i| i != SegmentIndex::Cs) else { return Err(cpu.ud()) };
    cpu.load_segment(index, Selector(x86::bits::low16(selector)))?;
    // Interrupts and debug traps wait until the stack pointer is loaded too (SDM vol. 3, 6.8.3).
    cpu.pending.mov_ss_shadow = index == SegmentIndex::Ss;
    cpu.look = true;
    Ok(())
}

/// MOV to a segment register.
pub(crate) fn mov_to_segment(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = SrcAny::get::<u16>(cpu, op)?;
    load_into(cpu, op.dst, selector)
}

/// POP of a segment register.
pub(crate) fn pop_segment<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.peek::<W>(0)?;
    let width = cpu.stack_bytes();
    let top = cpu.stack_pointer().wrapping_add(W::SIZE) & x86::bits::mask_of(width);
    load_into(cpu, op.dst, selector)?;
    // The pointer is as wide as the stack was before the load.
    match width {
        2 => cpu.put_reg::<u16>(4, top),
        4 => cpu.put_reg::<u32>(4, top),
        _ => cpu.put_reg::<u64>(4, top),
    }
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS: the segment register is [`Op::src2`].
pub(crate) fn load_far_pointer<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    debug_assert_eq!(op.src, MEMORY);
    let offset = cpu.offset_of(&op.mem);
    let pointer = cpu.load_at::<W>(op.mem.seg, offset)?;
    let selector = cpu.load_at::<u16>(op.mem.seg, offset.wrapping_add(W::SIZE))?;
    load_into(cpu, op.src2, selector)?;
    cpu.pending.mov_ss_shadow = false;
    cpu.put_reg::<W>(op.dst, pointer);
    Ok(())
}
