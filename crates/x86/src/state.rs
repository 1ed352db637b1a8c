//! The architectural state of one vCPU, the same for every engine.
//!
//! This is what moves between engines, into a snapshot and over the wire. It holds what software can see plus the
//! hidden parts that software can feel (segment caches, interrupt shadows); nothing of how an engine works.

use serde::{Deserialize, Serialize};

use crate::control::{cr0, dr6, dr7, efer};
use crate::descriptor::{DescriptorTable, Segment, SegmentIndex, Selector, attr, system};
use crate::exception::Exception;
use crate::fpu::{FpuState, VectorState};
use crate::rflags;

/// Indices of the general-purpose registers.
#[allow(missing_docs)]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R9: usize = 9;
    pub const R10: usize = 10;
    pub const R11: usize = 11;
    pub const R12: usize = 12;
    pub const R13: usize = 13;
    pub const R14: usize = 14;
    pub const R15: usize = 15;
}

/// The operating mode, which decides how bytes decode and how addresses form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Real-address mode.
    Real,
    /// Virtual-8086 mode.
    V86,
    /// Protected mode, or compatibility mode, with a 16-bit code segment.
    Protected16,
    /// Protected mode, or compatibility mode, with a 32-bit code segment.
    Protected32,
    /// 64-bit mode.
    Long,
}

/// Model-specific registers that live in the vCPU itself. The local APIC's and the paravirtual ones belong to
/// the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Msrs {
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_aux: u64,
    /// IA32_TSC_ADJUST: what the guest added to its own time stamp counter.
    pub tsc_adjust: u64,
    pub misc_enable: u64,
    pub mtrr_def_type: u64,
    /// PHYSBASE0, PHYSMASK0, PHYSBASE1, … of the eight variable ranges.
    pub mtrr_variable: [u64; 16],
    /// 64K, 16K × 2, 4K × 8.
    pub mtrr_fixed: [u64; 11],
    pub mcg_status: u64,
    pub xss: u64,
}

/// Why a vCPU is not executing instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// It executes.
    Running,
    /// HLT or MWAIT: waits for an interrupt.
    Halted,
    /// An application processor after INIT: waits for a start-up IPI.
    WaitForSipi,
    /// A triple fault: only INIT or reset helps.
    Shutdown,
}

/// Events that are between instructions (SDM vol. 3, 6.8.3 and 24.4.2).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pending {
    /// STI was the last instruction: interrupts wait for one more.
    pub sti_shadow: bool,
    /// MOV SS or POP SS was the last instruction: interrupts and debug traps wait for one more.
    pub mov_ss_shadow: bool,
    /// NMIs wait for IRET.
    pub nmi_blocked: bool,
    /// An NMI has arrived and waits.
    pub nmi_pending: bool,
    /// DR6 bits of data breakpoints met under the MOV SS shadow.
    pub debug: u64,
    /// An exception that an engine raised and did not deliver before it was asked for its state.
    pub exception: Option<Exception>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CpuState {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// By [`SegmentIndex`].
    pub seg: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub xcr0: u64,
    /// PAE page-directory-pointer entries, loaded with CR3 (SDM vol. 3, 4.4.1).
    pub pdpte: [u64; 4],
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub msrs: Msrs,
    pub fpu: FpuState,
    pub vector: VectorState,
    pub activity: Activity,
    pub pending: Pending,
}

impl CpuState {
    /// The state after power-up or RESET (SDM vol. 3, table 9-1).
    pub fn reset() -> Self {
        let mut seg = [Segment::real(0); 6];
        let code = attr::P | attr::S | attr::CODE | attr::READABLE | attr::ACCESSED;
        seg[SegmentIndex::Cs as usize] =
            Segment { selector: Selector(0xf000), base: 0xffff_0000, limit: 0xffff, attr: code };
        let system = |kind| Segment { selector: Selector(0), base: 0, limit: 0xffff, attr: attr::P | kind };
        let table = DescriptorTable { base: 0, limit: 0xffff };
        Self {
            gpr: [0; 16],
            rip: 0xfff0,
            rflags: rflags::FIXED,
            seg,
            ldtr: system(system::LDT),
            tr: system(system::TSS_BUSY),
            gdtr: table,
            idtr: table,
            cr0: cr0::ET | cr0::CD | cr0::NW,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            xcr0: 1,
            pdpte: [0; 4],
            dr: [0; 4],
            dr6: dr6::FIXED,
            dr7: dr7::FIXED,
            msrs: Msrs::reset(),
            fpu: FpuState { fcw: 0x40, ..FpuState::default() },
            vector: VectorState::default(),
            activity: Activity::Running,
            pending: Pending::default(),
        }
    }

    /// What INIT makes of a processor: as reset, but x87, vector, and most model-specific registers stay, and CR0
    /// keeps CD and NW (SDM vol. 3, table 9-1).
    #[must_use]
    pub fn after_init(&self, activity: Activity) -> Self {
        let fresh = Self::reset();
        Self {
            cr0: self.cr0 & (cr0::CD | cr0::NW) | cr0::ET,
            xcr0: self.xcr0,
            msrs: Msrs { efer: 0, ..self.msrs.clone() },
            fpu: self.fpu.clone(),
            vector: self.vector.clone(),
            activity,
            ..fresh
        }
    }

    /// The code segment.
    #[inline]
    pub const fn cs(&self) -> &Segment {
        &self.seg[SegmentIndex::Cs as usize]
    }

    /// The stack segment.
    #[inline]
    pub const fn ss(&self) -> &Segment {
        &self.seg[SegmentIndex::Ss as usize]
    }

    /// The current privilege level: the DPL of SS, 0 in real mode and 3 in virtual-8086 mode.
    #[inline]
    pub const fn cpl(&self) -> u8 {
        if self.cr0 & cr0::PE == 0 {
            0
        } else if self.rflags & rflags::VM != 0 {
            3
        } else {
            self.ss().dpl()
        }
    }

    /// Whether IA-32e (long) mode is active, compatibility mode included.
    #[inline]
    pub const fn long_mode_active(&self) -> bool {
        self.msrs.efer & efer::LMA != 0
    }

    /// The operating mode.
    pub const fn mode(&self) -> Mode {
        if self.cr0 & cr0::PE == 0 {
            Mode::Real
        } else if self.long_mode_active() && self.cs().long() {
            Mode::Long
        } else if self.rflags & rflags::VM != 0 {
            Mode::V86
        } else if self.cs().big() {
            Mode::Protected32
        } else {
            Mode::Protected16
        }
    }
}

impl Msrs {
    /// The reset values.
    pub const fn reset() -> Self {
        Self {
            efer: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: 0x0007_0406_0007_0406,
            tsc_aux: 0,
            tsc_adjust: 0,
            misc_enable: 1,
            mtrr_def_type: 0,
            mtrr_variable: [0; 16],
            mtrr_fixed: [0; 11],
            mcg_status: 0,
            xss: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_is_real_mode_at_the_top_of_the_first_4_gib() {
        let s = CpuState::reset();
        assert_eq!(s.mode(), Mode::Real);
        assert_eq!(s.cs().base + s.rip, 0xffff_fff0);
        assert_eq!(s.cpl(), 0);
    }

    #[test]
    fn init_keeps_the_vector_registers_and_leaves_long_mode() {
        let mut s = CpuState::reset();
        s.vector.ymm[3][1] = 7;
        s.msrs.efer = efer::LMA | efer::LME;
        s.msrs.lstar = 5;
        let s = s.after_init(Activity::WaitForSipi);
        assert_eq!((s.vector.ymm[3][1], s.msrs.efer, s.msrs.lstar), (7, 0, 5));
        assert_eq!(s.activity, Activity::WaitForSipi);
    }
}
