//! The chips of a PC: interrupt controllers, timers, serial port, ACPI registers.
//!
//! Each chip is a state machine with its clock, alarm and interrupt line injected, so each is tested with no VM
//! around it, and each has a saved form of its own.

#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

pub mod acpi_pm;
pub mod apic;
pub mod control;
pub mod debug_exit;
pub mod fw_cfg;
#[cfg(test)]
mod harness;
pub mod hpet;
pub mod i8042;
pub mod ioapic;
pub mod irq_router;
pub mod kvm_clock;
pub mod kvm_sched;
mod kvm_version;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod rtc;
pub mod slots;
mod sync;
mod timer;
pub mod uart;
