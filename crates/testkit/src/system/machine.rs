//! The machine around a case's vCPU: ports that make events, and a watchdog.
//!
//! | port | |
//! |---|---|
//! | 0xe0 | OUT: an NMI arrives |
//! | 0xe1 | OUT: an interrupt arrives, its vector is the byte |
//! | others | IN reads 0x5a5a5a5a; OUT does nothing |

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use engine::{
    Counter, Engine, EngineError, Event, Exit, Kick, MsrAccess, Platform, PortWidth, Vcpu, VcpuId, VcpuSetup,
};
use mmu::Mmu;
use x86::cpuid::CpuidTable;
use x86::{CpuState, Gpa};

use super::case::{Arrival, Case};

const NMI_PORT: u16 = 0xe0;
const INTERRUPT_PORT: u16 = 0xe1;

#[derive(Default)]
struct Board {
    arrivals: Mutex<VecDeque<Arrival>>,
    cr8: AtomicU8,
    kick: OnceLock<Kick>,
}

impl Board {
    fn with<T>(&self, work: impl FnOnce(&mut VecDeque<Arrival>) -> T) -> T {
        work(&mut self.arrivals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn arrive(&self, arrival: Arrival) {
        self.with(|arrivals| arrivals.push_back(arrival));
        if let Some(kick) = self.kick.get() {
            kick.kick();
        }
    }
}

impl Platform for Board {
    fn port_read(&self, _: VcpuId, _: u16, _: PortWidth) -> u32 {
        0x5a5a_5a5a
    }
    fn port_write(&self, _: VcpuId, port: u16, _: PortWidth, value: u32) {
        match port {
            NMI_PORT => self.arrive(Arrival::Nmi),
            INTERRUPT_PORT => self.arrive(Arrival::Interrupt(value.to_le_bytes()[0])),
            _ => {}
        }
    }
    fn mmio_read(&self, _: VcpuId, _: Gpa, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: VcpuId, _: Gpa, _: &[u8]) {}
    fn pending(&self, _: VcpuId) -> Option<Event> {
        let priority = self.cr8.load(Ordering::Relaxed);
        self.with(|arrivals| arrivals.iter().filter_map(|&arrival| event(arrival, priority)).min_by_key(rank))
    }
    fn take(&self, _: VcpuId, taken: Event) {
        self.with(|arrivals| {
            let at = arrivals.iter().position(|&arrival| event(arrival, 0) == Some(taken));
            at.and_then(|at| arrivals.remove(at));
        });
    }
    fn acknowledge(&self, _: VcpuId) -> Option<u8> {
        self.with(|arrivals| {
            let at = arrivals.iter().position(|a| matches!(a, Arrival::Interrupt(_)))?;
            match arrivals.remove(at) {
                Some(Arrival::Interrupt(vector)) => Some(vector),
                _ => None,
            }
        })
    }
    fn cr8(&self, _: VcpuId) -> u8 {
        self.cr8.load(Ordering::Relaxed)
    }
    fn set_cr8(&self, _: VcpuId, value: u8) {
        self.cr8.store(value, Ordering::Relaxed);
    }
    fn read_msr(&self, _: VcpuId, _: u32) -> MsrAccess<u64> {
        MsrAccess::Unknown
    }
    fn write_msr(&self, _: VcpuId, _: u32, _: u64) -> MsrAccess<()> {
        MsrAccess::Unknown
    }
    fn tsc_offset(&self) -> u64 {
        0
    }
}

/// What an arrival is to a vCPU, unless the task priority holds it back.
fn event(arrival: Arrival, priority: u8) -> Option<Event> {
    match arrival {
        Arrival::Init => Some(Event::Init),
        Arrival::Startup(page) => Some(Event::Startup(page)),
        Arrival::Nmi => Some(Event::Nmi),
        Arrival::Interrupt(vector) => (vector >> 4 > priority).then_some(Event::Interrupt),
    }
}

/// The order in which events are taken.
fn rank(event: &Event) -> u8 {
    match event {
        Event::Init => 0,
        Event::Startup(_) => 1,
        Event::Nmi => 2,
        Event::Interrupt => 3,
    }
}

/// A case takes microseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs a case's starting state until it stops; returns how, the state then, and what the vCPU has counted.
///
/// # Errors
/// If the engine cannot make a vCPU.
pub(super) fn run(
    engine: &dyn Engine,
    case: &Case,
    mmu: Mmu,
    cpuid: Arc<CpuidTable>,
    state: &CpuState,
) -> Result<(Exit, CpuState, Vec<Counter>), EngineError> {
    let board = Arc::new(Board::default());
    let setup = VcpuSetup { id: VcpuId(case.vcpu), mmu, platform: board.clone(), cpuid };
    let mut vcpu = engine.create_vcpu(setup)?;
    let kick = vcpu.kick_handle();
    let _ = board.kick.set(kick.clone());
    vcpu.settle();
    vcpu.set_state(state);
    case.events.iter().for_each(|&arrival| board.arrive(arrival));
    let exit = watched(&kick, || {
        let exit = run_on(&mut *vcpu);
        if case.later.is_empty() || exit == Exit::Kicked {
            return exit;
        }
        case.later.iter().for_each(|&arrival| board.arrive(arrival));
        run_on(&mut *vcpu)
    });
    Ok((exit, vcpu.state(), vcpu.counters()))
}

/// A halted vCPU goes on if there is something for it; the run is over when there is not.
fn run_on(vcpu: &mut dyn Vcpu) -> Exit {
    let first = vcpu.run();
    let halted_at = vcpu.state().rip;
    if first != Exit::Halted {
        return first;
    }
    // Whatever could wake it has been asked for by now: HLT looks at what is pending.
    let second = vcpu.run();
    if vcpu.state().rip == halted_at { second } else { run_on(vcpu) }
}

/// Runs `work`; if it does not come back, kicks.
fn watched<T>(kick: &Kick, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (done, wait) = mpsc::channel::<()>();
        scope.spawn(move || {
            if wait.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                kick.leave();
            }
        });
        let result = work();
        drop(done);
        result
    })
}
