//! Any processor state whatsoever: a saved state comes from a file, and what is in it need not be what a processor can be in.

use arbitrary::{Arbitrary, Result, Unstructured};
use state::Record;
use x86::CpuState;
use x86::exception::Exception;
use x86::state::{Activity, Pending};

use super::guest::{self, CODE, Guest, StartMode};
use super::{interp_code, tweak};
use crate::oracle::random::Random;

pub(super) fn run(data: &[u8]) {
    let _ = attempt(data);
}

fn attempt(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    let (flags, seed): (u8, u32) = u.arbitrary()?;
    let mut random = Random::new(seed.into(), 1);
    let mut guest = Guest::new(flags & 7, random.bits());
    guest.lay_out(&mut random);
    let state = match flags >> 3 & 3 {
        0 => any(&mut u)?,
        1 => match damaged(&mut u, &mut random)? {
            Some(state) => state,
            None => return Ok(()),
        },
        // Control state of the one, everything else of the other.
        _ => {
            let odd = any(&mut u)?;
            let sane = guest::state(StartMode::arbitrary(&mut u)?, flags & 32 != 0, &mut random);
            CpuState {
                cr0: odd.cr0,
                cr4: odd.cr4,
                rflags: odd.rflags,
                msrs: odd.msrs,
                xcr0: odd.xcr0,
                pdpte: odd.pdpte,
                fpu: odd.fpu,
                vector: odd.vector,
                pending: odd.pending,
                rip: CODE + 0xff8,
                ..sane
            }
        }
    };
    guest.put(CODE + 0xff8, u.take_rest());
    interp_code::execute(&mut guest, &state);
    let after = CpuState { activity: Activity::Running, ..guest::state(StartMode::Long, true, &mut random) };
    interp_code::execute(&mut guest, &after);
    Ok(())
}

/// A good state as a record, with some of its bytes changed; `None` if it was refused.
fn damaged(u: &mut Unstructured<'_>, random: &mut Random) -> Result<Option<CpuState>> {
    let good = guest::state(StartMode::arbitrary(u)?, u.arbitrary()?, random);
    let mut bytes = postcard::to_stdvec(&Record::encode(&good)).unwrap_or_default();
    for _ in 0..u.int_in_range(0..=8u8)? {
        let at = u.choose_index(bytes.len())?;
        bytes[at] = u.arbitrary()?;
    }
    let record = postcard::from_bytes::<Record>(&bytes).ok();
    Ok(record.and_then(|record| record.decode::<CpuState>().ok()))
}

fn array<'a, T: Arbitrary<'a> + Copy + Default, const N: usize>(u: &mut Unstructured<'a>) -> Result<[T; N]> {
    let mut values = [T::default(); N];
    for value in &mut values {
        *value = u.arbitrary()?;
    }
    Ok(values)
}

/// A state of nothing but random numbers.
fn any(u: &mut Unstructured<'_>) -> Result<CpuState> {
    let mut s = CpuState::reset();
    (s.rip, s.rflags) = (guest::address(u)?, u.arbitrary()?);
    (s.cr0, s.cr2, s.cr3, s.cr4, s.xcr0) =
        (u.arbitrary()?, u.arbitrary()?, guest::address(u)?, u.arbitrary()?, u.arbitrary()?);
    for segment in s.seg.iter_mut().chain([&mut s.ldtr, &mut s.tr]) {
        *segment = tweak::any_segment(u)?;
    }
    (s.gdtr.base, s.gdtr.limit) = (guest::address(u)?, u.arbitrary()?);
    (s.idtr.base, s.idtr.limit) = (guest::address(u)?, u.arbitrary()?);
    for register in &mut s.gpr {
        *register = guest::address(u)?;
    }
    (s.pdpte, s.dr, s.dr6, s.dr7) = (array(u)?, array(u)?, u.arbitrary()?, u.arbitrary()?);
    let m = &mut s.msrs;
    (m.efer, m.star, m.lstar, m.cstar, m.sfmask) = u.arbitrary()?;
    (m.kernel_gs_base, m.sysenter_cs, m.sysenter_esp, m.sysenter_eip) = u.arbitrary()?;
    (m.pat, m.tsc_aux, m.tsc_adjust, m.misc_enable, m.mtrr_def_type) = u.arbitrary()?;
    (m.mtrr_variable, m.mtrr_fixed, m.mcg_status, m.xss) =
        (array(u)?, array(u)?, u.arbitrary()?, u.arbitrary()?);
    let f = &mut s.fpu;
    (f.fcw, f.fsw, f.ftw, f.fop) = u.arbitrary()?;
    (f.fip, f.fdp, f.fcs, f.fds) = u.arbitrary()?;
    f.st = array(u)?;
    for ymm in &mut s.vector.ymm {
        *ymm = array(u)?;
    }
    s.vector.mxcsr = u.arbitrary()?;
    let flags: u8 = u.arbitrary()?;
    s.activity = match flags & 15 {
        0 => Activity::Halted,
        1 => Activity::WaitForSipi,
        2 => Activity::Shutdown,
        _ => Activity::Running,
    };
    let exception =
        Exception { vector: u.arbitrary()?, error: u.arbitrary()?, cr2: u.arbitrary()?, dr6: u.arbitrary()? };
    s.pending = Pending {
        sti_shadow: flags & 16 != 0,
        mov_ss_shadow: flags & 32 != 0,
        nmi_blocked: u.arbitrary()?,
        nmi_pending: u.arbitrary()?,
        debug: if flags & 64 != 0 { u.arbitrary()? } else { 0 },
        exception: (flags & 128 != 0).then_some(exception),
    };
    Ok(s)
}
