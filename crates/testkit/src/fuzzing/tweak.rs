//! Changes to a guest's state and memory, one at a time: what turns a guest that works into one that nobody would build.

use arbitrary::{Result, Unstructured};
use memory::FrameKind;
use x86::exception::Exception;
use x86::state::Activity;
use x86::{CpuState, DescriptorTable, Gfn, Segment, Selector};

use super::guest::{self, Guest};

/// Applies up to `most` changes.
pub(super) fn apply<V>(
    u: &mut Unstructured<'_>,
    most: u8,
    guest: &Guest<V>,
    state: &mut CpuState,
) -> Result<()> {
    for _ in 0..u.int_in_range(0..=most)? {
        if u.arbitrary()? { registers(u, state)? } else { memory(u, guest)? }
    }
    Ok(())
}

/// Any segment register at all.
pub(super) fn any_segment(u: &mut Unstructured<'_>) -> Result<Segment> {
    Ok(Segment {
        selector: Selector(u.arbitrary()?),
        attr: u.arbitrary()?,
        limit: u.arbitrary()?,
        base: guest::address(u)?,
    })
}

fn any_table(u: &mut Unstructured<'_>) -> Result<DescriptorTable> {
    Ok(DescriptorTable { base: guest::address(u)?, limit: u.arbitrary()? })
}

/// An exception that no instruction would raise, or one that some would.
fn any_exception(u: &mut Unstructured<'_>) -> Result<Exception> {
    Ok(Exception { vector: u.arbitrary()?, error: u.arbitrary()?, cr2: u.arbitrary()?, dr6: u.arbitrary()? })
}

fn any_activity(u: &mut Unstructured<'_>) -> Result<Activity> {
    Ok(match u.int_in_range(0..=7u8)? {
        0 => Activity::Halted,
        1 => Activity::WaitForSipi,
        2 => Activity::Shutdown,
        _ => Activity::Running,
    })
}

fn registers(u: &mut Unstructured<'_>, s: &mut CpuState) -> Result<()> {
    match u.int_in_range(0..=20u8)? {
        0..=3 => s.gpr[u.choose_index(16)?] = guest::address(u)?,
        4 => s.rflags ^= u.arbitrary::<u64>()?,
        5 => s.seg[u.choose_index(6)?] = any_segment(u)?,
        6 => {
            let segment = &mut s.seg[u.choose_index(6)?];
            segment.attr ^= 1 << u.int_in_range(0..=15u8)?;
        }
        7 => {
            let segment = &mut s.seg[u.choose_index(6)?];
            (segment.base, segment.limit) = (guest::address(u)?, u.arbitrary()?);
        }
        8 => *(if u.arbitrary()? { &mut s.tr } else { &mut s.ldtr }) = any_segment(u)?,
        9 => *(if u.arbitrary()? { &mut s.gdtr } else { &mut s.idtr }) = any_table(u)?,
        10 => s.cr0 ^= 1 << u.int_in_range(0..=63u8)?,
        11 => s.cr4 ^= 1 << u.int_in_range(0..=63u8)?,
        12 => s.msrs.efer ^= 1 << u.int_in_range(0..=63u8)?,
        13 => s.cr3 = guest::address(u)?,
        14 => s.pdpte[u.choose_index(4)?] = guest::address(u)?,
        15 => {
            s.dr[u.choose_index(4)?] = guest::address(u)?;
            s.dr7 ^= u.arbitrary::<u64>()?;
        }
        16 => (s.fpu.fcw, s.fpu.fsw, s.fpu.ftw) = (u.arbitrary()?, u.arbitrary()?, u.arbitrary()?),
        17 => s.vector.mxcsr = u.arbitrary()?,
        18 => (s.xcr0, s.dr6, s.cr2) = (u.arbitrary()?, u.arbitrary()?, u.arbitrary()?),
        19 => {
            let msrs = [
                &mut s.msrs.star,
                &mut s.msrs.lstar,
                &mut s.msrs.sfmask,
                &mut s.msrs.kernel_gs_base,
                &mut s.msrs.sysenter_cs,
                &mut s.msrs.sysenter_esp,
                &mut s.msrs.sysenter_eip,
                &mut s.msrs.tsc_adjust,
            ];
            let at = u.choose_index(msrs.len())?;
            if let Some(msr) = msrs.into_iter().nth(at) {
                *msr = guest::address(u)?;
            }
        }
        _ => {
            let flags: u8 = u.arbitrary()?;
            s.pending.sti_shadow = flags & 1 != 0;
            s.pending.mov_ss_shadow = flags & 2 != 0;
            s.pending.nmi_blocked = flags & 4 != 0;
            s.pending.nmi_pending = flags & 8 != 0;
            s.pending.debug = if flags & 16 != 0 { u.arbitrary()? } else { 0 };
            s.pending.exception = if flags & 32 != 0 { Some(any_exception(u)?) } else { None };
            s.activity = any_activity(u)?;
        }
    }
    Ok(())
}

fn memory<V>(u: &mut Unstructured<'_>, guest: &Guest<V>) -> Result<()> {
    let table = match u.int_in_range(0..=9u8)? {
        0 | 1 => guest::GDT + 8 * u.int_in_range(0..=guest::GDT_ENTRIES - 1)?,
        2 => guest::LDT + 8 * u.int_in_range(0..=15)?,
        3 => guest::IDT32 + 8 * u.int_in_range(0..=255)?,
        4 => guest::IDT64 + 8 * u.int_in_range(0..=511)?,
        5 => guest::TSS + 4 * u.int_in_range(0..=0x3ff)?,
        6 => guest::PML4 + 4 * u.int_in_range(0..=0x1bff)?,
        7 => guest::PT + 8 * u.int_in_range(0..=63)?,
        8 => u64::from(u.arbitrary::<u32>()?) & 0x3_ffff,
        _ => return frame(u, guest),
    };
    let value = match u.int_in_range(0..=2u8)? {
        0 => u.arbitrary()?,
        // Descriptors, gates and page-table entries all like low bits that make sense.
        1 => u64::from(u.arbitrary::<u8>()?) << 12 | u64::from(u.arbitrary::<u16>()?) & 0xfff,
        _ => u64::from(u.arbitrary::<u32>()?) << 32 | u64::from(u.arbitrary::<u16>()?) << 16 | 0xffff,
    };
    guest.put(table, &value.to_le_bytes());
    Ok(())
}

/// A frame becomes something else than RAM.
fn frame<V>(u: &mut Unstructured<'_>, guest: &Guest<V>) -> Result<()> {
    const KINDS: [FrameKind; 7] = [
        FrameKind::Mmio,
        FrameKind::Ram,
        FrameKind::ReadOnly,
        FrameKind::Absent,
        FrameKind::Ballooned,
        FrameKind::Shared,
        FrameKind::Swapped,
    ];
    let gfn = Gfn(u.int_in_range(0..=guest::LOW_FRAMES - 1)?);
    let _ = guest.memory.set_kind(gfn, *u.choose(&KINDS)?);
    Ok(())
}
