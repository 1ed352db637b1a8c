//! The register map in its two forms: memory (xAPIC) and MSRs (x2APIC) (SDM vol. 3, tables 11-1 and 11-6).
//!
//! Register `n` lies at offset `n * 16` of the page and is MSR `0x800 + n`. What both forms share is in
//! [`LocalApic::read_common`] and [`LocalApic::write_common`]; the forms differ in ID, LDR, ICR, the registers only
//! xAPIC has, and in what nonsense does: in xAPIC mode it is an error in ESR, in x2APIC mode #GP.

use super::local::{ApicMode, Effect, LocalApic, SVR_ENABLED};
use super::message::{DeliveryMode, Destination, Ipi, Message, Targets, Trigger};
use super::timer::TimerMode;
use bus::GuestTime;
use x86::bits::{high32, low8, low32};

const ID: u32 = 0x02;
const VERSION: u32 = 0x03;
const TPR: u32 = 0x08;
const APR: u32 = 0x09;
const PPR: u32 = 0x0a;
const EOI: u32 = 0x0b;
const REMOTE_READ: u32 = 0x0c;
const LDR: u32 = 0x0d;
const DFR: u32 = 0x0e;
const SVR: u32 = 0x0f;
const ISR_FIRST: u32 = 0x10;
const ISR_LAST: u32 = 0x17;
const TMR_FIRST: u32 = 0x18;
const TMR_LAST: u32 = 0x1f;
const IRR_FIRST: u32 = 0x20;
const IRR_LAST: u32 = 0x27;
const ESR: u32 = 0x28;
const ICR: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const LVT_FIRST: u32 = 0x32;
const LVT_LAST: u32 = 0x37;
const INITIAL_COUNT: u32 = 0x38;
const CURRENT_COUNT: u32 = 0x39;
const DIVIDE: u32 = 0x3e;
const SELF_IPI: u32 = 0x3f;

// Entries of the local vector table, counted from `LVT_FIRST`.
pub(super) const LVT_TIMER: usize = 0;
pub(super) const LVT_LINT0: usize = 3;
pub(super) const LVT_LINT1: usize = 4;
pub(super) const LVT_ERROR: usize = 5;

/// The mask bit of an LVT entry.
pub(super) const MASKED: u32 = 1 << 16;
/// What can be written in each LVT entry: vector and mask, and by entry the timer mode, the delivery mode, the
/// pin's polarity and trigger (SDM vol. 3, figure 11-8).
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
/// Delivery status and remote IRR: shown, not written, and not reserved either.
const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;

/// Version 0x14 (integrated), six LVT entries.
const VERSION_VALUE: u32 = 0x14 | 5 << 16;

// Errors in ESR (SDM vol. 3, figure 11-9).
const ERROR_SENT_VECTOR: u32 = 1 << 5;
pub(super) const ERROR_RECEIVED_VECTOR: u32 = 1 << 6;
const ERROR_REGISTER: u32 = 1 << 7;

const BASE_BOOT: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;

impl LocalApic {
    /// IA32_APIC_BASE.
    pub(super) fn apic_base(&self) -> u64 {
        let mode = match self.mode {
            ApicMode::Disabled => 0,
            ApicMode::XApic => BASE_ENABLED,
            ApicMode::X2Apic => BASE_ENABLED | BASE_X2APIC,
        };
        super::APIC_BASE | mode | if self.is_boot() { BASE_BOOT } else { 0 }
    }

    /// A write of IA32_APIC_BASE; `None` is #GP: another address, reserved bits, or a transition that SDM vol. 3,
    /// figure 11-27 does not have. The boot flag is kept as it is.
    pub(super) fn set_apic_base(&mut self, value: u64) -> Option<()> {
        if value & !(BASE_BOOT | BASE_X2APIC | BASE_ENABLED) != super::APIC_BASE {
            return None;
        }
        let mode = match (value & BASE_ENABLED != 0, value & BASE_X2APIC != 0) {
            (false, false) => ApicMode::Disabled,
            (true, false) => ApicMode::XApic,
            (true, true) if self.features.x2apic => ApicMode::X2Apic,
            _ => return None,
        };
        match (self.mode, mode) {
            (ApicMode::X2Apic, ApicMode::XApic) | (ApicMode::Disabled, ApicMode::X2Apic) => return None,
            (ApicMode::XApic, ApicMode::X2Apic) => self.registers.icr = 0,
            (_, ApicMode::Disabled) => self.clear(),
            _ => {}
        }
        self.mode = mode;
        Some(())
    }

    /// A 32-bit read from the register page.
    pub(super) fn read_page(&mut self, register: u32, now: GuestTime) -> u32 {
        match register {
            ID => self.id << 24,
            APR => u32::from(self.arbitration_priority()),
            EOI | REMOTE_READ => 0,
            LDR => self.registers.ldr,
            DFR => self.registers.dfr,
            ICR => low32(self.registers.icr),
            ICR_HIGH => high32(self.registers.icr),
            _ => self.read_common(register, now).unwrap_or_else(|| {
                self.error(ERROR_REGISTER);
                0
            }),
        }
    }

    /// A 32-bit write to the register page.
    pub(super) fn write_page(&mut self, register: u32, value: u32, now: GuestTime) -> Effect {
        match register {
            LDR => self.registers.ldr = value & 0xff00_0000,
            DFR => self.registers.dfr = value | 0x0fff_ffff,
            ICR_HIGH => {
                self.registers.icr =
                    u64::from(value & 0xff00_0000) << 32 | u64::from(low32(self.registers.icr));
            }
            ICR => {
                let low = value & !ICR_READ_ONLY;
                self.registers.icr = self.registers.icr & !0xffff_ffff | u64::from(low);
                return self.command();
            }
            // Present and not writable.
            ID | VERSION | APR | PPR | REMOTE_READ | CURRENT_COUNT | ISR_FIRST..=IRR_LAST => {}
            _ => {
                return self.write_common(register, value, now).unwrap_or_else(|| {
                    self.error(ERROR_REGISTER);
                    Effect::Nothing
                });
            }
        }
        Effect::Nothing
    }

    /// RDMSR of `0x800 + register` in x2APIC mode; `None` is #GP.
    pub(super) fn read_msr(&mut self, register: u32, now: GuestTime) -> Option<u64> {
        match register {
            ID => Some(u64::from(self.id)),
            LDR => Some(u64::from(self.x2apic_ldr())),
            ICR => Some(self.registers.icr),
            _ => self.read_common(register, now).map(u64::from),
        }
    }

    /// WRMSR of `0x800 + register` in x2APIC mode; `None` is #GP.
    pub(super) fn write_msr(&mut self, register: u32, value: u64, now: GuestTime) -> Option<Effect> {
        if value & reserved_bits(register, self.features.tsc_deadline)? != 0 {
            return None;
        }
        match register {
            ICR => {
                self.registers.icr = value & !u64::from(ICR_READ_ONLY);
                Some(self.command())
            }
            SELF_IPI => Some(self.send(Ipi {
                targets: Targets::Itself,
                message: Message {
                    destination: Destination::Physical(self.id),
                    mode: DeliveryMode::Fixed,
                    vector: low8(value),
                    trigger: Trigger::Edge,
                },
            })),
            _ => self.write_common(register, low32(value), now),
        }
    }

    fn read_common(&mut self, register: u32, now: GuestTime) -> Option<u32> {
        let r = &self.registers;
        Some(match register {
            VERSION => VERSION_VALUE,
            TPR => u32::from(r.tpr),
            PPR => u32::from(self.ppr()),
            SVR => r.svr,
            ISR_FIRST..=ISR_LAST => r.isr.register(register - ISR_FIRST),
            TMR_FIRST..=TMR_LAST => r.tmr.register(register - TMR_FIRST),
            IRR_FIRST..=IRR_LAST => r.irr.register(register - IRR_FIRST),
            ESR => r.esr,
            LVT_FIRST..=LVT_LAST => *r.lvt.get((register - LVT_FIRST) as usize)?,
            INITIAL_COUNT => self.timer.initial,
            CURRENT_COUNT => {
                self.advance(now);
                self.timer.count(now)
            }
            DIVIDE => self.timer.divide,
            _ => return None,
        })
    }

    fn write_common(&mut self, register: u32, value: u32, now: GuestTime) -> Option<Effect> {
        match register {
            TPR => self.registers.tpr = low8(u64::from(value)),
            EOI => return Some(self.end_of_interrupt()),
            SVR => self.set_svr(value),
            ESR => self.registers.esr = std::mem::take(&mut self.registers.errors),
            LVT_FIRST..=LVT_LAST => self.set_lvt((register - LVT_FIRST) as usize, value, now),
            INITIAL_COUNT => {
                self.advance(now);
                self.timer.set_initial(value, now);
            }
            DIVIDE => {
                self.advance(now);
                self.timer.set_divide(value, now);
            }
            _ => return None,
        }
        Some(Effect::Nothing)
    }

    /// Software-disabling masks every LVT entry (SDM vol. 3, 11.4.7.2).
    fn set_svr(&mut self, value: u32) {
        self.registers.svr = value & SVR_WRITABLE;
        if !self.is_enabled() {
            for entry in &mut self.registers.lvt {
                *entry |= MASKED;
            }
        }
    }

    fn set_lvt(&mut self, entry: usize, value: u32, now: GuestTime) {
        let Some(writable) = lvt_writable(entry, self.features.tsc_deadline) else { return };
        let masked = if self.is_enabled() { 0 } else { MASKED };
        if entry == LVT_TIMER {
            // What was due came under the old entry.
            self.advance(now);
            self.timer.set_mode(TimerMode::from_lvt(value & writable));
        }
        if let Some(lvt) = self.registers.lvt.get_mut(entry) {
            *lvt = value & writable | masked;
        }
    }

    /// Sends what the interrupt command register says.
    fn command(&mut self) -> Effect {
        match Ipi::from_icr(self.registers.icr, self.mode == ApicMode::X2Apic) {
            Some(ipi) => self.send(ipi),
            None => Effect::Nothing,
        }
    }

    fn send(&mut self, ipi: Ipi) -> Effect {
        let by_vector = matches!(ipi.message.mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if by_vector && ipi.message.vector < 16 {
            self.error(ERROR_SENT_VECTOR);
            return Effect::Nothing;
        }
        Effect::Send(ipi)
    }

    /// APR (SDM vol. 3, 11.6.2.4), meaningful on old processors only.
    fn arbitration_priority(&self) -> u8 {
        let class = |vector: Option<u8>| vector.unwrap_or(0) & 0xf0;
        let (irr, isr) = (class(self.registers.irr.highest()), class(self.registers.isr.highest()));
        let tpr = self.registers.tpr;
        if tpr & 0xf0 >= irr && tpr & 0xf0 > isr { tpr } else { irr.max(isr) }
    }
}

/// Vector, enable, focus checking.
pub(super) const SVR_WRITABLE: u32 = 0xff | SVR_ENABLED | 1 << 9;
/// The delivery status: messages are delivered at once, it is always idle.
const ICR_READ_ONLY: u32 = 1 << 12;
/// Bits 13, 17:16 and 31:20.
const ICR_RESERVED: u64 = 0xfff3_2000;

fn lvt_writable(entry: usize, tsc_deadline: bool) -> Option<u32> {
    let no_deadline = if entry == LVT_TIMER && !tsc_deadline { 1 << 18 } else { 0 };
    LVT_WRITABLE.get(entry).map(|bits| bits & !no_deadline)
}

/// A local vector table without the bits that cannot be set.
pub(super) fn legal_lvt(mut lvt: [u32; 6], tsc_deadline: bool) -> [u32; 6] {
    for (entry, value) in lvt.iter_mut().enumerate() {
        *value &= lvt_writable(entry, tsc_deadline).unwrap_or(0);
    }
    lvt
}

/// The bits that make a WRMSR in x2APIC mode fault; `None` for registers that cannot be written at all.
fn reserved_bits(register: u32, tsc_deadline: bool) -> Option<u64> {
    let legal: u32 = match register {
        TPR | SELF_IPI => 0xff,
        EOI | ESR => 0,
        SVR => SVR_WRITABLE,
        ICR => return Some(ICR_RESERVED),
        LVT_FIRST..=LVT_LAST => lvt_writable((register - LVT_FIRST) as usize, tsc_deadline)? | LVT_READ_ONLY,
        INITIAL_COUNT => u32::MAX,
        DIVIDE => 0xb,
        _ => return None,
    };
    Some(!u64::from(legal))
}
