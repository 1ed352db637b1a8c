//! Local APICs and the bus between them (SDM vol. 3, chapter 11).
//!
//! # Scheme
//!
//! [`LocalApic`](local::LocalApic) is a plain state machine: it takes no lock, calls nobody and knows no other APIC.
//! What one of its registers sets in motion elsewhere (an IPI, the end of a level-triggered interrupt) is *returned*
//! as an effect. [`InterruptFabric`] owns one behind a mutex per vCPU, carries messages between them, and keeps a
//! summary word per vCPU that engines poll without a lock.
//!
//! # Lock order
//!
//! device → line of the router → IOAPIC or PIC → one local APIC → wake and alarm callbacks. Effects are carried out
//! after the APIC's lock is released, since they go back up to the IOAPIC or sideways to another APIC; nobody ever
//! holds two local APICs.
//!
//! # Files
//!
//! `vectors` is the 256-bit set, `timer` the timer, `message` what travels between APICs, `local` acceptance and
//! priorities, `registers` the register map in its MMIO and MSR forms, `pv_eoi` the paravirtual EOI, `saved` the
//! saved form, `fabric` all of them together.

mod fabric;
mod local;
mod message;
mod pv_eoi;
mod registers;
mod saved;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

pub use fabric::{
    ApicDevice, BehindApics, FabricSetup, InterruptFabric, MsrOutcome, PendingEvent, TscTime, VcpuIndex,
};
pub use local::ApicFeatures;
pub use message::{DeliveryMode, Destination, Message, MessageBus, Trigger};
pub use pv_eoi::GuestBytes;

/// Where every local APIC's registers appear in xAPIC mode, 4 KiB of them. A guest cannot move them: a write of
/// IA32_APIC_BASE that tries faults.
pub const APIC_BASE: u64 = 0xfee0_0000;
