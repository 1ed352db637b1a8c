//! One thing that a guest, a user or the VM's driver does to the board.

use arbitrary::{Result, Unstructured};
use bus::Space;
use chipset::apic::{PendingEvent, VcpuIndex};

use super::board::{Board, VCPUS, lock};

/// Does one thing.
pub(super) fn step(u: &mut Unstructured<'_>, board: &Board) -> Result<()> {
    match u.int_in_range(0..=34u8)? {
        0..=5 => {
            let (space, address, width) = place(u, board)?;
            let mut data = [0; 8];
            board.router.read(space, address, &mut data[..width]);
        }
        6..=15 => {
            let (space, address, width) = place(u, board)?;
            let data = value(u)?.to_le_bytes();
            board.router.write(space, address, &data[..width]);
        }
        16..=18 => local_apic(u, board)?,
        19 | 20 => msr(u, board)?,
        21..=24 => board.wait(nanoseconds(u)?),
        25 | 26 => interrupts(u, board)?,
        27 => board.apics.msi(u64::from(u.arbitrary::<u32>()?) & 0xf_ffff | 0xfee0_0000, u.arbitrary()?),
        28 => {
            let input: [u8; 5] = u.arbitrary()?;
            lock(&board.uart).push_input(&input[..u.int_in_range(0..=5)?]);
        }
        29 => lock(&board.power).press_power_button(),
        30 => board.spare.set(u.arbitrary()?),
        34 => {
            let slot = u.choose_index(board.slot_count())?;
            match u.int_in_range(0..=2u8)? {
                0 => board.plug(slot),
                1 => drop(lock(&board.slots).request(slot)),
                _ => drop(lock(&board.slots).take(slot)),
            }
        }
        31 | 32 => {
            board.workers[u.choose_index(board.workers.len())?].step();
        }
        _ => {
            if u.arbitrary()? {
                board.reset();
            } else {
                board.pause();
                board.resume();
            }
        }
    }
    Ok(())
}

/// A place where a chip is, or just beside it, or anywhere.
fn place(u: &mut Unstructured<'_>, board: &Board) -> Result<(Space, u64, usize)> {
    let width = [1, 1, 2, 4, 4, 8, 3, 7][u.choose_index(8)?];
    let region = board.regions[u.choose_index(board.regions.len())?];
    let offset = match u.int_in_range(0..=3u8)? {
        0 => u64::from(u.arbitrary::<u8>()?),
        1 => u64::from(u.arbitrary::<u32>()?),
        _ => u64::from(u.arbitrary::<u8>()?) & 0xf,
    };
    let limit = if region.space == Space::Port { 0xffff } else { u64::MAX >> 12 };
    let address = (region.base + offset % (region.len + 2)).saturating_sub(u64::from(offset == 9)) & limit;
    Ok((region.space, address, if region.space == Space::Port { width.min(4) } else { width }))
}

fn value(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=3u8)? {
        0 => u.arbitrary()?,
        1 => u64::from(u.arbitrary::<u32>()?),
        2 => 1 << u.int_in_range(0..=63u8)?,
        _ => u64::from(u.arbitrary::<u8>()?),
    })
}

fn nanoseconds(u: &mut Unstructured<'_>) -> Result<u64> {
    let number = u64::from(u.arbitrary::<u16>()?);
    Ok(match u.int_in_range(0..=5u8)? {
        0 => number,
        1 => number << 10,
        2 => number << 20,
        3 => number << 30,
        4 => number << 48,
        _ => u.arbitrary()?,
    })
}

fn vcpu(u: &mut Unstructured<'_>) -> Result<VcpuIndex> {
    // One vCPU that is not there among them.
    Ok(VcpuIndex(u.int_in_range(0..=VCPUS)?))
}

fn local_apic(u: &mut Unstructured<'_>, board: &Board) -> Result<()> {
    let vcpu = vcpu(u)?;
    let offset = u64::from(u.arbitrary::<u16>()?);
    let offset = if offset & 0x8000 != 0 { offset & 0xff8 } else { offset << 4 & 0x3f0 };
    let width = *u.choose(&[4, 4, 4, 8, 1, 2])?;
    if u.arbitrary()? {
        board.apics.mmio_read(vcpu, offset, &mut [0; 8][..width]);
    } else {
        board.apics.mmio_write(vcpu, offset, &value(u)?.to_le_bytes()[..width]);
    }
    Ok(())
}

fn msr(u: &mut Unstructured<'_>, board: &Board) -> Result<()> {
    use x86::msr as m;
    const KNOWN: [u32; 7] = [
        m::IA32_APIC_BASE,
        m::IA32_TSC_DEADLINE,
        m::KVM_SYSTEM_TIME,
        m::KVM_SYSTEM_TIME_NEW,
        m::KVM_WALL_CLOCK,
        m::KVM_WALL_CLOCK_NEW,
        m::KVM_PV_EOI_EN,
    ];
    let vcpu = vcpu(u)?;
    let index = match u.int_in_range(0..=2u8)? {
        0 => 0x800 + u32::from(u.arbitrary::<u8>()?),
        1 => *u.choose(&KNOWN)?,
        _ => u.arbitrary()?,
    };
    if u.arbitrary()? {
        board.apics.read_msr(vcpu, index);
        lock(&board.kvm_clock).read_msr(vcpu.0 as usize, index);
    } else {
        let value = value(u)?;
        board.apics.write_msr(vcpu, index, value);
        lock(&board.kvm_clock).write_msr(vcpu.0 as usize, index, value);
    }
    Ok(())
}

/// What a vCPU does about what waits for it.
fn interrupts(u: &mut Unstructured<'_>, board: &Board) -> Result<()> {
    let vcpu = vcpu(u)?;
    match board.apics.pending(vcpu) {
        Some(PendingEvent::Interrupt) => {
            board.apics.acknowledge(vcpu);
        }
        Some(event) => board.apics.take(vcpu, event),
        None => {
            board.apics.set_cr8(vcpu, u.arbitrary::<u8>()? & 15);
            assert!(board.apics.cr8(vcpu) < 16);
        }
    }
    Ok(())
}
