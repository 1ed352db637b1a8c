//! A built machine: everything that is there before the first guest instruction, and what can be done to all of it.
//!
//! The machine acts only when its driver tells it to, and only while no vCPU is inside the gate. One list, the
//! router's, drives reset, pause, save and restore; the few things that are not devices (clock, RAM, vCPUs) stand
//! before it.

use std::io;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Clock, Router};
use chipset::acpi_pm::AcpiPm;
use engine::{Counter, VcpuId};
use firmware::{LoadError, MemoryMap};
use memory::GuestMemory;
use mmu::{Mmu, PagingFeatures};
use spec::ByteSize;
use state::Record;
use virtio::balloon::Control;
use x86::CpuState;
use x86::PAGE_SIZE;
use x86::cpuid::CpuidTable;

use crate::alarms::Alarms;
use crate::clock::VmClock;
use crate::dump::Dump;
use crate::events::EventSink;
use crate::functions::Workers;
use crate::handle::{Message, OnReset, Stats, VcpuFigures, VmHandle};
use crate::image::Image;
use crate::ports::Ports;
use crate::saved_ram::SavedRam;
use crate::serial::{SerialInput, SerialPort};
use crate::slots::Bays;
use crate::vcpu_thread::VcpuCell;
use crate::{VmError, driver};

/// What a VM boots. It is kept: a machine reset loads it again.
#[derive(Debug)]
pub struct BootImages {
    /// The kernel.
    pub kernel: Image,
    /// Initial RAM disks or Multiboot modules, in order.
    pub initrds: Vec<Initrd>,
}

/// An initial RAM disk, or a Multiboot module.
#[derive(Debug)]
pub struct Initrd {
    /// The module's string, customarily the file's name and arguments.
    pub name: String,
    /// What is in it.
    pub image: Image,
}

/// How to get from an empty RAM to a kernel's first instruction, any number of times.
pub(crate) struct BootPlan {
    /// The files.
    pub(crate) images: BootImages,
    /// The kernel's name in messages.
    pub(crate) kernel_file: String,
    /// The kernel's name on its own command line.
    pub(crate) kernel_name: String,
    /// The kernel's command line.
    pub(crate) command_line: String,
    /// The memory map.
    pub(crate) map: MemoryMap,
    /// The number of processors.
    pub(crate) cpus: u32,
    /// The number of slots.
    pub(crate) slots: u8,
}

impl BootPlan {
    /// Loads firmware tables and kernel, and gives the boot processor's state.
    ///
    /// # Errors
    /// If the kernel is none, or does not fit.
    pub(crate) fn load(&self, memory: &GuestMemory) -> Result<CpuState, VmError> {
        let initrds: Vec<_> = self
            .images
            .initrds
            .iter()
            .map(|initrd| firmware::Initrd { data: &initrd.image, command_line: &initrd.name })
            .collect();
        let kernel = |error| VmError::Kernel { file: self.kernel_file.clone(), error };
        let unreadable = |error: io::Error| kernel(LoadError::Unreadable { error: error.kind() });
        let request = firmware::BootRequest {
            kernel: &self.images.kernel.read().map_err(unreadable)?,
            kernel_name: &self.kernel_name,
            initrds: &initrds,
            command_line: &self.command_line,
            map: self.map,
            cpus: self.cpus,
            slots: self.slots,
        };
        Ok(firmware::load(memory, &request).map_err(kernel)?.cpu)
    }
}

/// A machine, built and not yet started.
pub struct Machine {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) mmu: Mmu,
    pub(crate) cpuid: Arc<CpuidTable>,
    pub(crate) clock: Arc<VmClock>,
    pub(crate) alarms: Alarms,
    pub(crate) router: Arc<Router>,
    pub(crate) power: Arc<Mutex<AcpiPm>>,
    pub(crate) serial: [Option<SerialPort>; 4],
    pub(crate) ports: Ports,
    pub(crate) balloon: Option<Control>,
    /// What is plugged in while it runs.
    pub(crate) slots: Bays,
    /// Held for as long as the machine lives.
    pub(crate) _workers: Vec<Workers>,
    /// Its name.
    pub(crate) engine: &'static str,
    pub(crate) vcpus: Vec<VcpuCell>,
    pub(crate) boot: BootPlan,
    pub(crate) on_reset: OnReset,
    pub(crate) events: EventSink,
    pub(crate) inbox: Receiver<Message>,
    pub(crate) outbox: Sender<Message>,
}

fn lock<D: ?Sized>(device: &Mutex<D>) -> MutexGuard<'_, D> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next part of a saved machine.
pub(crate) fn next_record<'a>(records: &mut std::slice::Iter<'a, Record>) -> Result<&'a Record, VmError> {
    records.next().ok_or_else(|| VmError::OtherMachine("it has fewer parts".into()))
}

impl Machine {
    /// Starts the VM.
    ///
    /// # Errors
    /// If the host has no threads for it.
    pub fn start(self) -> Result<VmHandle, VmError> {
        driver::start(self)
    }

    /// Takes over what [`VmHandle::save`] gave, from behind the clock's record on.
    pub(crate) fn restore(&self, records: &mut std::slice::Iter<'_, Record>) -> Result<(), VmError> {
        let kinds = next_record(records)?.decode()?;
        let differs = |_| VmError::OtherMachine("its memory is laid out differently".into());
        self.memory.take_over(&kinds).map_err(differs)?;
        next_record(records)?.decode::<SavedRam>()?.restore(&self.memory)?;
        for vcpu in &self.vcpus {
            let state = next_record(records)?.decode()?;
            vcpu.lock().set_state(&state);
        }
        for device in self.router.devices() {
            lock(device).restore(next_record(records)?)?;
        }
        match records.next() {
            Some(extra) => Err(VmError::OtherMachine(format!("it has a part more, '{}'", extra.name()))),
            None => Ok(()),
        }
    }

    /// The state of everything, in the order in which [`crate::Builder::restore`] takes it.
    pub(crate) fn save(&self) -> Result<Vec<Record>, VmError> {
        let mut records = vec![
            self.clock.save(),
            Record::encode(&self.memory.save()),
            Record::encode(&SavedRam::of(&self.memory)?),
        ];
        records.extend(self.vcpus.iter().map(|vcpu| Record::encode(&vcpu.lock().state())));
        records.extend(self.router.devices().iter().map(|device| lock(device).save()));
        Ok(records)
    }

    /// Makes timers, clock and devices quiet.
    pub(crate) fn pause(&self) {
        self.alarms.pause();
        self.clock.stop();
        for device in self.router.devices() {
            lock(device).pause();
        }
    }

    /// The same backwards.
    pub(crate) fn resume(&self) {
        for device in self.router.devices().iter().rev() {
            lock(device).resume();
        }
        self.clock.resume();
        self.alarms.resume();
    }

    /// Loads the kernel anew and switches the machine on. The timers must be quiet.
    pub(crate) fn reset(&self) -> Result<(), VmError> {
        let boot = self.boot.load(&self.memory)?;
        self.power_on(&boot);
        Ok(())
    }

    /// Power-on state everywhere; the boot processor gets its own, the others wait for a start-up IPI.
    pub(crate) fn power_on(&self, boot: &CpuState) {
        for device in self.router.devices() {
            lock(device).reset();
        }
        let waiting = firmware::waiting();
        for vcpu in &self.vcpus {
            let state = if vcpu.id() == VcpuId(0) { boot } else { &waiting };
            vcpu.lock().set_state(state);
        }
    }

    /// What a vCPU looks like.
    pub(crate) fn dump(&self, vcpu: &VcpuCell) -> Dump {
        let features = PagingFeatures::from(&*self.cpuid);
        Dump::take(vcpu.id().0, vcpu.lock().state(), &self.memory, &features)
    }

    /// What every vCPU looks like.
    pub(crate) fn dumps(&self) -> Vec<Dump> {
        self.vcpus.iter().map(|vcpu| self.dump(vcpu)).collect()
    }

    fn mmu_counters(&self) -> Vec<Counter> {
        let counted = self.mmu.figures().list();
        counted.into_iter().map(|(name, value, help)| Counter::new(name, value, help)).collect()
    }

    /// What was counted, with these figures of the vCPUs; resets are the driver's to count.
    pub(crate) fn stats(&self, vcpus: Vec<VcpuFigures>) -> Stats {
        Stats {
            engine: self.engine,
            vcpus,
            mmu: self.mmu_counters(),
            guest_time_ns: self.clock.now().0,
            ram_bytes: self.boot.map.ram_bytes(),
            // A kernel that cannot say what a file costs is not worth failing for.
            ram_resident_bytes: self.memory.resident_bytes().unwrap_or(0),
            ram_ballooned_bytes: self.memory.ballooned_frames() * PAGE_SIZE,
            balloon: self.balloon.as_ref().map(Control::figures),
            resets: 0,
        }
    }

    /// Leaves the guest so much memory, by the balloon.
    pub(crate) fn set_memory(&self, bytes: u64) -> Result<(), VmError> {
        let balloon = self.balloon.as_ref().ok_or(VmError::NoBalloon)?;
        let most = self.boot.map.ram_bytes();
        let target = most.checked_sub(bytes).ok_or(VmError::MoreMemory {
            wanted: ByteSize::from_bytes(bytes),
            most: ByteSize::from_bytes(most),
        })?;
        if !balloon.figures().driven {
            return Err(VmError::BalloonAlone);
        }
        balloon.aim(target);
        Ok(())
    }

    pub(crate) fn press_power_button(&self) {
        lock(&self.power).press_power_button();
    }

    pub(crate) fn serial_inputs(&self) -> [Option<SerialInput>; 4] {
        self.serial.each_ref().map(|port| port.as_ref().map(SerialPort::input))
    }

    /// The serial ports that are there.
    pub(crate) fn serial_ports(&self) -> impl Iterator<Item = &SerialPort> {
        self.serial.iter().flatten()
    }
}
