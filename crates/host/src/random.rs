//! Random numbers from the host kernel.

use rustix::rand::{GetRandomFlags, getrandom};

/// 64 random bits, or `None` as long as the kernel's generator is not seeded (early in the host's boot).
pub fn u64() -> Option<u64> {
    let mut bytes = [0; 8];
    let filled = getrandom(&mut bytes, GetRandomFlags::NONBLOCK).ok()?;
    (filled == bytes.len()).then(|| u64::from_le_bytes(bytes))
}

/// Fills `bytes` with random ones, waiting early in the host's boot until there are any; false if the kernel has none.
pub fn fill(bytes: &mut [u8]) -> bool {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match getrandom(rest, GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    #[test]
    fn draws_differ() {
        let draws: std::collections::HashSet<_> = (0..64).filter_map(|_| super::u64()).collect();
        assert_eq!(draws.len(), 64);
        let mut bytes = [0; 1000];
        assert!(super::fill(&mut bytes) && bytes.iter().any(|byte| *byte != bytes[0]));
    }
}
