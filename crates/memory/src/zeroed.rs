//! Large tables of atomics that start as zeros and cost nothing where they are never written.
//!
//! The allocator takes large zeroed blocks fresh from the kernel, whose pages come into being on first touch. An
//! iterator that stores zeros would touch them all.

use std::sync::atomic::{AtomicU32, AtomicU64};

/// `count` zeros.
pub(crate) fn words(count: usize) -> Box<[AtomicU64]> {
    // SAFETY: all bits zero is a value of `AtomicU64`, which has the representation of `u64`.
    unsafe { Box::new_zeroed_slice(count).assume_init() }
}

/// `count` zeros.
pub(crate) fn half_words(count: usize) -> Box<[AtomicU32]> {
    // SAFETY: all bits zero is a value of `AtomicU32`, which has the representation of `u32`.
    unsafe { Box::new_zeroed_slice(count).assume_init() }
}
