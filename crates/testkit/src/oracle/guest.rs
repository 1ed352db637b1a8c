//! The engine's side: the same cases on a vCPU in user mode.
//!
//! The guest is as small as can be. Physical memory holds page tables, descriptor tables and the pages of code and
//! data, mapped for user mode at the addresses they have in the child, with the same permissions. Every exception goes
//! through its gate to a handler ([`handlers`]), which halts with the interrupt frame on the supervisor's stack or, if the
//! case says so, notes the fault and returns to user mode.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::{Engine, EngineError, Exit, Vcpu, VcpuId, VcpuSetup};
use memory::{GuestMemory, RamRange};
use mmu::{Mmu, Technique};
use x86::control::{cr0, cr4, efer, xcr0};
use x86::cpuid::CpuidTable;
use x86::descriptor::attr;
use x86::state::Activity;
use x86::{CpuState, DescriptorTable, Gfn, Gpa, Segment, SegmentIndex, Selector};

use super::build::World;
use super::case::{
    CHUNK, CODE, CODE_BYTES, DATA, DATA_AT, DATA_BYTES, Fault, IMAGE_BYTES, Image, Input, LOGGED, Output,
    STACK, STACK_AT, STACK_BYTES, WRITABLE_BYTES,
};
use super::child::{GS_LIMIT, GS_SELECTOR, USER_CS, USER_CS_16, USER_CS_32, USER_DS, gs_selector};
use super::handlers::{self, HANDLER_BYTES, Shared, VECTORS};
use crate::flat::NoMachine;

/// Guest-physical layout. The supervisor has the first 2 MiB at [`SYSTEM`], where no user address is.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const SYSTEM_PDPT: u64 = 0x6000;
const SYSTEM_PD: u64 = 0x7000;
const CODE_PT: u64 = 0x4000;
const DATA_PT: u64 = 0x5000;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const TSS: u64 = 0xa000;
const HANDLERS: u64 = 0xb000;
const SUPERVISOR_STACK: u64 = 0xe000;
const SHARED: u64 = 0xf000;
const STACK_PT: u64 = 0x1_0000;
const IMAGE_GPA: u64 = 0x10_0000;
const RAM: u64 = 0x20_0000;

/// Where the supervisor's memory is mapped: the last 2 GiB.
const SYSTEM: u64 = 0xffff_ffff_8000_0000;
/// As Linux numbers them, so that they read the same.
const KERNEL_CS: u16 = 0x10;
const TSS_SELECTOR: u16 = 0x40;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const LARGE: u64 = 0x80;
const ACCESSED_DIRTY: u64 = 0x60;
const NO_EXECUTE: u64 = 1 << 63;

/// The guest on an engine.
pub struct Guest {
    memory: Arc<GuestMemory>,
    vcpu: Box<dyn Vcpu>,
    template: CpuState,
    background: Box<Image>,
    /// RIP when a handler has halted.
    halted: u64,
    watch: Watch,
}

/// Why a case has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It did not come to an end.
    Hung,
    /// A triple fault, or a halt elsewhere than in a handler.
    Astray,
}

impl Guest {
    /// A guest on `engine`, for cases that this thread runs.
    ///
    /// # Errors
    /// If the engine cannot make a vCPU.
    ///
    /// # Panics
    /// If the host refuses 2 MiB of memory.
    pub fn new(engine: &dyn Engine, cpuid: &Arc<CpuidTable>, world: &World) -> Result<Self, EngineError> {
        let ram = RamRange { base: Gfn(0), frames: RAM / x86::PAGE_SIZE };
        let memory = Arc::new(GuestMemory::new(&[ram]).expect("2 MiB"));
        let mut vcpu = engine.create_vcpu(VcpuSetup {
            id: VcpuId(0),
            mmu: Mmu::new(memory.clone(), Technique::default()),
            platform: Arc::new(NoMachine),
            cpuid: cpuid.clone(),
        })?;
        vcpu.settle();
        let watch = Watch::new(vcpu.kick_handle());
        let background = Box::new([0; IMAGE_BYTES]);
        let mut guest = Self { memory, vcpu, template: template(world), background, halted: 0, watch };
        guest.lay_out();
        Ok(guest)
    }

    fn put(&self, gpa: u64, bytes: &[u8]) {
        // Everything lies within the guest's RAM.
        let _ = self.memory.write(Gpa(gpa), bytes);
    }

    fn lay_out(&mut self) {
        let word = |gpa: u64, value: u64| self.put(gpa, &value.to_le_bytes());
        let table = PRESENT | WRITABLE | USER | ACCESSED_DIRTY;
        word(PML4, PDPT | table);
        word(PDPT, PD | table);
        word(PML4 + 8 * 511, SYSTEM_PDPT | table);
        word(SYSTEM_PDPT + 8 * 510, SYSTEM_PD | table);
        word(SYSTEM_PD, PRESENT | WRITABLE | LARGE | ACCESSED_DIRTY);
        word(PD + 8 * (CODE >> 21), CODE_PT | table);
        word(PD + 8 * (DATA >> 21), DATA_PT | table);
        word(PD + 8 * (STACK >> 21), STACK_PT | table);
        let areas =
            [(CODE_PT, 0, CODE_BYTES), (DATA_PT, DATA_AT, DATA_BYTES), (STACK_PT, STACK_AT, STACK_BYTES)];
        for (page_table, at, len) in areas {
            for offset in (0..len as u64).step_by(4096) {
                let no_execute = if page_table == CODE_PT { 0 } else { NO_EXECUTE };
                let write =
                    if page_table == DATA_PT && offset >= WRITABLE_BYTES as u64 { 0 } else { WRITABLE };
                let frame = IMAGE_GPA + at as u64 + offset;
                let entry = frame | PRESENT | USER | ACCESSED_DIRTY | no_execute | write;
                word(page_table + 8 * (offset >> 12), entry);
            }
        }
        word(GDT + u64::from(KERNEL_CS), 0x00af_9b00_0000_ffff);
        word(GDT + u64::from(USER_DS & !7), 0x00cf_f300_0000_ffff);
        word(GDT + u64::from(USER_CS & !7), 0x00af_fb00_0000_ffff);
        word(GDT + u64::from(USER_CS_32 & !7), 0x00cf_fb00_0000_ffff);
        let tss = SYSTEM + TSS;
        let low = 0x0000_8b00_0000_0067 | (tss & 0xff_ffff) << 16 | (tss >> 24 & 0xff) << 56;
        word(GDT + u64::from(TSS_SELECTOR), low);
        word(GDT + u64::from(TSS_SELECTOR) + 8, tss >> 32);
        word(TSS + 4, SYSTEM + SUPERVISOR_STACK);
        // No I/O permission bitmap: it begins beyond the limit.
        word(TSS + 0x64, 0x68 << 16);
        for vector in 0..VECTORS {
            // Breakpoints are the way out of user mode; INTO is allowed there too.
            let dpl: u64 = if matches!(vector, 3 | 4) { 3 } else { 0 };
            let target = SYSTEM + HANDLERS + vector * HANDLER_BYTES;
            let low = target & 0xffff | (target & 0xffff_0000) << 32;
            word(IDT + 16 * vector, low | u64::from(KERNEL_CS) << 16 | (0x8e00 | dpl << 13) << 32);
            word(IDT + 16 * vector + 8, target >> 32);
        }
        let (code, halted) = handlers::assemble(SYSTEM + HANDLERS, Shared { address: SYSTEM + SHARED })
            .expect("the handlers are the same every time");
        self.put(HANDLERS, &code);
        self.halted = halted;
    }

    /// What the vCPU has counted.
    pub fn counters(&self) -> BTreeMap<Cow<'static, str>, u64> {
        self.vcpu.counters().into_iter().map(|counter| (counter.name, counter.value)).collect()
    }

    /// Sets what memory is before a case sets its own.
    pub fn set_background(&mut self, background: &Image) {
        *self.background = *background;
        self.put(IMAGE_GPA, background);
    }

    /// Runs a case.
    ///
    /// # Errors
    /// If it does not end in an exception.
    pub fn run(&mut self, input: &Input, output: &mut Output) -> Result<(), Lost> {
        for (at, bytes) in input.pieces() {
            self.put(IMAGE_GPA + at as u64, bytes);
        }
        let code_at = input.code_at();
        let code = &input.code()[..input.code().len().min(CODE_BYTES - code_at)];
        self.put(IMAGE_GPA + code_at as u64, code);
        let shared = [u64::from(input.resumes), input.resume_at, 0];
        self.put(SHARED, shared.map(u64::to_le_bytes).as_flattened());
        let state = self.state_for(input);
        self.vcpu.set_state(&state);
        self.watch.begin();
        let exit = self.vcpu.run();
        let hung = self.watch.end();
        let result = if hung {
            // A kick may have come after the end; the state says which.
            if exit == Exit::Halted { self.collect(output) } else { Err(Lost::Hung) }
        } else if exit == Exit::Halted {
            self.collect(output)
        } else {
            Err(Lost::Astray)
        };
        let mut image = [0; IMAGE_BYTES];
        let _ = self.memory.read(Gpa(IMAGE_GPA), &mut image);
        output.take_changes(&mut image, &self.background);
        // Only what has changed is written, so that an engine keeps what it knows of other pages.
        for (at, chunk) in self.background.as_chunks::<CHUNK>().0.iter().enumerate() {
            if output.chunk(at).is_some() {
                self.put(IMAGE_GPA + (at * CHUNK) as u64, chunk);
            }
        }
        result
    }

    fn state_for(&self, input: &Input) -> CpuState {
        let r = &input.registers;
        let mut state = self.template.clone();
        state.gpr = r.gpr;
        state.rip = r.rip;
        state.rflags = r.rflags;
        if gs_selector(input) == 0 {
            let base = state.seg[SegmentIndex::Gs as usize].base;
            state.seg[SegmentIndex::Gs as usize] = Segment { base, ..Segment::null(Selector(0)) };
        }
        let cs = &mut state.seg[SegmentIndex::Cs as usize];
        match input.bits {
            64 => {}
            32 => {
                cs.selector = Selector(USER_CS_32);
                cs.attr = cs.attr & !attr::L | attr::DB;
            }
            _ => {
                let attr = cs.attr & !(attr::L | attr::G);
                let limit = CODE_BYTES as u32 - 1;
                *cs = Segment { selector: Selector(USER_CS_16), base: CODE, limit, attr };
            }
        }
        state.vector.ymm = r.ymm;
        state.vector.mxcsr = r.mxcsr;
        let fpu = &mut state.fpu;
        (fpu.fcw, fpu.fsw, fpu.ftw) = (r.fcw, r.fsw, r.ftw.to_le_bytes()[0]);
        (fpu.fip, fpu.fdp, fpu.fop) = (r.fip, r.fdp, r.fop);
        fpu.st = r.st;
        state
    }

    fn collect(&mut self, output: &mut Output) -> Result<(), Lost> {
        let state = self.vcpu.state();
        if state.cpl() != 0 || state.rip != self.halted {
            return Err(Lost::Astray);
        }
        let [vector, error, rip, _, flags, rsp, _]: handlers::Frame =
            self.words(state.gpr[4].wrapping_sub(SYSTEM));
        let r = &mut output.registers;
        r.gpr = state.gpr;
        r.gpr[4] = rsp;
        r.rip = rip;
        r.rflags = flags;
        r.ymm = state.vector.ymm;
        r.mxcsr = state.vector.mxcsr;
        let fpu = &state.fpu;
        (r.fcw, r.fsw, r.ftw) = (fpu.fcw, fpu.fsw, u16::from(fpu.ftw));
        (r.fip, r.fdp, r.fop) = (fpu.fip, fpu.fdp, fpu.fop);
        r.st = fpu.st;
        output.vector = vector as u32;
        output.error = error as u32;
        output.cr2 = state.cr2;
        [output.resumed] = self.words(SHARED + Shared::RESUMED);
        let log: [u64; 4 * LOGGED] = self.words(SHARED + Shared::LOG);
        for (fault, words) in output.log.iter_mut().zip(log.as_chunks().0) {
            let [vector, error, rip, cr2] = *words;
            *fault = Fault { vector, error, rip, cr2 };
        }
        Ok(())
    }

    fn words<const N: usize>(&self, gpa: u64) -> [u64; N] {
        let mut words = [[0; 8]; N];
        // Beyond memory there are zeros.
        let _ = self.memory.read(Gpa(gpa), words.as_flattened_mut());
        words.map(u64::from_le_bytes)
    }
}

/// The components of extended state that the guest has enabled.
pub const XCR0: u64 = xcr0::X87 | xcr0::SSE | xcr0::AVX;

/// The state of every case but for its registers: user mode as Linux sets it up.
fn template(world: &World) -> CpuState {
    let mut s = CpuState::reset();
    s.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
    s.cr3 = PML4;
    s.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE | cr4::PGE;
    s.msrs.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    s.xcr0 = XCR0;
    s.gdtr = DescriptorTable { base: SYSTEM + GDT, limit: TSS_SELECTOR + 15 };
    s.idtr = DescriptorTable { base: SYSTEM + IDT, limit: 32 * 16 - 1 };
    let user = attr::P | attr::S | attr::ACCESSED | 3 << attr::DPL_SHIFT;
    let flat = |selector, attr| Segment { selector: Selector(selector), base: 0, limit: u32::MAX, attr };
    s.seg = [Segment::null(Selector(0)); 6];
    s.seg[SegmentIndex::Cs as usize] = flat(USER_CS, user | attr::CODE | attr::READABLE | attr::L | attr::G);
    let data = flat(USER_DS, user | attr::WRITABLE | attr::DB | attr::G);
    for segment in [SegmentIndex::Ss, SegmentIndex::Ds, SegmentIndex::Es] {
        s.seg[segment as usize] = data;
    }
    s.seg[SegmentIndex::Fs as usize].base = world.fs_base;
    s.seg[SegmentIndex::Gs as usize] = Segment {
        selector: Selector(GS_SELECTOR),
        base: world.gs_base,
        limit: GS_LIMIT,
        attr: user | attr::WRITABLE | attr::DB,
    };
    s.tr = Segment {
        selector: Selector(TSS_SELECTOR),
        base: SYSTEM + TSS,
        limit: 0x67,
        attr: attr::P | x86::descriptor::system::TSS_BUSY,
    };
    s.activity = Activity::Running;
    s
}

/// Kicks a vCPU that does not come back.
struct Watch {
    /// Odd while a case runs.
    turn: Arc<AtomicU64>,
    kicked: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// How often to look.
const PERIOD: Duration = Duration::from_secs(1);
/// A case takes microseconds, but a busy host may let nobody run for seconds.
const PATIENCE: u32 = 5;

impl Watch {
    fn new(kick: engine::Kick) -> Self {
        let (turn, kicked, stop) =
            (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let shared = (turn.clone(), kicked.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let (turn, kicked, stop) = shared;
            let (mut last, mut since) = (0, Instant::now());
            while !stop.load(Ordering::Relaxed) {
                std::thread::park_timeout(PERIOD);
                let now = turn.load(Ordering::Relaxed);
                if now != last {
                    (last, since) = (now, Instant::now());
                } else if now % 2 == 1 && since.elapsed() > PERIOD * PATIENCE {
                    kicked.store(true, Ordering::Relaxed);
                    kick.leave();
                }
            }
        });
        Self { turn, kicked, stop, thread: Some(thread) }
    }

    fn begin(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether there was a kick.
    fn end(&self) -> bool {
        self.turn.fetch_add(1, Ordering::Relaxed);
        self.kicked.swap(false, Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
