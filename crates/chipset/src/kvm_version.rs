//! How KVM's paravirtual structures are written: the guest reads the version, what it wants, and the version again, and begins
//! anew if that has changed or is odd.

use memory::{GuestMemory, MemoryError};
use x86::Gpa;

/// Lets `write` change a structure whose version is at `at`, and odd meanwhile.
pub(crate) fn publish(
    memory: &GuestMemory,
    at: Gpa,
    version: &mut u32,
    write: impl FnOnce() -> Result<(), MemoryError>,
) -> Result<(), MemoryError> {
    let odd = version.wrapping_add(1) | 1;
    memory.write_word::<u32>(at, odd)?;
    write()?;
    *version = odd.wrapping_add(1);
    memory.write_word::<u32>(at, *version)
}
