//! Files as kernels: each form, with parts overwritten, and any bytes; initrds, command lines, amounts of memory.
//!
//! What could be loaded is run for a moment: the state that a loader makes of a file is an input of the engine.

use arbitrary::{Result, Unstructured};
use firmware::{BootRequest, Initrd, LoadError, MemoryMap};

use super::guest::Guest;
use super::interp_code;
use super::kernels::{BZIMAGE, EDGES, SKELETONS};

/// The longest text of an error, one sentence.
const SENTENCE: usize = 250;

pub(super) fn run(data: &[u8]) {
    let _ = attempt(data);
}

fn number(u: &mut Unstructured<'_>) -> Result<u64> {
    let edge = u.arbitrary::<u8>()?;
    Ok(match EDGES.get(usize::from(edge & 31)) {
        Some(&edge_value) => edge_value.wrapping_add(u64::from(edge >> 5)).wrapping_sub(3),
        None => u.arbitrary()?,
    })
}

fn attempt(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    let form = u.choose_index(SKELETONS.len())?;
    let mut kernel = SKELETONS[form].build();
    for _ in 0..u.int_in_range(0..=12u8)? {
        let at = usize::from(u.arbitrary::<u16>()?) % 0x400;
        let width = 1 << u.int_in_range(0..=3u8)?;
        let value = number(&mut u)?.to_le_bytes();
        if let Some(place) = kernel.get_mut(at..at + width) {
            place.copy_from_slice(&value[..width]);
        }
    }
    // The zeros behind a segment's data cost what RAM costs; a bzImage has none, so it may have much RAM.
    let ram = match u.int_in_range(0..=7u8)? {
        0 if form == BZIMAGE => number(&mut u)?.min(1 << 40),
        1 if form == BZIMAGE => 5000 << 20,
        0 => number(&mut u)?.min(64 << 20),
        n => [1, 1, 2, 3, 16, 32, 64, 24][usize::from(n)] << 20,
    };
    let words = "w".repeat(match u.int_in_range(0..=15u8)? {
        0 => 0x1_0000,
        1 => 2048,
        2 => 2047,
        n => usize::from(n) - 3,
    });
    let initrds = [u.arbitrary::<u16>()?; 2].map(|len| vec![0x5a; usize::from(len) & 0x3fff]);
    let modules: Vec<Initrd<'_>> =
        initrds.iter().map(|data| Initrd { data, command_line: &words[..words.len().min(9)] }).collect();
    let (count, cpus) = (u.int_in_range(0..=2usize)?, u.int_in_range(1..=255u32)?);
    // The rest replaces or follows what is there.
    let at = usize::from(u.arbitrary::<u16>()?) % (kernel.len() + 1);
    let rest = u.take_rest();
    if rest.first().is_some_and(|byte| byte & 1 != 0) {
        kernel.truncate(at);
    }
    kernel.extend_from_slice(rest);

    let map = MemoryMap::new(ram);
    let mut guest = Guest::with_memory(&map.ram_ranges(), 0, ram);
    let request = BootRequest {
        kernel: &kernel,
        kernel_name: "kernel",
        initrds: &modules[..count],
        command_line: &words,
        map,
        cpus,
        slots: 4,
    };
    match firmware::load(&guest.memory, &request) {
        Ok(boot) => {
            assert!(map.regions().iter().any(|r| r.start.0 <= boot.cpu.rip && boot.cpu.rip < r.end.0));
            interp_code::execute(&mut guest, &boot.cpu);
        }
        Err(LoadError::Memory(error)) => panic!("the arena gave what memory refuses: {error}"),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && text.len() < SENTENCE && !text.contains('\n'), "{text}");
        }
    }
    Ok(())
}
