//! The smallest 64-bit guest: a few megabytes of memory mapped one to one (and a second time behind), no devices, code that runs at CPL 0,
//! or at CPL 3 as a program of Linux does.
//!
//! For measuring an engine, and for tests that want instructions and nothing around them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{
    Engine, EngineError, Event, Exit, Kick, MsrAccess, Platform, PortWidth, Vcpu, VcpuId, VcpuSetup,
    VcpuStats,
};
use memory::{GuestMemory, MemoryError, RamRange};
use mmu::{Mmu, Technique};
use x86::control::{cr0, cr4, efer};
use x86::cpuid::CpuidTable;
use x86::descriptor::attr;
use x86::paging::pte;
use x86::{CpuState, Gpa, Segment, SegmentIndex, Selector, rflags};

use crate::oracle::child::{USER_CS, USER_DS};

/// Guest memory, all of it mapped.
pub const RAM_BYTES: u64 = 4 << 20;
/// Where the code goes.
pub const CODE: u64 = 0x1_0000;
/// A page-aligned area for data, up to the stack.
pub const DATA: u64 = 0x10_0000;
/// The initial stack pointer: the end of memory.
pub const STACK: u64 = RAM_BYTES;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;

/// An OUT to this port gives up the host's processor: for guests whose vCPUs wait for each other.
pub const YIELD_PORT: u32 = 0x80;

/// A machine with nothing in it but [`YIELD_PORT`]: ports and addresses read as ones, no event ever waits.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMachine;

impl Platform for NoMachine {
    fn port_read(&self, _: VcpuId, _: u16, _: PortWidth) -> u32 {
        u32::MAX
    }
    fn port_write(&self, _: VcpuId, port: u16, _: PortWidth, _: u32) {
        if u32::from(port) == YIELD_PORT {
            std::thread::yield_now();
        }
    }
    fn mmio_read(&self, _: VcpuId, _: Gpa, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: VcpuId, _: Gpa, _: &[u8]) {}
    fn pending(&self, _: VcpuId) -> Option<Event> {
        None
    }
    fn take(&self, _: VcpuId, _: Event) {}
    fn acknowledge(&self, _: VcpuId) -> Option<u8> {
        None
    }
    fn cr8(&self, _: VcpuId) -> u8 {
        0
    }
    fn set_cr8(&self, _: VcpuId, _: u8) {}
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

/// Why a guest could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FlatError {
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No vCPU.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The guest.
pub struct FlatGuest {
    vcpu: Box<dyn Vcpu>,
}

impl FlatGuest {
    /// A guest about to execute `code`.
    ///
    /// # Errors
    /// If the code does not fit, or the host refuses memory or a vCPU.
    pub fn new(engine: &dyn Engine, cpuid: Arc<CpuidTable>, code: &[u8]) -> Result<Self, FlatError> {
        Self::in_state(engine, cpuid, code, &long_mode())
    }

    /// The same at CPL 3.
    ///
    /// # Errors
    /// As for [`FlatGuest::new`].
    pub fn of_user(engine: &dyn Engine, cpuid: Arc<CpuidTable>, code: &[u8]) -> Result<Self, FlatError> {
        Self::in_state(engine, cpuid, code, &user_mode())
    }

    fn in_state(
        engine: &dyn Engine,
        cpuid: Arc<CpuidTable>,
        code: &[u8],
        state: &CpuState,
    ) -> Result<Self, FlatError> {
        let memory = Arc::new(memory()?);
        memory.write(Gpa(CODE), code)?;
        let mmu = Mmu::new(memory, Technique::default());
        let platform = Arc::new(NoMachine);
        let mut vcpu = engine.create_vcpu(VcpuSetup { id: VcpuId(0), mmu, platform, cpuid })?;
        vcpu.settle();
        vcpu.set_state(state);
        Ok(Self { vcpu })
    }

    /// Makes the vCPU stop.
    pub fn kick_handle(&self) -> Kick {
        self.vcpu.kick_handle()
    }

    /// Runs until it is kicked; false if there was another reason to stop. By the thread that has made the guest.
    pub fn run_until_kicked(&mut self) -> bool {
        self.vcpu.run() == Exit::Kicked
    }

    /// Runs until the code halts or `limit` is over; true if it halted.
    pub fn run_for(&mut self, limit: Duration) -> bool {
        let kick = self.vcpu.kick_handle();
        let (done, finished) = std::sync::mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            // Either the guest is done first, or the time is.
            if finished.recv_timeout(limit).is_err() {
                kick.leave();
            }
        });
        let start = Instant::now();
        let halted = loop {
            match self.vcpu.run() {
                Exit::Kicked if start.elapsed() < limit => {}
                exit => break exit == Exit::Halted,
            }
        };
        let _ = done.send(());
        let _ = watch.join();
        halted
    }

    /// What the engine counted.
    pub fn stats(&self) -> VcpuStats {
        self.vcpu.stats()
    }

    /// The vCPU's state.
    pub fn state(&self) -> CpuState {
        self.vcpu.state()
    }
}

/// Memory with the page tables of [`long_mode`]: all of it at its own address, and once more behind that.
///
/// # Errors
/// If the host refuses.
pub fn memory() -> Result<GuestMemory, MemoryError> {
    let memory = GuestMemory::new(&[RamRange::from_bytes(Gpa(0), RAM_BYTES)])?;
    let table = pte::P | pte::RW | pte::US;
    memory.write_word(Gpa(PML4), PDPT | table)?;
    memory.write_word(Gpa(PDPT), PD | table)?;
    for address in (0..2 * RAM_BYTES).step_by(1 << 21) {
        memory.write_word(Gpa(PD + (address >> 21) * 8), (address % RAM_BYTES) | table | pte::PS)?;
    }
    Ok(memory)
}

/// 64-bit mode at CPL 0, vector and x87 units enabled, RIP at [`CODE`].
pub fn long_mode() -> CpuState {
    let mut state = CpuState::reset();
    let kind = attr::P | attr::S | attr::ACCESSED | attr::G;
    let data = Segment {
        selector: Selector(0x18),
        attr: kind | attr::WRITABLE | attr::DB,
        limit: u32::MAX,
        base: 0,
    };
    state.seg = [data; 6];
    let code = kind | attr::CODE | attr::READABLE | attr::L;
    state.seg[SegmentIndex::Cs as usize] =
        Segment { selector: Selector(0x10), attr: code, limit: u32::MAX, base: 0 };
    state.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::MP | cr0::WP;
    state.cr3 = PML4;
    state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    state.xcr0 = 7;
    state.msrs.efer = efer::LME | efer::LMA;
    state.rip = CODE;
    state.gpr[x86::state::gpr::RSP] = STACK;
    state
}

/// 64-bit mode at CPL 3, otherwise as [`long_mode`] and as Linux has it, for code that raises nothing: there is no supervisor.
pub fn user_mode() -> CpuState {
    let mut state = long_mode();
    for (index, selector) in [(SegmentIndex::Cs, USER_CS), (SegmentIndex::Ss, USER_DS)] {
        let segment = &mut state.seg[index as usize];
        segment.selector = Selector(selector);
        segment.attr |= 3 << attr::DPL_SHIFT;
    }
    for index in [SegmentIndex::Ds, SegmentIndex::Es, SegmentIndex::Fs, SegmentIndex::Gs] {
        state.seg[index as usize] = Segment::null(Selector(0));
    }
    state.cr4 |= cr4::FSGSBASE;
    state.rflags |= rflags::IF;
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::host_model;

    #[test]
    fn code_runs_and_halts() {
        // mov eax, 41; inc eax; hlt
        let code = [0xb8, 41, 0, 0, 0, 0xff, 0xc0, 0xf4];
        let cpuid = Arc::new(host_model().unwrap());
        let mut guest = FlatGuest::new(&interp::Interp, cpuid, &code).unwrap();
        assert!(guest.run_for(Duration::from_secs(60)));
        assert_eq!(guest.state().gpr[0], 42);
        assert_eq!(guest.stats().instructions, Some(3));
    }
}
