//! IRET in every direction (SDM vol. 2, IRET).

use x86::rflags::{AC, AF, CF, DF, ID, IF, IOPL, NT, OF, PF, RF, SF, TF, VIF, VIP, VM, ZF};
use x86::{Mode, SegmentIndex, Selector};

use crate::cpu::Cpu;
use crate::op::{Break, Op, Step};
use crate::system::misc::drain_stores;
use crate::system::segment::v86_segment;

const CS: usize = SegmentIndex::Cs as usize;

/// Flags that any IRET restores.
const COMMON: u64 = CF | PF | AF | ZF | SF | TF | DF | OF | NT;

impl Cpu {
    /// Restores RFLAGS from an image of `size` bytes, as far as privilege level `cpl` (from before) lets it.
    fn restore_flags(&mut self, image: u64, size: u8, cpl: u8) {
        let mut allowed = COMMON;
        if size > 2 {
            allowed |= RF | AC | ID;
        }
        if cpl <= self.iopl() {
            allowed |= IF;
        }
        if cpl == 0 {
            allowed |= IOPL;
            if size > 2 {
                allowed |= VIF | VIP;
            }
        }
        self.set_flags(allowed, image);
    }

    fn iret_real(&mut self, size: u8) -> Step {
        let rip = self.pop_sized(size)?;
        let selector = Selector(x86::bits::low16(self.pop_sized(size)?));
        let image = self.pop_sized(size)?;
        if rip > u64::from(self.seg[CS].limit) {
            return Err(self.gp0());
        }
        if self.mode == Mode::V86 {
            self.seg[CS] = v86_segment(selector);
            let mut allowed = COMMON | IF;
            if size > 2 {
                allowed |= RF | AC | ID;
            }
            self.set_flags(allowed, image);
        } else {
            self.seg[CS] = self.real_segment(SegmentIndex::Cs, selector);
            self.restore_flags(image, size, 0);
        }
        self.set_rip(rip);
        Ok(())
    }

    fn iret_v86(&mut self, size: u8) -> Step {
        if self.iopl() == 3 {
            return self.iret_real(size);
        }
        if size != 2 || self.cr4 & x86::control::cr4::VME == 0 {
            return Err(self.gp0());
        }
        let rip = self.pop_sized(2)?;
        let selector = Selector(x86::bits::low16(self.pop_sized(2)?));
        let image = self.pop_sized(2)?;
        if image & TF != 0 || image & IF != 0 && self.flag(VIP) {
            return Err(self.gp0());
        }
        self.set_flags(COMMON, image);
        self.put_flag(VIF, image & IF != 0);
        self.seg[CS] = v86_segment(selector);
        self.set_rip(rip);
        Ok(())
    }

    /// From CPL 0 into virtual-8086 mode; RIP, CS and flags are off the stack.
    fn enter_v86(&mut self, rip: u64, selector: Selector, image: u64) -> Step {
        let pointer = self.pop::<u32>()?;
        let mut selectors = [0; 5];
        for slot in &mut selectors {
            *slot = self.pop::<u32>()?;
        }
        let allowed = COMMON | RF | AC | ID | IF | IOPL | VIF | VIP | VM;
        self.set_flags(allowed, image);
        use SegmentIndex::{Ds, Es, Fs, Gs, Ss};
        for (index, value) in [Ss, Es, Ds, Fs, Gs].into_iter().zip(selectors) {
            self.seg[index as usize] = v86_segment(Selector(x86::bits::low16(value)));
        }
        self.seg[CS] = v86_segment(selector);
        self.set_rip(rip & 0xffff);
        self.regs[4] = pointer;
        Ok(())
    }

    fn iret_protected(&mut self, size: u8) -> Step {
        if self.flag(NT) {
            return if self.long_active() { Err(self.gp0()) } else { self.return_task() };
        }
        let rip = self.pop_sized(size)?;
        let selector = Selector(x86::bits::low16(self.pop_sized(size)?));
        let image = self.pop_sized(size)?;
        if image & VM != 0 && self.cpl == 0 && size == 4 && !self.long_active() {
            return self.enter_v86(rip, selector, image);
        }
        let before = self.cpl;
        let from_long = self.mode == Mode::Long;
        let mut code = self.return_code(selector)?;
        let cpl = selector.rpl();
        // 64-bit IRET always pops SS:RSP, others only for an outer ring.
        if from_long || cpl > before {
            let pointer = self.pop_sized(size)?;
            let stack = Selector(x86::bits::low16(self.pop_sized(size)?));
            self.enter_code(&mut code, cpl, rip)?;
            self.restore_flags(image, size, before);
            self.return_stack(stack, pointer, cpl)?;
            if cpl > before {
                self.drop_privileged_segments();
            }
            return Ok(());
        }
        self.enter_code(&mut code, cpl, rip)?;
        self.restore_flags(image, size, before);
        Ok(())
    }
}

/// IRET, IRETD, IRETQ.
pub(crate) fn iret(cpu: &mut Cpu, op: &Op) -> Step {
    drain_stores();
    let result: Result<(), Break> = cpu.transact(|cpu| match cpu.mode {
        Mode::Real => cpu.iret_real(op.size),
        Mode::V86 => cpu.iret_v86(op.size),
        _ => cpu.iret_protected(op.size),
    });
    if result.is_ok() {
        cpu.pending.nmi_blocked = false;
        cpu.look = true;
    }
    result
}
