//! Large tables of atomics that start as zeros and cost nothing where they were never written.
//!
//! They are mapped and not allocated, so that a table for an absurdly large guest is an error with a sentence and not the
//! end of the process.

use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64};

use host::Mapping;

use crate::MemoryError;

/// Types of which all bits zero is a value, that can be changed through a shared reference and need no drop.
///
/// # Safety
/// That is the promise; and they are aligned to no more than a page.
pub(crate) unsafe trait Zero {}

// SAFETY: it has the representation of `u32`, for which 0 is a value.
unsafe impl Zero for AtomicU32 {}
// SAFETY: it has the representation of `u64`, for which 0 is a value.
unsafe impl Zero for AtomicU64 {}

/// A table of fixed length.
#[derive(Debug)]
pub(crate) struct Table<T> {
    mapping: Mapping,
    count: usize,
    _entries: PhantomData<[T]>,
}

impl<T: Zero> Table<T> {
    /// `count` zeros.
    ///
    /// # Errors
    /// If `count` is 0 or the host has not the address space.
    pub(crate) fn new(count: u64) -> Result<Self, MemoryError> {
        let bytes = count.saturating_mul(size_of::<T>() as u64);
        Ok(Self { mapping: Mapping::zeros(bytes)?, count: x86::bits::index(count), _entries: PhantomData })
    }
}

impl<T: Zero> Deref for Table<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is private, page-aligned, at least `count` entries long (`new` would have failed had the
        // product saturated), never unmapped while `self` is borrowed, and reached in no other way. Its zeros are values
        // of `T`, and whatever was stored since is too.
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().cast(), self.count) }
    }
}
