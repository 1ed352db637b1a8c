//! Every road from an instruction to guest memory.
//!
//! An access goes: effective address → segmentation ([`Cpu::linear`]) → TLB → frame. The first three steps of the
//! common case (64-bit mode, word within a page, TLB hit) are inline; everything else (legacy segmentation, page
//! crossings, misses, MMIO, breakpoints, alignment checks) is one cold call away.
//!
//! An access either happens entirely or faults before any of it happened: a word across two pages translates both
//! before it touches one (SDM vol. 3, 6.6: faults are restartable).

use memory::Word;
use mmu::{Access, Privilege, Target};
use x86::bits::{low32, mask_of};
use x86::exception::vector;
use x86::{Exception, Gfn, Gpa, Gva, Mfn, Mode, PAGE_SIZE, SegmentIndex};

use crate::cpu::Cpu;
use crate::op::{Break, Mem, Op};
use crate::system::misc::drain_stores;
use crate::width::Width;

/// Where a translated access ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// In one frame. After a write through a place that was filled, not looked up, memory is told
    /// ([`memory::GuestMemory::note_write`]); if the frame holds decoded code, the block ends too.
    Frame { mfn: Mfn, offset: u64, gfn: Gfn, note: Note },
    /// In a device.
    Device(Gpa),
    /// Nowhere: writes vanish, reads give ones.
    Nowhere,
}

/// What a write must be followed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// Nothing: the TLB's cached translation accounts for it.
    Nothing,
    /// A word to the dirty log.
    Written,
    /// That, and the current block ends: it may be what was written.
    Code,
}

/// A read-modify-write operand: one place, or two when it crosses a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    first: Place,
    /// The second page's place and how many bytes lie before it.
    second: Option<(Place, u64)>,
}

impl Cpu {
    /// The offset that a memory operand names, cut to the address size.
    #[inline(always)]
    pub(crate) fn offset_of(&self, mem: &Mem) -> u64 {
        let sum =
            self.reg(mem.base).wrapping_add(self.reg(mem.index) << (mem.scale & 3)).wrapping_add(mem.disp);
        sum << mem.cut >> mem.cut
    }

    /// The linear address of `size` bytes at `offset` of a segment.
    #[inline(always)]
    pub(crate) fn linear(&mut self, seg: u8, offset: u64, size: u64, write: bool) -> Result<u64, Break> {
        if self.flat {
            Ok(offset.wrapping_add(self.bases[seg as usize % 8]))
        } else {
            self.linear_legacy(seg, offset, size, write)
        }
    }

    /// Segmentation outside 64-bit mode: type, limit, base (SDM vol. 3, 5.3 and 5.5).
    #[cold]
    fn linear_legacy(&mut self, seg: u8, offset: u64, size: u64, write: bool) -> Result<u64, Break> {
        let index = seg as usize % 8;
        let segment = self.seg.get(index).copied().unwrap_or_default();
        let allowed = if write { segment.writable() } else { segment.readable() };
        // In real and virtual-8086 mode a code segment can be written through: no type check there.
        let allowed = segment.usable() && (allowed || !self.protected());
        if allowed && segment.contains(offset, size) {
            return Ok(u64::from(low32(segment.base.wrapping_add(offset))));
        }
        Err(self.segment_fault(seg))
    }

    /// #SS(0) for the stack segment, #GP(0) for the others.
    pub(crate) fn segment_fault(&mut self, seg: u8) -> Break {
        let stack = seg == SegmentIndex::Ss as u8;
        self.raise(if stack { Exception::ss(0) } else { Exception::gp(0) })
    }

    /// Reads the word that the memory operand names.
    #[inline(always)]
    pub(crate) fn load<W: Width>(&mut self, op: &Op) -> Result<u64, Break> {
        self.load_at::<W>(op.mem.seg, self.offset_of(&op.mem))
    }

    /// Writes the word that the memory operand names.
    #[inline(always)]
    pub(crate) fn store<W: Width>(&mut self, op: &Op, value: u64) -> Result<(), Break> {
        self.store_at::<W>(op.mem.seg, self.offset_of(&op.mem), value)
    }

    /// Reads a word at `offset` of a segment.
    #[inline(always)]
    pub(crate) fn load_at<W: Width>(&mut self, seg: u8, offset: u64) -> Result<u64, Break> {
        let va = self.linear(seg, offset, W::SIZE, false)?;
        self.load_linear::<W>(seg, va)
    }

    /// Writes a word at `offset` of a segment.
    #[inline(always)]
    pub(crate) fn store_at<W: Width>(&mut self, seg: u8, offset: u64, value: u64) -> Result<(), Break> {
        let va = self.linear(seg, offset, W::SIZE, true)?;
        self.store_linear::<W>(seg, va, value)
    }

    #[inline(always)]
    fn load_linear<W: Width>(&mut self, seg: u8, va: u64) -> Result<u64, Break> {
        let at = va % PAGE_SIZE;
        if at <= PAGE_SIZE - W::SIZE
            && !self.careful
            && let Some(mfn) = self.tlb.lookup_read(Gva(va), self.privilege)
        {
            return Ok(self.memory.frames().read::<W>(mfn, at).into_u64());
        }
        self.load_slow::<W>(seg, va)
    }

    #[inline(always)]
    fn store_linear<W: Width>(&mut self, seg: u8, va: u64, value: u64) -> Result<(), Break> {
        let at = va % PAGE_SIZE;
        if at <= PAGE_SIZE - W::SIZE
            && !self.careful
            && let Some(mfn) = self.tlb.lookup_write(Gva(va), self.privilege)
        {
            self.memory.frames().write::<W>(mfn, at, W::from_u64(value));
            return Ok(());
        }
        self.store_slow::<W>(seg, va, value)
    }

    #[cold]
    #[inline(never)]
    fn load_slow<W: Width>(&mut self, seg: u8, va: u64) -> Result<u64, Break> {
        self.check_access(seg, va, W::SIZE, W::SIZE, false)?;
        let slot = self.slot(va, W::SIZE, Access::Read, self.privilege)?;
        Ok(self.read_slot(slot, W::SIZE))
    }

    #[cold]
    #[inline(never)]
    fn store_slow<W: Width>(&mut self, seg: u8, va: u64, value: u64) -> Result<(), Break> {
        self.check_access(seg, va, W::SIZE, W::SIZE, true)?;
        let slot = self.slot(va, W::SIZE, Access::Write, self.privilege)?;
        self.write_slot(slot, W::SIZE, value);
        Ok(())
    }

    /// Canonical form, alignment check and data breakpoints of an explicit access. `align` is the alignment that
    /// #AC demands, in bytes.
    pub(crate) fn check_access(
        &mut self,
        seg: u8,
        va: u64,
        size: u64,
        align: u64,
        write: bool,
    ) -> Result<(), Break> {
        self.check_canonical(seg, va, size)?;
        if self.careful {
            self.check_alignment(va, align)?;
            self.note_breakpoints(va, size, write);
        }
        Ok(())
    }

    /// #GP(0) or #SS(0) unless the whole operand has canonical addresses.
    pub(crate) fn check_canonical(&mut self, seg: u8, va: u64, size: u64) -> Result<(), Break> {
        let last = va.wrapping_add(size - 1);
        if self.flat && !(Gva(va).is_canonical() && Gva(last).is_canonical()) {
            return Err(self.segment_fault(seg));
        }
        Ok(())
    }

    /// #AC(0) for a misaligned address where alignment is checked (SDM vol. 3, 6.15).
    pub(crate) fn check_alignment(&mut self, va: u64, align: u64) -> Result<(), Break> {
        if self.checks_alignment() && !va.is_multiple_of(align.max(1)) {
            return Err(self.raise(Exception::with_error(vector::AC, 0)));
        }
        Ok(())
    }

    /// Whether alignment is checked: at CPL 3 with EFLAGS.AC and CR0.AM.
    pub(crate) fn checks_alignment(&self) -> bool {
        self.cpl == 3 && self.flag(x86::rflags::AC) && self.cr0 & x86::control::cr0::AM != 0
    }

    /// Translates all of `size` bytes (at most a page) at a linear address.
    pub(crate) fn slot(
        &mut self,
        va: u64,
        size: u64,
        access: Access,
        privilege: Privilege,
    ) -> Result<Slot, Break> {
        let before = PAGE_SIZE - va % PAGE_SIZE;
        let first = self.place(va, access, privilege)?;
        let second = if before < size {
            let next = va.wrapping_add(before);
            let next = if self.long_active() { next } else { u64::from(low32(next)) };
            Some((self.place(next, access, privilege)?, before))
        } else {
            None
        };
        Ok(Slot { first, second })
    }

    /// Translates one byte's address.
    pub(crate) fn place(&mut self, va: u64, access: Access, privilege: Privilege) -> Result<Place, Break> {
        let offset = va % PAGE_SIZE;
        match self.tlb.fill(&self.paging, Gva(va), access, privilege) {
            Ok(Target::Ram { mfn, gfn, cached }) => {
                let note = match (access, cached) {
                    (Access::Write, true) => Note::Written,
                    (Access::Write, false) => Note::Code,
                    _ => Note::Nothing,
                };
                Ok(Place::Frame { mfn, offset, gfn, note })
            }
            Ok(Target::Ignore) => Ok(Place::Nowhere),
            Ok(Target::Mmio(gpa)) => Ok(Place::Device(gpa)),
            Err(fault) => Err(self.raise(Exception::page_fault(va, fault.error))),
        }
    }

    /// Reads 1 to 8 bytes.
    pub(crate) fn read_slot(&mut self, slot: Slot, size: u64) -> u64 {
        match slot.second {
            None => self.read_place(slot.first, size),
            Some((second, before)) => {
                let low = self.read_bytes(slot.first, before);
                let high = self.read_bytes(second, size - before);
                low | high << (before * 8)
            }
        }
    }

    /// Writes 1 to 8 bytes.
    pub(crate) fn write_slot(&mut self, slot: Slot, size: u64, value: u64) {
        match slot.second {
            None => self.write_place(slot.first, size, value),
            Some((second, before)) => {
                self.write_bytes(slot.first, before, value);
                self.write_bytes(second, size - before, value >> (before * 8));
            }
        }
    }

    fn read_place(&mut self, place: Place, size: u64) -> u64 {
        let frames = self.memory.frames();
        match place {
            Place::Frame { mfn, offset, .. } => match size {
                1 => frames.read::<u8>(mfn, offset).into_u64(),
                2 => frames.read::<u16>(mfn, offset).into_u64(),
                4 => frames.read::<u32>(mfn, offset).into_u64(),
                8 => frames.read::<u64>(mfn, offset),
                _ => self.read_bytes(place, size),
            },
            Place::Device(gpa) => self.read_device(gpa, size),
            Place::Nowhere => mask_of(low32(size)),
        }
    }

    fn write_place(&mut self, place: Place, size: u64, value: u64) {
        match place {
            Place::Frame { mfn, offset, gfn, note } => {
                let frames = self.memory.frames();
                match size {
                    1 => frames.write(mfn, offset, u8::from_u64(value)),
                    2 => frames.write(mfn, offset, u16::from_u64(value)),
                    4 => frames.write(mfn, offset, u32::from_u64(value)),
                    8 => frames.write(mfn, offset, value),
                    _ => return self.write_bytes(place, size, value),
                }
                self.wrote(gfn, mfn, note, offset, size);
            }
            Place::Device(gpa) => self.write_device(gpa, size, value),
            Place::Nowhere => {}
        }
    }

    fn read_bytes(&mut self, place: Place, count: u64) -> u64 {
        let mut value = 0;
        for i in 0..count {
            value |= self.read_place(step(place, i), 1) << (i * 8);
        }
        value
    }

    fn write_bytes(&mut self, place: Place, count: u64, value: u64) {
        for i in 0..count {
            self.write_place(step(place, i), 1, value >> (i * 8) & 0xff);
        }
    }

    /// After a write to a frame: dirty log, decoded code, and whoever watches.
    #[inline]
    fn wrote(&mut self, gfn: Gfn, mfn: Mfn, note: Note, offset: u64, len: u64) {
        if note != Note::Nothing {
            self.memory.note_write_at(gfn, mfn, offset, len);
            if let Some(written) = &mut self.written {
                written.push(mfn);
            }
        }
        if note == Note::Code {
            self.budget = 0;
        }
    }

    #[cold]
    fn read_device(&mut self, gpa: Gpa, size: u64) -> u64 {
        self.stats.io_accesses += 1;
        let mut data = [0; 8];
        let size = size.min(8);
        self.platform.mmio_read(self.id, gpa, &mut data[..x86::bits::index(size)]);
        u64::from_le_bytes(data) & mask_of(low32(size))
    }

    #[cold]
    fn write_device(&mut self, gpa: Gpa, size: u64, value: u64) {
        self.stats.io_accesses += 1;
        let size = x86::bits::index(size.min(8));
        self.look = true;
        self.platform.mmio_write(self.id, gpa, &value.to_le_bytes()[..size]);
    }

    /// Reads a block of bytes, at most a page, for an instruction with a wide operand; `align` is what #AC demands.
    #[inline]
    pub(crate) fn load_block(
        &mut self,
        seg: u8,
        offset: u64,
        align: u64,
        buffer: &mut [u8],
    ) -> Result<(), Break> {
        let size = buffer.len() as u64;
        let va = self.linear(seg, offset, size, false)?;
        let at = va % PAGE_SIZE;
        if at + size <= PAGE_SIZE
            && !self.careful
            && let Some(mfn) = self.tlb.lookup_read(Gva(va), self.privilege)
        {
            self.memory.frames().copy_out(mfn, at, buffer);
            return Ok(());
        }
        self.load_block_slow(seg, va, align, buffer)
    }

    #[cold]
    fn load_block_slow(&mut self, seg: u8, va: u64, align: u64, buffer: &mut [u8]) -> Result<(), Break> {
        let size = buffer.len() as u64;
        self.check_access(seg, va, size, align, false)?;
        let slot = self.slot(va, size, Access::Read, self.privilege)?;
        self.copy_block(slot, size, |cpu, place, at, len| {
            cpu.read_chunk(place, &mut buffer[at..at + len]);
        });
        Ok(())
    }

    /// Writes a block of bytes, likewise.
    #[inline]
    pub(crate) fn store_block(
        &mut self,
        seg: u8,
        offset: u64,
        align: u64,
        bytes: &[u8],
    ) -> Result<(), Break> {
        let size = bytes.len() as u64;
        let va = self.linear(seg, offset, size, true)?;
        let at = va % PAGE_SIZE;
        if at + size <= PAGE_SIZE
            && !self.careful
            && let Some(mfn) = self.tlb.lookup_write(Gva(va), self.privilege)
        {
            self.memory.frames().copy_in(mfn, at, bytes);
            return Ok(());
        }
        self.store_block_slow(seg, va, align, bytes)
    }

    #[cold]
    fn store_block_slow(&mut self, seg: u8, va: u64, align: u64, bytes: &[u8]) -> Result<(), Break> {
        let size = bytes.len() as u64;
        self.check_access(seg, va, size, align, true)?;
        let slot = self.slot(va, size, Access::Write, self.privilege)?;
        self.copy_block(slot, size, |cpu, place, at, len| {
            cpu.write_chunk(place, &bytes[at..at + len]);
        });
        Ok(())
    }

    /// Checks that a later [`Cpu::store_block`] of the same bytes cannot fault.
    pub(crate) fn probe_block(&mut self, seg: u8, offset: u64, align: u64, size: u64) -> Result<(), Break> {
        let va = self.linear(seg, offset, size, true)?;
        let cached = va % PAGE_SIZE + size <= PAGE_SIZE
            && !self.careful
            && self.tlb.lookup_write(Gva(va), self.privilege).is_some();
        if cached {
            return Ok(());
        }
        self.check_access(seg, va, size, align, true)?;
        self.slot(va, size, Access::Write, self.privilege).map(|_| ())
    }

    fn copy_block(&mut self, slot: Slot, size: u64, mut copy: impl FnMut(&mut Self, Place, usize, usize)) {
        let total = x86::bits::index(size);
        match slot.second {
            None => copy(self, slot.first, 0, total),
            Some((second, before)) => {
                let before = x86::bits::index(before);
                copy(self, slot.first, 0, before);
                copy(self, second, before, total - before);
            }
        }
    }

    fn read_chunk(&mut self, place: Place, buffer: &mut [u8]) {
        if let Place::Frame { mfn, offset, .. } = place {
            return self.memory.frames().copy_out(mfn, offset, buffer);
        }
        for (i, word) in (0..).zip(buffer.chunks_mut(8)) {
            let value = self.read_place(step(place, i * 8), word.len() as u64);
            word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
        }
    }

    fn write_chunk(&mut self, place: Place, bytes: &[u8]) {
        match place {
            Place::Frame { mfn, offset, gfn, note } => {
                self.memory.frames().copy_in(mfn, offset, bytes);
                self.wrote(gfn, mfn, note, offset, bytes.len() as u64);
            }
            Place::Device(gpa) => {
                for (i, word) in (0..).zip(bytes.chunks(8)) {
                    let mut value = [0; 8];
                    value[..word.len()].copy_from_slice(word);
                    self.write_device(gpa + i * 8, word.len() as u64, u64::from_le_bytes(value));
                }
            }
            Place::Nowhere => {}
        }
    }

    /// Locates a read-modify-write operand: faults as a write does, before anything is read.
    #[inline]
    pub(crate) fn modify<W: Width>(&mut self, op: &Op) -> Result<Slot, Break> {
        let offset = self.offset_of(&op.mem);
        let va = self.linear(op.mem.seg, offset, W::SIZE, true)?;
        let at = va % PAGE_SIZE;
        if at <= PAGE_SIZE - W::SIZE
            && !self.careful
            && let Some(mfn) = self.tlb.lookup_write(Gva(va), self.privilege)
        {
            let first = Place::Frame { mfn, offset: at, gfn: Gfn(0), note: Note::Nothing };
            return Ok(Slot { first, second: None });
        }
        self.modify_slow(op.mem.seg, va, W::SIZE)
    }

    #[cold]
    #[inline(never)]
    fn modify_slow(&mut self, seg: u8, va: u64, size: u64) -> Result<Slot, Break> {
        self.check_access(seg, va, size, size, true)?;
        self.slot(va, size, Access::Write, self.privilege)
    }

    /// Reads a located operand.
    #[inline(always)]
    pub(crate) fn read_at<W: Width>(&mut self, slot: Slot) -> u64 {
        match slot {
            Slot { first: Place::Frame { mfn, offset, .. }, second: None } => {
                self.memory.frames().read::<W>(mfn, offset).into_u64()
            }
            _ => self.read_slot(slot, W::SIZE),
        }
    }

    /// Writes a located operand.
    #[inline(always)]
    pub(crate) fn write_at<W: Width>(&mut self, slot: Slot, value: u64) {
        match slot {
            Slot { first: Place::Frame { mfn, offset, gfn, note }, second: None } => {
                self.memory.frames().write::<W>(mfn, offset, W::from_u64(value));
                self.wrote(gfn, mfn, note, offset, W::SIZE);
            }
            _ => self.write_slot(slot, W::SIZE, value),
        }
    }

    /// Replaces a located operand if it still is `old`, atomically, as a full barrier.
    pub(crate) fn exchange_at<W: Width>(&mut self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        match slot {
            Slot { first: Place::Frame { mfn, offset, gfn, note }, second: None } => {
                let frames = self.memory.frames();
                let result = frames.compare_exchange(mfn, offset, W::from_u64(old), W::from_u64(new));
                self.wrote(gfn, mfn, note, offset, W::SIZE);
                result.map(|_| ()).map_err(W::into_u64)
            }
            _ => self.alone(slot, |cpu| {
                let now = cpu.read_slot(slot, W::SIZE);
                if now == old {
                    cpu.write_slot(slot, W::SIZE, new);
                    Ok(())
                } else {
                    Err(now)
                }
            }),
        }
    }

    /// A locked access that no instruction of the host's can make. Two pages need all other vCPUs to stand still; on a
    /// device nothing is atomic, but a barrier it is.
    #[cold]
    fn alone<R>(&mut self, slot: Slot, access: impl FnOnce(&mut Self) -> R) -> R {
        drain_stores();
        let result = if slot.second.is_some() {
            // What was heard of changes is no longer enough: the block ends here.
            self.budget = 0;
            let (memory, seat) = (self.memory.clone(), self.seat.clone());
            memory.alone(&seat, || access(self))
        } else {
            access(self)
        };
        drain_stores();
        result
    }

    /// Applies `update` to a located operand atomically; returns the value before.
    #[inline]
    pub(crate) fn update_at<W: Width>(&mut self, slot: Slot, update: impl Fn(u64) -> u64) -> u64 {
        if !matches!(slot, Slot { first: Place::Frame { .. }, second: None }) {
            // A device's register may read differently each time (a counter that runs), so it is read once.
            return self.alone(slot, |cpu| {
                let old = cpu.read_slot(slot, W::SIZE);
                cpu.write_slot(slot, W::SIZE, update(old));
                old
            });
        }
        let mut old = self.read_at::<W>(slot);
        loop {
            match self.exchange_at::<W>(slot, old, update(old)) {
                Ok(()) => return old,
                Err(now) => old = now,
            }
        }
    }

    /// The same for CMPXCHG16B; `slot` lies in one page because it is aligned.
    pub(crate) fn exchange_128(&mut self, slot: Slot, old: u128, new: u128) -> Result<(), u128> {
        match slot.first {
            Place::Frame { mfn, offset, gfn, note } => {
                let result = self.memory.frames().compare_exchange_128(mfn, offset, old, new);
                self.wrote(gfn, mfn, note, offset, 16);
                result.map(|_| ())
            }
            place => {
                let low = u128::from(self.read_place(place, 8));
                let now = low | u128::from(self.read_place(step(place, 8), 8)) << 64;
                let write = if now == old { new } else { now };
                self.write_place(place, 8, x86::bits::low64(write));
                self.write_place(step(place, 8), 8, x86::bits::high64(write));
                if now == old { Ok(()) } else { Err(now) }
            }
        }
    }

    /// Reads a system structure (descriptor, TSS, IDT): supervisor privilege whatever the CPL, no SMAP override.
    pub(crate) fn load_system<W: Width>(&mut self, va: u64) -> Result<u64, Break> {
        let va = self.system_address(va, W::SIZE)?;
        let slot = self.slot(va, W::SIZE, Access::Read, Privilege::Supervisor)?;
        Ok(self.read_slot(slot, W::SIZE))
    }

    /// Writes a system structure.
    pub(crate) fn store_system<W: Width>(&mut self, va: u64, value: u64) -> Result<(), Break> {
        let slot = self.system_slot::<W>(va)?;
        self.write_slot(slot, W::SIZE, value);
        Ok(())
    }

    /// Locates a system structure to change.
    pub(crate) fn system_slot<W: Width>(&mut self, va: u64) -> Result<Slot, Break> {
        let va = self.system_address(va, W::SIZE)?;
        self.slot(va, W::SIZE, Access::Write, Privilege::Supervisor)
    }

    fn system_address(&mut self, va: u64, size: u64) -> Result<u64, Break> {
        if !self.long_active() {
            return Ok(u64::from(low32(va)));
        }
        if Gva(va).is_canonical() && Gva(va.wrapping_add(size - 1)).is_canonical() {
            Ok(va)
        } else {
            Err(self.gp0())
        }
    }

    /// The width in bytes of stack pointers: by mode and SS.B.
    #[inline]
    pub(crate) fn stack_bytes(&self) -> u32 {
        match self.mode {
            Mode::Long => 8,
            _ if self.segment(SegmentIndex::Ss).big() => 4,
            _ => 2,
        }
    }
}

/// The place `bytes` further on within the same page.
fn step(place: Place, bytes: u64) -> Place {
    match place {
        Place::Frame { mfn, offset, gfn, note } => Place::Frame { mfn, offset: offset + bytes, gfn, note },
        Place::Device(gpa) => Place::Device(gpa + bytes),
        Place::Nowhere => Place::Nowhere,
    }
}
