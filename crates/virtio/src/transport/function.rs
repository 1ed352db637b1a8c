//! A device's state and what changes it, all under one lock.

use bus::pci::{Endpoint, Layout, Socket};

use super::QUEUE_SIZE;
use super::capabilities::{self, BAR, BAR_BYTES, ConfigAccess, NOTIFY_STRIDE, Part};
use crate::queue::{Areas, Queue, RingFeatures};
use crate::service::Service;

/// Bits of the device's status (2.1).
pub(super) mod status {
    pub(in super::super) const DRIVER_OK: u8 = 1 << 2;
    pub(in super::super) const FEATURES_OK: u8 = 1 << 3;
    pub(in super::super) const NEEDS_RESET: u8 = 1 << 6;
    /// What a driver may set: acknowledge, driver, driver ok, features ok, failed.
    pub(super) const DRIVERS: u8 = 1 << 0 | 1 << 1 | DRIVER_OK | FEATURES_OK | 1 << 7;
}

// Features of rings and of the transport (6).
const INDIRECT: u64 = 1 << 28;
const EVENT_INDEX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const PACKED: u64 = 1 << 34;

/// No interrupt.
const NO_VECTOR: u16 = 0xffff;

// Bits of the interrupt status (4.1.4.5).
const QUEUE_INTERRUPT: u8 = 1 << 0;
const CONFIG_INTERRUPT: u8 = 1 << 1;

/// Whether requests are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    Paused,
    Ended,
}

/// Registers that belong to no queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) config_vector: u16,
    pub(super) status: u8,
    pub(super) queue_select: u16,
    /// The interrupt status, for drivers that use no messages.
    pub(super) isr: u8,
    /// How many times the device's configuration has changed (4.1.4.3.1); it may wrap.
    pub(super) generation: u8,
}

impl Registers {
    pub(super) const RESET: Self = Self {
        device_feature_select: 0,
        driver_feature_select: 0,
        driver_features: 0,
        config_vector: NO_VECTOR,
        status: 0,
        queue_select: 0,
        isr: 0,
        generation: 0,
    };
}

/// A queue as its driver set it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setup {
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) enabled: bool,
    pub(super) areas: Areas,
}

impl Setup {
    pub(super) const RESET: Self = Self {
        size: QUEUE_SIZE,
        vector: NO_VECTOR,
        enabled: false,
        areas: Areas { descriptors: 0, driver: 0, device: 0 },
    };
}

/// A queue.
#[derive(Debug)]
pub(super) struct QueueState {
    pub(super) setup: Setup,
    /// The ring, once enabled.
    pub(super) ring: Option<Queue>,
    /// There may be chains to take.
    pub(super) kicked: bool,
    /// Requests that are being served.
    pub(super) out: u32,
}

/// The device's state.
pub(super) struct State {
    // Static.
    pub(super) kind: u16,
    pub(super) offered: u64,
    access: u64,
    // Volatile.
    pub(super) endpoint: Endpoint,
    pub(super) registers: Registers,
    pub(super) queues: Vec<QueueState>,
    pub(super) phase: Phase,
    /// The driver's reset waits for requests to come back.
    pub(super) resetting: bool,
    /// How many resets there were.
    pub(super) resets: u64,
}

impl State {
    /// In the power-on state.
    pub(super) fn new(service: &dyn Service, socket: Socket) -> Self {
        let kind = service.kind();
        let queues = service.queues();
        let layout = Layout {
            bar: BAR,
            bytes: BAR_BYTES,
            // A vector for each queue and one for the configuration.
            vectors: queues.saturating_add(1),
            table: Part::Table.offset(),
            pending: Part::Pending.offset(),
        };
        let mut access = 0;
        let endpoint = Endpoint::new(&capabilities::identity(kind), &layout, socket, |config| {
            access = capabilities::add(config, queues, service.config().len());
        });
        let queue = || QueueState { setup: Setup::RESET, ring: None, kicked: false, out: 0 };
        Self {
            kind: kind.id,
            offered: service.features() | INDIRECT | EVENT_INDEX | VERSION_1 | PACKED,
            access,
            endpoint,
            registers: Registers::RESET,
            queues: (0..queues).map(|_| queue()).collect(),
            phase: Phase::Running,
            resetting: false,
            resets: 0,
        }
    }

    // ---- what the guest does -------------------------------------------------------------------------------------

    pub(super) fn read_bar(&mut self, service: &dyn Service, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((part, at)) = Part::at(offset) else { return };
        match (part, self.endpoint.msix()) {
            (Part::Common, _) => self.read_common(at, data),
            (Part::Isr, _) => {
                if let (0, [first, ..]) = (at, data) {
                    *first = std::mem::take(&mut self.registers.isr);
                    self.drive_line();
                }
            }
            (Part::Device, _) => {
                let config = service.config();
                for (byte, from) in data.iter_mut().zip(config.iter().skip(x86::bits::index(at))) {
                    *byte = *from;
                }
            }
            (Part::Table, Some(msix)) => msix.read_table(at, data),
            (Part::Pending, Some(msix)) => msix.read_pending(at, data),
            _ => {}
        }
    }

    pub(super) fn write_bar(&mut self, service: &dyn Service, offset: u64, data: &[u8]) {
        let Some((part, at)) = Part::at(offset) else { return };
        match (part, self.endpoint.msix()) {
            (Part::Common, _) => self.write_common(service, at, data),
            (Part::Device, _) => service.write_config(at, data),
            // The value repeats what the address says.
            (Part::Notify, _) => self.kick(at / u64::from(NOTIFY_STRIDE)),
            (Part::Table, Some(msix)) => msix.write_table(at, data),
            _ => {}
        }
    }

    pub(super) fn read_config(&mut self, service: &dyn Service, register: u64, data: &mut [u8]) {
        if let Some(access) = ConfigAccess::of(self.endpoint.config(), self.access, register, data.len()) {
            let mut bytes = [0; 4];
            self.read_bar(service, access.offset, bytes.split_at_mut(access.len).0);
            self.endpoint.config().write(access.data, &bytes);
        }
        self.endpoint.config().read(register, data);
    }

    pub(super) fn write_config(&mut self, service: &dyn Service, register: u64, data: &[u8]) {
        self.endpoint.config().write(register, data);
        if let Some(access) = ConfigAccess::of(self.endpoint.config(), self.access, register, data.len()) {
            let bytes = self.endpoint.config().word(access.data).to_le_bytes();
            self.write_bar(service, access.offset, bytes.split_at(access.len).0);
        }
        self.endpoint.follow();
    }

    fn kick(&mut self, queue: u64) {
        if let Some(queue) = self.queues.get_mut(x86::bits::index(queue)) {
            queue.kicked = true;
        }
    }

    /// Every queue may have chains that nobody was told of.
    fn kick_all(&mut self) {
        self.queues.iter_mut().for_each(|queue| queue.kicked = true);
    }

    pub(super) fn selected(&self) -> Option<&QueueState> {
        self.queues.get(usize::from(self.registers.queue_select))
    }

    /// A vector as it is taken over: one that does not exist becomes none, which the driver reads back (4.1.5.1.2).
    pub(super) fn vector(&self, vector: u16) -> u16 {
        if vector < self.endpoint.vectors() { vector } else { NO_VECTOR }
    }

    pub(super) fn store_status(&mut self, service: &dyn Service, value: u8) {
        if value == 0 {
            self.begin_reset(service);
            return;
        }
        let old = self.registers.status;
        // Bits are only ever added (2.1.2).
        let mut new = old | value & status::DRIVERS;
        if new & !old & status::FEATURES_OK != 0 && !self.features_possible() {
            new &= !status::FEATURES_OK;
        }
        if new & status::FEATURES_OK == 0 {
            // Without it a driver cannot go on (3.1.1).
            new &= !status::DRIVER_OK | old;
        }
        self.registers.status = new;
        if new & !old & status::DRIVER_OK != 0 {
            self.kick_all();
        }
    }

    fn features_possible(&self) -> bool {
        let chosen = self.registers.driver_features;
        chosen & !self.offered == 0 && chosen & VERSION_1 != 0
    }

    pub(super) fn ring_features_of(registers: &Registers) -> RingFeatures {
        let chosen = registers.driver_features;
        RingFeatures {
            packed: chosen & PACKED != 0,
            event_index: chosen & EVENT_INDEX != 0,
            indirect: chosen & INDIRECT != 0,
        }
    }

    /// Enables a queue. Before the features are agreed there is none.
    pub(super) fn enable(&mut self, number: u16) {
        if self.registers.status & status::FEATURES_OK == 0 {
            return;
        }
        let features = Self::ring_features_of(&self.registers);
        let Some(queue) = self.queues.get_mut(usize::from(number)) else { return };
        match Queue::new(queue.setup.size, &queue.setup.areas, features) {
            Ok(ring) => {
                queue.ring = Some(ring);
                queue.setup.enabled = true;
                queue.kicked = true;
            }
            Err(_) => self.fail(),
        }
    }

    // ---- interrupts ----------------------------------------------------------------------------------------------

    /// The driver has done what it must not: the device needs a reset (2.1.2).
    pub(super) fn fail(&mut self) {
        if self.registers.status & status::NEEDS_RESET == 0 {
            self.registers.status |= status::NEEDS_RESET;
            if self.registers.status & status::DRIVER_OK != 0 {
                self.interrupt(self.registers.config_vector, CONFIG_INTERRUPT);
            }
        }
    }

    /// The device's configuration is another one than the driver has read.
    pub(super) fn config_changed(&mut self) {
        self.registers.generation = self.registers.generation.wrapping_add(1);
        if self.registers.status & status::DRIVER_OK != 0 {
            self.interrupt(self.registers.config_vector, CONFIG_INTERRUPT);
        }
    }

    /// Interrupts for used chains of a queue.
    pub(super) fn interrupt_queue(&mut self, queue: u16) {
        if let Some(queue) = self.queues.get(usize::from(queue)) {
            self.interrupt(queue.setup.vector, QUEUE_INTERRUPT);
        }
    }

    fn interrupt(&mut self, vector: u16, cause: u8) {
        if self.endpoint.uses_messages() {
            self.endpoint.send(vector);
        } else {
            self.registers.isr |= cause;
            self.drive_line();
        }
    }

    /// There is a cause for an interrupt by pin until the driver has read what it is.
    fn drive_line(&mut self) {
        self.endpoint.set_pin(self.registers.isr != 0);
    }

    // ---- life ----------------------------------------------------------------------------------------------------

    /// How many requests are being served.
    pub(super) fn out(&self) -> u32 {
        self.queues.iter().map(|queue| queue.out).sum()
    }

    pub(super) fn enter(&mut self, phase: Phase) {
        // What has ended stays so.
        if self.phase != Phase::Ended {
            self.phase = phase;
        }
        if phase == Phase::Running {
            self.kick_all();
        }
    }

    /// Whether chains are taken from a queue at the moment.
    pub(super) fn serves(&self, queue: u16) -> bool {
        let status = self.registers.status;
        self.phase == Phase::Running
            && !self.resetting
            && status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
            && self.endpoint.command().bus_master()
            && self.queues.get(usize::from(queue)).is_some_and(|queue| queue.ring.is_some())
    }

    /// Whether any worker has something to do.
    pub(super) fn has_work(&self) -> bool {
        (0..).zip(&self.queues).any(|(number, queue)| queue.kicked && self.serves(number))
    }

    /// Takes nothing any more, and is reset as soon as nothing is out.
    pub(super) fn begin_reset(&mut self, service: &dyn Service) {
        self.resetting = true;
        self.finish_reset(service);
    }

    /// Ends the driver's reset, unless requests are out still.
    pub(super) fn finish_reset(&mut self, service: &dyn Service) {
        if self.resetting && self.out() == 0 {
            self.resetting = false;
            self.resets += 1;
            self.registers = Registers::RESET;
            service.reset();
            for queue in &mut self.queues {
                *queue = QueueState { setup: Setup::RESET, ring: None, kicked: false, out: 0 };
            }
            self.drive_line();
        }
    }

    /// The power-on state. Nothing is out.
    pub(super) fn power_on(&mut self, service: &dyn Service) {
        self.begin_reset(service);
        self.endpoint.reset();
    }
}
