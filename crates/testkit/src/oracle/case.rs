//! What a case starts from and what became of it: plain data, shared with the child process.

/// Where code is: two pages, the third is not there. Addresses below 2 GiB, so that every way of addressing reaches them.
pub const CODE: u64 = 0x1000_0000;
/// Bytes of code. They can be written, too.
pub const CODE_BYTES: usize = 0x2000;
/// Where data is: three pages, of which the last is read-only. The pages around are not there.
pub const DATA: u64 = 0x2000_0000;
/// Bytes of data.
pub const DATA_BYTES: usize = 0x3000;
/// The data that can be written.
pub const WRITABLE_BYTES: usize = 0x2000;
/// Where a page is that random operands do not reach: a stack, counters and tables for sequences.
pub const STACK: u64 = 0x3000_0000;
/// Bytes of it.
pub const STACK_BYTES: usize = 0x1000;
/// All of these one after the other.
pub const IMAGE_BYTES: usize = CODE_BYTES + DATA_BYTES + STACK_BYTES;
/// Where data is in the image.
pub const DATA_AT: usize = CODE_BYTES;
/// Where the stack is in the image.
pub const STACK_AT: usize = DATA_AT + DATA_BYTES;
/// The granule in which changes are reported.
pub const CHUNK: usize = 64;
/// Chunks of the image.
pub const CHUNKS: usize = IMAGE_BYTES / CHUNK;
/// What fills the code pages; executing it ends a case.
pub const INT3: u8 = 0xcc;
/// The most memory that a case sets itself.
pub const PATCH: usize = 2048;
/// The most places where it does.
pub const PIECES: usize = 24;
/// The most code that a case has.
pub const CODE_ROOM: usize = 1536;
/// Faults that a case goes on after are listed so far.
pub const LOGGED: usize = 8;

const PAGE: usize = 4096;

/// The image's code, data and stack.
pub type Image = [u8; IMAGE_BYTES];

/// Where in the image the byte at `address` is.
pub fn image_at(address: u64) -> Option<usize> {
    let areas = [(CODE, 0, CODE_BYTES), (DATA, DATA_AT, DATA_BYTES), (STACK, STACK_AT, STACK_BYTES)];
    areas.into_iter().find_map(|(base, at, len)| {
        let offset = address.wrapping_sub(base);
        (offset < len as u64).then(|| at + offset as usize)
    })
}

/// The address of a place in the image.
pub const fn address_of(at: usize) -> u64 {
    if at < DATA_AT {
        CODE + at as u64
    } else if at < STACK_AT {
        DATA + (at - DATA_AT) as u64
    } else {
        STACK + (at - STACK_AT) as u64
    }
}

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

/// A stretch of the image that a case sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Piece {
    /// Where it begins.
    pub at: u32,
    /// Its length.
    pub len: u32,
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
    /// How many faults the case goes on after, at `resume_at`. A breakpoint always ends it.
    pub resumes: u32,
    /// Where it goes on.
    pub resume_at: u64,
    /// The length of the code.
    pub code_len: u32,
    /// How many pieces there are.
    pub piece_count: u32,
    /// The places of what is in `patch`.
    pub pieces: [Piece; PIECES],
    /// The code.
    pub code: [u8; CODE_ROOM],
    /// Contents of memory, one piece after the other; the rest of the image is the batch's background.
    pub patch: [u8; PATCH],
}

impl Input {
    /// Nothing.
    pub const EMPTY: Self = Self {
        registers: Registers::ZERO,
        bits: 64,
        resumes: 0,
        resume_at: 0,
        code_len: 0,
        piece_count: 0,
        pieces: [Piece { at: 0, len: 0 }; PIECES],
        code: [0; CODE_ROOM],
        patch: [0; PATCH],
    };

    /// The code's bytes.
    pub fn code(&self) -> &[u8] {
        &self.code[..(self.code_len as usize).min(self.code.len())]
    }

    /// Sets the code; false if it is too long.
    pub fn set_code(&mut self, code: &[u8]) -> bool {
        let room = self.code.get_mut(..code.len());
        room.map(|room| {
            room.copy_from_slice(code);
            self.code_len = code.len() as u32;
        })
        .is_some()
    }

    /// The code's place in the image.
    pub fn code_at(&self) -> usize {
        let start = if self.bits == 16 { 0 } else { CODE };
        (self.registers.rip.wrapping_sub(start) as usize).min(CODE_BYTES)
    }

    /// Sets memory at `address`, as much of it as is in one area and there is room for.
    pub fn set_memory(&mut self, address: u64, bytes: &[u8]) {
        let Some(at) = image_at(address) else { return };
        let end = [DATA_AT, STACK_AT, IMAGE_BYTES].into_iter().find(|end| at < *end).unwrap_or(at);
        let used: usize = self.pieces().map(|(_, bytes)| bytes.len()).sum();
        let len = bytes.len().min(end - at).min(PATCH - used);
        if let Some(piece) = self.pieces.get_mut(self.piece_count as usize) {
            *piece = Piece { at: at as u32, len: len as u32 };
            self.patch[used..used + len].copy_from_slice(&bytes[..len]);
            self.piece_count += 1;
        }
    }

    /// The memory that the case sets, and where.
    pub fn pieces(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let mut rest = &self.patch[..];
        self.pieces[..(self.piece_count as usize).min(PIECES)].iter().map(move |piece| {
            let at = (piece.at as usize).min(IMAGE_BYTES);
            let (bytes, after) = rest.split_at((piece.len as usize).min(rest.len()).min(IMAGE_BYTES - at));
            rest = after;
            (at, bytes)
        })
    }

    /// Puts memory and code into an image.
    pub fn apply(&self, image: &mut Image) {
        for (at, bytes) in self.pieces() {
            image[at..at + bytes.len()].copy_from_slice(bytes);
        }
        // Code that would lie on the page that is not there is not there.
        let (at, code) = (self.code_at(), self.code());
        let len = code.len().min(CODE_BYTES - at);
        image[at..at + len].copy_from_slice(&code[..len]);
    }
}

/// A fault that the case went on after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fault {
    /// The exception's vector.
    pub vector: u64,
    /// Its error code.
    pub error: u64,
    /// Where.
    pub rip: u64,
    /// CR2; means something if it is a page fault.
    pub cr2: u64,
}

/// A case after.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Output {
    /// The registers when the last exception was raised (a breakpoint, if the code completed).
    pub registers: Registers,
    /// The exception's vector.
    pub vector: u32,
    /// Its error code.
    pub error: u32,
    /// CR2, if it is a page fault.
    pub cr2: u64,
    /// How many faults there were before that.
    pub resumed: u64,
    /// The last of them: number n is at n modulo [`LOGGED`].
    pub log: [Fault; LOGGED],
    /// Bit n: chunk n differs from the batch's background.
    pub changed: [u64; CHUNKS.div_ceil(64)],
    /// The image; only changed chunks are filled in.
    pub image: Image,
}

impl Output {
    /// Nothing.
    pub const EMPTY: Self = Self {
        registers: Registers::ZERO,
        vector: 0,
        error: 0,
        cr2: 0,
        resumed: 0,
        log: [Fault { vector: 0, error: 0, rip: 0, cr2: 0 }; LOGGED],
        changed: [0; CHUNKS.div_ceil(64)],
        image: [0; IMAGE_BYTES],
    };

    /// Records what of `image` differs from `background`, and makes it equal again.
    pub fn take_changes(&mut self, image: &mut Image, background: &Image) {
        self.changed = [0; CHUNKS.div_ceil(64)];
        let pages = image.as_chunks_mut::<PAGE>().0.iter_mut().zip(background.as_chunks::<PAGE>().0);
        for (number, (page, wanted)) in pages.enumerate().filter(|(_, (page, wanted))| page != wanted) {
            let chunks = page.as_chunks_mut::<CHUNK>().0.iter_mut().zip(wanted.as_chunks::<CHUNK>().0);
            for (index, (chunk, wanted)) in (number * (PAGE / CHUNK)..).zip(chunks) {
                if chunk != wanted {
                    self.changed[index / 64] |= 1 << (index % 64);
                    self.image[index * CHUNK..][..CHUNK].copy_from_slice(chunk);
                    *chunk = *wanted;
                }
            }
        }
    }

    /// A changed chunk.
    pub fn chunk(&self, index: usize) -> Option<&[u8]> {
        let changed = self.changed.get(index / 64)? >> (index % 64) & 1 != 0;
        changed.then(|| &self.image[index * CHUNK..][..CHUNK])
    }

    /// The byte at a place of the image, if its chunk has changed.
    pub fn byte(&self, at: usize) -> Option<u8> {
        self.chunk(at / CHUNK).map(|chunk| chunk[at % CHUNK])
    }
}
