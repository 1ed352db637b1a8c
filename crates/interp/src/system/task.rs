//! Hardware task switches (SDM vol. 3, chapter 8). There are none in long mode.
//!
//! The order follows SDM vol. 3, 8.3: checks in the old task, its state saved, the new state read in one go, busy
//! and nested-task bits set, TR loaded (the commit), then the new task's segments loaded one by one. A fault after
//! the commit belongs to the new task and is delivered there; so it must not be rolled back, and the surrounding
//! transaction is told success while the fault waits in `pending`.

use x86::control::cr0;
use x86::descriptor::{attr, system};
use x86::rflags::{NT, VM};
use x86::{Exception, Segment, SegmentIndex, Selector};

use crate::cpu::Cpu;
use crate::op::{Break, Step};
use crate::system::segment::{Descriptor, v86_segment};

/// What causes the switch, which decides about busy bits, the back link and NT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// JMP.
    Jump,
    /// CALL, or an event through a task gate: nests.
    Call,
    /// IRET with NT: returns from a nested task.
    Return,
}

const CS: usize = SegmentIndex::Cs as usize;
const SS: usize = SegmentIndex::Ss as usize;

/// Where the fields of a TSS are.
struct Layout {
    cr3: Option<u64>,
    rip: u64,
    word: u64,
    selectors: u64,
    selector_step: u64,
    ldt: u64,
    size: u64,
}

const TSS32: Layout =
    Layout { cr3: Some(0x1c), rip: 0x20, word: 4, selectors: 0x48, selector_step: 4, ldt: 0x60, size: 0x68 };
const TSS16: Layout =
    Layout { cr3: None, rip: 0x0e, word: 2, selectors: 0x22, selector_step: 2, ldt: 0x2a, size: 0x2c };

fn layout(tss: &Segment) -> &'static Layout {
    if tss.kind() & 8 != 0 { &TSS32 } else { &TSS16 }
}

/// The state of the task being entered, as its TSS has it.
struct Incoming {
    cr3: Option<u64>,
    rip: u64,
    flags: u64,
    gpr: [u64; 8],
    /// ES, CS, SS, DS, FS, GS.
    selectors: [Selector; 6],
    ldt: Selector,
    trap: bool,
}

const BUSY: u64 = (system::BUSY_BIT as u64) << 40;

impl Cpu {
    /// A far jump or call to a TSS or task gate; #GP for any other descriptor.
    pub(crate) fn jump_task(&mut self, found: &Descriptor, entry: Entry) -> Step {
        let segment = found.segment;
        let code = segment.selector.error_code();
        let is_tss = segment.is_system(system::TSS_AVAILABLE) || segment.is_system(system::TSS16_AVAILABLE);
        let is_gate = segment.is_system(system::TASK_GATE);
        if self.long_active() || !(is_tss || is_gate) {
            return Err(self.raise(Exception::gp(code)));
        }
        if segment.dpl() < self.cpl.max(segment.selector.rpl()) {
            return Err(self.raise(Exception::gp(code)));
        }
        if !segment.usable() {
            return Err(self.raise(Exception::np(code)));
        }
        if is_tss {
            return self.switch_task(*found, entry, None);
        }
        let target = Selector(x86::bits::low16(found.raw >> 16));
        self.gate_task(target, entry, None)
    }

    /// An event through a task gate.
    pub(crate) fn interrupt_task(&mut self, target: Selector, error: Option<u32>) -> Step {
        self.gate_task(target, Entry::Call, error)
    }

    fn gate_task(&mut self, target: Selector, entry: Entry, error: Option<u32>) -> Step {
        if target.is_local() {
            return Err(self.raise(Exception::gp(target.error_code())));
        }
        let found = self.descriptor(target, Exception::gp)?;
        let segment = found.segment;
        if !segment.is_system(system::TSS_AVAILABLE) && !segment.is_system(system::TSS16_AVAILABLE) {
            return Err(self.raise(Exception::gp(target.error_code())));
        }
        if !segment.usable() {
            return Err(self.raise(Exception::np(target.error_code())));
        }
        self.switch_task(found, entry, error)
    }

    /// IRET with NT set: back along the link.
    pub(crate) fn return_task(&mut self) -> Step {
        let link = Selector(x86::bits::low16(self.load_system::<u16>(self.tr.base)?));
        if link.is_local() {
            return Err(self.raise(Exception::ts(link.error_code())));
        }
        let found = self.descriptor(link, Exception::ts)?;
        let segment = found.segment;
        if !segment.is_system(system::TSS_BUSY) && !segment.is_system(system::TSS16_BUSY) {
            return Err(self.raise(Exception::ts(link.error_code())));
        }
        if !segment.usable() {
            return Err(self.raise(Exception::np(link.error_code())));
        }
        self.switch_task(found, Entry::Return, None)
    }

    fn switch_task(&mut self, target: Descriptor, entry: Entry, error: Option<u32>) -> Step {
        let new_layout = layout(&target.segment);
        if u64::from(target.segment.limit) < new_layout.size - 1 {
            return Err(self.raise(Exception::ts(target.segment.selector.error_code())));
        }
        let old = self.tr;
        let incoming = self.read_task(&target.segment, new_layout)?;
        self.save_task(entry)?;
        self.mark_busy(&target, &old, entry)?;
        self.commit_task(&target, &incoming, entry);
        if let Some(error) = error {
            let pushed = if new_layout.word == 4 {
                self.push::<u32>(u64::from(error))
            } else {
                self.push::<u16>(u64::from(error))
            };
            self.defer_fault(pushed);
        }
        Ok(())
    }

    fn task_word(&mut self, base: u64, at: u64, layout: &Layout) -> Result<u64, Break> {
        let address = base.wrapping_add(at);
        if layout.word == 4 { self.load_system::<u32>(address) } else { self.load_system::<u16>(address) }
    }

    fn read_task(&mut self, tss: &Segment, layout: &Layout) -> Result<Incoming, Break> {
        let base = tss.base;
        let cr3 = match layout.cr3 {
            Some(at) if self.cr0 & cr0::PG != 0 => Some(self.load_system::<u32>(base.wrapping_add(at))?),
            _ => None,
        };
        let rip = self.task_word(base, layout.rip, layout)?;
        let flags = self.task_word(base, layout.rip + layout.word, layout)?;
        let mut gpr = [0; 8];
        for (i, register) in (2..).zip(&mut gpr) {
            *register = self.task_word(base, layout.rip + i * layout.word, layout)?;
        }
        let mut selectors = [Selector(0); 6];
        let present = if layout.word == 4 { 6 } else { 4 };
        for (i, selector) in (0..).zip(selectors.iter_mut().take(present)) {
            let at = layout.selectors + i * layout.selector_step;
            *selector = Selector(x86::bits::low16(self.load_system::<u16>(base.wrapping_add(at))?));
        }
        let ldt = Selector(x86::bits::low16(self.load_system::<u16>(base.wrapping_add(layout.ldt))?));
        let trap = layout.word == 4 && self.load_system::<u16>(base.wrapping_add(0x64))? & 1 != 0;
        Ok(Incoming { cr3, rip, flags, gpr, selectors, ldt, trap })
    }

    fn save_task(&mut self, entry: Entry) -> Step {
        let tss = self.tr;
        let layout = layout(&tss);
        let mut image = self.flags;
        if entry == Entry::Return {
            image &= !NT;
        }
        let words = [self.rip(), image].into_iter().chain(self.regs[..8].to_vec());
        for (i, value) in (0..).zip(words) {
            let at = tss.base.wrapping_add(layout.rip + i * layout.word);
            if layout.word == 4 {
                self.store_system::<u32>(at, value & 0xffff_ffff)?;
            } else {
                self.store_system::<u16>(at, value & 0xffff)?;
            }
        }
        let present = if layout.word == 4 { 6 } else { 4 };
        for (i, segment) in (0..).zip(self.seg.into_iter().take(present)) {
            let at = tss.base.wrapping_add(layout.selectors + i * layout.selector_step);
            self.store_system::<u16>(at, u64::from(segment.selector.0))?;
        }
        Ok(())
    }

    /// Busy bits and the back link.
    fn mark_busy(&mut self, target: &Descriptor, old: &Segment, entry: Entry) -> Step {
        if entry != Entry::Call {
            let address = self.gdtr.base.wrapping_add(old.selector.offset());
            let slot = self.system_slot::<u64>(address)?;
            self.update_at::<u64>(slot, |raw| raw & !BUSY);
        }
        if entry != Entry::Return {
            let slot = self.system_slot::<u64>(target.address)?;
            self.update_at::<u64>(slot, |raw| raw | BUSY);
        }
        if entry == Entry::Call {
            self.store_system::<u16>(target.segment.base, u64::from(old.selector.0))?;
        }
        Ok(())
    }

    /// The new task's state. From here on faults are its own.
    fn commit_task(&mut self, target: &Descriptor, incoming: &Incoming, entry: Entry) {
        self.tr = Segment { attr: target.segment.attr | system::BUSY_BIT, ..target.segment };
        self.cr0 |= cr0::TS;
        self.look = true;
        if let Some(cr3) = incoming.cr3 {
            self.load_cr3(cr3);
        }
        let nested = if entry == Entry::Call { NT } else { 0 };
        self.flags = incoming.flags & x86::rflags::ALL | x86::rflags::FIXED | nested;
        for (slot, value) in (0..).zip(incoming.gpr) {
            *self.reg_mut(slot) = value;
        }
        self.set_rip(incoming.rip);
        self.dr7 &= !0x155;
        let loaded = self.load_task_segments(incoming);
        self.defer_fault(loaded);
        if incoming.trap && self.pending.exception.is_none() {
            self.pending.exception = Some(Exception::debug(x86::control::dr6::BT));
        }
    }

    /// A fault after the commit waits until the switch is over.
    fn defer_fault(&mut self, result: Step) {
        if result.is_err() && self.pending.exception.is_none() {
            self.pending.exception = self.fault.take();
            self.look = true;
        }
    }

    fn load_task_segments(&mut self, incoming: &Incoming) -> Step {
        self.load_task_ldt(incoming.ldt)?;
        use SegmentIndex::{Ds, Es, Fs, Gs};
        if self.flags & VM != 0 {
            for (segment, selector) in self.seg.iter_mut().zip(incoming.selectors) {
                *segment = v86_segment(selector);
            }
            self.refresh();
            return Ok(());
        }
        let [es, cs, ss, ds, fs, gs] = incoming.selectors;
        // Until it is loaded, a register holds its selector and nothing usable.
        for (segment, selector) in self.seg.iter_mut().zip(incoming.selectors) {
            *segment = Segment::null(selector);
        }
        let cpl = cs.rpl();
        self.seg[SS].attr = u16::from(cpl) << attr::DPL_SHIFT;
        let mut code = self.descriptor(cs, Exception::ts)?;
        let fits =
            if code.segment.is_conforming() { code.segment.dpl() <= cpl } else { code.segment.dpl() == cpl };
        if cs.is_null() || !code.segment.is_code() || !fits {
            return Err(self.raise(Exception::ts(cs.error_code())));
        }
        if !code.segment.usable() {
            return Err(self.raise(Exception::np(cs.error_code())));
        }
        self.mark_accessed(&mut code)?;
        self.seg[CS] = code.segment;
        self.seg[SS] = self.stack_segment(ss, cpl, false, Exception::ts)?;
        self.refresh();
        for (index, selector) in [(Es, es), (Ds, ds), (Fs, fs), (Gs, gs)] {
            self.seg[index as usize] = self.data_segment(selector, Exception::ts)?;
        }
        self.refresh();
        if self.rip() > u64::from(self.seg[CS].limit) {
            return Err(self.gp0());
        }
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: Selector) -> Step {
        self.ldtr = Segment::null(selector);
        if selector.is_null() {
            return Ok(());
        }
        if selector.is_local() {
            return Err(self.raise(Exception::ts(selector.error_code())));
        }
        let found = self.descriptor(selector, Exception::ts)?;
        if !found.segment.is_system(system::LDT) || !found.segment.usable() {
            return Err(self.raise(Exception::ts(selector.error_code())));
        }
        self.ldtr = found.segment;
        Ok(())
    }
}
