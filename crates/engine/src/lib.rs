//! The contract between a CPU engine and the machine around it.
//!
//! An *engine* executes guest instructions: an interpreter, a binary translator, KVM. The *machine* owns everything
//! else: devices, interrupt controllers, time. They meet here and nowhere else, and nothing here may assume how an
//! engine works.
//!
//! # How a vCPU runs
//!
//! One host thread owns a [`Vcpu`] and calls [`Vcpu::run`] in a loop. While it runs, the engine reaches the machine
//! only through [`Platform`]: port and MMIO accesses, APIC registers, pending events, the clock. These calls complete
//! inline, in program order, on the vCPU's thread. `run` returns when the vCPU has nothing to execute
//! ([`Exit::Halted`], [`Exit::WaitForSipi`]), cannot go on ([`Exit::Shutdown`]), or was asked to stop
//! ([`Exit::Kicked`]).
//!
//! # Kicks
//!
//! Whoever makes an event pending (an interrupt, a pause request) first publishes it, then calls [`Kick::kick`]. The
//! engine promises that after a kick it either asks [`Platform::pending`] again before executing more than a short,
//! bounded stretch of guest code (50 µs), or returns. A kick that arrives while the vCPU is outside `run` makes the
//! next `run` notice at once. Kicks are never lost and may be merged.

mod counter;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mmu::Mmu;
use x86::cpuid::CpuidTable;
use x86::{CpuState, Gpa};

pub use counter::Counter;

/// The index of a vCPU in its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VcpuId(pub u32);

/// A factory of vCPUs that share one way of executing.
pub trait Engine: Send + Sync {
    /// The name that `--engine` knows.
    fn name(&self) -> &'static str;

    /// Makes a vCPU in the reset state.
    ///
    /// # Errors
    /// If the host refuses a resource that the engine needs.
    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, EngineError>;
}

/// What a vCPU is made of.
#[derive(Clone)]
pub struct VcpuSetup {
    /// Which vCPU of the VM this is.
    pub id: VcpuId,
    /// The guest's memory, and how addresses lead there.
    pub mmu: Mmu,
    /// The machine around it.
    pub platform: Arc<dyn Platform>,
    /// What CPUID says and which features exist.
    pub cpuid: Arc<CpuidTable>,
}

/// One virtual CPU. Owned and driven by one thread; only its [`Kick`] is shared.
pub trait Vcpu: Send {
    /// Executes guest code until there is a reason to stop.
    fn run(&mut self) -> Exit;

    /// Makes what only the thread can make that will call [`Vcpu::run`], and only before that may make no system calls but those of its
    /// role: to be called on it once, before. A vCPU runs without, if more slowly.
    fn settle(&mut self) {}

    /// A handle with which other threads interrupt [`Vcpu::run`].
    fn kick_handle(&self) -> Kick;

    /// The architectural state, complete and between two instructions.
    fn state(&self) -> CpuState;

    /// Replaces the architectural state; caches derived from the old one are dropped.
    fn set_state(&mut self, state: &CpuState);

    /// Drops all translations of addresses, global ones too.
    fn flush_tlb(&mut self);

    /// What the engine counted since it was created.
    fn stats(&self) -> VcpuStats;

    /// What it counted besides, under names of its own and in the order in which they are best read.
    fn counters(&self) -> Vec<Counter>;
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Somebody kicked; the vCPU can go on.
    Kicked,
    /// HLT or MWAIT with nothing pending: run again when [`Platform::pending`] has something.
    Halted,
    /// The processor waits for a start-up IPI.
    WaitForSipi,
    /// Triple fault.
    Shutdown,
}

/// An event that waits for the vCPU, in the order of the variants' priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// INIT: go to the INIT state, then wait for a start-up IPI (or restart, for the boot processor).
    Init,
    /// A start-up IPI with its vector: start in real mode at `vector << 12`.
    Startup(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// A maskable interrupt; its vector is known when it is acknowledged.
    Interrupt,
}

/// Width of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortWidth {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
}

impl PortWidth {
    /// The width in bytes.
    #[inline]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }
}

/// Whether the machine knows a model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrAccess<T> {
    /// It does; here is the value (or unit, for a write).
    Done(T),
    /// It does, and the access is illegal: #GP.
    Fault,
    /// It does not; the engine decides (normally #GP).
    Unknown,
}

/// The machine as a vCPU sees it. Called on that vCPU's thread; every call returns promptly.
pub trait Platform: Send + Sync {
    /// IN. Unclaimed ports read as all ones.
    fn port_read(&self, vcpu: VcpuId, port: u16, width: PortWidth) -> u32;

    /// OUT. Unclaimed ports swallow.
    fn port_write(&self, vcpu: VcpuId, port: u16, width: PortWidth, value: u32);

    /// A read of guest-physical addresses that are not memory; `data` is 1 to 8 bytes long. Unclaimed ones read as
    /// all ones.
    fn mmio_read(&self, vcpu: VcpuId, gpa: Gpa, data: &mut [u8]);

    /// A write to guest-physical addresses that are not memory; `data` is 1 to 8 bytes long.
    fn mmio_write(&self, vcpu: VcpuId, gpa: Gpa, data: &[u8]);

    /// The most urgent event that waits, without taking it. [`Event::Interrupt`] only if its priority is above the
    /// processor priority; whether RFLAGS.IF and the shadows let it in is the engine's business.
    fn pending(&self, vcpu: VcpuId) -> Option<Event>;

    /// Takes a pending INIT, start-up IPI or NMI away. The engine calls it as it acts on the event.
    fn take(&self, vcpu: VcpuId, event: Event);

    /// The interrupt-acknowledge cycle: the vector to deliver, which becomes in-service. `None` if the request has
    /// been withdrawn.
    fn acknowledge(&self, vcpu: VcpuId) -> Option<u8>;

    /// CR8: bits 7:4 of the task-priority register.
    fn cr8(&self, vcpu: VcpuId) -> u8;

    /// MOV to CR8 with a value from 0 to 15.
    fn set_cr8(&self, vcpu: VcpuId, value: u8);

    /// RDMSR of a register that the engine does not hold itself (APIC base, x2APIC, TSC deadline, paravirtual).
    fn read_msr(&self, vcpu: VcpuId, msr: u32) -> MsrAccess<u64>;

    /// WRMSR of such a register.
    fn write_msr(&self, vcpu: VcpuId, msr: u32, value: u64) -> MsrAccess<()>;

    /// A hypercall, VMCALL or VMMCALL at CPL 0 (Linux, `Documentation/virt/kvm/x86/hypercalls.rst`): its number and what
    /// RBX, RCX, RDX and RSI hold; what RAX is to hold.
    fn hypercall(&self, _vcpu: VcpuId, _number: u64, _arguments: [u64; 4]) -> u64 {
        hypercall::UNKNOWN
    }

    /// Takes the wake-up away that another vCPU has sent by a hypercall. The engine asks when the vCPU has halted; it goes on if
    /// there is one.
    fn take_wakeup(&self, _vcpu: VcpuId) -> bool {
        false
    }

    /// What to add to the host's time stamp counter to get the guest's (before IA32_TSC_ADJUST). Changes only while
    /// no vCPU runs.
    fn tsc_offset(&self) -> u64;
}

/// What hypercalls answer.
pub mod hypercall {
    /// Done.
    pub const DONE: u64 = 0;
    /// Not at this privilege level.
    pub const REFUSED: u64 = 1_u64.wrapping_neg();
    /// No such hypercall.
    pub const UNKNOWN: u64 = 1000_u64.wrapping_neg();
}

/// A request to leave [`Vcpu::run`] or look at the platform again. Cloned freely; usable from any thread.
#[derive(Clone)]
pub struct Kick(Arc<KickInner>);

struct KickInner {
    requests: AtomicU32,
    /// Makes a vCPU that is inside a blocking host call come back; a no-op for engines that poll.
    interrupt: Box<dyn Fn() + Send + Sync>,
}

/// Look at [`Platform::pending`] again.
const LOOK: u32 = 1;
/// Return [`Exit::Kicked`].
const LEAVE: u32 = 2;

impl Kick {
    /// A handle for an engine that polls [`Kick::is_raised`].
    pub fn polled() -> Self {
        Self::with_interrupt(|| {})
    }

    /// A handle for an engine that must be interrupted: `interrupt` is called after each request is published.
    pub fn with_interrupt(interrupt: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(KickInner { requests: AtomicU32::new(0), interrupt: Box::new(interrupt) }))
    }

    /// Asks the vCPU to look at its pending events soon.
    pub fn kick(&self) {
        self.request(LOOK);
    }

    /// Asks the vCPU to return from [`Vcpu::run`] with [`Exit::Kicked`] soon.
    pub fn leave(&self) {
        self.request(LEAVE);
    }

    fn request(&self, bits: u32) {
        self.0.requests.fetch_or(bits, Ordering::Release);
        (self.0.interrupt)();
    }

    /// Engine side: whether any request waits. Cheap: one relaxed load.
    #[inline(always)]
    pub fn is_raised(&self) -> bool {
        self.0.requests.load(Ordering::Relaxed) != 0
    }

    /// Engine side: takes the requests; true if the vCPU must leave `run`. Events published before the kick are
    /// visible after this call.
    pub fn take(&self) -> bool {
        self.0.requests.swap(0, Ordering::Acquire) & LEAVE != 0
    }
}

impl fmt::Debug for Kick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kick({:#x})", self.0.requests.load(Ordering::Relaxed))
    }
}

/// Counters that every engine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuStats {
    /// Guest instructions executed, if the engine counts them.
    pub instructions: Option<u64>,
    /// Interrupts and NMIs delivered.
    pub interrupts: u64,
    /// Exceptions delivered, software interrupts not included.
    pub exceptions: u64,
    /// Port and MMIO accesses.
    pub io_accesses: u64,
}

/// The host refused something.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine cannot work on this host.
    #[error("engine '{engine}' cannot run here: {reason}")]
    Unavailable {
        /// The engine's name.
        engine: &'static str,
        /// What is missing.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kicks_merge_and_are_not_lost() {
        let kick = Kick::polled();
        assert!(!kick.is_raised());
        kick.kick();
        kick.clone().leave();
        assert!(kick.is_raised());
        assert!(kick.take(), "the request to leave survives the request to look");
        assert!(!kick.take() && !kick.is_raised());
    }
}
