//! Where everything is before a case begins: the guest's memory and the presets of its registers.
//!
//! All presets share one memory image; it holds the tables of every mode. Low memory is mapped one to one, so that up
//! to 4 MiB a place has one address, linear and physical, with paging or without.
//!
//! | address | what |
//! |---|---|
//! | 0 | `IVT`: real-mode vectors, to the handlers |
//! | 0x1000, 0x1800 | `GDT`, `LDT_TABLE` (all zero) |
//! | 0x2000, 0x3000 | `IDT64`, `IDT32`: interrupt gates to the handlers, DPL 3 for 3, 4 and from 32 on |
//! | 0x4000 … | `TSS64_AT`, 0x4400 `TSS32_AT`, 0x4800 `TASK32_AT`, 0x4c00 `TASK16_AT`: a task each to switch to |
//! | 0x5000 | the stack of ring-0 presets, from `STACK` down |
//! | 0x6000 | the stack that the TSS has for ring 0, from `STACK0` down |
//! | 0x7000 | `IST1`, `IST2`, `STACK1` (ring 1's), `TASK_STACK`: a KiB each, downward |
//! | 0x8000 | `HANDLERS`: vector n's is a HLT at 16 n |
//! | 0x9000 | the stack of ring-3 presets, from `USTACK` down (user) |
//! | 0xa000 | `UCODE` (user) |
//! | 0xb000 | `TASK_CODE`, 0xb400 `SYSCALL_ENTRY`, 0xb800 `SYSENTER_ENTRY` |
//! | 0xc000 | `CODE`: four pages (user in ring-3 presets) |
//! | 0x20000 | `DATA`: 16 pages (user in ring-3 presets) |
//! | 0x30000 | `UDATA`: 16 pages (user) |
//! | 0x40000 | `TABLES`: of all paging modes |
//! | 0x400000 | `LARGE`: a 2 MiB page (4 MiB in 32-bit paging), one to one |
//! | 0x800000 | `ALIAS`: low memory once more |
//! | 0x40000000 | `GIB`: low memory once more, in a 1 GiB page (4-level paging, supervisor) |
//! | -0x800000000000 | `HIGH`: all that once more (4-level paging) |
//!
//! Pages of code hold HLT wherever nothing else is, so that whoever strays stops.

use memory::{GuestMemory, RamRange};
use x86::control::{cr0, cr4, efer};
use x86::cpuid::{CpuidTable, Feature};
use x86::descriptor::{attr, system};
use x86::paging::pte;
use x86::rflags;
use x86::state::gpr;
use x86::{CpuState, DescriptorTable, Gfn, Gpa, Segment, SegmentIndex, Selector};

use super::descriptor;
use super::expr::Labels;

pub(super) const GDT: u64 = 0x1000;
pub(super) const GDT_LIMIT: u64 = 0x1ff;
pub(super) const LDT: u64 = 0x1800;
pub(super) const IDT64: u64 = 0x2000;
pub(super) const IDT32: u64 = 0x3000;
pub(super) const TSS64: u64 = 0x4000;
pub(super) const TSS32: u64 = 0x4400;
pub(super) const TASK32: u64 = 0x4800;
pub(super) const TASK16: u64 = 0x4c00;
pub(super) const STACK: u64 = 0x5f00;
pub(super) const STACK0: u64 = 0x6f00;
pub(super) const IST1: u64 = 0x7400;
pub(super) const IST2: u64 = 0x7800;
pub(super) const STACK1: u64 = 0x7c00;
pub(super) const TASK_STACK: u64 = 0x7ff0;
pub(super) const HANDLERS: u64 = 0x8000;
pub(super) const HANDLER_BYTES: u64 = 16;
pub(super) const USTACK: u64 = 0x9f00;
pub(super) const UCODE: u64 = 0xa000;
pub(super) const TASK_CODE: u64 = 0xb000;
pub(super) const SYSCALL_ENTRY: u64 = 0xb400;
pub(super) const SYSENTER_ENTRY: u64 = 0xb800;
pub(super) const CODE: u64 = 0xc000;
const CODE_END: u64 = 0x1_0000;
pub(super) const DATA: u64 = 0x2_0000;
pub(super) const UDATA: u64 = 0x3_0000;
pub(super) const TABLES: u64 = 0x4_0000;
pub(super) const LARGE: u64 = 0x40_0000;
pub(super) const ALIAS: u64 = 0x80_0000;
pub(super) const GIB: u64 = 0x4000_0000;
pub(super) const HIGH: u64 = 0xffff_8000_0000_0000;
const RAM: u64 = 0x80_0000;

const PML4: u64 = TABLES;
const PDPT: u64 = TABLES + 0x1000;
/// Shared by 4-level and PAE paging, as are the tables below it.
const PD: u64 = TABLES + 0x2000;
const PT: u64 = TABLES + 0x3000;
const PDPT_PAE: u64 = TABLES + 0x5000;
const PD32: u64 = TABLES + 0x6000;
const PT32: u64 = TABLES + 0x7000;

/// Where the I/O permission bitmap of the 32-bit TSS begins, behind 32 bytes of interrupt redirection bitmap.
const IO_BITMAP: u64 = 0x88;
/// It covers 256 ports and denies them all; a byte of ones ends it.
const IO_BITMAP_BYTES: u64 = 33;

/// The selectors of the GDT. `SYSCALL`, `SYSRET`, `SYSENTER` and `SYSEXIT` compute theirs from 0x10 and 0x20.
pub(super) mod sel {
    pub(in super::super) const KCODE32: u64 = 0x08;
    pub(in super::super) const KCODE64: u64 = 0x10;
    pub(in super::super) const KDATA: u64 = 0x18;
    pub(in super::super) const UCODE32: u64 = 0x20;
    pub(in super::super) const UDATA32: u64 = 0x28;
    pub(in super::super) const UCODE64: u64 = 0x30;
    /// What SYSEXIT to 64-bit code takes for SS.
    pub(in super::super) const UDATA_AGAIN: u64 = 0x38;
    pub(in super::super) const TSS: u64 = 0x40;
    pub(in super::super) const TASK32: u64 = 0x50;
    pub(in super::super) const TASK16: u64 = 0x58;
    pub(in super::super) const LDT: u64 = 0x60;
    pub(in super::super) const KCODE16: u64 = 0x70;
    pub(in super::super) const KDATA16: u64 = 0x78;
    pub(in super::super) const CONFORM32: u64 = 0x80;
    pub(in super::super) const CONFORM64: u64 = 0x88;
    pub(in super::super) const CODE1: u64 = 0x90;
    pub(in super::super) const DATA1: u64 = 0x98;
    /// From here to the end, the GDT is free for cases.
    pub(in super::super) const FREE: u64 = 0xa0;
}

/// The state that a case starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preset {
    /// Real-address mode: CS, DS and SS at the code, the data and the ring-0 stack.
    Real,
    /// Virtual-8086 mode in 32-bit paging, IOPL 0, segments as in real mode.
    V86,
    /// 32-bit code at this privilege level.
    Protected(Paging32, u8),
    /// 64-bit code.
    Long(u8),
    /// 32-bit code in long mode.
    Compatibility(u8),
}

/// How addresses translate outside long mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paging32 {
    Off,
    TwoLevel,
    Pae,
}

impl Preset {
    /// The preset of a name.
    pub(super) fn by_name(name: &str) -> Option<Self> {
        use Paging32::{Off, Pae, TwoLevel};
        Some(match name {
            "real" => Self::Real,
            "v86" => Self::V86,
            "flat0" => Self::Protected(Off, 0),
            "flat3" => Self::Protected(Off, 3),
            "paged0" => Self::Protected(TwoLevel, 0),
            "paged3" => Self::Protected(TwoLevel, 3),
            "pae0" => Self::Protected(Pae, 0),
            "pae3" => Self::Protected(Pae, 3),
            "long0" => Self::Long(0),
            "long3" => Self::Long(3),
            "compat0" => Self::Compatibility(0),
            "compat3" => Self::Compatibility(3),
            _ => return None,
        })
    }

    fn is_long(self) -> bool {
        matches!(self, Self::Long(_) | Self::Compatibility(_))
    }

    fn is_real_like(self) -> bool {
        matches!(self, Self::Real | Self::V86)
    }

    fn cpl(self) -> u8 {
        match self {
            Self::Real => 0,
            Self::V86 => 3,
            Self::Protected(_, cpl) | Self::Long(cpl) | Self::Compatibility(cpl) => cpl,
        }
    }

    /// The physical address of the top paging structure.
    fn root(self) -> u64 {
        match self {
            Self::Real | Self::Protected(Paging32::Off, _) => 0,
            Self::V86 | Self::Protected(Paging32::TwoLevel, _) => PD32,
            Self::Protected(Paging32::Pae, _) => PDPT_PAE,
            Self::Long(_) | Self::Compatibility(_) => PML4,
        }
    }
}

/// The guest's memory, laid out.
///
/// # Panics
/// If the host refuses 8 MiB.
pub(super) fn memory(preset: Preset) -> GuestMemory {
    let ram = RamRange { base: Gfn(0), frames: RAM / x86::PAGE_SIZE };
    let memory = GuestMemory::new(&[ram]).expect("8 MiB");
    let image = Image { memory: &memory };
    image.descriptors(preset);
    image.interrupts();
    image.tasks(preset);
    image.paging(preset);
    image.fill(TASK_CODE, CODE_END, HLT);
    image.fill(UCODE, TASK_CODE, HLT);
    memory
}

const HLT: u8 = 0xf4;

struct Image<'a> {
    memory: &'a GuestMemory,
}

impl Image<'_> {
    fn fill(&self, from: u64, to: u64, byte: u8) {
        self.memory.fill(Gpa(from), to - from, byte).expect("within RAM");
    }

    fn word16(&self, at: u64, value: u64) {
        self.memory.write(Gpa(at), &value.to_le_bytes()[..2]).expect("within RAM");
    }

    fn word32(&self, at: u64, value: u64) {
        self.memory.write(Gpa(at), &value.to_le_bytes()[..4]).expect("within RAM");
    }

    fn word64(&self, at: u64, value: u64) {
        self.memory.write(Gpa(at), &value.to_le_bytes()).expect("within RAM");
    }

    fn descriptor(&self, at: u64, text: &str) {
        let parsed = descriptor::parse(text, &Labels::new()).and_then(Result::ok);
        let entry = parsed.expect("the layout's own descriptors are well-formed");
        self.word64(at, entry.low);
        if let Some(high) = entry.high {
            self.word64(at + 8, high);
        }
    }

    fn descriptors(&self, preset: Preset) {
        let (tss, ldt) = if preset.is_long() { (TSS_LONG, "ldt64") } else { (TSS_LEGACY, "ldt") };
        let entries = [
            (sel::KCODE32, "code32"),
            (sel::KCODE64, "code64"),
            (sel::KDATA, "data32"),
            (sel::UCODE32, "code32 dpl 3"),
            (sel::UDATA32, "data32 dpl 3"),
            (sel::UCODE64, "code64 dpl 3"),
            (sel::UDATA_AGAIN, "data32 dpl 3"),
            (sel::TSS, tss),
            (sel::TASK32, "tss32 base TASK32_AT limit 0x67"),
            (sel::TASK16, "tss16 base TASK16_AT limit 0x2b"),
            (sel::KCODE16, "code16 limit 0xffff"),
            (sel::KDATA16, "data16 limit 0xffff"),
            (sel::CONFORM32, "code32 conforming"),
            (sel::CONFORM64, "code64 conforming"),
            (sel::CODE1, "code32 dpl 1"),
            (sel::DATA1, "data32 dpl 1"),
        ];
        for (selector, text) in entries {
            self.descriptor(GDT + selector, text);
        }
        self.descriptor(GDT + sel::LDT, &format!("{ldt} base LDT_TABLE limit 0x7f"));
    }

    fn interrupts(&self) {
        for vector in 0..256 {
            let handler = HANDLERS + vector * HANDLER_BYTES;
            let dpl = if matches!(vector, 3 | 4 | 32..) { 3 } else { 0 };
            self.descriptor(IDT64 + 16 * vector, &format!("int64 to KCODE64:{handler} dpl {dpl}"));
            self.descriptor(IDT32 + 8 * vector, &format!("int32 to KCODE32:{handler} dpl {dpl}"));
            self.word16(4 * vector, handler - HANDLERS);
            self.word16(4 * vector + 2, HANDLERS >> 4);
            self.fill(handler, handler + 1, HLT);
        }
    }

    fn tasks(&self, preset: Preset) {
        self.word64(TSS64 + 4, STACK0);
        self.word64(TSS64 + 12, STACK1);
        self.word64(TSS64 + 0x24, IST1);
        self.word64(TSS64 + 0x2c, IST2);
        self.word16(TSS64 + 0x66, 0x68);
        self.word32(TSS32 + 4, STACK0);
        self.word32(TSS32 + 8, sel::KDATA);
        self.word32(TSS32 + 12, STACK1);
        self.word32(TSS32 + 16, sel::DATA1 | 1);
        self.word16(TSS32 + 0x66, IO_BITMAP);
        self.fill(TSS32 + IO_BITMAP, TSS32 + IO_BITMAP + IO_BITMAP_BYTES, 0xff);
        // A switch back loads CR3 too.
        self.word32(TSS32 + 0x1c, preset.root());
        self.word32(TASK32 + 0x1c, preset.root());
        self.word32(TASK32 + 0x20, TASK_CODE);
        self.word32(TASK32 + 0x24, rflags::FIXED);
        self.word32(TASK32 + 0x38, TASK_STACK);
        for (at, selector) in
            [(0x48, sel::KDATA), (0x4c, sel::KCODE32), (0x50, sel::KDATA), (0x54, sel::KDATA)]
        {
            self.word32(TASK32 + at, selector);
        }
        self.word16(TASK16 + 0x0e, TASK_CODE);
        self.word16(TASK16 + 0x10, rflags::FIXED);
        self.word16(TASK16 + 0x1a, TASK_STACK);
        for (at, selector) in
            [(0x22, sel::KDATA16), (0x24, sel::KCODE16), (0x26, sel::KDATA16), (0x28, sel::KDATA16)]
        {
            self.word16(TASK16 + at, selector);
        }
    }

    fn paging(&self, preset: Preset) {
        let table = pte::P | pte::RW | pte::US;
        for top in [0, 256] {
            self.word64(PML4 + 8 * top, PDPT | table);
        }
        self.word64(PDPT, PD | table);
        self.word64(PDPT + 8, pte::P | pte::RW | pte::PS);
        self.word64(PDPT_PAE, PD | pte::P);
        self.word64(PD, PT | table);
        self.word64(PD + 8, (PT + 0x1000) | table);
        self.word64(PD + 16, LARGE | table | pte::PS);
        self.word64(PD + 32, PT | table);
        self.word32(PD32, PT32 | table);
        self.word32(PD32 + 4, LARGE | table | pte::PS);
        self.word32(PD32 + 8, PT32 | table);
        for page in (0..0x40_0000).step_by(0x1000) {
            let user = match page {
                HANDLERS => preset == Preset::V86,
                0x9000..TASK_CODE | UDATA..TABLES => true,
                CODE..CODE_END | DATA..UDATA => preset.cpl() == 3,
                _ => false,
            };
            let entry = page | pte::P | pte::RW | if user { pte::US } else { 0 };
            self.word64(PT + (page >> 9), entry);
            self.word32(PT32 + (page >> 10), entry);
        }
    }
}

const TSS_LONG: &str = "tss64 busy base TSS64_AT limit 0x67";
const TSS_LEGACY: &str = "tss32 busy base TSS32_AT limit 0xa8";

/// The registers of a preset, on a processor with these features.
pub(super) fn state(preset: Preset, cpuid: &CpuidTable) -> CpuState {
    let mut s = CpuState::reset();
    s.fpu = x86::FpuState::default();
    s.cr0 = cr0::ET | cr0::NE | cr0::MP | cr0::AM;
    s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT;
    s.cr3 = preset.root();
    s.gdtr = DescriptorTable { base: GDT, limit: GDT_LIMIT as u16 };
    let (idt, limit) = match preset {
        Preset::Real => (0, 0x3ff),
        _ if preset.is_long() => (IDT64, 0xfff),
        _ => (IDT32, 0x7ff),
    };
    s.idtr = DescriptorTable { base: idt, limit };
    s.gpr[gpr::RSP] = if preset.cpl() == 3 { USTACK } else { STACK };
    let (star_user, star_kernel) = (sel::UCODE32, sel::KCODE64);
    s.msrs.star = star_user << 48 | star_kernel << 32;
    s.msrs.lstar = SYSCALL_ENTRY;
    s.msrs.sysenter_cs = sel::KCODE64;
    s.msrs.sysenter_esp = STACK0;
    s.msrs.sysenter_eip = SYSENTER_ENTRY;
    if cpuid.has(Feature::Avx) {
        s.xcr0 = 7;
    }
    mode(&mut s, preset);
    segments(&mut s, preset);
    s
}

fn mode(s: &mut CpuState, preset: Preset) {
    if preset != Preset::Real {
        s.cr0 |= cr0::PE;
    }
    if preset.root() != 0 {
        s.cr0 |= cr0::PG | cr0::WP;
        s.cr4 |= cr4::PGE;
    }
    match preset {
        Preset::Real | Preset::Protected(Paging32::Off, _) => {}
        Preset::V86 | Preset::Protected(Paging32::TwoLevel, _) => s.cr4 |= cr4::PSE,
        Preset::Protected(Paging32::Pae, _) => {
            s.cr4 |= cr4::PAE;
            s.msrs.efer = efer::NXE;
            s.pdpte = [PD | pte::P, 0, 0, 0];
        }
        Preset::Long(_) | Preset::Compatibility(_) => {
            s.cr4 |= cr4::PAE;
            s.msrs.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        }
    }
    if preset == Preset::V86 {
        s.rflags |= rflags::VM;
    }
}

fn segments(s: &mut CpuState, preset: Preset) {
    let (base, limit) = if preset.is_long() { (TSS64, 0x67) } else { (TSS32, 0xa8) };
    s.tr = Segment { selector: Selector(sel::TSS as u16), base, limit, attr: attr::P | system::TSS_BUSY };
    s.ldtr = Segment::null(Selector(0));
    if preset.is_real_like() {
        let dpl = u16::from(preset.cpl()) << attr::DPL_SHIFT;
        let at = |linear: u64| {
            let segment = Segment::real((linear >> 4) as u16);
            Segment { attr: segment.attr | dpl, ..segment }
        };
        s.seg = [at(DATA); 6];
        s.seg[SegmentIndex::Cs as usize] = at(CODE);
        // The stack's offset is its address.
        s.seg[SegmentIndex::Ss as usize] = at(0);
        return;
    }
    let cpl = preset.cpl();
    let long = matches!(preset, Preset::Long(_));
    let (code, data) = match (cpl, long) {
        (0, false) => (sel::KCODE32, sel::KDATA),
        (0, true) => (sel::KCODE64, sel::KDATA),
        (_, false) => (sel::UCODE32, sel::UDATA32),
        (_, true) => (sel::UCODE64, sel::UDATA32),
    };
    let bits = if long { attr::L } else { attr::DB };
    let flat = attr::P | attr::S | attr::ACCESSED | attr::G | u16::from(cpl) << attr::DPL_SHIFT;
    let segment = |selector: u64, extra| Segment {
        selector: Selector(selector as u16 | u16::from(cpl)),
        base: 0,
        limit: u32::MAX,
        attr: flat | extra,
    };
    s.seg = [segment(data, attr::WRITABLE | attr::DB); 6];
    s.seg[SegmentIndex::Cs as usize] = segment(code, attr::CODE | attr::READABLE | bits);
}
