//! What disks, files and connections carry, as `bench/guest/content.h` has it: numbered blocks that tell which they are.

use std::io::{self, Read, Write};

use anyhow::{Result, ensure};

/// The bytes of a block.
pub(super) const BLOCK: usize = 4096;
/// Bytes that are moved at once.
pub(super) const MIB: usize = 1 << 20;
/// The words of a block.
const WORDS: usize = BLOCK / 8;
/// Between the words of a block.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// What the host writes; guests use others.
const GENERATION: u64 = 0;

/// A running sum that the order of words matters to (Fletcher's, of 64-bit words).
#[derive(Clone, Copy, Default)]
pub(super) struct Sum {
    a: u64,
    b: u64,
}

impl Sum {
    /// Adds bytes, a multiple of eight.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for word in bytes.as_chunks().0 {
            self.a = self.a.wrapping_add(u64::from_le_bytes(*word));
            self.b = self.b.wrapping_add(self.a);
        }
    }

    /// What it comes to.
    pub(super) fn value(self) -> u64 {
        mix(self.a, self.b)
    }

    /// The same as a guest says it.
    pub(super) fn text(self) -> String {
        format!("{:016x}", self.value())
    }
}

fn mix(sum: u64, value: u64) -> u64 {
    let sum = (sum ^ value).wrapping_mul(STEP);
    sum ^ (sum >> 29)
}

/// The words of a block.
fn words(number: u64, generation: u64) -> impl Iterator<Item = u64> {
    let first = mix(number, generation);
    let rest = (1..WORDS as u64 - 1).map(move |i| first.wrapping_add(i.wrapping_mul(STEP)));
    [number, generation].into_iter().chain(rest)
}

/// Writes so many MiB of blocks; their sum.
///
/// # Errors
/// As the target's.
pub(super) fn write(to: &mut dyn Write, mib: u64) -> io::Result<Sum> {
    let (mut chunk, mut sum) = (vec![0; MIB], Sum::default());
    let per_chunk = (MIB / BLOCK) as u64;
    for number in 0..mib {
        let all = (number * per_chunk..).flat_map(|block| words(block, GENERATION));
        for (place, word) in chunk.as_chunks_mut().0.iter_mut().zip(all) {
            *place = word.to_le_bytes();
        }
        sum.add(&chunk);
        to.write_all(&chunk)?;
    }
    Ok(sum)
}

/// Reads so many MiB; their sum. `see` is shown each MiB.
///
/// # Errors
/// As the source's, or if it ends too early.
pub(super) fn read(from: &mut dyn Read, mib: u64, mut see: impl FnMut(&[u8])) -> io::Result<Sum> {
    let (mut chunk, mut sum) = (vec![0; MIB], Sum::default());
    for _ in 0..mib {
        from.read_exact(&mut chunk)?;
        sum.add(&chunk);
        see(&chunk);
    }
    Ok(sum)
}

/// That these bytes are the blocks from `first` on, of whatever generation.
///
/// # Errors
/// If one is not.
pub(super) fn check(bytes: &[u8], first: u64) -> Result<()> {
    for (number, block) in (first..).zip(bytes.chunks_exact(BLOCK)) {
        let found = block.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        let generation = found.clone().nth(1).unwrap_or(0);
        ensure!(found.eq(words(number, generation)), "block {number} is not what was written");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        let written = write(&mut bytes, 2).unwrap();
        assert_eq!(bytes.len(), 2 * MIB);
        assert!(check(&bytes, 0).is_ok());
        let mut seen = 0;
        let sum = read(&mut bytes.as_slice(), 2, |chunk| seen += chunk.len()).unwrap();
        assert_eq!((sum.text(), seen), (written.text(), 2 * MIB));
        assert!(read(&mut bytes.as_slice(), 3, |_| ()).is_err());
    }

    #[test]
    fn wrong_blocks_are_found() {
        let mut bytes = Vec::new();
        let sum = write(&mut bytes, 1).unwrap().value();
        assert!(check(&bytes, 1).is_err());
        bytes.swap(BLOCK + 16, 2 * BLOCK + 16);
        assert!(check(&bytes, 0).is_err());
        assert_ne!(read(&mut bytes.as_slice(), 1, |_| ()).unwrap().value(), sum);
    }
}
