//! Everything that is in guest memory before the first instruction, and the processor's state at that instruction.
//!
//! There is no firmware program in the guest. What one would have done is done here, from outside: the memory map is
//! laid out ([`layout`]), the ACPI tables and the few BIOS data words are written ([`acpi`], [`bios`]), the kernel is
//! recognised by its bytes and loaded by its own protocol ([`load`]), and the boot processor is put into the state
//! which that protocol promises.
//!
//! A kernel file is as hostile as a guest. The scheme that keeps it harmless: the file is only read through
//! bounds-checked accessors ([`bytes`]); every byte that reaches guest memory first got its place from one
//! [`arena`] that knows what is RAM and what is taken, so nothing lands outside RAM, on the tables, or on something
//! else; and nothing is allocated in proportion to a number in the file, only to the file's own length.

#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

pub mod acpi;
mod arena;
mod bios;
mod bytes;
mod bzimage;
mod detect;
mod elf;
mod entry;
mod error;
pub mod layout;
mod linux;
mod load;
mod multiboot;
mod pvh;
#[cfg(test)]
mod tests;

pub use entry::waiting;
pub use error::LoadError;
pub use layout::MemoryMap;
pub use load::{Boot, BootRequest, Content, Initrd, Protocol, load};
