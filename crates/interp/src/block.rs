//! Decoded code.
//!
//! A block is a straight run of instructions within one frame, ending where control may go elsewhere or where the
//! processor's state may change what follows. Blocks are found by frame, offset and code size: not by virtual address, so
//! that a frame mapped many times is decoded once, and a change of mapping cannot run the wrong code.
//!
//! The cache is direct-mapped and bounded; a block that loses its slot is decoded again when it is met again. Writes to
//! decoded code are noticed through the frame's version ([`memory::GuestMemory::watch_code`]): the version is taken
//! before the bytes are read, and a block runs only while it is unchanged. As long as others may still write the frame
//! without saying so ([`memory::shootdown`]), instructions are decoded one by one and not kept.
//!
//! An instruction that crosses into the next page depends on two mappings and is decoded each time it runs.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};
use memory::Watch;
use mmu::{Access, Privilege};
use x86::bits::{index, low32};
use x86::{Gva, Mfn, Mode, PAGE_SHIFT, PAGE_SIZE};

use crate::access::Place;
use crate::cpu::Cpu;
use crate::lower::{self, Lowered};
use crate::op::{Break, Op};

/// Instructions in a block at the most.
pub(crate) const MAX_OPS: usize = 32;
/// Blocks in the cache.
const SLOTS: usize = 1 << 15;
/// The longest instruction.
const MAX_LEN: usize = 15;

/// A decoded run of instructions.
pub(crate) struct Block {
    key: u64,
    version: u32,
    /// Bytes that the instructions take.
    pub(crate) len: u64,
    pub(crate) ops: Box<[Op]>,
}

/// The blocks of one vCPU.
pub(crate) struct Blocks {
    /// The cache, and behind it the slot of the block that is not cached.
    slots: Box<[Block]>,
    /// The block that is being decoded.
    run: Vec<Op>,
}

impl Default for Block {
    fn default() -> Self {
        Self { key: NO_KEY, version: 0, len: 0, ops: Box::new([]) }
    }
}

/// What the decoder calls bitness: 16, 32 or 64.
fn bitness(mode: Mode) -> u32 {
    match mode {
        Mode::Long => 64,
        Mode::Protected32 => 32,
        Mode::Real | Mode::V86 | Mode::Protected16 => 16,
    }
}

/// The page that code was last fetched from: most blocks are followed by one of the same page, for which neither the TLB
/// nor the frame's part of the key need be computed again. Forgotten ([`Cpu::forget_fetch`]) whenever the mode, the
/// privilege or a translation may have changed.
#[derive(Clone, Copy)]
pub(crate) struct FetchPage {
    /// The page's linear address, or [`NO_PAGE`].
    page: u64,
    mfn: Mfn,
    /// The key of the page's first byte: frame and code size.
    key: u64,
    /// The frame's share of the slot number.
    spread: usize,
}

/// No page's address.
const NO_PAGE: u64 = 1;
/// A key that no frame has.
const NO_KEY: u64 = u64::MAX;

impl FetchPage {
    pub(crate) const NONE: Self = Self { page: NO_PAGE, mfn: Mfn(0), key: NO_KEY, spread: 0 };

    fn new(va: u64, mfn: Mfn, mode: Mode) -> Self {
        let frame = mfn.0 << 2 | u64::from(bitness(mode) >> 5);
        // Multiplicative hashing, so that equal offsets of different frames spread.
        let spread = index(frame.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOTS.trailing_zeros()));
        Self { page: va & !(PAGE_SIZE - 1), mfn, key: frame << PAGE_SHIFT, spread }
    }

    /// Frame, code size and offset in one word.
    #[inline(always)]
    fn key(&self, va: u64) -> u64 {
        self.key | (va % PAGE_SIZE)
    }

    #[inline(always)]
    fn slot(&self, va: u64) -> usize {
        (self.spread ^ index(va % PAGE_SIZE)) & (SLOTS - 1)
    }
}

impl Blocks {
    /// An empty cache.
    pub(crate) fn new() -> Self {
        let mut slots = Vec::new();
        slots.resize_with(SLOTS + 1, Block::default);
        Self { slots: slots.into_boxed_slice(), run: Vec::with_capacity(MAX_OPS) }
    }

    /// The block at RIP; if need be decoded, as far as `most` instructions. Fetch faults are raised.
    #[inline]
    pub(crate) fn at_rip(&mut self, cpu: &mut Cpu, most: usize) -> Result<&Block, Break> {
        let va = cpu.code_address();
        let fetch = cpu.fetch;
        let slot = if va & !(PAGE_SIZE - 1) == fetch.page && self.holds(&fetch, va, cpu) {
            fetch.slot(va)
        } else {
            self.look_up(cpu, va, most)?
        };
        self.slots.get(slot).ok_or(Break::Again)
    }

    #[inline]
    fn holds(&self, fetch: &FetchPage, va: u64, cpu: &Cpu) -> bool {
        let version = cpu.memory.code_version(fetch.mfn);
        self.slots
            .get(fetch.slot(va))
            .is_some_and(|block| block.key == fetch.key(va) && block.version == version)
    }

    /// Finds the block of another page, or one that has to be decoded.
    #[inline(never)]
    fn look_up(&mut self, cpu: &mut Cpu, va: u64, most: usize) -> Result<usize, Break> {
        if !cpu.flat && !cpu.code_limit_holds(1) {
            return Err(cpu.gp0());
        }
        let privilege = if cpu.cpl == 3 { Privilege::User } else { Privilege::Supervisor };
        let mfn = match cpu.tlb.lookup_exec(Gva(va), privilege) {
            Some(mfn) => mfn,
            None => {
                if cpu.flat && !Gva(va).is_canonical() {
                    return Err(cpu.gp0());
                }
                let Place::Frame { mfn, .. } = cpu.place(va, Access::Execute, privilege)? else {
                    return Ok(self.put_passing(outside_memory().op));
                };
                mfn
            }
        };
        cpu.fetch = FetchPage::new(va, mfn, cpu.mode);
        if self.holds(&cpu.fetch, va, cpu) {
            return Ok(cpu.fetch.slot(va));
        }
        self.decode(cpu, va, privilege, most)
    }

    /// Decodes the block at `va` of the fetch page into its slot.
    #[cold]
    #[inline(never)]
    fn decode(&mut self, cpu: &mut Cpu, va: u64, privilege: Privilege, most: usize) -> Result<usize, Break> {
        let fetch = cpu.fetch;
        let watch = watch_code(cpu, fetch.mfn);
        let count = if watch.settled { most.min(MAX_OPS) } else { 1 };
        let mut bytes = [0; MAX_OPS * MAX_LEN];
        let left = index(PAGE_SIZE - va % PAGE_SIZE).min(count * MAX_LEN);
        let Some(code) = bytes.get_mut(..left) else { return Err(cpu.gp0()) };
        cpu.memory.frames().copy_out(fetch.mfn, va % PAGE_SIZE, code);
        decode_run(code, count, cpu, &mut self.run);
        let len: u64 = self.run.iter().map(|op| u64::from(op.len)).sum();
        let is_kept =
            watch.settled && still_there(cpu, fetch.mfn, va % PAGE_SIZE, &code[..index(len).min(left)]);
        if is_kept && len != 0 {
            let ops = self.run.drain(..).collect();
            let block = Block { key: fetch.key(va), version: watch.version, len, ops };
            return Ok(self.put(fetch.slot(va), block));
        }
        // What has been read is current, but only now.
        let op = match self.run.drain(..).next() {
            Some(op) => op,
            None => crossing(cpu, va, code, privilege)?.op,
        };
        Ok(self.put_passing(op))
    }

    fn put(&mut self, slot: usize, block: Block) -> usize {
        if let Some(entry) = self.slots.get_mut(slot) {
            *entry = block;
        }
        slot
    }

    /// Keeps a block of one instruction where no look-up finds it, until the next such one.
    fn put_passing(&mut self, op: Op) -> usize {
        let len = u64::from(op.len);
        if let Some(Block { len: old, ops, .. }) = self.slots.get_mut(SLOTS) {
            *old = len;
            match &mut **ops {
                [last] => *last = op,
                _ => *ops = Box::new([op]),
            }
        }
        SLOTS
    }
}

/// Marks the code at `offset` of a frame as decoded. False if it is no longer what it was when it was read.
fn still_there(cpu: &Cpu, mfn: Mfn, offset: u64, code: &[u8]) -> bool {
    let mut now = [0; MAX_OPS * MAX_LEN];
    let Some(now) = now.get_mut(..code.len()) else { return false };
    cpu.memory.mark_code(mfn, offset, code.len() as u64);
    cpu.memory.frames().copy_out(mfn, offset, now);
    now == code
}

/// Code in a device or in nothing: the bus answers with ones, and FF FF is no instruction.
fn outside_memory() -> Lowered {
    lower::raising(lower::undefined, 1)
}

fn decoder<'a>(code: &'a [u8], cpu: &Cpu) -> Decoder<'a> {
    // Without WBNOINVD its encoding is what it was before.
    let options = DecoderOptions::NO_WBNOINVD;
    Decoder::with_ip(bitness(cpu.mode), code, 0, options)
}

/// Watches a frame to decode its code. This vCPU itself may hold the translation that has to go; dropping it counts as a
/// write, which ends the watch, so it takes three attempts until a vCPU that is alone has heard everything.
fn watch_code(cpu: &mut Cpu, mfn: Mfn) -> Watch {
    for _ in 0..2 {
        let watch = cpu.memory.watch_code(mfn);
        if watch.settled {
            return watch;
        }
        cpu.sync_memory();
    }
    cpu.memory.watch_code(mfn)
}

/// Decodes until the block ends, or there are `count` instructions, or the bytes run out; empty if already the first
/// instruction needs more bytes.
fn decode_run(code: &[u8], count: usize, cpu: &Cpu, ops: &mut Vec<Op>) {
    let mut decoder = decoder(code, cpu);
    ops.clear();
    let mut insn = Instruction::default();
    while ops.len() < count && decoder.can_decode() {
        let start = decoder.position();
        decoder.decode_out(&mut insn);
        let rest = code.get(start..).unwrap_or(&[]);
        if decoder.last_error() == DecoderError::NoMoreBytes && rest.len() < MAX_LEN {
            break;
        }
        let lowered = lower_decoded(&insn, rest, decoder.last_error(), cpu);
        let ends = lowered.ends;
        ops.push(lowered.op);
        if ends {
            break;
        }
    }
}

fn lower_decoded(insn: &Instruction, bytes: &[u8], error: DecoderError, cpu: &Cpu) -> Lowered {
    match error {
        DecoderError::None => {
            let bytes = bytes.get(..insn.len()).unwrap_or(bytes);
            lower::lower(insn, bytes, cpu.cpuid.features())
        }
        _ if runs_on(bytes, cpu) => lower::raising(lower::too_long, 1),
        _ => lower::raising(lower::undefined, 1),
    }
}

/// Whether bytes that are no instruction are the beginning of one that is too long: one byte less than the most there
/// can be is not enough for the decoder to tell.
fn runs_on(bytes: &[u8], cpu: &Cpu) -> bool {
    bytes.get(..MAX_LEN - 1).is_some_and(|head| {
        let mut decoder = decoder(head, cpu);
        let _ = decoder.decode();
        decoder.last_error() == DecoderError::NoMoreBytes
    })
}

/// Decodes an instruction whose first bytes end their page.
fn crossing(cpu: &mut Cpu, va: u64, first: &[u8], privilege: Privilege) -> Result<Lowered, Break> {
    if !cpu.flat && !cpu.code_limit_holds(first.len() as u64 + 1) {
        return Err(cpu.gp0());
    }
    let next = va.wrapping_add(first.len() as u64);
    let next = if cpu.flat { next } else { u64::from(low32(next)) };
    if cpu.flat && !Gva(next).is_canonical() {
        return Err(cpu.gp0());
    }
    let Place::Frame { mfn, offset, .. } = cpu.place(next, Access::Execute, privilege)? else {
        return Ok(outside_memory());
    };
    let mut bytes = [0; MAX_LEN];
    let (head, tail) = bytes.split_at_mut(first.len().min(MAX_LEN));
    head.copy_from_slice(&first[..head.len()]);
    cpu.memory.frames().copy_out(mfn, offset, tail);
    let mut decoder = decoder(&bytes, cpu);
    let insn = decoder.decode();
    Ok(lower_decoded(&insn, &bytes, decoder.last_error(), cpu))
}

impl Cpu {
    /// Forgets the page that code was last fetched from.
    #[inline]
    pub(crate) const fn forget_fetch(&mut self) {
        self.fetch = FetchPage::NONE;
    }

    /// Acts on changes of guest memory, between two instructions.
    #[inline(always)]
    pub(crate) fn sync_memory(&mut self) {
        if self.memory.epoch() != self.heard {
            self.hear_changes();
        }
    }

    #[cold]
    #[inline(never)]
    fn hear_changes(&mut self) {
        while self.memory.epoch() != self.heard {
            self.tlb.sync_epoch();
            self.forget_fetch();
            self.heard = self.tlb.seen();
            if !self.guided {
                self.seat.hear(self.heard);
            }
        }
    }

    /// Guest code is about to run.
    pub(crate) fn enter(&mut self) {
        self.seat.enter(self.heard);
        self.sync_memory();
    }

    /// No guest code runs until [`Cpu::enter`].
    pub(crate) fn leave(&mut self) {
        self.sync_memory();
        self.seat.leave();
    }

    /// The linear address of the next instruction.
    #[inline(always)]
    pub(crate) fn code_address(&self) -> u64 {
        let va = self.rip().wrapping_add(self.bases[1]);
        if self.flat { va } else { u64::from(low32(va)) }
    }
}
