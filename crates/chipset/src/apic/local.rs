//! One local APIC: what it accepts, what it offers its processor, and when (SDM vol. 3, 11.8).
//!
//! The invariants: a vector below 16 is never in IRR or ISR; an interrupt is offered only if its priority class is
//! above the processor-priority register's; a disabled APIC (IA32_APIC_BASE) holds nothing. A request is never
//! withdrawn by anybody but the processor itself, so an acknowledge on the processor's own thread finds what was
//! offered, and the spurious-interrupt vector is never needed.
//!
//! Start-up (SDM vol. 3, 9.4): `waiting` is the wait-for-SIPI state. A start-up IPI counts only in it or after an
//! INIT that has not been acted on yet; an NMI does not reach a waiting processor.

use super::message::{DeliveryMode, Destination, Ipi, Message, Trigger};
use super::pv_eoi::{GuestBytes, PvEoi};
use super::registers::{ERROR_RECEIVED_VECTOR, LVT_ERROR, LVT_LINT0, LVT_LINT1, LVT_TIMER, MASKED};
use super::timer::{Timer, TimerMode};
use super::vectors::VectorSet;
use bus::GuestTime;

/// What the processor's CPUID says of its APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicFeatures {
    /// CPUID.1:ECX.21, x2APIC mode.
    pub x2apic: bool,
    /// CPUID.1:ECX.24, the TSC-deadline timer.
    pub tsc_deadline: bool,
}

/// The mode that IA32_APIC_BASE selects (SDM vol. 3, table 11-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApicMode {
    Disabled,
    XApic,
    X2Apic,
}

/// What an access sets in motion outside this APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    /// A level-triggered interrupt with this vector has ended.
    EndOfLevel(u8),
    Send(Ipi),
}

/// The registers that INIT and reset put back (SDM vol. 3, 11.4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) tpr: u8,
    /// xAPIC only; the x2APIC's logical ID follows from its ID.
    pub(super) ldr: u32,
    pub(super) dfr: u32,
    pub(super) svr: u32,
    /// Errors that a read shows, and those since the last write.
    pub(super) esr: u32,
    pub(super) errors: u32,
    pub(super) icr: u64,
    pub(super) lvt: [u32; 6],
    pub(super) irr: VectorSet,
    pub(super) isr: VectorSet,
    pub(super) tmr: VectorSet,
}

impl Registers {
    const RESET: Self = Self {
        tpr: 0,
        ldr: 0,
        dfr: u32::MAX,
        svr: 0xff,
        esr: 0,
        errors: 0,
        icr: 0,
        lvt: [MASKED; 6],
        irr: VectorSet::from_words([0; 4]),
        isr: VectorSet::from_words([0; 4]),
        tmr: VectorSet::from_words([0; 4]),
    };
}

/// Events beside interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Signals {
    pub(super) init: bool,
    pub(super) startup: Option<u8>,
    pub(super) nmi: bool,
    pub(super) waiting: bool,
}

#[derive(Debug)]
pub(super) struct LocalApic {
    // Static.
    pub(super) id: u32,
    pub(super) features: ApicFeatures,
    // Volatile.
    pub(super) mode: ApicMode,
    pub(super) registers: Registers,
    pub(super) timer: Timer,
    pub(super) signals: Signals,
    pub(super) pv_eoi: PvEoi,
}

impl LocalApic {
    pub(super) fn new(id: u32, features: ApicFeatures) -> Self {
        let mut apic = Self {
            id,
            features,
            mode: ApicMode::XApic,
            registers: Registers::RESET,
            timer: Timer::RESET,
            signals: Signals::default(),
            pv_eoi: PvEoi::default(),
        };
        apic.reset();
        apic
    }

    /// The boot processor is the first.
    pub(super) const fn is_boot(&self) -> bool {
        self.id == 0
    }

    /// Power-on. The machine has no firmware, so the boot processor's APIC comes as firmware leaves it: in virtual
    /// wire mode, with the 8259 behind LINT0 and NMI on LINT1 (MultiProcessor Specification 1.4, 3.6.2.2).
    pub(super) fn reset(&mut self) {
        self.mode = ApicMode::XApic;
        self.clear();
        self.pv_eoi = PvEoi::default();
        self.signals = Signals { waiting: !self.is_boot(), ..Signals::default() };
        if self.is_boot() {
            self.registers.svr |= SVR_ENABLED;
            self.registers.lvt[LVT_LINT0] = 0x700;
            self.registers.lvt[LVT_LINT1] = 0x400;
        }
    }

    /// The processor acts on INIT; ID and mode stay. A start-up IPI that has come since then stays too.
    pub(super) fn init(&mut self) {
        self.clear();
        self.pv_eoi = PvEoi::default();
        self.signals.init = false;
        self.signals.nmi = false;
        self.signals.waiting = !self.is_boot();
        if self.is_boot() {
            self.signals.startup = None;
        }
    }

    /// All registers but mode and ID to their reset values.
    pub(super) fn clear(&mut self) {
        self.registers = Registers::RESET;
        self.timer = Timer::RESET;
    }

    /// The software-enable bit: whether fixed interrupts are accepted.
    pub(super) fn is_enabled(&self) -> bool {
        self.mode != ApicMode::Disabled && self.registers.svr & SVR_ENABLED != 0
    }

    /// Whether the 8259's INTR reaches the processor: by LINT0, or directly where the APIC is disabled.
    pub(super) fn takes_extint(&self) -> bool {
        let lint0 = self.registers.lvt[LVT_LINT0];
        self.mode == ApicMode::Disabled || lint0 & (MASKED | 0x700) == 0x700
    }

    /// Whether a rising edge of LINT0 concerns the APIC itself: the entry is unmasked and not ExtINT.
    pub(super) fn takes_lint0(&self) -> bool {
        !self.takes_extint() && self.registers.lvt[LVT_LINT0] & MASKED == 0
    }

    /// The logical ID in x2APIC mode: cluster in the upper half, a bit in the lower (SDM vol. 3, 11.12.10.2).
    pub(super) const fn x2apic_ldr(&self) -> u32 {
        (self.id >> 4) << 16 | 1 << (self.id & 15)
    }

    /// Whether a message with this destination is for this APIC.
    pub(super) fn is_addressed(&self, destination: Destination) -> bool {
        match (self.mode, destination) {
            (ApicMode::Disabled, _) => false,
            (_, Destination::Broadcast) => true,
            (_, Destination::Physical(id)) => id == self.id,
            (ApicMode::X2Apic, Destination::Logical(set)) => {
                let own = self.x2apic_ldr();
                set >> 16 == own >> 16 && set & own & 0xffff != 0
            }
            (ApicMode::XApic, Destination::Logical(set)) => {
                let own = self.registers.ldr >> 24;
                match self.registers.dfr >> 28 {
                    _ if set > 0xff => false,
                    0xf => set & own != 0,
                    0x0 => set >> 4 == own >> 4 && set & own & 0xf != 0,
                    _ => false,
                }
            }
        }
    }

    /// Takes a message that addresses this APIC; false if it does not accept it.
    pub(super) fn accept(&mut self, message: &Message) -> bool {
        match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.is_enabled() && self.request(message.vector, message.trigger)
            }
            DeliveryMode::Nmi => self.nmi(),
            DeliveryMode::Init => {
                self.signals.init = true;
                self.signals.startup = None;
                true
            }
            DeliveryMode::Startup => {
                let listens = self.signals.waiting || (self.signals.init && !self.is_boot());
                if listens {
                    self.signals.startup = Some(message.vector);
                }
                listens
            }
        }
    }

    fn nmi(&mut self) -> bool {
        self.signals.nmi |= !self.signals.waiting;
        true
    }

    /// Puts an interrupt into IRR; a vector that is there already is one interrupt still.
    fn request(&mut self, vector: u8, trigger: Trigger) -> bool {
        if vector < 16 {
            self.error(ERROR_RECEIVED_VECTOR);
            return false;
        }
        self.registers.irr.insert(vector);
        self.registers.tmr.assign(vector, trigger == Trigger::Level);
        true
    }

    /// Notes an error and signals it (SDM vol. 3, 11.5.3). An error entry with an illegal vector is itself an error,
    /// noted once.
    pub(super) fn error(&mut self, bit: u32) {
        if self.registers.errors & bit == 0 {
            self.registers.errors |= bit;
            self.local_interrupt(LVT_ERROR);
        }
    }

    /// The source behind LVT entry `entry` asserts. All are taken as edges.
    pub(super) fn local_interrupt(&mut self, entry: usize) {
        let Some(lvt) = self.registers.lvt.get(entry).copied().filter(|lvt| lvt & MASKED == 0) else {
            return;
        };
        // Timer and error entries have no delivery mode; their bits 10:8 are zero, which is Fixed.
        match DeliveryMode::from_field(lvt >> 8) {
            Some(DeliveryMode::Fixed) => {
                self.request(x86::bits::low8(u64::from(lvt)), Trigger::Edge);
            }
            Some(DeliveryMode::Nmi) => {
                self.nmi();
            }
            _ => {}
        }
    }

    /// Lets the timer go off if it was due by `now`.
    pub(super) fn advance(&mut self, now: GuestTime) {
        if self.timer.expire(now) {
            self.local_interrupt(LVT_TIMER);
        }
    }

    /// IA32_TSC_DEADLINE is written; `due` is when the TSC gets there. A deadline in the past fires at once.
    pub(super) fn set_tsc_deadline(&mut self, tsc: u64, due: GuestTime, now: GuestTime) {
        if self.timer.mode == TimerMode::TscDeadline {
            self.timer.set_deadline(tsc, due);
            self.advance(now);
        }
    }

    /// The processor-priority register (SDM vol. 3, 11.8.3.1).
    pub(super) fn ppr(&self) -> u8 {
        let in_service = self.registers.isr.highest().unwrap_or(0);
        let tpr = self.registers.tpr;
        if tpr >> 4 >= in_service >> 4 { tpr } else { in_service & 0xf0 }
    }

    /// The interrupt to deliver next, if its class is above the processor's and the processor is started.
    pub(super) fn deliverable(&self) -> Option<u8> {
        let vector = self.registers.irr.highest()?;
        (vector >> 4 > self.ppr() >> 4 && !self.signals.waiting).then_some(vector)
    }

    /// The interrupt-acknowledge cycle.
    pub(super) fn acknowledge(&mut self, memory: &dyn GuestBytes) -> Option<u8> {
        let vector = self.deliverable()?;
        let r = &mut self.registers;
        r.irr.remove(vector);
        r.isr.insert(vector);
        if r.isr.count() == 1 && r.irr.is_empty() && !r.tmr.contains(vector) {
            self.pv_eoi.offer(memory);
        }
        Some(vector)
    }

    /// The end of the interrupt in service with the highest priority.
    pub(super) fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.registers.isr.highest() else { return Effect::Nothing };
        self.registers.isr.remove(vector);
        if self.registers.tmr.contains(vector) { Effect::EndOfLevel(vector) } else { Effect::Nothing }
    }

    /// On the vCPU's own thread: finds out whether the guest has taken a paravirtual EOI up, and withdraws the offer
    /// if something waits for that EOI. What ends this way was edge-triggered, so nobody else is concerned.
    pub(super) fn settle(&mut self, memory: &dyn GuestBytes) {
        if self.pv_eoi.take_up(memory) {
            self.end_of_interrupt();
        } else if self.must_settle() {
            self.pv_eoi.withdraw(memory);
        }
    }

    /// After an access: an offer whose interrupt has ended by other means is void.
    pub(super) fn void_offer(&mut self, memory: &dyn GuestBytes) {
        if self.pv_eoi.offered && self.registers.isr.is_empty() {
            self.pv_eoi.withdraw(memory);
        }
    }

    /// Whether a standing offer keeps something from being delivered.
    pub(super) fn must_settle(&self) -> bool {
        self.pv_eoi.offered && !self.registers.irr.is_empty()
    }
}

/// SVR bit 8.
pub(super) const SVR_ENABLED: u32 = 1 << 8;
