//! Control registers (SDM vol. 3, 2.5; vol. 2, MOV to and from control registers).

use mmu::Invpcid;
use x86::bits::{high32, low8, low16};
use x86::control::{cr0, cr3, cr4, efer};
use x86::cpuid::{Feature, Vendor};
use x86::descriptor::system;
use x86::paging::PagingMode;
use x86::{Gva, Mode};

use crate::cpu::Cpu;
use crate::op::{Break, MEMORY, Op, Step};
use crate::system::misc::drain_stores;

/// CR0 bits whose change empties the TLB and re-reads the PDPTEs (SDM vol. 3, 4.4.1).
const CR0_PAGING: u64 = cr0::PG | cr0::CD | cr0::NW;
/// The same for CR4.
const CR4_PAGING: u64 = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;

impl Cpu {
    /// MOV to CR0.
    pub(crate) fn set_cr0(&mut self, value: u64) -> Step {
        let bad_pair =
            value & cr0::PG != 0 && value & cr0::PE == 0 || value & cr0::NW != 0 && value & cr0::CD == 0;
        if high32(value) != 0 || bad_pair {
            return Err(self.gp0());
        }
        let value = value & cr0::ALL | cr0::ET;
        let changed = self.cr0 ^ value;
        let mut new_efer = self.msrs.efer;
        if changed & cr0::PG != 0 {
            new_efer = self.check_paging_switch(value)?;
        }
        let pae = PagingMode::of(value, self.cr4, new_efer) == PagingMode::Pae;
        if pae && changed & CR0_PAGING != 0 {
            self.pdpte = self.read_pdptes(self.cr3)?;
        }
        self.cr0 = value;
        self.msrs.efer = new_efer;
        self.refresh_paging();
        self.refresh();
        Ok(())
    }

    /// CR0.PG changes: long mode comes and goes with it (SDM vol. 3, 10.8.5). Returns the new EFER.
    fn check_paging_switch(&mut self, value: u64) -> Result<u64, Break> {
        let current = self.msrs.efer;
        if value & cr0::PG == 0 {
            if self.mode == Mode::Long || self.cr4 & cr4::PCIDE != 0 {
                return Err(self.gp0());
            }
            return Ok(current & !efer::LMA);
        }
        if current & efer::LME == 0 {
            return Ok(current);
        }
        let tss16 = self.tr.usable() && self.tr.is_system(system::TSS16_BUSY);
        if self.cr4 & cr4::PAE == 0 || self.seg[1].long() || tss16 {
            return Err(self.gp0());
        }
        Ok(current | efer::LMA)
    }

    fn read_pdptes(&mut self, root: u64) -> Result<[u64; 4], Break> {
        mmu::load_pdptes(&self.memory, root, &self.paging_features).map_err(|_| self.gp0())
    }

    /// MOV to CR3.
    pub(crate) fn set_cr3(&mut self, value: u64) -> Step {
        let pcide = self.cr4 & cr4::PCIDE != 0;
        let keep = pcide && value & cr3::NOFLUSH != 0;
        let root = if pcide { value & !cr3::NOFLUSH } else { value };
        if self.long_active() && root >> self.cpuid.phys_bits() != 0 {
            return Err(self.gp0());
        }
        if self.paging.mode() == PagingMode::Pae {
            self.pdpte = self.read_pdptes(root)?;
        }
        self.cr3 = root;
        self.refresh_paging();
        self.tlb.switch_root(&self.paging, keep);
        self.forget_fetch();
        Ok(())
    }

    /// CR3 from a TSS: a bad PDPTE faults in the new task.
    pub(crate) fn load_cr3(&mut self, value: u64) {
        if self.set_cr3(value).is_err() {
            self.pending.exception = self.fault.take();
        }
    }

    /// MOV to CR4.
    pub(crate) fn set_cr4(&mut self, value: u64) -> Step {
        let changed = self.cr4 ^ value;
        let turned_on = changed & value;
        let pcid_wrong = turned_on & cr4::PCIDE != 0 && (!self.long_active() || self.cr3 & cr3::PCID != 0);
        let pae_lost = self.long_active() && value & cr4::PAE == 0;
        if value & !self.cr4_mask() != 0 || pcid_wrong || pae_lost {
            return Err(self.gp0());
        }
        let pae = PagingMode::of(self.cr0, value, self.msrs.efer) == PagingMode::Pae;
        if pae && changed & CR4_PAGING != 0 {
            self.pdpte = self.read_pdptes(self.cr3)?;
        }
        self.cr4 = value;
        self.refresh_paging();
        if changed & (CR4_PAGING | cr4::PCIDE) != 0 {
            self.tlb.flush_all();
        }
        self.refresh();
        Ok(())
    }

    /// WRMSR to IA32_EFER.
    pub(crate) fn set_efer(&mut self, value: u64) -> Step {
        let mut known = efer::SCE | efer::LME | efer::LMA;
        if self.has(Feature::Nx) {
            known |= efer::NXE;
        }
        if self.has(Feature::AutoIbrs) && self.cpuid.vendor() == Vendor::Amd {
            known |= efer::AUTOIBRS;
        }
        let lme_changes = (value ^ self.msrs.efer) & efer::LME != 0;
        if value & !known != 0 || lme_changes && self.cr0 & cr0::PG != 0 {
            return Err(self.gp0());
        }
        self.msrs.efer = value & !efer::LMA | self.msrs.efer & efer::LMA;
        self.refresh_paging();
        Ok(())
    }
}

/// MOV from a control register; [`Op::src`] is its number.
pub(crate) fn read(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl0()?;
    let value = match op.src {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => u64::from(cpu.platform.cr8(cpu.id)),
        _ => return Err(cpu.ud()),
    };
    write_register(cpu, op, value);
    Ok(())
}

/// Control and debug registers move in the mode's natural width, whatever the prefixes.
pub(crate) fn write_register(cpu: &mut Cpu, op: &Op, value: u64) {
    if cpu.flat { cpu.put_reg::<u64>(op.dst, value) } else { cpu.put_reg::<u32>(op.dst, value) }
}

/// The register operand in the mode's natural width.
pub(crate) fn read_register(cpu: &Cpu, op: &Op) -> u64 {
    if cpu.flat { cpu.reg(op.src) } else { cpu.get_reg::<u32>(op.src) }
}

/// MOV to a control register; [`Op::dst`] is its number.
pub(crate) fn write(cpu: &mut Cpu, op: &Op) -> Step {
    drain_stores();
    cpu.require_cpl0()?;
    let value = read_register(cpu, op);
    match op.dst {
        0 => cpu.set_cr0(value),
        2 => {
            cpu.cr2 = value;
            Ok(())
        }
        3 => cpu.set_cr3(value),
        4 => cpu.set_cr4(value),
        8 if value < 16 => {
            cpu.platform.set_cr8(cpu.id, low8(value));
            cpu.look = true;
            Ok(())
        }
        8 => Err(cpu.gp0()),
        _ => Err(cpu.ud()),
    }
}

/// CLTS.
pub(crate) fn clts(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.require_cpl0()?;
    cpu.cr0 &= !cr0::TS;
    Ok(())
}

/// LMSW: the low four bits; PE can be set, not cleared.
pub(crate) fn lmsw(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.require_cpl0()?;
    let value = cpu.get::<u16>(op, op.dst)? & 0xf;
    let keep = cpu.cr0 & !(cr0::MP | cr0::EM | cr0::TS);
    cpu.set_cr0(keep | value)
}

/// SMSW.
pub(crate) fn smsw(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_umip()?;
    match (op.dst, op.size) {
        (MEMORY, _) => return cpu.store::<u16>(op, cpu.cr0),
        (_, 2) => cpu.put_reg::<u16>(op.dst, cpu.cr0),
        (_, 4) => cpu.put_reg::<u32>(op.dst, cpu.cr0),
        _ => cpu.put_reg::<u64>(op.dst, cpu.cr0),
    }
    Ok(())
}

/// INVLPG: an address that is not canonical does nothing (SDM vol. 2, INVLPG).
pub(crate) fn invlpg(cpu: &mut Cpu, op: &Op) -> Step {
    drain_stores();
    cpu.require_cpl0()?;
    let base = cpu.bases[op.mem.seg as usize % 8];
    let va = Gva(cpu.offset_of(&op.mem).wrapping_add(base));
    if !cpu.flat || va.is_canonical() {
        cpu.tlb.invalidate_page(va);
        cpu.forget_fetch();
    }
    Ok(())
}

/// INVPCID: the type is in the register, PCID and address are in memory.
pub(crate) fn invpcid(cpu: &mut Cpu, op: &Op) -> Step {
    drain_stores();
    cpu.require_cpl0()?;
    let kind = if cpu.flat { cpu.reg(op.dst) } else { cpu.get_reg::<u32>(op.dst) };
    let offset = cpu.offset_of(&op.mem);
    let descriptor = cpu.load_at::<u64>(op.mem.seg, offset)?;
    let va = Gva(cpu.load_at::<u64>(op.mem.seg, offset.wrapping_add(8))?);
    let pcid = low16(descriptor & 0xfff);
    let pcid_illegal = pcid != 0 && cpu.cr4 & cr4::PCIDE == 0 && kind < 2;
    if kind > 3 || descriptor >> 12 != 0 || pcid_illegal || kind == 0 && !va.is_canonical() {
        return Err(cpu.gp0());
    }
    cpu.forget_fetch();
    cpu.tlb.invpcid(match kind {
        0 => Invpcid::Address { pcid, va },
        1 => Invpcid::Single { pcid },
        2 => Invpcid::All,
        _ => Invpcid::AllNonGlobal,
    });
    Ok(())
}
