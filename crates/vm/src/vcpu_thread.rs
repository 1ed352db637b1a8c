//! The thread of one vCPU.
//!
//! It owns the vCPU while it is inside the gate and leaves it behind, unlocked, when it goes out; so the driver, once
//! the gate is shut and empty, may look at and change every vCPU's state. A vCPU with nothing to execute sits on its
//! bench and uses no processor time. Engines run generated code on it, so it takes no signals but those of its own making,
//! and those on a stack of their own (see [`Shelter`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use engine::{Exit, Vcpu, VcpuId};
use host::Shelter;
use host::jail::Role;

use crate::VmError;
use crate::events::{Event, EventSink, Watch};
use crate::gate::Doorbell;
use crate::handle::VcpuFigures;
use crate::host_share::HostShare;
use crate::meter::Meter;

fn figures_of(vcpu: &dyn Vcpu) -> VcpuFigures {
    VcpuFigures { common: vcpu.stats(), counters: vcpu.counters() }
}

/// A vCPU that its thread and the driver share; never at the same time.
#[derive(Clone)]
pub(crate) struct VcpuCell {
    id: VcpuId,
    vcpu: Arc<Mutex<Box<dyn Vcpu>>>,
    bell: Arc<Doorbell>,
    host_share: Arc<HostShare>,
    meter: Arc<Meter>,
}

impl VcpuCell {
    /// Takes a vCPU in and connects its doorbell.
    pub(crate) fn new(
        id: VcpuId,
        vcpu: Box<dyn Vcpu>,
        bell: Arc<Doorbell>,
        host_share: Arc<HostShare>,
    ) -> Self {
        bell.connect(vcpu.kick_handle());
        Self { id, vcpu: Arc::new(Mutex::new(vcpu)), bell, host_share, meter: Arc::default() }
    }

    /// The vCPU. The driver calls this only while the gate is empty, and so never waits.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Box<dyn Vcpu>> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it counted; as [`VcpuCell::lock`].
    pub(crate) fn figures(&self) -> VcpuFigures {
        figures_of(&**self.lock())
    }

    /// Asks for what it has counted, without stopping it; [`VcpuCell::told`] is the answer.
    pub(crate) fn ask(&self) {
        self.meter.ask();
        self.bell.leave();
    }

    /// What it had counted a moment after [`VcpuCell::ask`]; none if it does not come by within this time.
    pub(crate) fn told(&self, limit: Duration) -> Option<VcpuFigures> {
        self.meter.wait(limit)
    }

    /// Which vCPU this is.
    pub(crate) fn id(&self) -> VcpuId {
        self.id
    }

    /// Starts the vCPU's thread; it ends with the gate.
    ///
    /// # Errors
    /// If the host has no thread for us.
    pub(crate) fn spawn(&self, events: EventSink) -> Result<JoinHandle<()>, VmError> {
        let cell = self.clone();
        let life = move || {
            let _watch = Watch { thread: "a virtual CPU", events: events.clone() };
            match Shelter::enter() {
                Ok(_shelter) => cell.live(&events),
                Err(_) => events.raise(Event::NoShelter),
            }
        };
        let cell = self.clone();
        let settle = move || cell.lock().settle();
        let name = format!("vcpu{}", self.id.0);
        host::thread::spawn_prepared(&name, Role::Vcpu, settle, life).map_err(VmError::Thread)
    }

    /// Before the vCPU runs, if it may have been idle: other vCPUs may have left it something to do first.
    fn rise(&self, vcpu: &mut dyn Vcpu) {
        if self.host_share.rise(self.id) {
            vcpu.flush_tlb();
        }
    }

    fn live(&self, events: &EventSink) {
        self.host_share.begin(self.id);
        while let Some(_pass) = self.host_share.aside(self.id, || events.gate().enter()) {
            // Declared after the pass, so that the vCPU is free before the gate counts us out.
            let mut vcpu = self.lock();
            self.rise(&mut **vcpu);
            while events.gate().is_open() {
                let exit = vcpu.run();
                self.meter.answer(|| figures_of(&**vcpu));
                match exit {
                    Exit::Kicked => {}
                    Exit::Halted | Exit::WaitForSipi => {
                        self.host_share.sit(self.id, &self.bell);
                        self.rise(&mut **vcpu);
                    }
                    Exit::Shutdown => events.raise(Event::TripleFault(self.id)),
                }
            }
        }
    }
}
