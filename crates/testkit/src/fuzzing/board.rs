//! All chips on one board, wired as in a machine, with time that moves when told.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backend::Volume;
use bus::pci::{Function, FunctionId, Socket};
use bus::{Alarm, Clock, Device, GuestTime, ManualClock, Region, Router, Window};
use chipset::acpi_pm::AcpiPm;
use chipset::apic::{ApicDevice, ApicFeatures, FabricSetup, GuestBytes, InterruptFabric, TscTime, VcpuIndex};
use chipset::control::{MachineControl, MachineEvent};
use chipset::debug_exit::DebugExit;
use chipset::fw_cfg::{FwCfg, FwCfgContents};
use chipset::hpet::{Hpet, HpetWiring, LegacyRoute};
use chipset::i8042::I8042;
use chipset::irq_router::IrqRouter;
use chipset::kvm_clock::{KvmClock, Moment, TscClock};
use chipset::pci::{ECAM_BASE, MEMORY_BASE, Pci};
use chipset::pit::Pit;
use chipset::rtc::Rtc;
use chipset::slots::{Keeper, Slots};
use chipset::uart::{CharSink, Uart};
use memory::{GuestMemory, RamRange};
use state::Record;
use virtio::blk::Blk;
use virtio::rng::Rng;
use virtio::service::Service;
use virtio::transport::{BAR_BYTES, VirtioPci, Worker};
use x86::Gpa;

pub(super) const VCPUS: u32 = 2;
const COM1: u16 = 0x3f8;
const UNIX_NS: u64 = 1_700_000_000_000_000_000;
const TSC_KHZ: u64 = 2_000_000;

/// What goes off when its time has come.
type Due = Box<dyn Fn(GuestTime)>;

/// The board.
pub(super) struct Board {
    pub(super) router: Router,
    pub(super) regions: Vec<Region>,
    pub(super) apics: Arc<InterruptFabric>,
    pub(super) kvm_clock: Arc<Mutex<KvmClock>>,
    pub(super) uart: Arc<Mutex<Uart>>,
    pub(super) power: Arc<Mutex<AcpiPm>>,
    pub(super) spare: Arc<dyn bus::IrqLine>,
    pub(super) workers: Vec<Worker>,
    pub(super) slots: Arc<Mutex<Slots>>,
    sockets: Vec<Socket>,
    pub(super) memory: Arc<GuestMemory>,
    clock: ManualClock,
    alarms: Vec<(ManualClock, Due)>,
    requests: Requests,
}

/// A mutex whatever happened to it.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Default)]
struct Requests(Arc<Mutex<Vec<MachineEvent>>>);

impl MachineControl for Requests {
    fn request(&self, event: MachineEvent) {
        lock(&self.0).push(event);
    }
}

/// A counter of two ticks a nanosecond.
struct Tsc(ManualClock);

impl TscTime for Tsc {
    fn time_of_tsc(&self, _: VcpuIndex, tsc: u64) -> GuestTime {
        GuestTime(tsc.div_ceil(2))
    }
}

impl TscClock for Tsc {
    fn moment(&self) -> Moment {
        let time = self.0.now();
        Moment { tsc: time.0.wrapping_mul(2), time }
    }
}

struct Bytes(Arc<GuestMemory>);

impl GuestBytes for Bytes {
    fn read_byte(&self, gpa: Gpa) -> Option<u8> {
        self.0.read_word(gpa).ok()
    }
    fn write_byte(&self, gpa: Gpa, value: u8) -> bool {
        self.0.write_word(gpa, value).is_ok()
    }
}

struct Sink;

impl CharSink for Sink {
    fn send(&mut self, _: &[u8]) {}
}

/// A board under construction.
struct Build {
    router: Router,
    regions: Vec<Region>,
    alarms: Vec<(ManualClock, Due)>,
}

impl Build {
    fn plug<D: Device + 'static>(&mut self, chip: D) -> Arc<Mutex<D>> {
        self.regions.extend(chip.regions());
        let chip = Arc::new(Mutex::new(chip));
        self.router.plug(chip.clone()).expect("chips do not overlap");
        chip
    }

    fn timed<D: Device + 'static>(&mut self, make: impl FnOnce(Arc<dyn Alarm>) -> D) -> Arc<Mutex<D>> {
        let alarm = ManualClock::default();
        let chip = self.plug(make(Arc::new(alarm.clone())));
        let due = chip.clone();
        self.alarms.push((alarm, Box::new(move |now| lock(&due).advance(now))));
        chip
    }
}

/// A network that takes every frame, and always has some of all lengths for the guest.
pub(super) struct LoopNetwork(host::poll::Bell);

impl LoopNetwork {
    pub(super) fn new() -> Self {
        Self(host::poll::Bell::new().expect("a descriptor"))
    }
}

impl backend::net::Network for LoopNetwork {
    fn bell(&self) -> host::poll::Bell {
        self.0.clone()
    }
    fn wait(&mut self, _: Option<std::time::Duration>) {}
    fn transmit(&mut self, frame: &[u8], _: backend::net::Offload) {
        assert!(frame.len() <= backend::net::LONGEST_FRAME, "a device checks this");
    }
    fn receive(
        &mut self,
        abilities: backend::net::Abilities,
        deliver: &mut dyn FnMut(&backend::net::Frame<'_>) -> bool,
    ) -> bool {
        static BYTES: [u8; backend::net::LONGEST_FRAME] = [0x5a; backend::net::LONGEST_FRAME];
        let lengths: &[usize] = if abilities.tcp4 { &[60, 1514, 9000, BYTES.len()] } else { &[60, 1514] };
        let offload = backend::net::Offload::default();
        !lengths.iter().all(|len| {
            let (first, second) = BYTES.split_at(*len).0.split_at(54);
            deliver(&backend::net::Frame { parts: [first, second, &[]], offload })
        })
    }
}

/// A disk in memory.
pub(super) struct MemoryDisk(host::Memfd);

impl MemoryDisk {
    /// Of 64 KiB.
    pub(super) fn new() -> Self {
        Self(host::Memfd::new("fuzz-disk", 64 << 10).expect("64 KiB"))
    }
}

impl backend::Disk for MemoryDisk {
    fn bytes(&self) -> u64 {
        self.0.len()
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, to: &host::io::Targets<'_>) -> std::io::Result<()> {
        assert!(offset + to.bytes() <= self.bytes(), "a device checks this");
        to.read_from(self.0.as_fd(), offset)
    }
    fn extent(&self, _: u64, most: u64) -> std::io::Result<backend::Extent> {
        Ok(backend::Extent { len: most, zeros: false })
    }
    fn write(&self, offset: u64, from: &host::io::Sources<'_>) -> std::io::Result<()> {
        assert!(offset + from.bytes() <= self.bytes(), "a device checks this");
        from.write_to(self.0.as_fd(), offset)
    }
    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.write_zeroes(offset, len, true)
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> std::io::Result<()> {
        assert!(len > 0 && offset + len <= self.bytes(), "a device checks this");
        host::io::punch_hole(self.0.as_fd(), offset, len)
    }
}

/// What leaves its slot is dropped, with its pin low.
struct Floor;

impl Keeper for Floor {
    fn ejected(&self, _: usize, function: Arc<Mutex<dyn Function>>) {
        lock(&function).reset();
    }
}

/// What is behind the bridge.
struct Behind {
    workers: Vec<Worker>,
    slots: Arc<Mutex<Slots>>,
    sockets: Vec<Socket>,
}

impl Build {
    /// A bridge with an entropy source and a disk behind it, and two slots.
    fn pci(
        &mut self,
        control: Arc<dyn MachineControl>,
        apics: &Arc<InterruptFabric>,
        irqs: &Arc<IrqRouter>,
        memory: &Arc<GuestMemory>,
        power: &Arc<Mutex<AcpiPm>>,
    ) -> Behind {
        let window = Window::new(Pci::memory_window());
        self.router.open(window.clone()).expect("chips do not overlap");
        let mut pci = Pci::new(control);
        let disk: Arc<dyn backend::Disk> = Arc::new(MemoryDisk::new());
        let services: [Box<dyn Service>; 2] =
            [Box::new(Rng), Box::new(Blk::new(Volume::new(disk), "disk0", 2))];
        let mut socket = |number: u8| {
            let (id, home) = (FunctionId::on_root(number), MEMORY_BASE + u64::from(number) * BAR_BYTES);
            self.regions.push(Region::mmio(home, BAR_BYTES));
            self.regions.push(Region::mmio(ECAM_BASE + (u64::from(id.0) << 12), 0x100));
            let (opening, line) = (window.opening(), irqs.line(16 + number));
            Socket { id, opening, home, line, messages: apics.clone(), memory: memory.clone() }
        };
        let (mut workers, mut functions) = (Vec::new(), Vec::new());
        for (number, service) in (1..).zip(services) {
            let socket = socket(number);
            let id = socket.id;
            let function = socket.plug(|socket| VirtioPci::new(service, socket));
            workers.extend(lock(&function).workers());
            pci.attach(id, function.clone());
            functions.push(function);
        }
        let sockets: Vec<Socket> = [5, 6].map(&mut socket).into();
        let ids: Vec<FunctionId> = sockets.iter().map(|socket| socket.id).collect();
        let pci = Arc::new(Mutex::new(pci));
        let line = AcpiPm::event_line(power, chipset::slots::EVENT);
        let slots = self.plug(Slots::new(pci.clone(), &ids, line, Arc::new(Floor)));
        self.regions.extend(lock(&pci).regions());
        self.router.plug(pci).expect("chips do not overlap");
        for function in functions {
            self.router.plug(function).expect("functions claim nothing");
        }
        Behind { workers, slots, sockets }
    }
}

impl Board {
    /// A board in the power-on state at time `now`.
    pub(super) fn new(now: GuestTime) -> Self {
        let memory = Arc::new(GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 0x10000)]).expect("64 KiB"));
        let clock = ManualClock::default();
        clock.step(now.0);
        let requests = Requests::default();
        let control: Arc<dyn MachineControl> = Arc::new(requests.clone());
        let time: Arc<dyn Clock> = Arc::new(clock.clone());
        let mut build = Build { router: Router::default(), regions: Vec::new(), alarms: Vec::new() };

        let timers: Vec<ManualClock> = (0..VCPUS).map(|_| ManualClock::default()).collect();
        let apics = InterruptFabric::new(FabricSetup {
            features: ApicFeatures { x2apic: true, tsc_deadline: true },
            clock: time.clone(),
            alarms: timers.iter().map(|alarm| Arc::new(alarm.clone()) as Arc<dyn Alarm>).collect(),
            tsc: Arc::new(Tsc(clock.clone())),
            memory: Arc::new(Bytes(memory.clone())),
            wake: Box::new(|_| {}),
        });
        for (vcpu, alarm) in (0..).map(VcpuIndex).zip(timers) {
            let due = apics.clone();
            build.alarms.push((alarm, Box::new(move |now| due.advance(vcpu, now))));
        }
        let irqs = IrqRouter::new(&apics);
        build.plug(ApicDevice::new(apics.clone()));
        build.plug(irqs.pic());
        build.plug(irqs.ioapic());
        let [irq0, irq8] = [0, 8].map(|irq| LegacyRoute::new(irqs.isa_line(irq)));
        let inputs = (20..24).map(|gsi| (gsi, irqs.line(gsi))).collect();
        let wiring = HpetWiring { irq0: irq0.clone(), irq8: irq8.clone(), inputs };
        build.timed(|alarm| Hpet::new(time.clone(), alarm, wiring));
        build.timed(|alarm| Pit::new(time.clone(), alarm, irq0.chip_line()));
        build.timed(|alarm| Rtc::new(UNIX_NS, time.clone(), alarm, irq8.chip_line()));
        let power = build.timed(|alarm| AcpiPm::new(time.clone(), alarm, irqs.isa_line(9), control.clone()));
        let uart =
            build.timed(|alarm| Uart::new(COM1, Box::new(Sink), irqs.isa_line(4), time.clone(), alarm));
        let tsc = Arc::new(Tsc(clock.clone()));
        let kvm_clock = build.plug(KvmClock::new(VCPUS as usize, TSC_KHZ, UNIX_NS, memory.clone(), tsc));
        build.plug(I8042::new(irqs.isa_line(1), control.clone()));
        let Behind { workers, slots, sockets } = build.pci(control.clone(), &apics, &irqs, &memory, &power);
        let files = vec![("etc/a".to_owned(), vec![1; 40]), ("b".repeat(70), Vec::new())];
        build.plug(FwCfg::new(FwCfgContents { cpus: 2, max_cpus: 2, ram_bytes: 1 << 40, files }));
        build.plug(DebugExit::new(control));
        let spare = irqs.line(17);
        let Build { router, regions, alarms } = build;
        Self {
            router,
            regions,
            apics,
            kvm_clock,
            uart,
            power,
            spare,
            workers,
            slots,
            sockets,
            memory,
            clock,
            alarms,
            requests,
        }
    }

    /// Plugs an entropy source into a slot, if there is room.
    pub(super) fn plug(&self, slot: usize) {
        let socket = self.sockets[slot].clone();
        let function = socket.plug(|socket| VirtioPci::new(Box::new(Rng), socket));
        lock(&self.slots).insert(slot, function);
    }

    /// How many slots there are.
    pub(super) fn slot_count(&self) -> usize {
        self.sockets.len()
    }

    /// The time.
    pub(super) fn now(&self) -> GuestTime {
        self.clock.now()
    }

    /// Time passes, up to its end, and what is due goes off.
    pub(super) fn wait(&self, ns: u64) {
        self.clock.step(ns.min(u64::MAX - self.now().0));
        // A chip may set its alarm to a time that has passed, and is then called again; not for ever.
        for _ in 0..3 {
            for (alarm, due) in &self.alarms {
                if alarm.alarm().is_some_and(|at| at <= self.now()) {
                    alarm.set(None);
                    due(self.now());
                }
            }
        }
    }

    /// Requests to the machine since the last call.
    pub(super) fn requests(&self) -> usize {
        std::mem::take(&mut *lock(&self.requests.0)).len()
    }

    /// Every chip's state.
    pub(super) fn save(&self) -> Vec<Record> {
        self.router.devices().iter().map(|device| lock(device).save()).collect()
    }

    /// All chips stop, or go on.
    pub(super) fn pause(&self) {
        self.router.devices().iter().for_each(|device| lock(device).pause());
    }

    /// All chips go on.
    pub(super) fn resume(&self) {
        self.router.devices().iter().rev().for_each(|device| lock(device).resume());
    }

    /// All chips in the power-on state.
    pub(super) fn reset(&self) {
        self.router.devices().iter().for_each(|device| lock(device).reset());
    }
}
