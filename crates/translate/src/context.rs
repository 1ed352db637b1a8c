//! What translated code reaches through GS: the vCPU's [`Context`], then the tables of the current address space.
//!
//! GS points at a *view*. Every view begins with the same context (the same memory, mapped again) and goes on with the
//! tables that translate addresses:
//!
//! | part | whose |
//! |---|---|
//! | [`Context`] | the vCPU's |
//! | supervisor anchors, supervisor TLB, supervisor jump caches and code pages | the vCPU's: kernels map themselves globally |
//! | user TLB, anchors, jump cache and code pages, supervisor-with-AC TLB and anchors | the address space's |
//!
//! An *anchor* is the page that a certain place in the code used last: found without computing anything from the address,
//! it is what most accesses need instead of the TLB. See [`Anchor`].
//!
//! So a switch of address space is one WRGSBASE, and which privilege an access has is in the displacement that the
//! translator chose: neither costs an instruction on the way to memory, and neither empties anything.

use crate::host::Gpr;

/// Bytes of the context, a whole number of pages.
pub const CONTEXT_BYTES: usize = 4096;
/// Bytes of a [`TlbEntry`].
pub const ENTRY_BYTES: usize = 32;
/// Binary logarithm of [`ENTRY_BYTES`].
const ENTRY_SHIFT: u8 = 5;
/// Entries of the supervisor TLB and of the user TLB: a reach of 128 MiB in 4 KiB pages.
pub const LARGE_TLB: usize = 1 << 15;
/// Entries of the TLB for supervisor accesses with AC set: only copies to and from user memory.
pub const SMALL_TLB: usize = 1 << 12;
/// Entries of a jump cache.
pub const JUMPS: usize = 1 << 14;
/// Bytes of a [`JumpEntry`].
pub const JUMP_BYTES: usize = 16;
/// Neighbouring slots of a jump cache that are emptied together.
pub const JUMP_GROUP: usize = 16;
/// Pages that code is known to lie in, for each jump cache.
pub const CODE_PAGES: usize = 1 << 12;
/// Bytes of a [`CodePage`].
pub const CODE_PAGE_BYTES: usize = 16;
/// Bytes of each of the two shadow return stacks.
pub const SHADOW_BYTES: usize = 1 << 16;

/// Anchors of each TLB: half for reads, half for writes.
pub const ANCHORS: usize = 1024;
/// Those of them, from the first on, that belong to places in the code. The others belong to pages that code names by RIP.
pub const PLACE_ANCHORS: usize = 256;
/// Bytes of an [`Anchor`].
pub const ANCHOR_BYTES: usize = 1 << ANCHOR_SHIFT;
/// Binary logarithm of [`ANCHOR_BYTES`].
pub(crate) const ANCHOR_SHIFT: u8 = 6;

/// The most that is read by way of [`Context::bounce`], in bytes: a vector register.
pub const BOUNCE: u16 = 32;
/// Pointers that a steady loop foresees at the most.
pub const FORESEEN: usize = 4;

/// State shared between translated code and the engine.
///
/// While translated code runs, the guest's registers are where [`Gpr::home`] says, and only those without a home are
/// current in [`Context::gpr`]; at an exit all are.
#[repr(C, align(64))]
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The guest's general-purpose registers, by number.
    pub gpr: [u64; 16],
    /// The guest's status flags: AH as LAHF stores them, bit 0 the overflow flag.
    pub status: u64,
    /// The linear address of the page that holds the running code.
    pub page: u64,
    /// Which site of which block left: the host address behind it.
    pub site: u64,
    /// RAX and RCX, the scratch registers, at an exit.
    pub scratch: [u64; 2],
    /// Values that one instruction's sequence keeps.
    pub temp: [u64; 2],
    /// Values that [`crate::routines`] keep.
    pub kept: [u64; 4],
    /// The displacements of a block's groups of accesses.
    pub deltas: [[u64; 8]; 8],
    /// Where what lies across two pages is put together for an instruction to read: the end of the one, the beginning
    /// of the other.
    pub bounce: [[u8; BOUNCE as usize]; 2],
    /// How many turns a loop has made, less those after which a first survey is worth it.
    pub turns: u32,
    /// In a steady loop ([`crate`]'s `steady`): what its counter holds when the next survey is due.
    pub last_turn: u64,
    /// In a steady loop: the pointers that it is expected to load.
    pub foreseen: [u64; FORESEEN],
    /// How many more PAUSEs are executed before one is left to the interpreter, less one.
    pub pauses: u32,
    /// Where the routines are that look accesses up in the TLBs: by [`Table`], reads and writes.
    pub routines: [[u64; 2]; 3],
    /// Where the routines are that make a call whose target has been found: by [`Table`].
    pub callers: [u64; 3],
    /// Where the [`Entrance`]s are: the first slot, and the last that [`entrance_slot`] gives.
    pub entrances: [u64; 2],
    /// Where the code cache begins.
    pub code: u64,
    /// The flags that are not status flags.
    pub system_flags: u64,
    /// Bases of FS and GS.
    pub segment_base: [u64; 2],
    /// Where [`Context`]'s users enter: a host address.
    pub target: u64,
    /// Where translated code leaves to: a host address.
    pub exit: u64,
    /// The host's stack pointer while translated code runs.
    pub host_stack: u64,
    /// The shadow stack's pointer to enter with, and after an exit.
    pub stack: u64,
    /// The shadow stacks' pointers while they are not in use: supervisor's and user's.
    pub shadow: [u64; 2],
    /// Where the two shadow stacks are empty.
    pub shadow_top: [u64; 2],
    /// Host address of the guest's vector registers.
    pub vector: u64,
    /// The guest's MXCSR.
    pub mxcsr: u32,
    /// The host's MXCSR.
    pub host_mxcsr: u32,
    /// Nonzero if an event waits for RFLAGS.IF.
    pub waiting: u32,
    /// The segments that a fast system call has loaded since the engine last looked: see [`fast_segments`].
    pub segments: u32,
    /// Where IRETQ may return to by itself: by [`Returns`].
    pub returns: [Return; 3],
    /// Nonzero if SYSRET may not go by the user's jump cache: it holds code of another mode.
    pub user_closed: u32,
    /// CR0 to CR4.
    pub control: [u64; 5],
    /// While IRETQ is under way: the host address of its frame.
    pub frame: u64,
    /// And the image of RFLAGS there.
    pub image: u64,
    /// Selectors in the order of [`x86::SegmentIndex`].
    pub selectors: [u16; 6],
    /// Those of CS and SS that SYSCALL loads, and those of SYSRET to 64-bit code.
    pub fast_selectors: [[u16; 2]; 2],
    /// IA32_LSTAR.
    pub lstar: u64,
    /// The complement of IA32_FMASK.
    pub flag_keep: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// What to add to the host's time stamp counter.
    pub tsc_offset: u64,
    /// IA32_TSC_AUX, 32 bits of it.
    pub tsc_aux: u64,
    /// Nonzero if the processor's x87 unit holds the guest's state.
    pub x87: u32,
    /// The last x87 instruction that is not a control instruction: where in its page it is, and from bit 16 on its
    /// opcode (FOP).
    pub x87_last: u32,
    /// That page.
    pub x87_page: u64,
}

/// Values of [`Context::segments`].
pub mod fast_segments {
    /// None: the engine's are right.
    pub const NONE: u32 = 0;
    /// Those of SYSCALL.
    pub const SYSCALL: u32 = 1;
    /// Those of SYSRET to 64-bit code.
    pub const SYSRET: u32 = 2;
    /// The CS of SYSCALL and a null SS: those of an interrupt handler of 64-bit code.
    pub const NESTED: u32 = 3;
}

/// What IRETQ can return to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    /// The segments of SYSRET.
    User,
    /// Those of SYSCALL.
    Supervisor,
    /// The CS of SYSCALL and a null SS.
    Nested,
}

/// A return that IRETQ makes by itself if the descriptors in memory are as expected.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Return {
    /// The selectors: CS, and SS from bit 32 on. All ones, which no two selectors are, if there is no such return.
    pub selectors: u64,
    /// The linear address of the descriptor of CS. That of SS lies in the same page: 8 bytes before it for user code,
    /// 8 bytes behind it for the supervisor's.
    pub descriptor: u64,
    /// The descriptor of CS.
    pub code: u64,
    /// That of SS.
    pub stack: u64,
}

impl Return {
    /// There is no such return.
    pub const NONE: Self = Self { selectors: u64::MAX, descriptor: 0, code: 0, stack: 0 };
}

impl Default for Return {
    fn default() -> Self {
        Self::NONE
    }
}

/// A translation, zero if there is none; tags are linear addresses of pages.
///
/// An all-zero entry matches nothing, except that of slot 0, which matches page 0: an empty slot 0 holds
/// [`TlbEntry::EMPTY_FIRST`].
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlbEntry {
    /// The page, if it may be read.
    pub read: u64,
    /// The page, if it may be written.
    pub write: u64,
    /// Host address of the page.
    pub base: u64,
    /// The host address less the linear one.
    pub delta: u64,
}

impl TlbEntry {
    /// An empty entry for slot 0.
    pub const EMPTY_FIRST: Self = Self { read: 0x1000, write: 0x1000, base: 0, delta: 0 };

    /// The empty entry of a slot.
    pub const fn empty(slot: usize) -> Self {
        if slot == 0 { Self::EMPTY_FIRST } else { Self { read: 0, write: 0, base: 0, delta: 0 } }
    }
}

/// The page that a place in the code used last. An access through it is one subtraction and one comparison away from
/// memory: `address - page` is its offset in the page if that is below the limit for its size. An empty anchor's limits are
/// zero, which nothing is below.
///
/// Anchors hold copies of TLB entries, and are dropped with them.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anchor {
    /// The page's linear address.
    pub page: u64,
    /// Its host address.
    pub base: u64,
    /// The host address less the linear one.
    pub delta: u64,
    /// For each of [`SPANS`]: one more than the last offset at which so many bytes lie in the page.
    pub limit: [u64; 3],
    /// One more than the page's linear address, where that is all that has to be compared; zero if it is empty.
    pub tag: u64,
}

/// The sizes for which an [`Anchor`] has limits, in bytes.
pub const SPANS: [u16; 3] = [8, 64, 512];

/// Where a linear address's code is, by the address's low bits. An all-zero entry matches nothing, except that of slot 0,
/// which matches address 0 (whose code is interpreted): an empty slot 0 holds [`JumpEntry::EMPTY_FIRST`].
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JumpEntry {
    /// The linear address.
    pub address: u64,
    /// Host address of the code, to be entered with the status flags in memory.
    pub code: u64,
}

impl JumpEntry {
    /// An empty entry for slot 0: its address belongs in another slot.
    pub const EMPTY_FIRST: Self = Self { address: 0x10, code: 0 };

    /// The empty entry of a slot.
    pub const fn empty(slot: usize) -> Self {
        if slot == 0 { Self::EMPTY_FIRST } else { Self { address: 0, code: 0 } }
    }
}

/// A page that holds code, by its linear address: what bridges ask and the jump cache is filled from. An all-zero entry
/// leads nowhere: no key is zero.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodePage {
    /// The linear address of the page.
    pub page: u64,
    /// The key of the page's first byte: see [`Entrance::key`].
    pub key: u64,
}

/// Where the code of a place in a machine frame is, by its key. Address spaces share them. A key lies in the first free
/// slot from its own on; behind the last there is a free one.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entrance {
    /// The place: the frame from bit 28 on, the offset in it from bit 16 on, the code's mode. Zero if the slot is free.
    pub key: u64,
    /// The block's number, for the engine.
    pub block: u32,
    /// The code's offset in the code cache, to be entered with the status flags in memory; zero if only the engine may.
    pub code: u32,
}

/// Which TLB an access uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// Supervisor accesses without SMAP's permission.
    Supervisor,
    /// Supervisor accesses with RFLAGS.AC set.
    SupervisorAc,
    /// User accesses.
    User,
}

/// Displacements from GS, in bytes.
pub mod at {
    use super::{
        ANCHOR_BYTES, ANCHORS, Anchor, CODE_PAGE_BYTES, CODE_PAGES, CONTEXT_BYTES, CodePage, Context,
        ENTRY_BYTES, Entrance, JUMP_BYTES, JUMP_GROUP, JUMPS, JumpEntry, LARGE_TLB, Return, Returns,
        SMALL_TLB, Table, TlbEntry,
    };
    use std::mem::offset_of;

    /// Every displacement is below 4 MiB.
    const fn disp(offset: usize) -> i32 {
        assert!(offset < 1 << 22);
        #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]
        {
            offset as i32
        }
    }

    macro_rules! field_offsets {
        ($($name:ident: $field:ident;)*) => {
            $(#[doc = concat!("[`Context::", stringify!($field), "`].")]
            pub const $name: i32 = disp(offset_of!(Context, $field));)*
            /// Those of the context's fields, with their names.
            pub(crate) const FIELDS: &[(i32, &str)] = &[$(($name, stringify!($field)),)*];
        };
    }
    field_offsets! {
        GPR: gpr; STATUS: status; PAGE: page; SITE: site; SCRATCH: scratch; TEMP: temp; KEPT: kept; DELTAS: deltas; BOUNCE: bounce; TURNS: turns; LAST_TURN: last_turn; FORESEEN: foreseen; PAUSES: pauses; ROUTINES: routines; CALLERS: callers; ENTRANCES: entrances; CODE: code;
        SYSTEM_FLAGS: system_flags; SEGMENT_BASE: segment_base; TARGET: target; EXIT: exit; HOST_STACK: host_stack; STACK: stack; SHADOW: shadow; SHADOW_TOP: shadow_top; VECTOR: vector; MXCSR: mxcsr;
        HOST_MXCSR: host_mxcsr; WAITING: waiting; SEGMENTS: segments; RETURNS: returns; USER_CLOSED: user_closed; CONTROL: control; FRAME: frame; IMAGE: image; SELECTORS: selectors;
        SYSCALL_SELECTORS: fast_selectors; LSTAR: lstar; FLAG_KEEP: flag_keep;
        KERNEL_GS_BASE: kernel_gs_base; TSC_OFFSET: tsc_offset; TSC_AUX: tsc_aux;
        X87: x87; X87_LAST: x87_last; X87_PAGE: x87_page;
    }

    /// The word that is nonzero as long as nobody wants the vCPU's attention. Other threads write it at any time, so it
    /// lies in a cache line of its own, outside of [`Context`], which its owner may borrow exclusively.
    pub const GO: i32 = disp(CONTEXT_BYTES - 64);
    /// The second of [`Context::fast_selectors`].
    pub const SYSRET_SELECTORS: i32 = SYSCALL_SELECTORS + 4;
    /// Start of the part that all views share, behind the context.
    pub const SUPERVISOR_ANCHORS: i32 = disp(CONTEXT_BYTES);
    /// The supervisor TLB.
    pub const SUPERVISOR_TLB: i32 = SUPERVISOR_ANCHORS + ANCHOR_PART;
    /// The supervisor jump cache.
    pub const SUPERVISOR_JUMPS: i32 = SUPERVISOR_TLB + disp(LARGE_TLB * ENTRY_BYTES);
    /// The jump cache of supervisor code with AC set.
    pub const AC_JUMPS: i32 = SUPERVISOR_JUMPS + JUMP_CACHE;
    /// Start of the address space's own part, on a page boundary.
    pub const USER_ANCHORS: i32 = (AC_JUMPS + JUMP_CACHE + 4095) & !4095;
    /// The anchors of supervisor accesses with AC set.
    pub const AC_ANCHORS: i32 = USER_ANCHORS + ANCHOR_PART;
    /// The user TLB.
    pub const USER_TLB: i32 = AC_ANCHORS + ANCHOR_PART;
    /// The user jump cache.
    pub const USER_JUMPS: i32 = USER_TLB + disp(LARGE_TLB * ENTRY_BYTES);
    /// The TLB of supervisor accesses with AC set.
    pub const AC_TLB: i32 = USER_JUMPS + JUMP_CACHE;
    /// From a TLB's anchors to their bytes that are nonzero where one may be in use.
    pub const ANCHOR_MARKS: i32 = disp(ANCHORS * ANCHOR_BYTES);
    /// Anchors and their marks.
    const ANCHOR_PART: i32 = ANCHOR_MARKS + disp(ANCHORS);
    /// From a jump cache to its bytes that are nonzero where a group of its slots may be in use.
    pub const JUMP_GROUPS: i32 = disp(JUMPS * JUMP_BYTES);
    /// From a jump cache to its code pages.
    pub const JUMP_PAGES: i32 = JUMP_GROUPS + disp(JUMPS / JUMP_GROUP);
    /// A jump cache and what belongs to it.
    const JUMP_CACHE: i32 = JUMP_PAGES + disp(CODE_PAGES * CODE_PAGE_BYTES);
    /// Past everything.
    pub const END: i32 = AC_TLB + disp(SMALL_TLB * ENTRY_BYTES);

    /// Offsets inside an entry.
    pub const READ: i32 = disp(offset_of!(TlbEntry, read));
    /// The tag of writes.
    pub const WRITE: i32 = disp(offset_of!(TlbEntry, write));
    /// The page's host address.
    pub const BASE: i32 = disp(offset_of!(TlbEntry, base));
    /// What to add to a linear address of the page to get the host's.
    pub const DELTA: i32 = disp(offset_of!(TlbEntry, delta));
    /// The code of a jump-cache entry.
    pub const JUMP_CODE: i32 = disp(offset_of!(JumpEntry, code));

    /// The linear address of a code page.
    pub const CODE_PAGE: i32 = disp(offset_of!(CodePage, page));
    /// Its key.
    pub const KEY: i32 = disp(offset_of!(CodePage, key));
    /// The code of an entrance.
    pub const ENTRANCE_CODE: i32 = disp(offset_of!(Entrance, code));

    /// Offsets inside an anchor.
    pub const ANCHOR_PAGE: i32 = disp(offset_of!(Anchor, page));
    /// The page's host address.
    pub const ANCHOR_BASE: i32 = disp(offset_of!(Anchor, base));
    /// The difference of the two.
    pub const ANCHOR_DELTA: i32 = disp(offset_of!(Anchor, delta));
    /// The first limit.
    pub const ANCHOR_LIMIT: i32 = disp(offset_of!(Anchor, limit));
    /// The tag.
    pub const ANCHOR_TAG: i32 = disp(offset_of!(Anchor, tag));

    /// Offsets inside a return.
    pub const RETURN_SELECTORS: i32 = disp(offset_of!(Return, selectors));
    /// The address of the descriptor.
    pub const RETURN_DESCRIPTOR: i32 = disp(offset_of!(Return, descriptor));
    /// The descriptor of CS.
    pub const RETURN_CODE: i32 = disp(offset_of!(Return, code));
    /// That of SS.
    pub const RETURN_STACK: i32 = disp(offset_of!(Return, stack));

    /// Where what is known of a return is.
    pub const fn returns(to: Returns) -> i32 {
        RETURNS + disp(size_of::<Return>()) * to as i32
    }

    /// Where a TLB's anchors begin.
    pub const fn anchors(table: Table) -> i32 {
        match table {
            Table::Supervisor => SUPERVISOR_ANCHORS,
            Table::SupervisorAc => AC_ANCHORS,
            Table::User => USER_ANCHORS,
        }
    }

    /// Where a TLB begins.
    pub const fn tlb(table: Table) -> i32 {
        match table {
            Table::Supervisor => SUPERVISOR_TLB,
            Table::SupervisorAc => AC_TLB,
            Table::User => USER_TLB,
        }
    }

    /// Where a jump cache begins.
    pub const fn jumps(table: Table) -> i32 {
        match table {
            Table::Supervisor => SUPERVISOR_JUMPS,
            Table::SupervisorAc => AC_JUMPS,
            Table::User => USER_JUMPS,
        }
    }
}

/// How many entries a TLB has.
pub const fn tlb_entries(table: Table) -> usize {
    match table {
        Table::Supervisor | Table::User => LARGE_TLB,
        Table::SupervisorAc => SMALL_TLB,
    }
}

/// The slot of a linear address in a TLB.
pub const fn tlb_slot(table: Table, va: u64) -> usize {
    x86::bits::index(va >> 12) & (tlb_entries(table) - 1)
}

/// How far right a linear address is rotated to give the byte offset of its slot, and the mask that then cuts it.
pub(crate) const fn tlb_index(table: Table) -> (u8, u32) {
    #[allow(clippy::cast_possible_truncation)]
    let mask = ((tlb_entries(table) - 1) << ENTRY_SHIFT) as u32;
    (12 - ENTRY_SHIFT, mask)
}

/// The slot of a linear address in a jump cache.
pub const fn jump_slot(va: u64) -> usize {
    // Functions begin at multiples of 16: the page number stirs the low bits. What a sum of two shifted addresses costs is three
    // instructions, and that two neighbours at an even and an odd address share a slot.
    x86::bits::index((va << JUMP_SPREAD).wrapping_add(va >> JUMP_STIR) >> JUMP_SHIFT) & (JUMPS - 1)
}

/// How far left an address is shifted to give its slot's byte offset.
pub(crate) const JUMP_SPREAD: u8 = 3;
/// How far right it is shifted to stir that.
pub(crate) const JUMP_STIR: u8 = 6;
/// Binary logarithm of [`JUMP_BYTES`].
pub(crate) const JUMP_SHIFT: u8 = 4;

/// The slot of a page of code.
pub const fn code_page_slot(va: u64) -> usize {
    x86::bits::index(va >> 12) & (CODE_PAGES - 1)
}

/// The slot of a key among [`Entrance`]s, the last of these slots being `last`, one less than a power of two.
pub const fn entrance_slot(key: u64, last: u64) -> usize {
    x86::bits::index((key ^ key >> ENTRANCE_STIR) >> 16 & last)
}

/// How far right a key is shifted to stir its slot number: the frame's number stirs the offset.
pub(crate) const ENTRANCE_STIR: u8 = 10;

/// Where a guest register is kept in the context.
pub(crate) const fn gpr_at(register: Gpr) -> i32 {
    at::GPR + 8 * register.number() as i32
}

const _: () = {
    assert!(size_of::<Context>() <= at::GO as usize);
    assert!(size_of::<TlbEntry>() == ENTRY_BYTES && 1 << ENTRY_SHIFT == ENTRY_BYTES);
    assert!(size_of::<JumpEntry>() == JUMP_BYTES && 1 << JUMP_SHIFT == JUMP_BYTES);
    assert!(jump_slot(JumpEntry::EMPTY_FIRST.address) != 0);
    assert!(size_of::<Anchor>() == ANCHOR_BYTES);
    assert!(size_of::<CodePage>() == CODE_PAGE_BYTES && size_of::<Entrance>() == 16);
    assert!(at::USER_ANCHORS % 4096 == 0);
};
