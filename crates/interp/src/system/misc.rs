//! CPUID, time stamps, random numbers, segment bases, HLT and MWAIT.

use std::sync::atomic::{Ordering, fence};

use x86::bits::{high32, low32};
use x86::control::cr4;
use x86::cpuid::Dynamic;
use x86::rflags::CF;
use x86::state::Activity;
use x86::{Gva, Mode, SegmentIndex};

use crate::cpu::Cpu;
use crate::op::{Op, Step};
use crate::width::Width;

/// Instructions that are hints, or order what is ordered already.
pub(crate) fn nop(_: &mut Cpu, _: &Op) -> Step {
    Ok(())
}

/// PAUSE: a loop waits for somebody else, who may wait for the host's processor.
pub(crate) fn pause(_: &mut Cpu, _: &Op) -> Step {
    std::thread::yield_now();
    Ok(())
}

/// MFENCE.
pub(crate) fn mfence(_: &mut Cpu, _: &Op) -> Step {
    drain_stores();
    Ok(())
}

/// What MFENCE and every serializing instruction do (SDM vol. 3A, 10.2.5 and 10.3): stores before are visible to all before
/// loads after.
#[inline]
pub(crate) fn drain_stores() {
    fence(Ordering::SeqCst);
}

/// CPUID.
pub(crate) fn cpuid(cpu: &mut Cpu, _: &Op) -> Step {
    drain_stores();
    let vcpu = Dynamic { apic_id: cpu.id.0, osxsave: cpu.cr4 & cr4::OSXSAVE != 0, xcr0: cpu.xcr0 };
    let [eax, ebx, ecx, edx] = cpu.cpuid.query(low32(cpu.reg(0)), low32(cpu.reg(1)), vcpu);
    for (slot, value) in [(0, eax), (3, ebx), (1, ecx), (2, edx)] {
        *cpu.reg_mut(slot) = u64::from(value);
    }
    Ok(())
}

fn check_tsd(cpu: &mut Cpu) -> Step {
    if cpu.cr4 & cr4::TSD != 0 { cpu.require_cpl0() } else { Ok(()) }
}

fn put_tsc(cpu: &mut Cpu) {
    let tsc = cpu.tsc();
    *cpu.reg_mut(0) = u64::from(low32(tsc));
    *cpu.reg_mut(2) = u64::from(high32(tsc));
}

/// RDTSC.
pub(crate) fn rdtsc(cpu: &mut Cpu, _: &Op) -> Step {
    check_tsd(cpu)?;
    put_tsc(cpu);
    Ok(())
}

/// RDTSCP.
pub(crate) fn rdtscp(cpu: &mut Cpu, _: &Op) -> Step {
    check_tsd(cpu)?;
    put_tsc(cpu);
    *cpu.reg_mut(1) = u64::from(low32(cpu.msrs.tsc_aux));
    Ok(())
}

/// RDPMC: there are no counters, so every index is illegal.
pub(crate) fn rdpmc(cpu: &mut Cpu, _: &Op) -> Step {
    Err(cpu.gp0())
}

/// RDPID.
pub(crate) fn rdpid(cpu: &mut Cpu, op: &Op) -> Step {
    *cpu.reg_mut(op.dst) = u64::from(low32(cpu.msrs.tsc_aux));
    Ok(())
}

/// RDRAND and RDSEED: the host kernel's generator, which never runs dry once it is seeded.
pub(crate) fn random<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let drawn = host::random::u64();
    cpu.put_reg::<W>(op.dst, drawn.unwrap_or(0));
    cpu.set_status(if drawn.is_some() { CF } else { 0 });
    Ok(())
}

/// HLT.
pub(crate) fn hlt(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.require_cpl0()?;
    cpu.activity = Activity::Halted;
    cpu.look = true;
    Ok(())
}

/// MONITOR: remembers nothing; MWAIT then waits for an interrupt, which is one of the reasons it may end for.
pub(crate) fn monitor(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.cpl != 0 {
        return Err(cpu.ud());
    }
    if cpu.reg(1) & 0xffff_ffff != 0 {
        return Err(cpu.gp0());
    }
    cpu.load_at::<u8>(op.mem.seg, cpu.reg(0) << op.mem.cut >> op.mem.cut).map(|_| ())
}

/// MWAIT: may end at any time (SDM vol. 2, MWAIT), so it does at once. A guest that idles well uses HLT here, since
/// a store to the monitored line is not seen.
pub(crate) fn mwait(cpu: &mut Cpu, _: &Op) -> Step {
    if cpu.cpl != 0 {
        return Err(cpu.ud());
    }
    if cpu.reg(1) & 0xffff_fffe != 0 {
        return Err(cpu.gp0());
    }
    std::thread::yield_now();
    Ok(())
}

/// SWAPGS.
pub(crate) fn swapgs(cpu: &mut Cpu, _: &Op) -> Step {
    if cpu.mode != Mode::Long {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    std::mem::swap(&mut cpu.seg[SegmentIndex::Gs as usize].base, &mut cpu.msrs.kernel_gs_base);
    cpu.refresh();
    Ok(())
}

fn check_fsgsbase(cpu: &mut Cpu) -> Step {
    if cpu.mode == Mode::Long && cpu.cr4 & cr4::FSGSBASE != 0 { Ok(()) } else { Err(cpu.ud()) }
}

/// RDFSBASE and RDGSBASE; the segment's number is the immediate.
pub(crate) fn read_base<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    check_fsgsbase(cpu)?;
    let base = cpu.bases[x86::bits::index(op.imm) % 8];
    cpu.put_reg::<W>(op.dst, base);
    Ok(())
}

/// WRFSBASE and WRGSBASE.
pub(crate) fn write_base<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    check_fsgsbase(cpu)?;
    let base = cpu.get_reg::<W>(op.dst);
    if !Gva(base).is_canonical() {
        return Err(cpu.gp0());
    }
    cpu.seg[x86::bits::index(op.imm) % 6].base = base;
    cpu.refresh();
    Ok(())
}

/// CLFLUSH, CLFLUSHOPT, CLWB: coherent caches need no flushing, but the address must be readable.
pub(crate) fn flush_line(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.load::<u8>(op).map(|_| ())
}

/// INVD, WBINVD: privileged, and without effect on coherent caches.
pub(crate) fn wbinvd(cpu: &mut Cpu, _: &Op) -> Step {
    drain_stores();
    cpu.require_cpl0()
}
