//! All local APICs of a machine and the bus between them.
//!
//! # The summary word
//!
//! Each vCPU has one atomic word that says what waits for it. It is recomputed under the APIC's lock after every
//! change, and read without a lock by [`InterruptFabric::pending`], which engines poll. Whoever makes a bit appear
//! calls the wake callback after the APIC's lock is released; a bit that stays needs no second wake, since the vCPU
//! has not acted on it yet and will look again before it does (at IF changes, at HLT). The one exception is an
//! acknowledge that leaves another interrupt behind, which wakes again.
//!
//! # The 8259
//!
//! Its INTR is wired to LINT0 of every local APIC. It is a level outside all APICs: an atomic that `pending` combines
//! with the summary's "LINT0 is ExtINT" bit. Raising it stores the level and then reads the summaries; opening LINT0
//! stores the summary and then reads the level; both in one total order, so one of the two sees the other and wakes.
//!
//! # Threads
//!
//! Methods that take the vCPU whose access it is (`pending`, `acknowledge`, register accesses) are called on that
//! vCPU's thread between two guest instructions: paravirtual EOI depends on it. `deliver`, `advance` and the lines
//! are called from anywhere.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use bus::{Alarm, Clock, Device, GuestTime, IrqLine, Lifecycle, Region};
use state::{Record, StateError};
use x86::bits::{low8, low32};
use x86::msr;

use super::local::{ApicFeatures, ApicMode, Effect, LocalApic};
use super::message::{DeliveryMode, Destination, Ipi, Message, MessageBus, Targets};
use super::pv_eoi::GuestBytes;
use super::registers::LVT_LINT0;
use super::saved::{SavedApic, SavedApics};
use crate::sync::lock;

pub(super) const NAME: &str = "local-apics";

/// Which vCPU of the machine; also its APIC ID. The first is the boot processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuIndex(pub u32);

/// What waits for a vCPU, in the order of priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingEvent {
    /// INIT.
    Init,
    /// A start-up IPI with its page number.
    Startup(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// A maskable interrupt that the processor's priority lets through.
    Interrupt,
}

/// Whether an MSR is one of the local APIC's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrOutcome<T> {
    /// It is; here is the value, or unit for a write.
    Done(T),
    /// It is, and the access is #GP.
    Fault,
    /// It is not.
    Unknown,
}

impl<T> From<Option<T>> for MsrOutcome<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Fault, Self::Done)
    }
}

/// The relation of a guest's time stamp counter to guest time.
pub trait TscTime: Send + Sync {
    /// When the vCPU's counter reaches `tsc`, rounded up: a guest that is interrupted then and reads the counter
    /// finds no less. Any time not in the future if it has passed already.
    fn time_of_tsc(&self, vcpu: VcpuIndex, tsc: u64) -> GuestTime;
}

/// The chips behind the local APICs.
pub trait BehindApics: Send + Sync {
    /// A level-triggered interrupt with this vector has ended.
    fn end_of_interrupt(&self, vector: u8);

    /// The acknowledge cycle of an ExtINT: the 8259's vector.
    fn acknowledge_extint(&self) -> u8;
}

/// What the fabric is made of.
pub struct FabricSetup {
    /// What CPUID says of the APICs.
    pub features: ApicFeatures,
    /// Guest time.
    pub clock: Arc<dyn Clock>,
    /// One alarm per vCPU, which calls [`InterruptFabric::advance`] for it; their number is the number of vCPUs.
    pub alarms: Vec<Arc<dyn Alarm>>,
    /// For TSC deadlines.
    pub tsc: Arc<dyn TscTime>,
    /// For paravirtual EOI.
    pub memory: Arc<dyn GuestBytes>,
    /// Makes a vCPU ask [`InterruptFabric::pending`] soon, wherever it is. Called on any thread, with device locks
    /// held but no local APIC's; must not call back.
    pub wake: Box<dyn Fn(VcpuIndex) + Send + Sync>,
}

/// The local APICs and their bus.
pub struct InterruptFabric {
    // Glue.
    clock: Arc<dyn Clock>,
    tsc: Arc<dyn TscTime>,
    memory: Arc<dyn GuestBytes>,
    wake: Box<dyn Fn(VcpuIndex) + Send + Sync>,
    behind: OnceLock<Weak<dyn BehindApics>>,
    // Volatile.
    cells: Vec<Cell>,
    /// The level of the 8259's INTR.
    intr: AtomicBool,
    /// Where the search for a lowest-priority target starts; fairness only.
    turn: AtomicU32,
}

/// One vCPU's share. Aligned so that vCPUs do not disturb each other's polling.
#[repr(align(64))]
struct Cell {
    summary: AtomicU32,
    apic: Mutex<Armed>,
    alarm: Arc<dyn Alarm>,
}

struct Armed {
    apic: LocalApic,
    /// What the alarm is set to; `None` if it may have gone off since.
    alarm: Option<Option<GuestTime>>,
}

// The summary word; the start-up IPI's page number is in bits 15:8.
const INIT: u32 = 1 << 0;
const STARTUP: u32 = 1 << 1;
const NMI: u32 = 1 << 2;
const INTERRUPT: u32 = 1 << 3;
/// A paravirtual EOI is to be settled by the vCPU before anything can be delivered.
const SETTLE: u32 = 1 << 4;
/// INTR reaches the processor.
const EXTINT_OPEN: u32 = 1 << 5;
/// INTR's rising edge is an interrupt of the APIC's own.
const LINT0_OPEN: u32 = 1 << 6;
/// What the vCPU must be woken for.
const URGENT: u32 = INIT | STARTUP | NMI | INTERRUPT | SETTLE;

fn summary_of(apic: &LocalApic) -> u32 {
    let signals = &apic.signals;
    let mut word = if signals.init { INIT } else { 0 };
    if let Some(page) = signals.startup {
        word |= STARTUP | u32::from(page) << 8;
    }
    if signals.waiting {
        return word;
    }
    let bits = [
        (NMI, signals.nmi),
        (INTERRUPT, apic.deliverable().is_some()),
        (SETTLE, apic.must_settle()),
        (EXTINT_OPEN, apic.takes_extint()),
        (LINT0_OPEN, apic.takes_lint0()),
    ];
    bits.iter().filter(|(_, set)| *set).fold(word, |word, (bit, _)| word | bit)
}

impl Cell {
    /// Changes the APIC and publishes the outcome; true if the vCPU must be woken.
    fn change<R>(&self, intr: &AtomicBool, act: impl FnOnce(&mut LocalApic) -> R) -> (R, bool) {
        let mut armed = lock(&self.apic);
        let result = act(&mut armed.apic);
        let due = armed.apic.timer.due;
        if armed.alarm != Some(due) {
            armed.alarm = Some(due);
            self.alarm.set(due);
        }
        let new = summary_of(&armed.apic);
        let appeared = new & !self.summary.swap(new, Ordering::SeqCst);
        let wake = appeared & URGENT != 0 || (appeared & EXTINT_OPEN != 0 && intr.load(Ordering::SeqCst));
        (result, wake)
    }
}

impl InterruptFabric {
    /// Local APICs in the power-on state.
    pub fn new(setup: FabricSetup) -> Arc<Self> {
        let cell = |(id, alarm)| {
            let apic = LocalApic::new(id, setup.features);
            let summary = AtomicU32::new(summary_of(&apic));
            Cell { summary, apic: Mutex::new(Armed { apic, alarm: Some(None) }), alarm }
        };
        Arc::new(Self {
            clock: setup.clock,
            tsc: setup.tsc,
            memory: setup.memory,
            wake: setup.wake,
            behind: OnceLock::new(),
            cells: (0..).zip(setup.alarms).map(cell).collect(),
            intr: AtomicBool::new(false),
            turn: AtomicU32::new(0),
        })
    }

    /// Connects the chips that EOIs and ExtINT acknowledges go to; once, when the machine is built. A second call
    /// changes nothing.
    pub fn connect(&self, behind: Weak<dyn BehindApics>) {
        let _ = self.behind.set(behind);
    }

    fn cell(&self, vcpu: VcpuIndex) -> Option<&Cell> {
        self.cells.get(vcpu.0 as usize)
    }

    /// Changes one APIC, then wakes its vCPU if there is something new for it. `None` if there is no such vCPU.
    fn change<R>(&self, vcpu: VcpuIndex, act: impl FnOnce(&mut LocalApic) -> R) -> Option<R> {
        let (result, wake) = self.cell(vcpu)?.change(&self.intr, act);
        if wake {
            (self.wake)(vcpu);
        }
        Some(result)
    }

    /// An access by the vCPU itself.
    fn access<R>(&self, vcpu: VcpuIndex, act: impl FnOnce(&mut LocalApic) -> R) -> Option<R> {
        self.change(vcpu, |apic| {
            apic.settle(&*self.memory);
            let result = act(apic);
            apic.void_offer(&*self.memory);
            result
        })
    }

    fn carry_out(&self, sender: VcpuIndex, effect: Effect) {
        match effect {
            Effect::Nothing => {}
            Effect::EndOfLevel(vector) => {
                if let Some(behind) = self.behind.get().and_then(Weak::upgrade) {
                    behind.end_of_interrupt(vector);
                }
            }
            Effect::Send(ipi) => self.send(sender, &ipi),
        }
    }

    fn send(&self, sender: VcpuIndex, ipi: &Ipi) {
        let accept = |vcpu| {
            self.change(vcpu, |apic| apic.mode != ApicMode::Disabled && apic.accept(&ipi.message));
        };
        match ipi.targets {
            Targets::Addressed => {
                self.deliver(&ipi.message);
            }
            Targets::Itself => accept(sender),
            Targets::Everybody => self.vcpus().for_each(accept),
            Targets::Others => self.vcpus().filter(|vcpu| *vcpu != sender).for_each(accept),
        }
    }

    pub(super) fn vcpus(&self) -> impl Iterator<Item = VcpuIndex> + use<> {
        (0..low32(self.cells.len() as u64)).map(VcpuIndex)
    }

    /// Picks the addressed APIC whose processor has the lowest priority; among equals they take turns.
    fn arbitrate(&self, destination: Destination) -> Option<VcpuIndex> {
        let count = low32(self.cells.len() as u64).max(1);
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % count;
        let rotated = self.vcpus().map(|vcpu| VcpuIndex((vcpu.0 + first) % count));
        let candidates = rotated.filter_map(|vcpu| {
            let armed = lock(&self.cell(vcpu)?.apic);
            let apic = &armed.apic;
            (apic.is_addressed(destination) && apic.is_enabled()).then(|| (apic.ppr(), vcpu))
        });
        candidates.min_by_key(|(priority, _)| *priority).map(|(_, vcpu)| vcpu)
    }

    fn deliver_to(&self, vcpu: VcpuIndex, message: &Message) -> bool {
        let accept = |apic: &mut LocalApic| apic.is_addressed(message.destination) && apic.accept(message);
        self.change(vcpu, accept).unwrap_or(false)
    }

    /// A message-signalled interrupt: a device writes `data` to `address`. Writes that are not one are ignored.
    pub fn msi(&self, address: u64, data: u32) {
        if let Some(message) = Message::from_msi(address, data) {
            self.deliver(&message);
        }
    }

    /// The most urgent event that waits for the vCPU, without taking it. Cheap: normally one atomic load.
    #[inline]
    pub fn pending(&self, vcpu: VcpuIndex) -> Option<PendingEvent> {
        let word = self.cell(vcpu)?.summary.load(Ordering::SeqCst);
        if word & (URGENT | EXTINT_OPEN) == 0 { None } else { self.pending_event(vcpu, word) }
    }

    fn pending_event(&self, vcpu: VcpuIndex, mut word: u32) -> Option<PendingEvent> {
        if word & SETTLE != 0 {
            self.access(vcpu, |_| ())?;
            word = self.cell(vcpu)?.summary.load(Ordering::SeqCst);
        }
        if word & INIT != 0 {
            Some(PendingEvent::Init)
        } else if word & STARTUP != 0 {
            Some(PendingEvent::Startup(low8(u64::from(word >> 8))))
        } else if word & NMI != 0 {
            Some(PendingEvent::Nmi)
        } else if word & INTERRUPT != 0 || self.extint_waits(word) {
            Some(PendingEvent::Interrupt)
        } else {
            None
        }
    }

    fn extint_waits(&self, word: u32) -> bool {
        word & EXTINT_OPEN != 0 && self.intr.load(Ordering::SeqCst)
    }

    /// Takes a pending INIT, start-up IPI or NMI away, as the processor acts on it. INIT resets the APIC.
    pub fn take(&self, vcpu: VcpuIndex, event: PendingEvent) {
        self.change(vcpu, |apic| match event {
            PendingEvent::Init => apic.init(),
            PendingEvent::Startup(_) => {
                apic.signals.startup = None;
                apic.signals.waiting = false;
            }
            PendingEvent::Nmi => apic.signals.nmi = false,
            PendingEvent::Interrupt => {}
        });
    }

    /// The interrupt-acknowledge cycle: the vector to deliver. An 8259 that has withdrawn its request in between
    /// gives its spurious vector.
    pub fn acknowledge(&self, vcpu: VcpuIndex) -> Option<u8> {
        let cell = self.cell(vcpu)?;
        let behind = self.behind.get().filter(|_| self.extint_waits(cell.summary.load(Ordering::SeqCst)));
        let vector = match behind.and_then(Weak::upgrade) {
            Some(chips) => Some(chips.acknowledge_extint()),
            None => self.access(vcpu, |apic| apic.acknowledge(&*self.memory))?,
        };
        let left = cell.summary.load(Ordering::SeqCst);
        if left & INTERRUPT != 0 || self.extint_waits(left) {
            (self.wake)(vcpu);
        }
        vector
    }

    /// CR8: the task priority's upper half.
    pub fn cr8(&self, vcpu: VcpuIndex) -> u8 {
        self.cell(vcpu).map_or(0, |cell| lock(&cell.apic).apic.registers.tpr >> 4)
    }

    /// MOV to CR8.
    pub fn set_cr8(&self, vcpu: VcpuIndex, value: u8) {
        self.access(vcpu, |apic| apic.registers.tpr = (value & 15) << 4);
    }

    /// A read at `offset` into the page at [`super::APIC_BASE`]. Outside xAPIC mode nobody answers: all ones. Parts
    /// of a register may be read; what lies between the registers reads as zero.
    pub fn mmio_read(&self, vcpu: VcpuIndex, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let now = self.clock.now();
        self.access(vcpu, |apic| {
            if apic.mode == ApicMode::XApic {
                let value = u64::from(apic.read_page(low32(offset >> 4), now));
                let shifted = value.checked_shr(low32(offset & 15) * 8).unwrap_or(0);
                for (byte, from) in data.iter_mut().zip(shifted.to_le_bytes()) {
                    *byte = from;
                }
            }
        });
    }

    /// A write at `offset` into that page. Only aligned writes of 32 bits or more do anything (SDM vol. 3, 11.4.1).
    pub fn mmio_write(&self, vcpu: VcpuIndex, offset: u64, data: &[u8]) {
        let (Some(bytes), 0) = (data.first_chunk(), offset & 15) else { return };
        let value = u32::from_le_bytes(*bytes);
        let now = self.clock.now();
        let effect = self.access(vcpu, |apic| match apic.mode {
            ApicMode::XApic => apic.write_page(low32(offset >> 4), value, now),
            _ => Effect::Nothing,
        });
        self.carry_out(vcpu, effect.unwrap_or(Effect::Nothing));
    }

    /// RDMSR of IA32_APIC_BASE, an x2APIC register, IA32_TSC_DEADLINE or MSR_KVM_EOI_EN.
    pub fn read_msr(&self, vcpu: VcpuIndex, index: u32) -> MsrOutcome<u64> {
        let now = self.clock.now();
        let value = self.access(vcpu, |apic| match index {
            msr::IA32_APIC_BASE => MsrOutcome::Done(apic.apic_base()),
            msr::KVM_PV_EOI_EN => MsrOutcome::Done(apic.pv_eoi.msr),
            msr::IA32_TSC_DEADLINE if apic.features.tsc_deadline => {
                apic.advance(now);
                MsrOutcome::Done(apic.timer.deadline)
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST if apic.mode == ApicMode::X2Apic => {
                apic.read_msr(index - msr::X2APIC_FIRST, now).into()
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => MsrOutcome::Fault,
            _ => MsrOutcome::Unknown,
        });
        value.unwrap_or(MsrOutcome::Unknown)
    }

    /// WRMSR of such a register.
    pub fn write_msr(&self, vcpu: VcpuIndex, index: u32, value: u64) -> MsrOutcome<()> {
        let now = self.clock.now();
        let due = if index == msr::IA32_TSC_DEADLINE { self.tsc.time_of_tsc(vcpu, value) } else { now };
        let outcome = self.access(vcpu, |apic| match index {
            msr::IA32_APIC_BASE => apic.set_apic_base(value).map(|()| Effect::Nothing).into(),
            msr::KVM_PV_EOI_EN => apic.pv_eoi.enable(value, &*self.memory).then_some(Effect::Nothing).into(),
            msr::IA32_TSC_DEADLINE if apic.features.tsc_deadline => {
                apic.set_tsc_deadline(value, due, now);
                MsrOutcome::Done(Effect::Nothing)
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST if apic.mode == ApicMode::X2Apic => {
                apic.write_msr(index - msr::X2APIC_FIRST, value, now).into()
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST => MsrOutcome::Fault,
            _ => MsrOutcome::Unknown,
        });
        match outcome {
            Some(MsrOutcome::Done(effect)) => {
                self.carry_out(vcpu, effect);
                MsrOutcome::Done(())
            }
            Some(MsrOutcome::Fault) => MsrOutcome::Fault,
            Some(MsrOutcome::Unknown) | None => MsrOutcome::Unknown,
        }
    }

    /// The vCPU's alarm has gone off, or may have.
    pub fn advance(&self, vcpu: VcpuIndex, now: GuestTime) {
        if let Some(cell) = self.cell(vcpu) {
            lock(&cell.apic).alarm = None;
        }
        self.change(vcpu, |apic| apic.advance(now));
    }

    /// Drives the 8259's INTR.
    fn set_intr(&self, high: bool) {
        let was_high = self.intr.swap(high, Ordering::SeqCst);
        if was_high || !high {
            return;
        }
        for (vcpu, cell) in self.vcpus().zip(&self.cells) {
            let word = cell.summary.load(Ordering::SeqCst);
            if word & EXTINT_OPEN != 0 {
                (self.wake)(vcpu);
            } else if word & LINT0_OPEN != 0 {
                self.change(vcpu, |apic| apic.local_interrupt(LVT_LINT0));
            }
        }
    }

    /// The wire from the 8259 pair's INTR to LINT0 of every local APIC.
    pub fn intr_line(self: &Arc<Self>) -> Arc<dyn IrqLine> {
        Arc::new(IntrLine(self.clone()))
    }

    fn reset(&self) {
        for vcpu in self.vcpus() {
            self.change(vcpu, LocalApic::reset);
        }
        self.turn.store(0, Ordering::Relaxed);
    }

    fn save(&self) -> SavedApics {
        let apics = self.cells.iter().map(|cell| SavedApic::of(&lock(&cell.apic).apic)).collect();
        SavedApics { apics, intr: self.intr.load(Ordering::SeqCst), turn: self.turn.load(Ordering::Relaxed) }
    }

    fn restore(&self, saved: &SavedApics) -> Result<(), String> {
        if saved.apics.len() != self.cells.len() {
            return Err(format!(
                "it is of {} vCPUs, this machine has {}",
                saved.apics.len(),
                self.cells.len()
            ));
        }
        let fits = |(cell, apic): (&Cell, &SavedApic)| apic.fits(&lock(&cell.apic).apic);
        if !self.cells.iter().zip(&saved.apics).all(fits) {
            return Err("a local APIC is in a mode it does not have".into());
        }
        self.intr.store(saved.intr, Ordering::SeqCst);
        self.turn.store(saved.turn, Ordering::Relaxed);
        for (vcpu, apic) in self.vcpus().zip(&saved.apics) {
            self.change(vcpu, |runtime| apic.restore(runtime, &*self.tsc));
        }
        Ok(())
    }
}

impl bus::MsiTarget for InterruptFabric {
    fn send(&self, address: u64, data: u32) {
        self.msi(address, data);
    }
}

impl MessageBus for InterruptFabric {
    fn deliver(&self, message: &Message) -> bool {
        match (message.mode, message.destination) {
            (DeliveryMode::LowestPriority, destination) => {
                self.arbitrate(destination).is_some_and(|vcpu| self.deliver_to(vcpu, message))
            }
            (_, Destination::Physical(id)) => self.deliver_to(VcpuIndex(id), message),
            _ => self.vcpus().fold(false, |taken, vcpu| self.deliver_to(vcpu, message) | taken),
        }
    }
}

struct IntrLine(Arc<InterruptFabric>);

impl IrqLine for IntrLine {
    fn set(&self, high: bool) {
        self.0.set_intr(high);
    }
}

/// The local APICs as one device without addresses, for the list that drives reset, save and restore. Their registers
/// are reached per vCPU, through the fabric.
pub struct ApicDevice(Arc<InterruptFabric>);

impl ApicDevice {
    /// The device of `fabric`.
    pub fn new(fabric: Arc<InterruptFabric>) -> Self {
        Self(fabric)
    }
}

impl Device for ApicDevice {
    fn regions(&self) -> Vec<Region> {
        Vec::new()
    }

    fn read(&mut self, _region: usize, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _region: usize, _offset: u64, _data: &[u8]) {}

    fn advance(&mut self, now: GuestTime) {
        for vcpu in self.0.vcpus() {
            self.0.advance(vcpu, now);
        }
    }
}

impl Lifecycle for ApicDevice {
    fn name(&self) -> &'static str {
        NAME
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn save(&self) -> Record {
        Record::encode(&self.0.save())
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        let saved = record.decode()?;
        self.0.restore(&saved).map_err(|reason| StateError::Damaged { name: NAME, reason })
    }
}
