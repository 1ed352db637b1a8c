//! String instructions and their repetition.
//!
//! A repeated string instruction is a loop whose state lives in RCX, RSI and RDI, so it can stop between any two
//! elements: for a fault (which then belongs to the element at hand) and for an interrupt. [`repeat`] runs elements
//! until the count is used up, the comparison ends it, or somebody kicks; in the last case the instruction reports
//! [`Break::Again`] and RIP stays on it (SDM vol. 2, REP).
//!
//! MOVS and STOS that go upward between ordinary frames move runs of bytes within a page at once.

use x86::rflags::{DF, ZF};
use x86::{Gva, PAGE_SIZE, SegmentIndex};

use crate::alu;
use crate::cpu::Cpu;
use crate::op::{Break, Op, Step, prefix};
use crate::width::Width;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;
const ES: u8 = SegmentIndex::Es as u8;

impl Cpu {
    #[inline(always)]
    fn address_reg(&self, op: &Op, slot: u8) -> u64 {
        self.reg(slot) << op.mem.cut >> op.mem.cut
    }

    #[inline(always)]
    fn advance<W: Width>(&mut self, op: &Op, slot: u8) {
        let value = self.reg(slot);
        let next = if self.flag(DF) { value.wrapping_sub(W::SIZE) } else { value.wrapping_add(W::SIZE) };
        self.put_address_reg(op, slot, next);
    }
}

/// What one turn of a repetition did.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// One element; go on.
    Continue,
    /// One element; the comparison ends the repetition.
    Stop,
    /// A run of elements; go on.
    Ran(u64),
}

/// Runs `element` once, or as often as RCX says.
#[inline(always)]
fn repeat(cpu: &mut Cpu, op: &Op, mut element: impl FnMut(&mut Cpu, &Op) -> Result<Next, Break>) -> Step {
    if op.prefix & (prefix::REP | prefix::REPNE) == 0 {
        return element(cpu, op).map(|_| ());
    }
    loop {
        let count = cpu.address_reg(op, RCX);
        if count == 0 {
            return Ok(());
        }
        let next = element(cpu, op)?;
        let done = if let Next::Ran(elements) = next { elements } else { 1 };
        cpu.put_address_reg(op, RCX, count - done);
        if next == Next::Stop {
            return Ok(());
        }
        if cpu.kick.is_raised() || cpu.budget == 0 || cpu.flag(x86::rflags::TF) || cpu.watch_hits != 0 {
            break;
        }
    }
    if cpu.address_reg(op, RCX) == 0 { Ok(()) } else { Err(Break::Again) }
}

/// Elements that can move in one piece from `offset`: to the end of the page, and no more than RCX says.
fn run_length<W: Width>(cpu: &Cpu, op: &Op, vas: &[u64]) -> u64 {
    let count = cpu.address_reg(op, RCX);
    vas.iter().map(|va| (PAGE_SIZE - va % PAGE_SIZE) / W::SIZE).fold(count, u64::min)
}

/// Whether runs may be moved at once: repeated, upward, 64-bit flat addressing, nothing to watch.
fn bulk_possible(cpu: &Cpu, op: &Op) -> bool {
    op.prefix & prefix::REP != 0
        && cpu.flat
        && op.mem.cut == 0
        && !cpu.careful
        && !cpu.flag(DF)
        && !cpu.flag(x86::rflags::TF)
}

fn finish_run<W: Width>(cpu: &mut Cpu, elements: u64, slots: &[u8]) -> Option<Next> {
    for &slot in slots {
        let value = cpu.reg(slot).wrapping_add(elements * W::SIZE);
        *cpu.reg_mut(slot) = value;
    }
    Some(Next::Ran(elements))
}

/// Moves one run of a REP MOVS; `None` if it has to go element by element.
fn movs_run<W: Width>(cpu: &mut Cpu, op: &Op) -> Option<Next> {
    let from = cpu.reg(RSI).wrapping_add(cpu.bases[op.mem.seg as usize % 8]);
    let to = cpu.reg(RDI);
    let elements = run_length::<W>(cpu, op, &[from, to]);
    let bytes = elements * W::SIZE;
    // A destination just above the source repeats a pattern: only element by element gives that.
    if elements < 2 || to.wrapping_sub(from) < bytes {
        return None;
    }
    let source = cpu.tlb.lookup_read(Gva(from), cpu.privilege)?;
    let target = cpu.tlb.lookup_write(Gva(to), cpu.privilege)?;
    let mut buffer = [0; x86::bits::index(PAGE_SIZE)];
    let piece = buffer.get_mut(..x86::bits::index(bytes))?;
    cpu.memory.frames().copy_out(source, from % PAGE_SIZE, piece);
    cpu.memory.frames().copy_in(target, to % PAGE_SIZE, piece);
    finish_run::<W>(cpu, elements, &[RSI, RDI])
}

/// Fills one run of a REP STOS, likewise.
fn stos_run<W: Width>(cpu: &mut Cpu, op: &Op) -> Option<Next> {
    let to = cpu.reg(RDI);
    let elements = run_length::<W>(cpu, op, &[to]);
    if elements < 2 {
        return None;
    }
    let target = cpu.tlb.lookup_write(Gva(to), cpu.privilege)?;
    let mut buffer = [0; x86::bits::index(PAGE_SIZE)];
    let bytes = x86::bits::index(elements * W::SIZE);
    let pattern = cpu.reg(RAX).to_le_bytes();
    let width = x86::bits::index(W::SIZE);
    let piece = buffer.get_mut(..bytes)?;
    for chunk in piece.chunks_exact_mut(width) {
        chunk.copy_from_slice(&pattern[..width]);
    }
    cpu.memory.frames().copy_in(target, to % PAGE_SIZE, piece);
    finish_run::<W>(cpu, elements, &[RDI])
}

/// MOVS.
pub(crate) fn movs<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let bulk = bulk_possible(cpu, op);
    repeat(cpu, op, |cpu, op| {
        if let Some(run) = bulk.then(|| movs_run::<W>(cpu, op)).flatten() {
            return Ok(run);
        }
        let value = cpu.load_at::<W>(op.mem.seg, cpu.address_reg(op, RSI))?;
        cpu.store_at::<W>(ES, cpu.address_reg(op, RDI), value)?;
        cpu.advance::<W>(op, RSI);
        cpu.advance::<W>(op, RDI);
        Ok(Next::Continue)
    })
}

/// STOS.
pub(crate) fn stos<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let bulk = bulk_possible(cpu, op);
    repeat(cpu, op, |cpu, op| {
        if let Some(run) = bulk.then(|| stos_run::<W>(cpu, op)).flatten() {
            return Ok(run);
        }
        cpu.store_at::<W>(ES, cpu.address_reg(op, RDI), cpu.reg(RAX))?;
        cpu.advance::<W>(op, RDI);
        Ok(Next::Continue)
    })
}

/// LODS.
pub(crate) fn lods<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    repeat(cpu, op, |cpu, op| {
        let value = cpu.load_at::<W>(op.mem.seg, cpu.address_reg(op, RSI))?;
        cpu.put_reg::<W>(RAX, value);
        cpu.advance::<W>(op, RSI);
        Ok(Next::Continue)
    })
}

/// REPE goes on while equal, REPNE while not; without a prefix it does not matter.
fn while_equal(cpu: &Cpu, op: &Op) -> Next {
    let wanted = op.prefix & prefix::REPNE == 0;
    if cpu.flag(ZF) == wanted { Next::Continue } else { Next::Stop }
}

/// Repeats a comparison. A fault gives the flags back that were there before the instruction, whatever the elements
/// compared so far made of them (SDM vol. 2, REP).
#[inline(always)]
fn repeat_comparison(
    cpu: &mut Cpu,
    op: &Op,
    element: impl FnMut(&mut Cpu, &Op) -> Result<Next, Break>,
) -> Step {
    let before = cpu.flags;
    let result = repeat(cpu, op, element);
    if result == Err(Break::Fault) {
        cpu.flags = before;
    }
    result
}

/// SCAS.
pub(crate) fn scas<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    repeat_comparison(cpu, op, |cpu, op| {
        let value = cpu.load_at::<W>(ES, cpu.address_reg(op, RDI))?;
        let (_, flags) = alu::sub::<W>(cpu.reg(RAX) & W::MASK, value, 0);
        cpu.set_status(flags);
        cpu.advance::<W>(op, RDI);
        Ok(while_equal(cpu, op))
    })
}

/// CMPS.
pub(crate) fn cmps<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    repeat_comparison(cpu, op, |cpu, op| {
        // In this order, as processors do: which address a fault reports is seen.
        let b = cpu.load_at::<W>(ES, cpu.address_reg(op, RDI))?;
        let a = cpu.load_at::<W>(op.mem.seg, cpu.address_reg(op, RSI))?;
        let (_, flags) = alu::sub::<W>(a, b, 0);
        cpu.set_status(flags);
        cpu.advance::<W>(op, RSI);
        cpu.advance::<W>(op, RDI);
        Ok(while_equal(cpu, op))
    })
}

/// INS: the destination must be writable before the port is read, since reading a port has effects.
pub(crate) fn ins<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_port(cpu.reg(2), W::SIZE)?;
    repeat(cpu, op, |cpu, op| {
        let offset = cpu.address_reg(op, RDI);
        let va = cpu.linear(ES, offset, W::SIZE, true)?;
        cpu.check_access(ES, va, W::SIZE, W::SIZE, true)?;
        let slot = cpu.slot(va, W::SIZE, mmu::Access::Write, cpu.privilege)?;
        let value = cpu.port_in::<W>(cpu.reg(2));
        cpu.write_slot(slot, W::SIZE, value);
        cpu.advance::<W>(op, RDI);
        Ok(Next::Continue)
    })
}

/// OUTS.
pub(crate) fn outs<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_port(cpu.reg(2), W::SIZE)?;
    repeat(cpu, op, |cpu, op| {
        let value = cpu.load_at::<W>(op.mem.seg, cpu.address_reg(op, RSI))?;
        cpu.port_out::<W>(cpu.reg(2), value);
        cpu.advance::<W>(op, RSI);
        Ok(Next::Continue)
    })
}
