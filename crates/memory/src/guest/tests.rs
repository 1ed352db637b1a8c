//! Guest memory as a whole: examples here, random operations against a plain model and races in the modules below.

use super::*;

mod model;
mod races;

fn range(base: u64, frames: u64) -> RamRange {
    RamRange { base: Gfn(base), frames }
}

/// 4 frames from 0, 4 from 16.
fn small() -> GuestMemory {
    GuestMemory::new(&[range(0, 4), range(16, 4)]).unwrap()
}

#[test]
fn a_large_guest_costs_what_it_touches() {
    const MIB: u64 = 1 << 20;
    let memory = GuestMemory::new(&[range(0, 0xc_0000), range(0x10_0000, 0x4_0000)]).unwrap();
    assert_eq!((memory.ram_bytes(), memory.resident_bytes().unwrap()), (4096 * MIB, 0));
    // In one piece, so that the figure holds on hosts that use huge pages too.
    memory.fill(Gpa(1024 * MIB), 59 * MIB, 0x5a).unwrap();
    memory.write_word(Gpa(4096 * MIB), 1u8).unwrap();
    let cost = memory.resident_bytes().unwrap();
    assert!((59 * MIB..=62 * MIB).contains(&cost), "{cost}");
}

#[test]
fn a_guest_larger_than_the_host_is_made_or_refused_but_does_not_end_the_process() {
    if let Ok(memory) = GuestMemory::new(&[range(0, 1 << 32)]) {
        memory.write_word(Gpa((1 << 44) - 8), 7u64).unwrap();
        assert_eq!(memory.read_word::<u64>(Gpa((1 << 44) - 8)).unwrap(), 7);
    }
}

#[test]
fn nothing_outside_the_layout_can_be_reached() {
    let memory = small();
    let mut byte = [0];
    for gpa in [0x4000, 0xffff, 0x14000, 1 << 44, (1 << 52) - 1, u64::MAX].map(Gpa) {
        assert!(matches!(memory.read(gpa, &mut byte), Err(MemoryError::Refused { .. })), "{gpa:?}");
        assert!(matches!(memory.write(gpa, &byte), Err(MemoryError::Refused { .. })));
        assert_eq!(memory.entry(gpa.frame()), P2mEntry { kind: FrameKind::Mmio, mfn: Mfn(0) });
        assert!(matches!(memory.set_kind(gpa.frame(), FrameKind::Ram), Err(MemoryError::NotMemory { .. })));
    }
    for (gpa, len) in [(u64::MAX, 2), (u64::MAX - 4095, 4097)] {
        assert!(matches!(memory.fill(Gpa(gpa), len, 0), Err(MemoryError::PastEnd { .. })));
    }
    assert!(matches!(memory.fill(Gpa(0), u64::MAX, 0), Err(MemoryError::Refused { gpa: Gpa(0x4000), .. })));
    assert!(memory.read(Gpa(u64::MAX), &mut []).is_ok());
}

#[test]
fn an_access_that_does_not_lie_in_one_frame_does_nothing() {
    let memory = small();
    let frames = memory.frames();
    memory.fill(Gpa(0), 0x4000, 0xff).unwrap();
    memory.fill(Gpa(0x10000), 0x4000, 0xff).unwrap();
    let mut bytes = [1; 4];
    for (mfn, offset) in [(0, 4093), (0, 4096), (0, u64::MAX), (7, 4095), (8, 0), (1 << 52, 0), (u64::MAX, 0)]
    {
        let mfn = Mfn(mfn);
        assert_eq!(frames.read::<u32>(mfn, offset), 0);
        frames.write(mfn, offset, 0u32);
        assert_eq!(frames.compare_exchange(mfn, offset, 7u32, 0), Ok(7));
        assert_eq!(frames.compare_exchange_128(mfn, offset, 7, 0), Ok(7));
        frames.copy_in(mfn, offset, &[0; 4]);
        frames.copy_out(mfn, offset, &mut bytes);
        assert_eq!(bytes, [0; 4]);
    }
    frames.copy_in(Mfn(0), 0, &[0; 4097]);
    assert_eq!(frames.compare_exchange_128(Mfn(0), 8, u128::MAX, 0), Ok(u128::MAX));
    assert!(frames.host_ptr(Mfn(8)).is_null() && !frames.host_ptr(Mfn(7)).is_null());
    for gfn in [0, 3, 16, 19] {
        let mut page = [0; 4096];
        memory.read(Gfn(gfn).base(), &mut page).unwrap();
        assert!(page.iter().all(|&byte| byte == 0xff));
    }
}

#[test]
fn sixteen_bytes_are_exchanged_whole() {
    let memory = small();
    let (old, new) = (0x1111_2222_3333_4444_5555_6666_7777_8888, 0x9999_aaaa_bbbb_cccc_dddd_eeee_ffff_0000);
    memory.write(Gpa(0x1010), &u128::to_le_bytes(old)).unwrap();
    assert_eq!(memory.frames().compare_exchange_128(Mfn(1), 16, new, 0), Err(old));
    assert_eq!(memory.frames().compare_exchange_128(Mfn(1), 16, old, new), Ok(old));
    let mut bytes = [0; 16];
    memory.read(Gpa(0x1010), &mut bytes).unwrap();
    assert_eq!(u128::from_le_bytes(bytes), new);
}

#[test]
fn ballooned_memory_costs_nothing_until_it_is_written() {
    let memory = small();
    memory.fill(Gpa(0), 0x4000, 1).unwrap();
    let before = memory.resident_bytes().unwrap();
    memory.set_kind(Gfn(2), FrameKind::Ballooned).unwrap();
    assert_eq!(memory.resident_bytes().unwrap(), before - PAGE_SIZE);
    assert_eq!(memory.read_word::<u64>(Gpa(0x2100)).unwrap(), 0);
    assert_eq!(memory.resident_bytes().unwrap(), before - PAGE_SIZE);
    memory.write_word(Gpa(0x2100), 7u64).unwrap();
    assert_eq!(memory.entry(Gfn(2)), P2mEntry { kind: FrameKind::Ram, mfn: Mfn(2) });
    assert_eq!(memory.resident_bytes().unwrap(), before);
    assert_eq!(
        (memory.read_word::<u64>(Gpa(0x2100)).unwrap(), memory.read_word::<u8>(Gpa(0x2000)).unwrap()),
        (7, 0)
    );
}

#[test]
fn errors_say_what_and_where() {
    let memory = small();
    memory.set_kind(Gfn(1), FrameKind::ReadOnly).unwrap();
    let text = |result: Result<(), MemoryError>| result.unwrap_err().to_string();
    assert_eq!(text(memory.write(Gpa(0xffe), &[0; 4])), "write at gpa:0x1000, a frame that is ReadOnly");
    assert_eq!(text(memory.read(Gpa(0x3fff), &mut [0; 2])), "read at gpa:0x4000, a frame that is Mmio");
    assert_eq!(
        text(memory.mark_entry(Gpa(0xffe), 0u32, 1).map(|_| ())),
        "a locked operation at gpa:0xffe crosses a page boundary"
    );
    assert_eq!(text(GuestMemory::new(&[]).map(|_| ())), "guest memory of 0 frames at gfn:0x0 is empty");
}
