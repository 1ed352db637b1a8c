//! Words in guest frames, and how to touch them while others do.
//!
//! # The problem
//! Every byte of a guest frame may be read and written at any moment by other vCPUs, by devices and, later, by other
//! processes. A Rust reference or a plain load would be a data race. Rust's atomics would do for aligned words of one
//! size, but guests mix sizes and alignments at the same address as they please, which the atomics' memory model does
//! not cover, and there is no misaligned atomic at all.
//!
//! # The scheme
//! Guest bytes are *never* part of Rust's memory: they live in a mapping that no reference ever points into, and are
//! reached by inline assembly alone, one machine instruction per word. What an access means is then what the processor
//! says it means, which is exactly what a guest expects of its own `mov`:
//!
//! * a naturally aligned load or store of 1, 2, 4 or 8 bytes is atomic, and so is a misaligned one inside a cache line;
//!   one that crosses a line may tear at the line boundary, as on the guest's processor (SDM vol. 3A, 10.1.1);
//! * an aligned copy of 16 bytes is atomic where the processor has AVX;
//! * a locked instruction is atomic at any alignment (SDM vol. 3A, 10.1.2);
//! * order is x86's (total store order, SDM vol. 3A, 10.2.2), because the host is x86 and the compiler moves neither
//!   one volatile `asm!` across another nor a memory access across one that may write.
//!
//! No alignment test is needed, so the fast path is a bounds check and a `mov`.
//!
//! # Split locks
//! A locked instruction on a word that crosses a cache line makes the host lock its whole bus for about a thousand
//! cycles. Linux's `split_lock_detect` slows such a process down (`warn`, the default) or kills it (`fatal`): a guest
//! then hurts itself, as it would with any engine that keeps such an operation atomic.

use core::arch::asm;
use core::arch::x86_64::__m128i;
use core::fmt::Debug;

/// An unsigned word of 1, 2, 4 or 8 bytes that can be read from and written to guest frames.
pub trait Word: raw::Access + Copy + Eq + Debug + Default + Send + Sync + 'static {
    /// Its size.
    const BYTES: usize;

    /// The low bits of `value`.
    fn from_u64(value: u64) -> Self;

    /// Zero-extended.
    fn into_u64(self) -> u64;
}

pub(crate) mod raw {
    //! The instructions. The trait is not nameable outside the crate, so nobody else can make words of other types.

    /// One machine instruction on a guest word.
    pub trait Access: Sized {
        /// Loads the word at `at`.
        ///
        /// # Safety
        /// The word's bytes lie in a live mapping of guest frames.
        unsafe fn load(at: *const u8) -> Self;

        /// Stores the word at `at`.
        ///
        /// # Safety
        /// The word's bytes lie in a live, writable mapping of guest frames.
        unsafe fn store(at: *mut u8, value: Self);

        /// `lock cmpxchg`: stores `new` if the word at `at` is `expected`; returns what it was.
        ///
        /// # Safety
        /// As for [`Access::store`].
        unsafe fn compare_exchange(at: *mut u8, expected: Self, new: Self) -> Self;
    }
}

macro_rules! word {
    ($type:ty, $class:ident, $accumulator:tt, $size:literal, $modifier:literal) => {
        impl Word for $type {
            const BYTES: usize = size_of::<$type>();

            #[inline(always)]
            #[allow(clippy::cast_possible_truncation)] // what the function is for
            fn from_u64(value: u64) -> Self {
                value as $type
            }

            #[inline(always)]
            fn into_u64(self) -> u64 {
                u64::from(self)
            }
        }

        impl raw::Access for $type {
            #[inline(always)]
            unsafe fn load(at: *const u8) -> Self {
                let value: $type;
                // SAFETY: the caller vouches for the bytes; nothing but `value` is written.
                unsafe {
                    asm!(concat!("mov {value", $modifier, "}, ", $size, " ptr [{at}]"),
                        at = in(reg) at, value = lateout($class) value,
                        options(nostack, preserves_flags, readonly));
                }
                value
            }

            #[inline(always)]
            unsafe fn store(at: *mut u8, value: Self) {
                // SAFETY: the caller vouches for the bytes, which belong to no Rust object.
                unsafe {
                    asm!(concat!("mov ", $size, " ptr [{at}], {value", $modifier, "}"),
                        at = in(reg) at, value = in($class) value,
                        options(nostack, preserves_flags));
                }
            }

            #[inline(always)]
            unsafe fn compare_exchange(at: *mut u8, expected: Self, new: Self) -> Self {
                let found: $type;
                // SAFETY: the caller vouches for the bytes, which belong to no Rust object.
                unsafe {
                    asm!(concat!("lock cmpxchg ", $size, " ptr [{at}], {new", $modifier, "}"),
                        at = in(reg) at, new = in($class) new, inout($accumulator) expected => found,
                        options(nostack));
                }
                found
            }
        }
    };
}

word!(u8, reg_byte, "al", "byte", "");
word!(u16, reg, "ax", "word", ":x");
word!(u32, reg, "eax", "dword", ":e");
word!(u64, reg, "rax", "qword", ":r");

/// `lock cmpxchg16b`: stores `new` if the 16 bytes at `at` are `expected`; returns what they were.
///
/// # Safety
/// The bytes lie in a live, writable mapping of guest frames and `at` is a multiple of 16 (else the instruction faults).
pub(crate) unsafe fn compare_exchange_128(at: *mut u8, expected: u128, new: u128) -> u128 {
    use x86::bits::{high64, low64};
    let (low, high): (u64, u64);
    // SAFETY: the caller vouches for the bytes and the alignment; every host that runs us has CMPXCHG16B (Linux
    // distributions for x86-64 need it, and v2 of the architecture demands it). RBX, which the compiler keeps for
    // itself, is exchanged with `new`'s low half and put back. The operands are named: of a class the compiler may
    // choose RBX for the address.
    unsafe {
        asm!(
            "xchg rbx, rsi",
            "lock cmpxchg16b xmmword ptr [rdi]",
            "mov rbx, rsi",
            in("rdi") at,
            inout("rsi") low64(new) => _,
            in("rcx") high64(new),
            inout("rax") low64(expected) => low,
            inout("rdx") high64(expected) => high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

/// Copies 16 bytes, on an aligned side by MOVAPS: where there is AVX, that is atomic (SDM vol. 3A, 10.1.1; AMD APM
/// vol. 2, 7.3.2).
///
/// # Safety
/// As for [`copy`].
#[inline(always)]
unsafe fn copy_16(from: *const u8, to: *mut u8) {
    let value: __m128i;
    // SAFETY: the caller vouches for both ranges; nothing but `value` and the destination is written, and MOVAPS is only
    // used on aligned addresses.
    unsafe {
        if from.addr().is_multiple_of(16) {
            asm!("movaps {value}, xmmword ptr [{from}]", from = in(reg) from, value = lateout(xmm_reg) value,
                options(nostack, preserves_flags, readonly));
        } else {
            asm!("movups {value}, xmmword ptr [{from}]", from = in(reg) from, value = lateout(xmm_reg) value,
                options(nostack, preserves_flags, readonly));
        }
        if to.addr().is_multiple_of(16) {
            asm!("movaps xmmword ptr [{to}], {value}", to = in(reg) to, value = in(xmm_reg) value,
                options(nostack, preserves_flags));
        } else {
            asm!("movups xmmword ptr [{to}], {value}", to = in(reg) to, value = in(xmm_reg) value,
                options(nostack, preserves_flags));
        }
    }
}

/// Copies up to this many bytes word by word: `rep movsb` starts slowly.
const SHORT: usize = 256;

/// Copies bytes of which one side lies in a guest frame.
///
/// # Safety
/// Both ranges are live and do not overlap; the guest side lies in a mapping of guest frames, the other side belongs to
/// the caller.
#[inline]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    if len > SHORT {
        // SAFETY: the caller vouches for both ranges. The ABI keeps the direction flag clear.
        unsafe {
            asm!("rep movsb", inout("rcx") len => _, inout("rsi") from => _, inout("rdi") to => _,
                options(nostack, preserves_flags));
        }
        return;
    }
    let mut done = 0;
    while len - done >= 16 {
        // SAFETY: `done + 16 <= len`, so both words lie in the ranges that the caller vouches for.
        unsafe { copy_16(from.add(done), to.add(done)) };
        done += 16;
    }
    if len - done >= 8 {
        // SAFETY: `done + 8 <= len`, so both words lie in the ranges that the caller vouches for.
        unsafe { raw::Access::store(to.add(done), <u64 as raw::Access>::load(from.add(done))) };
        done += 8;
    }
    if len - done >= 4 {
        // SAFETY: as above, with this size.
        unsafe { raw::Access::store(to.add(done), <u32 as raw::Access>::load(from.add(done))) };
        done += 4;
    }
    if len - done >= 2 {
        // SAFETY: as above, with this size.
        unsafe { raw::Access::store(to.add(done), <u16 as raw::Access>::load(from.add(done))) };
        done += 2;
    }
    if len > done {
        // SAFETY: as above, with this size.
        unsafe { raw::Access::store(to.add(done), <u8 as raw::Access>::load(from.add(done))) };
    }
}

/// Sets `len` bytes of a guest frame to `byte`.
///
/// # Safety
/// The range lies in a live, writable mapping of guest frames.
#[inline]
pub(crate) unsafe fn fill(to: *mut u8, len: usize, byte: u8) {
    // SAFETY: the caller vouches for the range. The ABI keeps the direction flag clear.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte,
            options(nostack, preserves_flags));
    }
}
