//! The saved form of the local APICs. Modes and values that no APIC can be in are refused or masked on the way in,
//! so that a damaged record can do no more than a guest could.

use bus::GuestTime;
use serde::{Deserialize, Serialize};
use state::Saved;

use super::fabric::VcpuIndex;
use super::local::{ApicMode, LocalApic, Registers, Signals};
use super::pv_eoi::PvEoi;
use super::timer::{Timer, TimerMode};
use super::vectors::VectorSet;
use super::{TscTime, registers};

/// All local APICs and the level of the 8259's INTR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedApics {
    pub(super) apics: Vec<SavedApic>,
    pub(super) intr: bool,
    /// Where the next search for a lowest-priority target starts.
    pub(super) turn: u32,
}

impl Saved for SavedApics {
    const NAME: &'static str = super::fabric::NAME;
    const VERSION: u16 = 1;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedApic {
    /// 0 disabled, 1 xAPIC, 2 x2APIC.
    pub(super) mode: u8,
    pub(super) tpr: u8,
    pub(super) ldr: u32,
    pub(super) dfr: u32,
    pub(super) svr: u32,
    pub(super) esr: u32,
    pub(super) errors: u32,
    pub(super) icr: u64,
    pub(super) lvt: [u32; 6],
    pub(super) irr: [u64; 4],
    pub(super) isr: [u64; 4],
    pub(super) tmr: [u64; 4],
    pub(super) divide: u32,
    pub(super) initial: u32,
    pub(super) due: Option<GuestTime>,
    pub(super) tsc_deadline: u64,
    pub(super) init: bool,
    pub(super) startup: Option<u8>,
    pub(super) nmi: bool,
    pub(super) waiting: bool,
    pub(super) pv_eoi_msr: u64,
    pub(super) pv_eoi_offered: bool,
}

impl SavedApic {
    pub(super) fn of(apic: &LocalApic) -> Self {
        let (r, timer, signals) = (&apic.registers, &apic.timer, &apic.signals);
        Self {
            mode: match apic.mode {
                ApicMode::Disabled => 0,
                ApicMode::XApic => 1,
                ApicMode::X2Apic => 2,
            },
            tpr: r.tpr,
            ldr: r.ldr,
            dfr: r.dfr,
            svr: r.svr,
            esr: r.esr,
            errors: r.errors,
            icr: r.icr,
            lvt: r.lvt,
            irr: r.irr.words(),
            isr: r.isr.words(),
            tmr: r.tmr.words(),
            divide: timer.divide,
            initial: timer.initial,
            due: timer.due,
            tsc_deadline: timer.deadline,
            init: signals.init,
            startup: signals.startup,
            nmi: signals.nmi,
            waiting: signals.waiting,
            pv_eoi_msr: apic.pv_eoi.msr,
            pv_eoi_offered: apic.pv_eoi.offered,
        }
    }

    /// Whether an APIC with these features can be in this mode.
    pub(super) fn fits(&self, apic: &LocalApic) -> bool {
        self.mode <= if apic.features.x2apic { 2 } else { 1 }
    }

    /// Puts the saved values in. A TSC deadline is converted anew, since the host's clocks may be others.
    pub(super) fn restore(&self, apic: &mut LocalApic, tsc: &dyn TscTime) {
        apic.mode = match self.mode {
            0 => ApicMode::Disabled,
            1 => ApicMode::XApic,
            _ => ApicMode::X2Apic,
        };
        apic.registers = Registers {
            tpr: self.tpr,
            ldr: self.ldr & 0xff00_0000,
            dfr: self.dfr | 0x0fff_ffff,
            svr: self.svr & registers::SVR_WRITABLE,
            esr: self.esr & 0xff,
            errors: self.errors & 0xff,
            icr: self.icr,
            lvt: registers::legal_lvt(self.lvt, apic.features.tsc_deadline),
            irr: VectorSet::from_words(self.irr),
            isr: VectorSet::from_words(self.isr),
            tmr: VectorSet::from_words(self.tmr),
        };
        let mode = TimerMode::from_lvt(apic.registers.lvt[registers::LVT_TIMER]);
        let deadline = if mode == TimerMode::TscDeadline { self.tsc_deadline } else { 0 };
        apic.timer = Timer {
            mode,
            divide: self.divide & 0xb,
            initial: self.initial,
            deadline,
            due: match mode {
                TimerMode::TscDeadline => {
                    (deadline != 0).then(|| tsc.time_of_tsc(VcpuIndex(apic.id), deadline))
                }
                _ => self.due,
            },
        };
        apic.signals =
            Signals { init: self.init, startup: self.startup, nmi: self.nmi, waiting: self.waiting };
        apic.pv_eoi = PvEoi { msr: self.pv_eoi_msr & !2, offered: self.pv_eoi_offered };
    }
}
