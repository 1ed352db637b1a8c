//! A small guest in any mode, to throw things at.
//!
//! Its RAM is 256 KiB at 0 and 64 KiB at 1 MiB; all else is devices that answer with noise. Page tables for every paging mode map
//! the first 2 MiB one to one, a GDT has a descriptor of every kind, every vector has a gate to a HLT, and the task register
//! points to a TSS with stacks. So a guest that nobody tampers with gets far; [`super::tweak`] tampers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arbitrary::Unstructured;
use engine::{Event, MsrAccess, Platform, PortWidth, VcpuId, VcpuSetup};
use interp::{Interp, InterpVcpu};
use memory::{GuestMemory, RamRange};
use mmu::Mmu;
use x86::control::{cr0, cr4, efer};
use x86::cpuid::{CpuModel, CpuRequest, CpuidTable, HostCpuid};
use x86::descriptor::attr;
use x86::{CpuState, DescriptorTable, Gfn, Gpa, PAGE_SIZE, Segment, Selector};

use crate::oracle::random::Random;
use crate::techniques;

pub(super) const IVT: u64 = 0;
pub(super) const PML4: u64 = 0x1000;
pub(super) const PDPT: u64 = 0x2000;
pub(super) const PD: u64 = 0x3000;
pub(super) const PT: u64 = 0x4000;
pub(super) const PAE_PDPT: u64 = 0x5000;
pub(super) const LEGACY_PD: u64 = 0x6000;
pub(super) const LEGACY_PT: u64 = 0x7000;
pub(super) const GDT: u64 = 0x8000;
pub(super) const IDT32: u64 = 0x9000;
pub(super) const IDT64: u64 = 0xa000;
pub(super) const TSS: u64 = 0xb000;
pub(super) const TSS64: u64 = 0xb400;
pub(super) const TSS16: u64 = 0xb800;
pub(super) const TSS_OTHER: u64 = 0xbc00;
pub(super) const LDT: u64 = 0xc000;
pub(super) const HANDLER: u64 = 0xd000;
pub(super) const STACK0: u64 = 0xe800;
pub(super) const STACK3: u64 = 0xf800;
pub(super) const CODE: u64 = 0x1_0000;
pub(super) const CODE_BYTES: u64 = 0x2000;
pub(super) const DATA: u64 = 0x2_0000;
/// Where low RAM ends, and where there is some more.
pub(super) const LOW_FRAMES: u64 = 64;
pub(super) const HIGH_BASE: Gfn = Gfn(256);
pub(super) const HIGH_FRAMES: u64 = 16;

const HLT: u8 = 0xf4;
const PRESENT: u64 = 1;
const TABLE: u64 = 0x67;

/// Selectors, which are also offsets into the GDT.
pub(super) const CODE32: u16 = 0x08;
pub(super) const DATA32: u16 = 0x10;
pub(super) const CODE16: u16 = 0x18;
pub(super) const DATA16: u16 = 0x20;
pub(super) const CODE64: u16 = 0x28;
/// As SYSRET wants them: 32-bit code, data, 64-bit code.
pub(super) const USER_CODE32: u16 = 0x30;
pub(super) const USER_DATA: u16 = 0x38;
pub(super) const USER_CODE64: u16 = 0x40;
pub(super) const TSS_SELECTOR: u16 = 0x50;
const LDT_SELECTOR: u16 = 0x60;
const TASK: u16 = 0x70;
/// Descriptors in the GDT.
pub(super) const GDT_ENTRIES: u64 = 32;

/// The mode that a guest starts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, arbitrary::Arbitrary)]
pub(super) enum StartMode {
    Real,
    V86,
    Protected16,
    Protected32,
    Pae,
    Compatibility16,
    Compatibility32,
    Long,
}

/// A guest, on the interpreter if nothing else is said.
pub(super) struct Guest<V = InterpVcpu> {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) mmu: Mmu,
    pub(super) vcpu: V,
}

/// A machine whose every answer is noise; what the vCPU gets of it depends on the seed and on the order of its questions.
struct Noise(AtomicU64);

impl Noise {
    fn next(&self) -> u64 {
        let x = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let x = (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        x ^ x >> 29
    }

    fn access<T>(&self, value: T) -> MsrAccess<T> {
        match self.next() % 4 {
            0 => MsrAccess::Fault,
            1 => MsrAccess::Unknown,
            _ => MsrAccess::Done(value),
        }
    }
}

impl Platform for Noise {
    fn port_read(&self, _: VcpuId, _: u16, _: PortWidth) -> u32 {
        x86::bits::low32(self.next())
    }
    fn port_write(&self, _: VcpuId, _: u16, _: PortWidth, _: u32) {}
    fn mmio_read(&self, _: VcpuId, gpa: Gpa, data: &mut [u8]) {
        assert!((1..=8).contains(&data.len()) && gpa.0.checked_add(8).is_some(), "{gpa:?}");
        data.copy_from_slice(&self.next().to_le_bytes()[..data.len()]);
    }
    fn mmio_write(&self, _: VcpuId, gpa: Gpa, data: &[u8]) {
        assert!((1..=8).contains(&data.len()) && gpa.0.checked_add(8).is_some(), "{gpa:?}");
    }
    fn pending(&self, _: VcpuId) -> Option<Event> {
        let noise = self.next();
        match noise % 64 {
            0 => Some(Event::Init),
            1 => Some(Event::Startup(noise.to_le_bytes()[1])),
            2 | 3 => Some(Event::Nmi),
            4..8 => Some(Event::Interrupt),
            _ => None,
        }
    }
    fn take(&self, _: VcpuId, _: Event) {}
    fn acknowledge(&self, _: VcpuId) -> Option<u8> {
        let noise = self.next();
        (!noise.is_multiple_of(4)).then_some(noise.to_le_bytes()[1])
    }
    fn cr8(&self, _: VcpuId) -> u8 {
        self.next().to_le_bytes()[0] & 15
    }
    fn set_cr8(&self, _: VcpuId, value: u8) {
        assert!(value < 16);
    }
    fn read_msr(&self, _: VcpuId, _: u32) -> MsrAccess<u64> {
        self.access(self.next())
    }
    fn write_msr(&self, _: VcpuId, _: u32, _: u64) -> MsrAccess<()> {
        self.access(())
    }
    fn tsc_offset(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What CPUID says: one of a few models that this host can carry.
pub(super) fn cpuid(choice: u8) -> Arc<CpuidTable> {
    static TABLES: OnceLock<Vec<Arc<CpuidTable>>> = OnceLock::new();
    let tables = TABLES.get_or_init(|| {
        let host = HostCpuid::new(&host::cpu::cpuid, host::cpu::xgetbv0());
        let requests = ["host", "v2", "v3", "host,vendor=amd", "v2,-sse3", "host,-pcid,-nx"];
        let model = |text: &str| CpuModel::resolve(&text.parse::<CpuRequest>().ok()?, &host).ok();
        let table = |model| Arc::new(CpuidTable::new(model, 2_000_000, 1));
        requests.iter().filter_map(|text| model(text)).map(table).collect()
    });
    tables[usize::from(choice) % tables.len()].clone()
}

impl Guest {
    /// A guest with this processor and devices that answer with noise of this seed.
    pub(super) fn new(cpu: u8, seed: u64) -> Self {
        Self::on(cpu, seed, interpreted)
    }

    /// The same with other memory, all of it zeros.
    pub(super) fn with_memory(ranges: &[RamRange], cpu: u8, seed: u64) -> Self {
        Self::with(ranges, cpu, seed, interpreted)
    }
}

fn interpreted(setup: VcpuSetup) -> InterpVcpu {
    Interp.vcpu(setup).expect("a vCPU")
}

impl<V> Guest<V> {
    /// A guest with this processor, noise of this seed, and a vCPU made by `make`.
    pub(super) fn on(cpu: u8, seed: u64, make: impl FnOnce(VcpuSetup) -> V) -> Self {
        let ranges = [
            RamRange { base: Gfn(0), frames: LOW_FRAMES },
            RamRange { base: HIGH_BASE, frames: HIGH_FRAMES },
        ];
        Self::with(&ranges, cpu, seed, make)
    }

    fn with(ranges: &[RamRange], cpu: u8, seed: u64, make: impl FnOnce(VcpuSetup) -> V) -> Self {
        let memory = Arc::new(GuestMemory::new(ranges).expect("a little memory"));
        // Guests cannot tell one from the other.
        let mmu = Mmu::new(memory.clone(), techniques::chosen(seed));
        let setup = VcpuSetup {
            id: VcpuId((seed >> 63) as u32),
            mmu: mmu.clone(),
            platform: Arc::new(Noise(AtomicU64::new(seed))),
            cpuid: cpuid(cpu),
        };
        Self { memory, mmu, vcpu: make(setup) }
    }

    /// Writes bytes; what does not fit is left out.
    pub(super) fn put(&self, gpa: u64, bytes: &[u8]) {
        let _ = self.memory.write(Gpa(gpa), bytes);
    }

    /// Fills memory with tables, handlers and a little data. Code that runs off its end halts.
    pub(super) fn lay_out(&self, random: &mut Random) {
        static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
        self.put(0, IMAGE.get_or_init(image));
        self.put(CODE, &[HLT; CODE_BYTES as usize]);
        let mut data = [0; 2 * PAGE_SIZE as usize];
        for lane in data.chunks_exact_mut(8) {
            lane.copy_from_slice(&random.lane().to_le_bytes());
        }
        self.put(DATA, &data);
    }
}

/// Tables and handlers.
fn image() -> Vec<u8> {
    let mut image = Image(vec![0; STACK0 as usize]);
    image.paging();
    image.descriptors();
    image.tasks();
    for vector in 0..256 {
        image.word(IVT + vector * 4, HANDLER >> 4 << 16);
        let dpl3 = if vector % 4 == 3 { 0x60 } else { 0 };
        // Interrupt and trap gates, and for one exception a task gate.
        let kind = 0x8e | dpl3 | (vector >> 3 & 1);
        image.word(IDT64 + vector * 16, HANDLER | u64::from(CODE64) << 16 | kind << 40);
        let (target, kind) = if vector == 10 { (TASK, 0x85) } else { (CODE32, kind) };
        image.word(IDT32 + vector * 8, HANDLER | u64::from(target) << 16 | kind << 40);
    }
    image.word(HANDLER, u64::from_le_bytes([HLT; 8]));
    image.0
}

/// Guest memory from 0 on.
struct Image(Vec<u8>);

impl Image {
    fn word(&mut self, gpa: u64, value: u64) {
        self.0[gpa as usize..][..8].copy_from_slice(&value.to_le_bytes());
    }

    fn paging(&mut self) {
        self.word(PML4, PDPT | TABLE);
        self.word(PML4 + 8 * 511, PDPT | TABLE);
        self.word(PDPT, PD | TABLE);
        self.word(PDPT + 8 * 510, PD | TABLE);
        // A 1 GiB page, where there are some.
        self.word(PDPT + 8, TABLE | 0x80);
        self.word(PD, PT | TABLE);
        // A 2 MiB page of the same, supervisor only, global.
        self.word(PD + 8, 0x1e3);
        self.word(PAE_PDPT, PD | PRESENT);
        // The second is a 4 MiB page.
        self.word(LEGACY_PD, LEGACY_PT | TABLE | 0x1e7 << 32);
        for page in 0..512 {
            self.word(PT + 8 * page, page << 12 | TABLE);
            let pair = (2 * page) << 12 | TABLE | ((2 * page + 1) << 12 | TABLE) << 32;
            self.word(LEGACY_PT + 8 * page, pair);
        }
    }

    fn descriptors(&mut self) {
        let tss = |base: u64, kind: u64| 0x67 | base << 16 | kind << 40;
        let descriptors = [
            0,
            0x00cf_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x0000_9b00_0000_ffff,
            0x0000_9300_0000_ffff,
            0x00af_9b00_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            // Conforming code.
            0x00cf_9f00_0000_ffff,
            tss(TSS, 0x8b),
            0,
            tss(LDT, 0x82),
            0,
            tss(TSS_OTHER, 0xe9),
            0,
            tss(TSS16, 0xe1),
            // Call gates: 32-bit with parameters, 64-bit with its upper half, 16-bit; a task gate.
            HANDLER | u64::from(CODE32) << 16 | 0xec03 << 32,
            HANDLER | u64::from(CODE64) << 16 | 0xec00 << 32,
            0,
            HANDLER | u64::from(CODE16) << 16 | 0xe402 << 32,
            u64::from(TASK) << 16 | 0xe500 << 32,
            // Expand-down data, execute-only code, read-only data, not present.
            0x0040_9700_0000_1000,
            0x00cf_9900_0000_ffff,
            0x00cf_9100_0000_ffff,
            0x00cf_1300_0000_ffff,
        ];
        for (at, descriptor) in (GDT..).step_by(8).zip(descriptors) {
            self.word(at, descriptor);
            self.word(at - GDT + LDT, descriptor);
        }
    }

    fn tasks(&mut self) {
        for tss in [TSS, TSS_OTHER] {
            self.word(tss + 4, STACK0 | u64::from(DATA32) << 32);
            self.word(tss + 0x1c, PAE_PDPT | HANDLER << 32);
            self.word(tss + 0x24, 2);
            for at in (0x48..0x60).step_by(4) {
                self.word(tss + at, u64::from(DATA32));
            }
            self.word(tss + 0x4c, u64::from(CODE32));
            self.word(tss + 0x60, 0x68 << 48);
        }
        for at in (TSS64 + 4..TSS64 + 0x5c).step_by(8) {
            self.word(at, STACK0);
        }
        self.word(TSS64 + 0x60, 0x68 << 48);
        self.word(TSS16 + 2, STACK0 | u64::from(DATA16) << 16);
        self.word(TSS16 + 0x0e, HANDLER | 2 << 16);
        self.word(TSS16 + 0x22, u64::from(DATA16) | u64::from(CODE16) << 16 | u64::from(DATA16) << 32);
    }
}

/// A segment as the GDT has it.
pub(super) fn segment(selector: u16, kind: u16, limit: u32) -> Segment {
    let dpl = u16::from(Selector(selector).rpl()) << attr::DPL_SHIFT;
    Segment { selector: Selector(selector), base: 0, limit, attr: attr::P | dpl | kind }
}

/// A consistent state in `mode`, with `rip` an address in the first 2 MiB and data registers pointing to data.
pub(super) fn state(mode: StartMode, user: bool, random: &mut Random) -> CpuState {
    let mut state = CpuState::reset();
    let rpl = if user { 3 } else { 0 };
    const CODE_KIND: u16 = attr::S | attr::CODE | attr::READABLE | attr::ACCESSED;
    const DATA_KIND: u16 = attr::S | attr::WRITABLE | attr::ACCESSED;
    let wide = attr::DB | attr::G;
    let (code, kind, limit) = match (mode, user) {
        (StartMode::Protected16 | StartMode::Compatibility16, false) => (CODE16, 0, 0xffff),
        (StartMode::Protected16 | StartMode::Compatibility16, true) => (USER_CODE32, 0, 0xf_ffff),
        (StartMode::Long, false) => (CODE64, attr::L | attr::G, u32::MAX),
        (StartMode::Long, true) => (USER_CODE64, attr::L | attr::G, u32::MAX),
        (_, false) => (CODE32, wide, u32::MAX),
        (_, true) => (USER_CODE32, wide, u32::MAX),
    };
    let data = if user { USER_DATA } else { DATA32 };
    state.seg = [segment(data | rpl, DATA_KIND | wide, u32::MAX); 6];
    state.seg[1] = segment(code | rpl, CODE_KIND | kind, limit);
    state.gdtr = DescriptorTable { base: GDT, limit: (GDT_ENTRIES * 8 - 1) as u16 };
    state.tr = Segment { selector: Selector(TSS_SELECTOR), base: TSS, limit: 0x7ff, attr: attr::P | 0xb };
    state.ldtr = Segment { selector: Selector(LDT_SELECTOR), base: LDT, limit: 0x67, attr: attr::P | 2 };
    state.idtr = DescriptorTable { base: IDT32, limit: 0x7ff };
    state.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::MP | cr0::PG;
    state.cr3 = LEGACY_PD;
    state.cr4 = cr4::PSE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::DE;
    state.xcr0 = 7;
    state.pdpte = [PD | PRESENT, 0, 0, 0];
    match mode {
        StartMode::Real => {
            state.seg = CpuState::reset().seg;
            state.seg[1].base = 0;
            state.seg[1].selector = Selector(0);
            state.idtr = DescriptorTable { base: IVT, limit: 0x3ff };
            state.cr0 &= !(cr0::PE | cr0::PG);
        }
        StartMode::V86 => {
            state.rflags |= x86::rflags::VM;
            state.seg = [Segment::real(0); 6];
            for segment in &mut state.seg {
                segment.attr |= 3 << attr::DPL_SHIFT;
            }
        }
        StartMode::Protected16 => state.cr0 &= !cr0::PG,
        StartMode::Protected32 => {}
        StartMode::Pae => (state.cr3, state.cr4) = (PAE_PDPT, state.cr4 | cr4::PAE),
        StartMode::Compatibility16 | StartMode::Compatibility32 | StartMode::Long => {
            state.cr3 = PML4;
            state.tr.base = TSS64;
            state.cr4 |= cr4::PAE | cr4::PGE | cr4::FSGSBASE;
            state.msrs.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
            state.idtr = DescriptorTable { base: IDT64, limit: 0xfff };
        }
    }
    state.msrs.star = u64::from(CODE64) << 32 | u64::from(USER_CODE32) << 48;
    state.msrs.lstar = HANDLER;
    state.msrs.sysenter_cs = u64::from(CODE32);
    (state.msrs.sysenter_eip, state.msrs.sysenter_esp) = (HANDLER, STACK0);
    fill_registers(&mut state, user, random);
    state
}

fn fill_registers(state: &mut CpuState, user: bool, random: &mut Random) {
    for register in &mut state.gpr {
        *register = match random.below(4) {
            0 => random.integer(),
            1 => random.below(64),
            _ => DATA + random.below(0x1100),
        };
    }
    state.gpr[4] = if user { STACK3 } else { STACK0 };
    state.vector.ymm.iter_mut().for_each(|ymm| *ymm = random.vector());
    state.fpu.st.iter_mut().for_each(|st| *st = random.extended());
    state.fpu.ftw = random.below(256) as u8;
    state.fpu.fcw = random.bits() as u16 & 0x1f3f | 0x40;
    state.vector.mxcsr = random.mxcsr();
    let flags = random.flags();
    state.rflags = state.rflags & x86::rflags::VM | flags;
}

/// An address that is interesting to this guest, or any number.
pub(super) fn address(u: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    const EDGES: [u64; 12] = [
        0,
        u64::MAX,
        0x7fff_ffff_fff8,
        0xffff_8000_0000_0000,
        0xffff_fff8,
        0xffff_ffff,
        0x1_0000_0000,
        0xffff,
        0x10_0000,
        0x10_fff8,
        0xfee0_0000,
        1 << 52,
    ];
    Ok(match u.int_in_range(0..=4u8)? {
        0 => u.arbitrary()?,
        1 => {
            EDGES[u.choose_index(EDGES.len())?].wrapping_add(u64::from(u.arbitrary::<u8>()?)).wrapping_sub(8)
        }
        2 => u64::from(u.arbitrary::<u16>()?) << 12,
        3 => u64::from(u.arbitrary::<u32>()?) & 0x3_ffff,
        _ => u64::from(u.arbitrary::<u16>()?) << 8 | 0xffff_ff80_0000_0000,
    })
}
