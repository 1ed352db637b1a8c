//! The machine's chips and their wiring.
//!
//! Every chip is made, wired and plugged in here and nowhere else. Each gets what it needs injected: clock, an alarm
//! of its own, its interrupt lines; the router then owns the list that drives reset, pause, save and restore. The
//! interrupt controllers come first in that list: when other chips drive their lines anew after a restore, the
//! controllers already know the levels and see no edge.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::pci::{FunctionId, Socket};
use bus::{Alarm, Clock, Device, Router, Window};
use chipset::acpi_pm::AcpiPm;
use chipset::apic::{ApicDevice, ApicFeatures, FabricSetup, InterruptFabric, VcpuIndex};
use chipset::control::{MachineControl, MachineEvent};
use chipset::debug_exit::DebugExit;
use chipset::fw_cfg::{FwCfg, FwCfgContents};
use chipset::hpet::{Hpet, HpetWiring, LegacyRoute};
use chipset::i8042::I8042;
use chipset::irq_router::IrqRouter;
use chipset::kvm_clock::KvmClock;
use chipset::kvm_sched::{KvmSched, KvmSchedDevice};
use chipset::pci::{ECAM_BASE, ECAM_LEN, MEMORY_BASE, Pci};
use chipset::pit::Pit;
use chipset::rtc::Rtc;
use chipset::slots::{self, Slots};
use chipset::uart::Uart;
use memory::GuestMemory;
use x86::cpuid::{CpuidTable, Feature};

use crate::VmError;
use crate::alarms::{AlarmHandle, Alarms};
use crate::clock::VmClock;
use crate::events::{Event, EventSink, Watch};
use crate::functions::{Card, Workers};
use crate::gate::Doorbell;
use crate::platform::MemoryBytes;
use crate::serial::{SerialPort, SerialSink};
use crate::slots::{Bays, Post};

/// Base port and interrupt of COM1 to COM4.
const SERIAL: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

/// The IOAPIC's pins that the HPET can drive itself.
const HPET_INPUTS: std::ops::Range<u8> = 20..24;

/// Between the places where firmware would put two functions' registers: as many bytes as any has.
const HOME_BYTES: u64 = virtio::transport::BAR_BYTES;
const _: () = assert!(nvme::BAR_BYTES <= HOME_BYTES);

/// What ACPI says of the bus is what the bridge does.
const _: () = {
    use firmware::layout::{ECAM, ECAM_BYTES, MMIO_HOLE, SLOTS_EVENT, SLOTS_PORT, SLOTS_PORTS};
    assert!(ECAM_BASE == ECAM.0 && ECAM_LEN == ECAM_BYTES && MEMORY_BASE == MMIO_HOLE.0);
    assert!(slots::PORT == SLOTS_PORT && slots::PORTS == SLOTS_PORTS as u16 && slots::EVENT == SLOTS_EVENT);
    assert!(slots::MOST == spec::SlotCount::MAX as usize);
};

/// What the chips are built upon.
pub(crate) struct Foundation<'a> {
    /// Guest RAM.
    pub(crate) memory: &'a Arc<GuestMemory>,
    /// Guest time.
    pub(crate) clock: &'a Arc<VmClock>,
    /// Who calls the chips when their time has come.
    pub(crate) alarms: &'a Alarms,
    /// Where they report what concerns the whole machine.
    pub(crate) events: &'a EventSink,
    /// One per vCPU.
    pub(crate) bells: &'a Arc<[Arc<Doorbell>]>,
    /// What CPUID promises of the local APICs.
    pub(crate) cpuid: &'a CpuidTable,
}

/// What may differ from machine to machine.
pub(crate) struct ChipOptions {
    /// What is attached to COM1 to COM4; nothing: the port is not there.
    pub(crate) serial: [Option<Box<dyn SerialSink>>; 4],
    /// Whether port 0xf4 ends the VM.
    pub(crate) debug_exit: bool,
    /// What is on the PCI bus, from device 1 on.
    pub(crate) functions: Vec<Card>,
    /// What may come to be there.
    pub(crate) slots: SlotOptions,
    /// What `fw_cfg` says.
    pub(crate) facts: FwCfgContents,
}

/// Slots for devices that come later.
pub(crate) struct SlotOptions {
    /// How many there are.
    pub(crate) count: u8,
    /// Whether a user-mode network may be plugged in.
    pub(crate) network: bool,
    /// Where they post.
    pub(crate) post: Post,
}

/// The chips, plugged in.
pub(crate) struct Chips {
    /// The bus, which knows them all.
    pub(crate) router: Router,
    /// The local APICs, which vCPUs reach directly.
    pub(crate) apics: Arc<InterruptFabric>,
    /// The serial ports that are there.
    pub(crate) serial: [Option<SerialPort>; 4],
    /// The threads that serve what is on the PCI bus.
    pub(crate) workers: Vec<Workers>,
    /// The slots, with threads of their own.
    pub(crate) slots: Bays,
    /// The paravirtual clock, which vCPUs reach through MSRs.
    pub(crate) kvm_clock: Arc<Mutex<KvmClock>>,
    /// Steal time and wake-ups, which vCPUs reach through MSRs and hypercalls.
    pub(crate) kvm_sched: Arc<KvmSched>,
    /// The chip that the power button is wired to.
    pub(crate) power: Arc<Mutex<AcpiPm>>,
}

impl MachineControl for EventSink {
    fn request(&self, event: MachineEvent) {
        self.raise(match event {
            MachineEvent::PowerOff => Event::PowerOff,
            MachineEvent::Reset => Event::Reset,
            MachineEvent::DebugExit(value) => Event::DebugExit(value),
        });
    }
}

/// Makes all chips.
///
/// # Errors
/// If two claim the same addresses, or the host gives no threads for the serial ports.
pub(crate) fn assemble(foundation: &Foundation<'_>, options: ChipOptions) -> Result<Chips, VmError> {
    let apics = local_apics(foundation);
    let irqs = IrqRouter::new(&apics);
    let mut board = Board { foundation, apics: apics.clone(), router: Router::default() };
    board.plug(ApicDevice::new(apics.clone()))?;
    board.plug(irqs.pic())?;
    board.plug(irqs.ioapic())?;

    let clock: Arc<dyn Clock> = foundation.clock.clone();
    let control: Arc<dyn MachineControl> = Arc::new(foundation.events.clone());
    board.plug_timers(&irqs, &clock)?;
    let power = board.plug_timed(|alarm| {
        AcpiPm::new(clock.clone(), alarm, irqs.isa_line(firmware::layout::SCI_IRQ), control.clone())
    })?;
    let mut serial = [const { None }; 4];
    for ((port, sink), (base, irq)) in serial.iter_mut().zip(options.serial).zip(SERIAL) {
        if let Some(sink) = sink {
            *port = Some(board.plug_serial(sink, |sink, alarm| {
                Uart::new(base, sink, irqs.isa_line(irq), clock.clone(), alarm)
            })?);
        }
    }
    let kvm_clock = board.plug(kvm_clock(foundation))?;
    let kvm_sched = KvmSched::new(foundation.bells.len(), foundation.memory.clone());
    board.plug(KvmSchedDevice::new(kvm_sched.clone()))?;
    board.plug(I8042::new(irqs.isa_line(1), control.clone()))?;
    let (workers, slots) =
        board.plug_pci(&irqs, control.clone(), options.functions, (options.slots, &power))?;
    board.plug(FwCfg::new(options.facts))?;
    if options.debug_exit {
        board.plug(DebugExit::new(control))?;
    }
    Ok(Chips { router: board.router, apics, serial, workers, slots, kvm_clock, kvm_sched, power })
}

fn kvm_clock(foundation: &Foundation<'_>) -> KvmClock {
    let Foundation { memory, clock, bells, .. } = foundation;
    KvmClock::new(bells.len(), clock.tsc_khz(), clock.epoch_unix_ns(), (*memory).clone(), (*clock).clone())
}

fn local_apics(foundation: &Foundation<'_>) -> Arc<InterruptFabric> {
    let Foundation { memory, clock, alarms, bells, cpuid, .. } = foundation;
    let handles: Vec<AlarmHandle> = bells.iter().map(|_| alarms.alarm()).collect();
    let bells = (*bells).clone();
    let fabric = InterruptFabric::new(FabricSetup {
        features: ApicFeatures {
            x2apic: cpuid.has(Feature::X2apic),
            tsc_deadline: cpuid.has(Feature::TscDeadline),
        },
        clock: (*clock).clone(),
        alarms: handles.iter().map(|handle| Arc::new(handle.clone()) as Arc<dyn Alarm>).collect(),
        tsc: (*clock).clone(),
        memory: Arc::new(MemoryBytes((*memory).clone())),
        wake: Box::new(move |vcpu| {
            if let Some(bell) = bells.get(vcpu.0 as usize) {
                bell.look();
            }
        }),
    });
    for (vcpu, handle) in (0..).map(VcpuIndex).zip(&handles) {
        let apics = fabric.clone();
        handle.connect(Arc::new(move |now| apics.advance(vcpu, now)));
    }
    fabric
}

/// The bus while chips are plugged into it.
struct Board<'a> {
    foundation: &'a Foundation<'a>,
    apics: Arc<InterruptFabric>,
    router: Router,
}

impl Board<'_> {
    /// Plugs in a chip that needs no alarm.
    fn plug<D: Device + 'static>(&mut self, chip: D) -> Result<Arc<Mutex<D>>, VmError> {
        let chip = Arc::new(Mutex::new(chip));
        self.router.plug(chip.clone())?;
        Ok(chip)
    }

    /// Plugs in a chip that is made around its alarm.
    fn plug_timed<D: Device + 'static>(
        &mut self,
        make: impl FnOnce(Arc<dyn Alarm>) -> D,
    ) -> Result<Arc<Mutex<D>>, VmError> {
        let alarm = self.foundation.alarms.alarm();
        let chip = self.plug(make(Arc::new(alarm.clone())))?;
        connect(&alarm, &chip);
        Ok(chip)
    }

    /// Plugs in HPET, PIT and RTC. The HPET may take the interrupts of the others over and comes first: at a restore, a
    /// disconnected chip that drives its line before the HPET has disconnected it would raise an interrupt.
    fn plug_timers(&mut self, irqs: &Arc<IrqRouter>, clock: &Arc<dyn Clock>) -> Result<(), VmError> {
        let irq0 = LegacyRoute::new(irqs.isa_line(0));
        let irq8 = LegacyRoute::new(irqs.isa_line(8));
        let inputs = HPET_INPUTS.map(|gsi| (gsi, irqs.line(gsi))).collect();
        let wiring = HpetWiring { irq0: irq0.clone(), irq8: irq8.clone(), inputs };
        self.plug_timed(|alarm| Hpet::new(clock.clone(), alarm, wiring))?;
        self.plug_timed(|alarm| Pit::new(clock.clone(), alarm, irq0.chip_line()))?;
        let epoch = self.foundation.clock.epoch_unix_ns();
        self.plug_timed(|alarm| Rtc::new(epoch, clock.clone(), alarm, irq8.chip_line()))?;
        Ok(())
    }

    /// Plugs in the PCI bridge with these devices behind it, each with its registers where firmware would put them, and slots.
    fn plug_pci(
        &mut self,
        irqs: &Arc<IrqRouter>,
        control: Arc<dyn MachineControl>,
        cards: Vec<Card>,
        (slots, power): (SlotOptions, &Arc<Mutex<AcpiPm>>),
    ) -> Result<(Vec<Workers>, Bays), VmError> {
        let window = Window::new(Pci::memory_window());
        self.router.open(window.clone())?;
        let mut pci = Pci::new(control);
        let mut functions = Vec::new();
        for (number, card) in (1..).zip(cards) {
            let function = card.plug(self.socket(irqs, &window, number));
            pci.attach(FunctionId::on_root(number), function.clone());
            functions.push(function);
        }
        let pci = Arc::new(Mutex::new(pci));
        let slots = self.plug_slots(irqs, &window, &pci, (slots, power))?;
        self.router.plug(pci)?;
        let mut workers = Vec::new();
        for function in functions {
            self.router.plug(function.clone())?;
            workers.push(Workers::start(function, self.foundation.events)?);
        }
        Ok((workers, slots))
    }

    /// Plugs in the registers of slots, which come before the bridge in a restore: what is missing, they say by name.
    fn plug_slots(
        &mut self,
        irqs: &Arc<IrqRouter>,
        window: &Arc<Window>,
        pci: &Arc<Mutex<Pci>>,
        (options, power): (SlotOptions, &Arc<Mutex<AcpiPm>>),
    ) -> Result<Bays, VmError> {
        if options.count == 0 {
            return Ok(Bays::default());
        }
        let devices = (0..options.count).map(firmware::layout::slot_device);
        let sockets: Vec<Socket> = devices.map(|number| self.socket(irqs, window, number)).collect();
        let ids: Vec<FunctionId> = sockets.iter().map(|socket| socket.id).collect();
        let line = AcpiPm::event_line(power, slots::EVENT);
        let chip = self.plug(Slots::new(pci.clone(), &ids, line, Arc::new(options.post.clone())))?;
        Bays::start(chip, sockets, options.network, options.post, self.foundation.events)
    }

    /// The place of device `number` on the root bus.
    fn socket(&self, irqs: &Arc<IrqRouter>, window: &Arc<Window>, number: u8) -> Socket {
        Socket {
            id: FunctionId::on_root(number),
            opening: window.opening(),
            home: MEMORY_BASE + u64::from(number) * HOME_BYTES,
            line: irqs.line(firmware::layout::pci_gsi(number, 0)),
            messages: self.apics.clone(),
            memory: self.foundation.memory.clone(),
        }
    }

    /// Plugs in a serial port with `sink` at its far end.
    fn plug_serial(
        &mut self,
        sink: Box<dyn SerialSink>,
        make: impl FnOnce(Box<dyn chipset::uart::CharSink>, Arc<dyn Alarm>) -> Uart,
    ) -> Result<SerialPort, VmError> {
        let alarm = self.foundation.alarms.alarm();
        let watch = Watch { thread: "a serial port", events: self.foundation.events.clone() };
        let (port, uart) = SerialPort::start(sink, watch, |sink| make(sink, Arc::new(alarm.clone())))?;
        connect(&alarm, &uart);
        self.router.plug(uart)?;
        Ok(port)
    }
}

fn lock<D>(chip: &Mutex<D>) -> MutexGuard<'_, D> {
    chip.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets an alarm advance its chip.
fn connect<D: Device + 'static>(alarm: &AlarmHandle, chip: &Arc<Mutex<D>>) {
    let chip = chip.clone();
    alarm.connect(Arc::new(move |now| {
        lock(&chip).advance(now);
    }));
}
