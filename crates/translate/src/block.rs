//! What goes into a translation and what comes out.

use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, Instruction};

use crate::context::Table;

/// What decides how code translates, besides its bytes: part of every block's key, so that a change of mode can never
/// run the wrong block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mode(u16);

impl Mode {
    /// CPL 3.
    pub const USER: Self = Self(1);
    /// Supervisor accesses have RFLAGS.AC's permission.
    pub const AC: Self = Self(2);
    /// SSE instructions run (CR4.OSFXSR, no CR0.EM or TS) and their exceptions are masked.
    pub const SSE: Self = Self(4);
    /// AVX instructions run too (CR4.OSXSAVE, XCR0).
    pub const AVX: Self = Self(8);
    /// RDTSC is allowed.
    pub const TSC: Self = Self(16);
    /// RDFSBASE and its kin are allowed.
    pub const FSGSBASE: Self = Self(32);
    /// SYSCALL and SYSRET are allowed and work as on the model.
    pub const SYSCALL: Self = Self(64);
    /// Every access is checked by itself: see [`Exit::Plain`].
    pub const PLAIN: Self = Self(128);
    /// x87 and MMX instructions run (no CR0.EM or TS).
    pub const X87: Self = Self(256);
    /// 32-bit code in compatibility mode at CPL 3: see [`crate`]'s `compat`.
    pub const COMPAT: Self = Self(512);
    /// There, FS may be read and written throughout.
    pub const FS: Self = Self(1024);
    /// There, GS may be read and written throughout.
    pub const GS: Self = Self(2048);

    /// 64-bit code at CPL 0, nothing else.
    pub const fn new() -> Self {
        Self(0)
    }

    /// With these bits too, if `on`.
    #[must_use]
    pub const fn with(self, bits: Self, on: bool) -> Self {
        if on { Self(self.0 | bits.0) } else { self }
    }

    /// Without these bits.
    #[must_use]
    pub const fn without(self, bits: Self) -> Self {
        Self(self.0 & !bits.0)
    }

    /// Whether all of these bits are set.
    pub const fn has(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }

    /// The width of addresses and of stack words in bytes: 8, or 4 in compatibility mode.
    pub const fn word(self) -> usize {
        if self.has(Self::COMPAT) { 4 } else { 8 }
    }

    /// Decodes guest code of this mode.
    pub fn decoder(self, code: &[u8], ip: u64) -> Decoder<'_> {
        let bits = if self.has(Self::COMPAT) { 32 } else { 64 };
        Decoder::with_ip(bits, code, ip, DecoderOptions::NO_WBNOINVD)
    }

    /// What [`Mode::bits`] gave.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// As a number.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The TLB of explicit accesses.
    pub const fn table(self) -> Table {
        match (self.has(Self::USER), self.has(Self::AC)) {
            (true, _) => Table::User,
            (false, true) => Table::SupervisorAc,
            (false, false) => Table::Supervisor,
        }
    }
}

impl Default for Mode {
    fn default() -> Self {
        Self::new()
    }
}

/// What the host's processor has beyond x86-64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFeatures {
    /// RORX.
    pub bmi2: bool,
}

/// A translation to be made.
pub struct Source<'a> {
    /// The bytes from the first instruction to the end of its page, and, if the first instruction may reach into the next
    /// page, those that may belong to it there.
    pub code: &'a [u8],
    /// Where in its page the first instruction is.
    pub offset: u16,
    /// The mode.
    pub mode: Mode,
    /// Whether the CPU model has an instruction, with the meaning of the newest processors.
    pub offered: &'a dyn Fn(&Instruction) -> bool,
    /// The host.
    pub host: HostFeatures,
    /// The linear address of the first instruction where the block is run first. It may be run at others, too.
    pub linear: u64,
    /// Any number, another one for each block: spreads what blocks share.
    pub seed: u32,
    /// How the block checks itself, if it has to.
    pub check: Option<&'a SelfCheck>,
    /// Whether a loop may have lodgers, whose turns follow each other within the block: see [`crate`]'s `lodgers`.
    pub lodgers: bool,
}

/// How a block checks itself: the code may change without anybody being told. See [`crate`]'s `self_check`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelfCheck {
    /// Where the guest's code page is in the host's memory.
    pub page: u64,
    /// Of the [`Block::fields`] of an earlier translation of this code, as offsets in the page: those that change. They
    /// are not compared but read each time.
    pub loose: Vec<Range<u16>>,
}

/// Where the guest's status flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In the host's flags.
    Host,
    /// In [`crate::Context::status`].
    Memory,
    /// In both.
    Both,
    /// Nowhere, but they can be computed again; only inside a translation.
    Again,
    /// Nowhere: the next instruction that has to do with them writes all.
    Dead,
}

/// A place where translated code leaves to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Offset in its page of the guest instruction that leaves (for [`Exit::Link`], that is gone to).
    pub guest: u16,
    /// What for.
    pub exit: Exit,
    /// The mode at this place: the block's, but for AC, which it may have changed.
    pub mode: Mode,
    /// Where in the code it begins: CALL of a shared exit, filled in when the block is placed ([`Site::complete`]). What it
    /// pushes on the shadow stack says which site it is.
    pub at: u32,
    /// Which of the shared exits it leaves by.
    pub way: Way,
}

impl Site {
    /// Bytes of a site's code.
    pub const BYTES: u32 = 5;
    /// From behind the site of an [`Exit::Bridge`] to the bridge's key, 8 bytes: the target's offset in its page as long as
    /// nothing has been built.
    pub const KEY: u32 = 2;
    /// From there to the way round, which has RAX as the site has it.
    pub const ROUND: u32 = 10;

    /// Completes the site's code: the distance to its shared exit, which begins at `exit`, if the block's first byte lies at
    /// `start`, both counted as [`crate::Routines::exit`] does.
    pub fn complete(&self, code: &mut [u8], start: u32, exit: u32) {
        let from = start.wrapping_add(self.at).wrapping_add(Self::BYTES);
        let at = self.at as usize + 1;
        if let Some(slot) = code.get_mut(at..at + 4) {
            slot.copy_from_slice(&exit.wrapping_sub(from).to_le_bytes());
        }
    }
}

/// What a shared exit does before it leaves; RAX and RCX stay but for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It leaves.
    Leave {
        /// RAX, an address less the tag (that of writes, if set) of the entry at RCX in a TLB, becomes the address again.
        tag: Option<(Table, bool)>,
        /// The status flags go from the host's into memory.
        flags: bool,
    },
    /// Finds the code at the linear address in RAX by a table's jump cache, see [`crate::routines`], or leaves.
    Find(Table),
}

impl Way {
    /// It leaves at once.
    pub const BARE: Self = Self::Leave { tag: None, flags: false };
    /// How many there are.
    pub(crate) const COUNT: usize = 17;

    /// As this one, the flags going into memory.
    #[must_use]
    pub const fn with_flags(self) -> Self {
        match self {
            Self::Leave { tag, .. } => Self::Leave { tag, flags: true },
            Self::Find(_) => self,
        }
    }

    /// The number of this one.
    pub(crate) const fn number(self) -> usize {
        match self {
            Self::Leave { tag: None, flags } => flags as usize,
            Self::Leave { tag: Some((table, write)), flags } => {
                2 + 4 * table as usize + 2 * write as usize + flags as usize
            }
            Self::Find(table) => 14 + table as usize,
        }
    }
}

/// What [`crate::Context::site`] is at the exit that no block has: RAX is the linear address at which to go on, and the shadow
/// stack is empty.
pub const UNFORESEEN: u64 = 0;

/// Why translated code leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A TLB miss. RAX is the linear address; the code goes on at `resume`, RAX the same.
    Miss {
        /// Whether the access writes.
        write: bool,
        /// Where the check begins again.
        resume: u32,
    },
    /// The guest's x87 state is to be lent to the processor; the code goes on at `resume`. If that cannot be, the
    /// instruction is to be interpreted.
    Lend {
        /// Where the state is asked for again.
        resume: u32,
    },
    /// The instruction is to be interpreted.
    Interpret,
    /// A direct jump within the page whose target was not known: the 32-bit displacement at `jump` may be made to lead
    /// there, with the flags in this form (never [`Form::Again`]).
    Link {
        /// Where the displacement is.
        jump: u32,
        /// The flags at the jump.
        form: Form,
    },
    /// A direct jump to another page, RAX its linear address, where the frame is not the one that the bridge has been built to:
    /// it may be built, the 32-bit displacement at `jump` leading to the target with the flags in memory, or given up.
    Bridge {
        /// Where the displacement is.
        jump: u32,
    },
    /// RAX is the linear address at which to go on.
    Lookup,
    /// As [`Exit::Lookup`], but the instruction that goes there has not changed anything yet: if the code there can be put
    /// into the jump cache the code goes on at the site, RAX the same; else the instruction is interpreted.
    Transfer {
        /// The mode of the code there.
        mode: Mode,
    },
    /// Somebody wants attention; the instruction has not begun.
    Attention,
    /// The rest of the block is to be translated plainly: the instruction is the first of a group of accesses that are not
    /// all in one cached page. The flags are in memory; the site's code may be made a jump to that translation.
    Plain,
    /// The block is not to be entered any more: this is no site of its code, but what its entries have become.
    Stale,
    /// The guest's code is not what the block is a translation of. The flags are in memory; the site's code may be made a
    /// jump to a translation of what it is now.
    Changed,
    /// An instruction has changed code that follows it in the block, or brought what the block did not foresee; the guest
    /// goes on behind it by a look-up.
    Onward,
}

/// The most bytes of code that a block has: a few times what its instructions can become.
pub const MOST_CODE: usize = u16::MAX as usize;

/// Translated code, to be placed anywhere.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// The host's code.
    pub code: Vec<u8>,
    /// Where to enter with the status flags in the host's.
    pub entry_host: u32,
    /// Where to enter with the status flags in memory.
    pub entry_memory: u32,
    /// Where the jump cache leads: as `entry_memory`, but if the block is one instruction across two pages. Then the
    /// other entries go through the jump cache, which finds it only if both pages are what they were.
    pub entry_jump: u32,
    /// Which of the two costs nothing.
    pub host_is_free: bool,
    /// `entry_host` saves the flags and goes on at `entry_memory`.
    pub host_leads_to_memory: bool,
    /// Exits, in the order of their code.
    pub sites: Vec<Site>,
    /// How many bytes of guest code it stands for, from the first instruction on.
    pub guest_bytes: u16,
    /// How many it compares at its entry, if it checks itself.
    pub checked_bytes: u16,
    /// Of a block that checks itself: where in the page immediates are that could be read each time instead.
    pub fields: Vec<Range<u16>>,
    /// Guest instructions.
    pub instructions: u16,
    /// Where each guest instruction's code begins: host offset, page offset.
    pub map: Vec<(u32, u16)>,
}
