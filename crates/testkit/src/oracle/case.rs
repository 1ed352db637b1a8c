//! What a case starts from and what became of it: plain data, shared with the child process.

/// Where code is: two pages, the third is not there. Addresses below 2 GiB, so that every way of addressing reaches them.
pub const CODE: u64 = 0x1000_0000;
/// Bytes of code.
pub const CODE_BYTES: usize = 0x2000;
/// Where data is: three pages, of which the last is read-only. The pages around are not there.
pub const DATA: u64 = 0x2000_0000;
/// Bytes of data.
pub const DATA_BYTES: usize = 0x3000;
/// The data that can be written.
pub const WRITABLE_BYTES: usize = 0x2000;
/// The granule in which changes to data are reported.
pub const CHUNK: usize = 64;
/// Chunks of data.
pub const CHUNKS: usize = DATA_BYTES / CHUNK;
/// What fills the code pages; executing it ends a case.
pub const INT3: u8 = 0xcc;
/// The most data that a case sets itself.
pub const PATCH: usize = 1024;

/// The registers that a case can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// In encoding order.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// YMM registers.
    pub ymm: [[u128; 2]; 16],
    /// x87 registers in stack order.
    pub st: [u128; 8],
    /// Last x87 instruction.
    pub fip: u64,
    /// Last x87 operand.
    pub fdp: u64,
    /// Last x87 opcode.
    pub fop: u16,
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word.
    pub fsw: u16,
    /// Abridged x87 tag word.
    pub ftw: u16,
    /// MXCSR.
    pub mxcsr: u32,
}

impl Registers {
    /// Everything zero.
    pub const ZERO: Self = Self {
        gpr: [0; 16],
        rip: 0,
        rflags: 0,
        ymm: [[0; 2]; 16],
        st: [0; 8],
        fip: 0,
        fdp: 0,
        fop: 0,
        fcw: 0,
        fsw: 0,
        ftw: 0,
        mxcsr: 0,
    };
}

/// A case before.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Input {
    /// The registers; RIP is where `code` goes.
    pub registers: Registers,
    /// The mode: 64, or for compatibility mode 32 or 16. 16-bit code has a segment of its own that begins at [`CODE`], so
    /// its RIP counts from there.
    pub bits: u32,
    /// The instruction.
    pub code: [u8; 16],
    /// Its length.
    pub code_len: u32,
    /// Where in the data `patch` goes.
    pub patch_at: u32,
    /// Its length.
    pub patch_len: u32,
    /// Operands in memory; the rest of the data is the batch's background.
    pub patch: [u8; PATCH],
}

impl Input {
    /// Nothing.
    pub const EMPTY: Self = Self {
        registers: Registers::ZERO,
        bits: 64,
        code: [0; 16],
        code_len: 0,
        patch_at: 0,
        patch_len: 0,
        patch: [0; PATCH],
    };

    /// The instruction's bytes.
    pub fn code(&self) -> &[u8] {
        &self.code[..(self.code_len as usize).min(self.code.len())]
    }

    /// The instruction's place among the code's bytes.
    pub fn code_at(&self) -> usize {
        let start = if self.bits == 16 { 0 } else { CODE };
        (self.registers.rip.wrapping_sub(start) as usize).min(CODE_BYTES)
    }

    /// The data that the case sets, and where.
    pub fn patch(&self) -> (usize, &[u8]) {
        let at = (self.patch_at as usize).min(DATA_BYTES);
        let len = (self.patch_len as usize).min(PATCH).min(DATA_BYTES - at);
        (at, &self.patch[..len])
    }
}

/// A case after.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Output {
    /// The registers when the exception was raised (a breakpoint, if the instruction completed).
    pub registers: Registers,
    /// The exception's vector.
    pub vector: u32,
    /// Its error code.
    pub error: u32,
    /// CR2, if it is a page fault.
    pub cr2: u64,
    /// Bit n: chunk n differs from the batch's background.
    pub changed: [u64; CHUNKS.div_ceil(64)],
    /// The data; only changed chunks are filled in.
    pub data: [u8; DATA_BYTES],
}

impl Output {
    /// Nothing.
    pub const EMPTY: Self = Self {
        registers: Registers::ZERO,
        vector: 0,
        error: 0,
        cr2: 0,
        changed: [0; CHUNKS.div_ceil(64)],
        data: [0; DATA_BYTES],
    };

    /// Records what of `data` differs from `background`, and makes it equal again.
    pub fn take_changes(&mut self, data: &mut [u8; DATA_BYTES], background: &[u8; DATA_BYTES]) {
        self.changed = [0; CHUNKS.div_ceil(64)];
        let chunks = data.as_chunks_mut::<CHUNK>().0.iter_mut().zip(background.as_chunks::<CHUNK>().0);
        for (index, (chunk, wanted)) in chunks.enumerate() {
            if chunk != wanted {
                self.changed[index / 64] |= 1 << (index % 64);
                self.data[index * CHUNK..][..CHUNK].copy_from_slice(chunk);
                *chunk = *wanted;
            }
        }
    }

    /// A changed chunk.
    pub fn chunk(&self, index: usize) -> Option<&[u8]> {
        let changed = self.changed.get(index / 64)? >> (index % 64) & 1 != 0;
        changed.then(|| &self.data[index * CHUNK..][..CHUNK])
    }
}
