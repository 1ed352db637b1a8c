//! The processor: registers in the form that executes fast, and what is derived from them.
//!
//! [`Cpu`] is the runtime form of [`x86::CpuState`]; the two convert into each other at every exit. Derived fields
//! ([`Cpu::refresh`]) are recomputed whenever a register they depend on changes; nothing else writes them.

use std::sync::Arc;

use engine::{Kick, Platform, VcpuId, VcpuSetup, VcpuStats};
use memory::{GuestMemory, Seat};
use mmu::{PagingContext, PagingFeatures, Privilege, Tlb};
use native::{NativeError, Processor};
use x86::control::{cr0, cr4, dr7};
use x86::cpuid::{CpuidTable, Feature};
use x86::fpu::MXCSR_MASK;
use x86::rflags;
use x86::state::{Activity, Msrs, Pending};
use x86::{CpuState, DescriptorTable, Exception, FpuState, Mfn, Mode, Segment, SegmentIndex, VectorState};

use crate::block::FetchPage;
use crate::op::{Break, RIP};

/// The register file has room for the zero slot and RIP, and a power of two so that an index needs no check.
const FILE: usize = 32;

/// One virtual processor.
pub(crate) struct Cpu {
    pub(crate) regs: [u64; FILE],
    pub(crate) flags: u64,

    // Derived: see `refresh`.
    pub(crate) mode: Mode,
    pub(crate) cpl: u8,
    /// Whether data accesses skip segmentation: 64-bit mode.
    pub(crate) flat: bool,
    /// Whether every data access must be looked at (alignment checks, data breakpoints).
    pub(crate) careful: bool,
    /// Privilege of explicit data accesses.
    pub(crate) privilege: Privilege,
    /// Segment bases as 64-bit mode sees them: only FS and GS count there.
    pub(crate) bases: [u64; 8],
    pub(crate) paging: PagingContext,
    pub(crate) paging_features: PagingFeatures,

    /// The page that code was last fetched from.
    pub(crate) fetch: FetchPage,
    /// Whether instructions are executed one at a time; recomputed whenever events are looked at.
    pub(crate) slow: bool,
    /// Operations of the current block that may still run; a write into decoded code cuts it to zero.
    pub(crate) budget: usize,
    /// Whether pending events must be looked at before the next block.
    pub(crate) look: bool,
    /// The instruction was one after which single step does not trap (INT n, SYSCALL).
    pub(crate) step_suppressed: bool,
    /// RIP of the vector or x87 instruction being executed.
    pub(crate) vector_rip: u64,
    /// The exception of [`Break::Fault`] or [`Break::Trap`].
    pub(crate) fault: Option<Exception>,
    /// DR6 bits of data breakpoints met by the current instruction.
    pub(crate) watch_hits: u64,
    /// The frames written so far, while somebody watches ([`crate::Watch`]); only careful accesses are noted.
    pub(crate) written: Option<Vec<Mfn>>,

    /// The processor as an arithmetic unit.
    pub(crate) native: Processor,
    pub(crate) tlb: Tlb,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) seat: Arc<Seat>,
    /// Another engine says when this vCPU runs and what it has heard.
    pub(crate) guided: bool,
    /// The epoch of memory that was acted on at a block boundary.
    pub(crate) heard: u64,
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) id: VcpuId,
    pub(crate) cpuid: Arc<CpuidTable>,
    pub(crate) kick: Kick,
    /// All but the instructions.
    pub(crate) stats: VcpuStats,
    /// Instructions executed.
    pub(crate) instructions: u64,

    // The rest of the architectural state.
    pub(crate) seg: [Segment; 6],
    pub(crate) ldtr: Segment,
    pub(crate) tr: Segment,
    pub(crate) gdtr: DescriptorTable,
    pub(crate) idtr: DescriptorTable,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) xcr0: u64,
    pub(crate) pdpte: [u64; 4],
    pub(crate) dr: [u64; 4],
    pub(crate) dr6: u64,
    pub(crate) dr7: u64,
    pub(crate) msrs: Msrs,
    pub(crate) fpu: FpuState,
    pub(crate) vector: VectorState,
    pub(crate) activity: Activity,
    pub(crate) pending: Pending,
}

impl Cpu {
    /// A processor in the reset state.
    ///
    /// # Errors
    /// If the host refuses memory for the arithmetic unit's code.
    pub(crate) fn new(setup: VcpuSetup) -> Result<Self, NativeError> {
        let s = CpuState::reset();
        let paging_features = PagingFeatures::from(&*setup.cpuid);
        let kick = Kick::polled();
        let caller = kick.clone();
        let memory = setup.mmu.memory().clone();
        let mut cpu = Self {
            regs: [0; FILE],
            flags: s.rflags,
            mode: Mode::Real,
            cpl: 0,
            flat: false,
            careful: false,
            privilege: Privilege::Supervisor,
            bases: [0; 8],
            paging: PagingContext::new(s.cr0, s.cr3, s.cr4, 0, s.pdpte, &paging_features),
            paging_features,
            fetch: FetchPage::NONE,
            slow: false,
            budget: 0,
            look: true,
            step_suppressed: false,
            vector_rip: 0,
            fault: None,
            watch_hits: 0,
            written: None,
            native: Processor::new()?,
            tlb: setup.mmu.tlb(),
            heard: memory.epoch(),
            seat: Arc::new(memory.seat(move || caller.kick())),
            guided: false,
            memory,
            platform: setup.platform,
            id: setup.id,
            cpuid: setup.cpuid,
            kick,
            stats: VcpuStats::default(),
            instructions: 0,
            seg: s.seg,
            ldtr: s.ldtr,
            tr: s.tr,
            gdtr: s.gdtr,
            idtr: s.idtr,
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            xcr0: s.xcr0,
            pdpte: s.pdpte,
            dr: s.dr,
            dr6: s.dr6,
            dr7: s.dr7,
            msrs: s.msrs.clone(),
            fpu: s.fpu.clone(),
            vector: s.vector.clone(),
            activity: s.activity,
            pending: s.pending.clone(),
        };
        cpu.set_state(&s);
        Ok(cpu)
    }

    /// The architectural state.
    pub(crate) fn state(&self) -> CpuState {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.regs[..16]);
        CpuState {
            gpr,
            rip: self.rip(),
            rflags: self.flags,
            seg: self.seg,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            xcr0: self.xcr0,
            pdpte: self.pdpte,
            dr: self.dr,
            dr6: self.dr6,
            dr7: self.dr7,
            msrs: self.msrs.clone(),
            fpu: self.fpu.clone(),
            vector: self.vector.clone(),
            activity: self.activity,
            pending: self.pending.clone(),
        }
    }

    /// Takes over an architectural state; translations of the old one are dropped.
    pub(crate) fn set_state(&mut self, s: &CpuState) {
        self.regs[..16].copy_from_slice(&s.gpr);
        self.set_rip(s.rip);
        self.flags = s.rflags & rflags::ALL | rflags::FIXED;
        self.seg = s.seg;
        self.ldtr = s.ldtr;
        self.tr = s.tr;
        self.gdtr = s.gdtr;
        self.idtr = s.idtr;
        self.cr0 = s.cr0;
        self.cr2 = s.cr2;
        self.cr3 = s.cr3;
        self.cr4 = s.cr4;
        self.xcr0 = s.xcr0;
        self.pdpte = s.pdpte;
        self.dr = s.dr;
        self.dr6 = s.dr6;
        self.dr7 = s.dr7;
        self.msrs = s.msrs.clone();
        self.fpu = s.fpu.clone();
        self.vector = s.vector.clone();
        // No instruction can set the others, and none can load them.
        self.vector.mxcsr &= MXCSR_MASK;
        self.activity = s.activity;
        self.pending = s.pending.clone();
        self.refresh_paging();
        self.tlb.flush_all();
        self.look = true;
        self.refresh();
    }

    /// Recomputes everything derived, after a change of control registers, segments, CPL or RFLAGS.VM/AC.
    pub(crate) fn refresh(&mut self) {
        self.forget_fetch();
        self.mode = self.current_mode();
        self.cpl = self.current_cpl();
        self.flat = self.mode == Mode::Long;
        for (i, segment) in self.seg.iter().enumerate() {
            let counts = !self.flat || i >= SegmentIndex::Fs as usize;
            self.bases[i] = if counts { segment.base } else { 0 };
        }
        self.refresh_access();
    }

    /// Recomputes the paging context after a change of CR0, CR3, CR4, EFER or the PDPTEs. The TLB empties itself if
    /// anything changed that its entries depend on, other than the root.
    pub(crate) fn refresh_paging(&mut self) {
        let (cr0, cr3, cr4, efer) = (self.cr0, self.cr3, self.cr4, self.msrs.efer);
        self.paging = PagingContext::new(cr0, cr3, cr4, efer, self.pdpte, &self.paging_features);
        self.tlb.set_regime(&self.paging);
        self.forget_fetch();
    }

    /// The part of [`Cpu::refresh`] that depends on RFLAGS.AC and the debug registers only.
    pub(crate) fn refresh_access(&mut self) {
        let ac = self.flags & rflags::AC != 0;
        self.privilege = match (self.cpl, ac) {
            (3, _) => Privilege::User,
            (_, true) => Privilege::SupervisorAc,
            (_, false) => Privilege::Supervisor,
        };
        let aligned = self.cpl == 3 && ac && self.cr0 & cr0::AM != 0;
        self.careful = aligned || self.dr7 & dr7::ENABLES != 0;
    }

    fn current_mode(&self) -> Mode {
        let cs = &self.seg[SegmentIndex::Cs as usize];
        if self.cr0 & cr0::PE == 0 {
            Mode::Real
        } else if self.long_active() && cs.long() {
            Mode::Long
        } else if self.flags & rflags::VM != 0 {
            Mode::V86
        } else if cs.big() {
            Mode::Protected32
        } else {
            Mode::Protected16
        }
    }

    fn current_cpl(&self) -> u8 {
        if self.cr0 & cr0::PE == 0 {
            0
        } else if self.flags & rflags::VM != 0 {
            3
        } else {
            self.seg[SegmentIndex::Ss as usize].dpl()
        }
    }

    /// The address of the next instruction, as an offset into CS.
    #[inline(always)]
    pub(crate) const fn rip(&self) -> u64 {
        self.regs[RIP]
    }

    /// Continues elsewhere.
    #[inline(always)]
    pub(crate) const fn set_rip(&mut self, rip: u64) {
        self.regs[RIP] = rip;
    }

    /// A register by its slot.
    #[inline(always)]
    pub(crate) const fn reg(&self, slot: u8) -> u64 {
        self.regs[slot as usize % FILE]
    }

    /// A register by its slot, to write.
    #[inline(always)]
    pub(crate) const fn reg_mut(&mut self, slot: u8) -> &mut u64 {
        &mut self.regs[slot as usize % FILE]
    }

    /// A segment register.
    #[inline]
    pub(crate) const fn segment(&self, index: SegmentIndex) -> &Segment {
        &self.seg[index as usize]
    }

    /// Whether IA-32e mode is active, compatibility mode included.
    #[inline]
    pub(crate) const fn long_active(&self) -> bool {
        self.msrs.efer & x86::control::efer::LMA != 0
    }

    /// Whether this is protected mode proper: neither real nor virtual-8086.
    #[inline]
    pub(crate) fn protected(&self) -> bool {
        !matches!(self.mode, Mode::Real | Mode::V86)
    }

    /// The I/O privilege level.
    #[inline]
    pub(crate) fn iopl(&self) -> u8 {
        x86::bits::low8(self.flags >> rflags::IOPL_SHIFT & 3)
    }

    /// Whether the CPU model has a feature.
    #[inline]
    pub(crate) fn has(&self, feature: Feature) -> bool {
        self.cpuid.features().has(feature)
    }

    /// Bits of CR4 that this CPU model lets be set.
    pub(crate) fn cr4_mask(&self) -> u64 {
        let pairs = [
            (Feature::Vme, cr4::VME | cr4::PVI),
            (Feature::Tsc, cr4::TSD),
            (Feature::De, cr4::DE),
            (Feature::Pse, cr4::PSE),
            (Feature::Pae, cr4::PAE),
            (Feature::Mce, cr4::MCE),
            (Feature::Pge, cr4::PGE),
            (Feature::Fxsr, cr4::OSFXSR),
            (Feature::Sse, cr4::OSXMMEXCPT),
            (Feature::Umip, cr4::UMIP),
            (Feature::Fsgsbase, cr4::FSGSBASE),
            (Feature::Pcid, cr4::PCIDE),
            (Feature::Xsave, cr4::OSXSAVE),
            (Feature::Smep, cr4::SMEP),
            (Feature::Smap, cr4::SMAP),
        ];
        pairs.iter().filter(|(f, _)| self.has(*f)).fold(cr4::PCE, |mask, (_, bit)| mask | bit)
    }

    /// Sets the exception and says that the instruction did not happen.
    #[cold]
    pub(crate) fn raise(&mut self, exception: Exception) -> Break {
        self.fault = Some(exception);
        Break::Fault
    }

    /// #GP(0).
    #[cold]
    pub(crate) fn gp0(&mut self) -> Break {
        self.raise(Exception::gp(0))
    }

    /// #UD.
    #[cold]
    pub(crate) fn ud(&mut self) -> Break {
        self.raise(Exception::ud())
    }

    /// #GP(0) unless the processor runs at CPL 0.
    #[inline]
    pub(crate) fn require_cpl0(&mut self) -> Result<(), Break> {
        if self.cpl == 0 { Ok(()) } else { Err(self.gp0()) }
    }

    /// Replaces the six status flags.
    #[inline(always)]
    pub(crate) const fn set_status(&mut self, flags: u64) {
        self.flags = self.flags & !rflags::STATUS | flags;
    }

    /// Replaces the flags in `written`.
    #[inline(always)]
    pub(crate) const fn set_flags(&mut self, written: u64, flags: u64) {
        self.flags = self.flags & !written | flags & written;
    }

    /// Sets or clears one flag.
    #[inline(always)]
    pub(crate) const fn put_flag(&mut self, flag: u64, on: bool) {
        self.flags = if on { self.flags | flag } else { self.flags & !flag };
    }

    /// Whether a flag is set.
    #[inline(always)]
    pub(crate) const fn flag(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// The guest's time stamp counter.
    pub(crate) fn tsc(&self) -> u64 {
        host::time::rdtsc().wrapping_add(self.platform.tsc_offset()).wrapping_add(self.msrs.tsc_adjust)
    }
}
