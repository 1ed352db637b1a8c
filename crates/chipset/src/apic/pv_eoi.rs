//! Paravirtual EOI: most interrupts end without a register access (Linux document `virt/kvm/x86/msr`,
//! MSR_KVM_EOI_EN).
//!
//! When an interrupt is delivered and its end concerns nobody (edge-triggered, the only one in service, none
//! waiting), bit 0 of a byte in guest memory is set: the *offer*. At the end of its handler the guest clears the bit
//! and, if it was set, leaves the EOI out. So while an offer stands, a cleared bit means that the EOI has happened.
//!
//! An offer must be withdrawn before anything else may become deliverable, or that would wait for an EOI nobody
//! announces. The guest clears the bit with an instruction that is *not* locked, so only the vCPU's own thread, between two
//! guest instructions, may touch it. An interrupt that arrives on another thread therefore marks the APIC as having
//! something to settle and wakes the vCPU, which settles when it polls.

use x86::Gpa;

/// Single bytes of guest memory.
pub trait GuestBytes: Send + Sync {
    /// The byte, or `None` where there is no memory.
    fn read_byte(&self, gpa: Gpa) -> Option<u8>;

    /// Writes the byte; false where there is no memory to write.
    fn write_byte(&self, gpa: Gpa, value: u8) -> bool;
}

const OFFER: u8 = 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PvEoi {
    /// MSR_KVM_EOI_EN: bit 0 enables, bits 63:2 are the address.
    pub(super) msr: u64,
    /// An offer stands.
    pub(super) offered: bool,
}

impl PvEoi {
    /// A write of the MSR; false if it must fault.
    pub(super) fn enable(&mut self, msr: u64, memory: &dyn GuestBytes) -> bool {
        let address = Gpa(msr & !3);
        if msr & 2 != 0 || (msr & 1 != 0 && memory.read_byte(address).is_none()) {
            return false;
        }
        self.withdraw(memory);
        self.msr = msr;
        true
    }

    fn byte(&self) -> Option<Gpa> {
        (self.msr & 1 != 0).then_some(Gpa(self.msr & !3))
    }

    /// Offers the guest to leave the EOI out.
    pub(super) fn offer(&mut self, memory: &dyn GuestBytes) {
        let Some(gpa) = self.byte() else { return };
        if let Some(byte) = memory.read_byte(gpa) {
            self.offered = memory.write_byte(gpa, byte | OFFER);
        }
    }

    /// Whether the guest has taken the standing offer up: its EOI has happened.
    pub(super) fn take_up(&mut self, memory: &dyn GuestBytes) -> bool {
        let taken = self.offered
            && self.byte().and_then(|gpa| memory.read_byte(gpa)).is_some_and(|byte| byte & OFFER == 0);
        self.offered &= !taken;
        taken
    }

    /// Takes the offer back.
    pub(super) fn withdraw(&mut self, memory: &dyn GuestBytes) {
        if std::mem::take(&mut self.offered)
            && let Some(gpa) = self.byte()
            && let Some(byte) = memory.read_byte(gpa)
        {
            memory.write_byte(gpa, byte & !OFFER);
        }
    }
}
