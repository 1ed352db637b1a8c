//! From a description to a machine, in stages.
//!
//! ```text
//! Builder ─▶ Opened (images, directories, ports) ─▶ Ground (RAM, processor model, clock, timers) ─▶ Populated (chips)
//!         ─▶ Loaded (firmware, kernel) ─▶ Machine (vCPUs)
//! ```
//!
//! [`Opened`] is where a front door shuts the jail: all of the host's files that the machine will ever need by name are open, and
//! there are no threads yet.
//!
//! Each stage is a type that consumes the one before, so nothing can be used before it exists, and a failure at any
//! stage drops what was built so far and leaves nothing behind.

use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, mpsc};

use chipset::fw_cfg::FwCfgContents;
use engine::{Engine, VcpuId, VcpuSetup};
use firmware::MemoryMap;
use host::jail::Directory;
use memory::GuestMemory;
use mmu::Mmu;
use spec::{NetSpec, VmSpec};
use state::Record;
use virtio::balloon::Control;
use x86::CpuState;
use x86::cpuid::{CpuModel, CpuidTable, HostCpuid};

use crate::alarms::Alarms;
use crate::chips::{ChipOptions, Chips, Foundation, SlotOptions, assemble};
use crate::clock::{HostTime, VmClock};
use crate::events::{EventSink, Watch};
use crate::functions::{Card, Functions};
use crate::gate::{Doorbell, Gate};
use crate::handle::{Message, OnReset};
use crate::host_share::HostShare;
use crate::machine::{BootImages, BootPlan, Machine, next_record};
use crate::platform::MachinePlatform;
use crate::ports::{Ports, Wanted};
use crate::serial::SerialSink;
use crate::slots::Post;
use crate::vcpu_thread::VcpuCell;
use crate::{VmError, engines, functions};

/// Builds a machine from its description and from what the front door attaches to it.
pub struct Builder {
    spec: VmSpec,
    images: BootImages,
    serial: [Option<Box<dyn SerialSink>>; 4],
    ports: Vec<Wanted>,
    on_reset: OnReset,
    engine: Option<Arc<dyn Engine>>,
}

impl Builder {
    /// A machine of this description that boots these bytes. No serial port is attached yet.
    pub fn new(spec: &VmSpec, images: BootImages) -> Self {
        Self {
            spec: spec.clone(),
            images,
            serial: [const { None }; 4],
            ports: Vec::new(),
            on_reset: OnReset::default(),
            engine: None,
        }
    }

    /// Attaches `sink` to a serial port, COM1 being 0, and so puts the port there. There are four.
    #[must_use]
    pub fn serial(mut self, port: usize, sink: Box<dyn SerialSink>) -> Self {
        if let Some(place) = self.serial.get_mut(port) {
            *place = Some(sink);
        }
        self
    }

    /// Adds a port of this name to the machine's virtio console, with `sink` at its far end.
    #[must_use]
    pub fn port(mut self, name: &str, sink: Box<dyn SerialSink>) -> Self {
        self.ports.push((name.to_owned(), sink));
        self
    }

    /// Says what a machine reset does.
    #[must_use]
    pub fn on_reset(mut self, on_reset: OnReset) -> Self {
        self.on_reset = on_reset;
        self
    }

    /// Executes with this engine, whatever the description says.
    #[must_use]
    pub fn engine(mut self, engine: Arc<dyn Engine>) -> Self {
        self.engine = Some(engine);
        self
    }

    /// Opens what the description names, and starts no thread.
    ///
    /// # Errors
    /// If a file, a directory or a port cannot be had.
    pub fn open(self) -> Result<Opened, VmError> {
        let engine = match self.engine {
            Some(engine) => engine,
            None => engines::of(&self.spec)?,
        };
        let functions = functions::of(&self.spec)?;
        let Self { spec, images, serial, ports, on_reset, .. } = self;
        Ok(Opened { spec, images, serial, ports, on_reset, engine, functions })
    }

    /// Builds the machine.
    ///
    /// # Errors
    /// If the host or the files do not allow it; one sentence says which.
    pub fn build(self) -> Result<Machine, VmError> {
        self.open()?.build()
    }

    /// Builds the machine in the state that [`crate::VmHandle::save`] gave of one of the same description.
    ///
    /// # Errors
    /// As [`Builder::build`]; or if the state is not of such a machine, or damaged.
    pub fn restore(self, records: &[Record]) -> Result<Machine, VmError> {
        self.open()?.restore(records)
    }
}

/// With everything open that it needs of the host by name, and no thread started.
pub struct Opened {
    spec: VmSpec,
    images: BootImages,
    serial: [Option<Box<dyn SerialSink>>; 4],
    ports: Vec<Wanted>,
    on_reset: OnReset,
    engine: Arc<dyn Engine>,
    functions: Functions,
}

impl Opened {
    /// Where its devices will open files.
    pub fn directories(&self) -> &[Directory] {
        &self.functions.directories
    }

    /// Builds the machine.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn build(self) -> Result<Machine, VmError> {
        self.build_on(Ground::prepare)
    }

    /// Builds the machine in a saved state.
    ///
    /// # Errors
    /// As [`Builder::restore`].
    pub fn restore(self, records: &[Record]) -> Result<Machine, VmError> {
        let mut records = records.iter();
        // The clock comes before all else: chips are made with the wall clock's time at guest time 0.
        let machine = self.build_on(|spec| {
            let ground = Ground::prepare(spec)?;
            ground.clock.restore(next_record(&mut records)?)?;
            Ok(ground)
        })?;
        machine.restore(&mut records)?;
        Ok(machine)
    }

    fn build_on(self, ground: impl FnOnce(&VmSpec) -> Result<Ground, VmError>) -> Result<Machine, VmError> {
        let ground = ground(&self.spec)?;
        let (ports, console) = Ports::start(self.ports, &ground.events)?;
        let Functions { cards: mut functions, balloon, .. } = self.functions;
        functions.extend(console.map(Card::Virtio));
        let options = ChipOptions {
            serial: self.serial,
            debug_exit: self.spec.debug_exit,
            functions,
            slots: SlotOptions {
                count: self.spec.slots.get(),
                network: self.spec.net != NetSpec::None,
                post: Post(ground.outbox.clone()),
            },
            facts: facts(&self.spec),
        };
        ground.populate(options)?.load(&self.spec, self.images)?.with_vcpus(
            &*self.engine,
            Doors { ports, balloon },
            self.on_reset,
        )
    }
}

/// What a kernel may learn through `fw_cfg`.
fn facts(spec: &VmSpec) -> FwCfgContents {
    let cpus = u16::try_from(spec.cpus.get()).unwrap_or(u16::MAX);
    FwCfgContents { cpus, max_cpus: cpus, ram_bytes: spec.memory.bytes(), files: Vec::new() }
}

/// RAM, the processor model, the clock and the timer thread: what chips stand on.
struct Ground {
    map: MemoryMap,
    memory: Arc<GuestMemory>,
    mmu: Mmu,
    cpuid: Arc<CpuidTable>,
    clock: Arc<VmClock>,
    bells: Arc<[Arc<Doorbell>]>,
    events: EventSink,
    alarms: Alarms,
    inbox: Receiver<Message>,
    outbox: Sender<Message>,
}

impl Ground {
    fn prepare(spec: &VmSpec) -> Result<Self, VmError> {
        let cpus = spec.cpus.get();
        let host = HostTime::real();
        let model = CpuModel::resolve(&spec.cpu, &HostCpuid::new(&host::cpu::cpuid, host::cpu::xgetbv0()))?;
        let map = MemoryMap::new(spec.memory.bytes());
        let memory = Arc::new(GuestMemory::new(&map.ram_ranges())?);
        let mmu = Mmu::new(memory.clone(), engines::technique(spec.mmu));
        let clock = Arc::new(VmClock::new(host));
        let bells: Arc<[Arc<Doorbell>]> = (0..cpus).map(|_| Arc::default()).collect();
        let (outbox, inbox) = mpsc::channel();
        let events = EventSink::new(Arc::<Gate>::default(), bells.clone(), outbox.clone());
        let watch = Watch { thread: "the timer thread", events: events.clone() };
        let alarms = Alarms::start(clock.clone(), watch)?;
        let cpuid = Arc::new(CpuidTable::new(model, clock.tsc_khz(), cpus));
        Ok(Self { map, memory, mmu, cpuid, clock, bells, events, alarms, inbox, outbox })
    }

    fn populate(self, options: ChipOptions) -> Result<Populated, VmError> {
        let foundation = Foundation {
            memory: &self.memory,
            clock: &self.clock,
            alarms: &self.alarms,
            events: &self.events,
            bells: &self.bells,
            cpuid: &self.cpuid,
        };
        let chips = assemble(&foundation, options)?;
        Ok(Populated { chips, ground: self })
    }
}

/// With its chips, in the power-on state.
struct Populated {
    ground: Ground,
    chips: Chips,
}

impl Populated {
    fn load(self, spec: &VmSpec, images: BootImages) -> Result<Loaded, VmError> {
        let kernel = &spec.boot.kernel;
        let name = kernel.file_name().unwrap_or(kernel.as_os_str());
        let boot = BootPlan {
            images,
            kernel_file: kernel.display().to_string(),
            kernel_name: name.to_string_lossy().into_owned(),
            command_line: spec.boot.command_line.clone(),
            map: self.ground.map,
            cpus: spec.cpus.get(),
            slots: spec.slots.get(),
        };
        let state = boot.load(&self.ground.memory)?;
        Ok(Loaded { populated: self, boot, state })
    }
}

/// What reaches into devices from outside.
struct Doors {
    ports: Ports,
    balloon: Option<Control>,
}

/// With firmware tables and kernel in RAM.
struct Loaded {
    populated: Populated,
    boot: BootPlan,
    state: CpuState,
}

impl Loaded {
    fn with_vcpus(self, engine: &dyn Engine, doors: Doors, on_reset: OnReset) -> Result<Machine, VmError> {
        let Self { populated: Populated { ground, chips }, boot, state } = self;
        let router = Arc::new(chips.router);
        let host_share = Arc::new(HostShare::new(ground.bells.len(), chips.kvm_sched));
        let platform = Arc::new(MachinePlatform {
            router: router.clone(),
            apics: chips.apics,
            clock: ground.clock.clone(),
            kvm_clock: chips.kvm_clock,
            host_share: host_share.clone(),
            bells: ground.bells.clone(),
        });
        let mut vcpus = Vec::new();
        for (id, bell) in (0..).map(VcpuId).zip(ground.bells.iter()) {
            let vcpu = engine.create_vcpu(VcpuSetup {
                id,
                mmu: ground.mmu.clone(),
                platform: platform.clone(),
                cpuid: ground.cpuid.clone(),
            })?;
            vcpus.push(VcpuCell::new(id, vcpu, bell.clone(), host_share.clone()));
        }
        let machine = Machine {
            memory: ground.memory,
            mmu: ground.mmu,
            cpuid: ground.cpuid,
            clock: ground.clock,
            alarms: ground.alarms,
            router,
            power: chips.power,
            serial: chips.serial,
            ports: doors.ports,
            balloon: doors.balloon,
            slots: chips.slots,
            _workers: chips.workers,
            engine: engine.name(),
            vcpus,
            boot,
            on_reset,
            events: ground.events,
            inbox: ground.inbox,
            outbox: ground.outbox,
        };
        machine.power_on(&state);
        Ok(machine)
    }
}
