//! The interpreter as another engine's slow path.
//!
//! An engine that executes most of the guest itself keeps an [`InterpVcpu`] for the rest: events, faults, whatever it does
//! not translate, and the state that goes with it. It moves the registers it holds in and out by [`InterpVcpu::registers`].

use std::sync::Arc;

use engine::{Exit, Kick, VcpuSetup};
use iced_x86::{Instruction, Mnemonic};
use memory::{GuestMemory, Seat};
use mmu::{Access, Privilege, Resolved, Tlb};
use native::Processor;
use x86::control::{cr0, cr4, efer};
use x86::cpuid::{Feature, FeatureSet};
use x86::descriptor::attr;
use x86::exception::Exception;
use x86::{FpuState, Gva, Mode, SegmentIndex, Selector, VectorState, rflags};

use crate::cpu::Cpu;
use crate::vcpu::InterpVcpu;

/// The registers that a translating engine holds while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// General-purpose registers.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
}

/// What short system instructions work on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SystemRegisters {
    /// In the order of [`SegmentIndex`].
    pub selectors: [u16; 6],
    pub fs_base: u64,
    pub gs_base: u64,
    pub kernel_gs_base: u64,
    pub lstar: u64,
    pub fmask: u64,
    pub star: u64,
    pub tsc_aux: u64,
}

/// What decides how the code at RIP executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regime {
    /// The operating mode.
    pub mode: Mode,
    /// The current privilege level.
    pub cpl: u8,
    /// Privilege of explicit data accesses.
    pub privilege: Privilege,
    /// Each instruction needs to be looked at: single step, breakpoints, a shadow, alignment checks.
    pub careful: bool,
    /// SSE instructions raise neither #UD nor #NM, and all their numeric exceptions are masked.
    pub sse: bool,
    /// So do AVX instructions.
    pub avx: bool,
    /// x87 and MMX instructions raise neither #UD nor #NM.
    pub x87: bool,
    /// RDTSC is allowed; at CPL 3 too.
    pub tsc: bool,
    /// RDTSC is allowed at CPL 3.
    pub user_tsc: bool,
    /// RDFSBASE and its kin are allowed.
    pub fsgsbase: bool,
    /// SYSCALL and SYSRET are.
    pub syscall: bool,
    /// This is 32-bit code in compatibility mode, and CS, SS, DS and ES are flat: see [`Flat`].
    pub flat: Option<Flat>,
}

/// Flat code in compatibility mode: no access through CS, SS, DS or ES can fault by segmentation, and none needs a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flat {
    /// Nor can one through FS, but it has a base.
    pub fs: bool,
    /// Nor one through GS.
    pub gs: bool,
}

/// Whether a CPU model has an instruction and it means there what it means on the newest processors.
pub fn offers(insn: &Instruction, features: &FeatureSet) -> bool {
    crate::lower::offered(insn, features)
        && match insn.mnemonic() {
            // Without the feature they execute as BSR and BSF.
            Mnemonic::Lzcnt => features.has(Feature::Lzcnt),
            Mnemonic::Tzcnt => features.has(Feature::Bmi1),
            _ => true,
        }
}

impl InterpVcpu {
    /// A vCPU in the reset state that looks at a kick of the caller's, logs its TLB's invalidations, and leaves its
    /// seat to the caller.
    ///
    /// # Errors
    /// If the host refuses memory for the arithmetic unit's code.
    pub fn with_kick(setup: VcpuSetup, kick: Kick) -> Result<Self, engine::EngineError> {
        let mut vcpu = crate::Interp.vcpu(setup)?;
        vcpu.cpu.kick = kick;
        let caller = vcpu.cpu.kick.clone();
        vcpu.cpu.seat = Arc::new(vcpu.cpu.memory.seat(move || caller.kick()));
        vcpu.cpu.guided = true;
        vcpu.cpu.tlb.log_invalidations();
        Ok(vcpu)
    }

    /// Looks at kicks and pending events if there is a reason to; an exit if there is one.
    #[inline]
    pub fn look(&mut self) -> Option<Exit> {
        if self.cpu.look || self.cpu.kick.is_raised() { self.attend() } else { None }
    }

    /// This vCPU's place among those that use the guest's memory.
    pub fn seat(&self) -> Arc<Seat> {
        self.cpu.seat.clone()
    }

    /// Acts on changes of guest memory.
    pub fn sync_memory(&mut self) {
        self.cpu.sync_memory();
    }

    /// Executes a block of instructions.
    #[inline]
    pub fn execute_block(&mut self) {
        self.execute();
    }

    /// Executes one instruction, whatever it raises included.
    pub fn execute_one(&mut self) {
        let cpu = &mut self.cpu;
        cpu.sync_memory();
        if cpu.slow {
            return self.single_step();
        }
        let result = match self.blocks.at_rip(cpu, 1) {
            Ok(block) => cpu.run_checked(block),
            Err(reason) => Err(reason),
        };
        cpu.finish(result);
    }

    /// Delivers an exception to the guest.
    pub fn deliver(&mut self, exception: Exception) {
        self.cpu.look = true;
        self.cpu.deliver_exception(exception);
    }

    /// Translates an access at the privilege of explicit ones.
    ///
    /// # Errors
    /// The page fault that it raises, which is not delivered.
    pub fn resolve(&mut self, va: u64, access: Access) -> Result<Resolved, Exception> {
        let cpu = &mut self.cpu;
        cpu.tlb
            .resolve(&cpu.paging, Gva(va), access, cpu.privilege)
            .map_err(|fault| Exception::page_fault(va, fault.error))
    }

    /// As [`InterpVcpu::resolve`] for a read that nobody has made yet; `None` if it would fault.
    pub fn resolve_ahead(&mut self, va: u64) -> Option<Resolved> {
        let cpu = &mut self.cpu;
        cpu.tlb.resolve_ahead(&cpu.paging, Gva(va), Access::Read, cpu.privilege).ok()
    }

    /// Translates an instruction fetch. Faults are not delivered: executing the instruction will.
    pub fn resolve_code(&mut self, va: u64, privilege: Privilege) -> Option<Resolved> {
        let cpu = &mut self.cpu;
        cpu.tlb.resolve(&cpu.paging, Gva(va), Access::Execute, privilege).ok()
    }

    /// Whether an interrupt or NMI is waiting for its time.
    pub fn event_waits(&self) -> bool {
        self.cpu.platform.pending(self.cpu.id).is_some()
    }

    /// The registers.
    pub fn registers(&self) -> Registers {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.cpu.regs[..16]);
        Registers { gpr, rip: self.cpu.rip(), rflags: self.cpu.flags }
    }

    /// Replaces the registers, as far as user code and translated code may change them by themselves: no flag but the status
    /// flags, DF, IF, AC, NT, TF and ID.
    pub fn set_registers(&mut self, registers: &Registers) {
        let cpu = &mut self.cpu;
        cpu.regs[..16].copy_from_slice(&registers.gpr);
        cpu.set_rip(registers.rip);
        let changed = cpu.flags ^ registers.rflags;
        cpu.flags = registers.rflags;
        cpu.look |= changed & x86::rflags::TF != 0;
        if changed & x86::rflags::AC != 0 {
            cpu.refresh_access();
        }
    }

    /// The current privilege level.
    #[inline]
    pub fn cpl(&self) -> u8 {
        self.cpu.cpl
    }

    /// RIP.
    #[inline]
    pub fn rip(&self) -> u64 {
        self.cpu.rip()
    }

    /// What short system instructions work on.
    pub fn system_registers(&self) -> SystemRegisters {
        let (seg, msrs) = (&self.cpu.seg, &self.cpu.msrs);
        SystemRegisters {
            selectors: seg.map(|segment| segment.selector.0),
            fs_base: self.cpu.segment(SegmentIndex::Fs).base,
            gs_base: self.cpu.segment(SegmentIndex::Gs).base,
            kernel_gs_base: msrs.kernel_gs_base,
            lstar: msrs.lstar,
            fmask: msrs.sfmask,
            star: msrs.star,
            tsc_aux: msrs.tsc_aux,
        }
    }

    /// Replaces the bases of FS and GS and IA32_KERNEL_GS_BASE.
    pub fn set_bases(&mut self, fs: u64, gs: u64, kernel_gs: u64) {
        let cpu = &mut self.cpu;
        for (index, base) in [(SegmentIndex::Fs as usize, fs), (SegmentIndex::Gs as usize, gs)] {
            cpu.seg[index].base = base;
            cpu.bases[index] = base;
        }
        cpu.msrs.kernel_gs_base = kernel_gs;
    }

    /// Loads the segment registers whose selectors are others than these, as code at RIP would have done; what it would have raised
    /// is delivered. False if it has raised something.
    pub fn load_selectors(&mut self, selectors: [u16; 6]) -> bool {
        for (index, selector) in SegmentIndex::ALL.into_iter().zip(selectors.map(Selector)) {
            let cpu = &mut self.cpu;
            if cpu.segment(index).selector == selector {
                continue;
            }
            let loaded = match index {
                SegmentIndex::Cs => cpu.jump_protected(selector, cpu.rip()),
                _ => cpu.load_segment(index, selector),
            };
            if loaded.is_err() {
                cpu.finish(loaded);
                return false;
            }
        }
        true
    }

    /// Whether something has to be looked at before the next instruction.
    pub fn looks(&self) -> bool {
        self.cpu.look
    }

    /// The x87 and vector registers; those of x87 only while they are not lent.
    pub fn units(&self) -> (&FpuState, &VectorState) {
        (&self.cpu.fpu, &self.cpu.vector)
    }

    /// Writes the x87 and vector registers into an image in the standard form of XSAVE, those above AVX in their initial state.
    pub fn put_units(&self, image: &mut [u8]) {
        crate::vector::state_image::put(&self.cpu.fpu, &self.cpu.vector, image);
    }

    /// Reads them from there.
    pub fn get_units(&mut self, image: &[u8]) {
        crate::vector::state_image::get(&mut self.cpu.fpu, &mut self.cpu.vector, image);
    }

    /// Loads CS and SS as SYSCALL does.
    pub fn load_syscall_segments(&mut self) {
        crate::system::syscall::syscall_segments(&mut self.cpu);
        self.cpu.refresh();
    }

    /// Loads CS and SS as SYSRET to 64-bit code does.
    pub fn load_sysret_segments(&mut self) {
        crate::system::syscall::sysret_segments(&mut self.cpu, true);
        self.cpu.refresh();
    }

    /// The vector registers.
    pub fn vector(&mut self) -> &mut VectorState {
        &mut self.cpu.vector
    }

    /// The arithmetic unit and the x87 state, which it may be lent.
    pub fn x87(&mut self) -> (&mut Processor, &mut FpuState) {
        (&mut self.cpu.native, &mut self.cpu.fpu)
    }

    /// The software TLB.
    pub fn tlb(&mut self) -> &mut Tlb {
        &mut self.cpu.tlb
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.cpu.memory
    }

    /// What to add to the host's time stamp counter to get the guest's.
    pub fn tsc_offset(&self) -> u64 {
        self.cpu.platform.tsc_offset().wrapping_add(self.cpu.msrs.tsc_adjust)
    }

    /// The features of the CPU model.
    pub fn features(&self) -> &FeatureSet {
        self.cpu.cpuid.features()
    }

    fn flat(&self) -> Option<Flat> {
        use SegmentIndex::{Cs, Ds, Es, Fs, Gs, Ss};
        let cpu: &Cpu = &self.cpu;
        if cpu.mode != Mode::Protected32 || !cpu.long_active() {
            return None;
        }
        let reaches = |index| {
            let segment = cpu.segment(index);
            let downward = segment.is_data() && segment.attr & attr::EXPAND_DOWN != 0;
            segment.usable() && segment.limit == u32::MAX && !downward
        };
        let whole = |index| reaches(index) && cpu.segment(index).writable();
        let at_zero = [Cs, Ss, Ds, Es].into_iter().all(|index| cpu.segment(index).base == 0);
        let flat = at_zero && reaches(Cs) && [Ss, Ds, Es].into_iter().all(whole) && cpu.segment(Ss).big();
        flat.then(|| Flat { fs: whole(Fs), gs: whole(Gs) })
    }

    /// Clears the upper halves of the registers that 32-bit code has: there they are undefined (SDM vol. 1, 3.4.1.1).
    pub fn clear_upper_halves(&mut self) {
        for register in &mut self.cpu.regs[..8] {
            *register = u64::from(x86::bits::low32(*register));
        }
    }

    /// CR0 to CR4; of CR1, which does not exist, zero.
    pub fn control_registers(&self) -> [u64; 5] {
        let cpu = &self.cpu;
        [cpu.cr0, 0, cpu.cr2, cpu.cr3, cpu.cr4]
    }

    /// Whether the code at RIP is 64-bit user code that a process of Linux would execute alike, its code and memory being the same:
    /// no instruction does more or less there, but for those that ask what processor or what descriptor tables there are, or the time.
    pub fn is_ordinary(&self) -> bool {
        const CR4: u64 = cr4::OSFXSR | cr4::OSXSAVE | cr4::FSGSBASE;
        /// What Linux lets its programs have in RFLAGS, whatever they do.
        const FLAGS: u64 = rflags::STATUS | rflags::DF | rflags::IF | rflags::ID | rflags::FIXED;
        let cpu: &Cpu = &self.cpu;
        let exact = !(cpu.slow || cpu.careful || cpu.stepping()) && cpu.flags & rflags::IF != 0;
        exact
            && cpu.mode == Mode::Long
            && cpu.cpl == 3
            && cpu.cr0 & (cr0::EM | cr0::TS) == 0
            && cpu.cr4 & CR4 == CR4
            && cpu.xcr0 & 6 == 6
            && cpu.flags & !FLAGS == 0
    }

    /// What decides how the code at RIP executes.
    pub fn regime(&self) -> Regime {
        let cpu: &Cpu = &self.cpu;
        let masked = cpu.vector.mxcsr & 0x1f80 == 0x1f80;
        let sse = cpu.cr4 & cr4::OSFXSR != 0 && cpu.cr0 & (cr0::EM | cr0::TS) == 0 && masked;
        let user = cpu.cpl == 3;
        let user_tsc = cpu.cr4 & cr4::TSD == 0;
        Regime {
            mode: cpu.mode,
            cpl: cpu.cpl,
            privilege: cpu.privilege,
            careful: cpu.slow || cpu.careful || cpu.stepping(),
            sse,
            avx: sse && cpu.cr4 & cr4::OSXSAVE != 0 && cpu.xcr0 & 6 == 6,
            x87: cpu.cr0 & (cr0::EM | cr0::TS) == 0,
            tsc: !user || user_tsc,
            user_tsc,
            fsgsbase: cpu.cr4 & cr4::FSGSBASE != 0,
            syscall: cpu.msrs.efer & efer::SCE != 0,
            flat: self.flat(),
        }
    }
}
