//! The device's configuration (VIRTIO 1.2, 5.2.4).

use backend::SECTOR;
use x86::bits::low32;

/// The most data buffers of a request.
const MOST_SEGMENTS: u32 = 254;
/// The most ranges of a request to discard or to make zero.
pub(super) const MOST_RANGES: u32 = 64;
/// The most sectors of such a range: 1 GiB, so that none takes for ever.
pub(super) const MOST_RANGE_SECTORS: u32 = low32((1 << 30) / SECTOR);
/// What images are stored in.
const BLOCK_SECTORS: u32 = low32(4096 / SECTOR);

/// `struct virtio_blk_config` of a disk of so many sectors.
pub(super) fn bytes(sectors: u64, queues: u16) -> Vec<u8> {
    let mut config = Vec::with_capacity(60);
    config.extend(sectors.to_le_bytes());
    // No limit on a buffer's size; then of buffers.
    config.extend(0u32.to_le_bytes());
    config.extend(MOST_SEGMENTS.to_le_bytes());
    // No geometry; block size; no topology.
    config.extend([0; 4]);
    config.extend(low32(SECTOR).to_le_bytes());
    config.extend([0; 8]);
    // No choice of cache modes.
    config.extend([0; 2]);
    config.extend(queues.to_le_bytes());
    for word in [MOST_RANGE_SECTORS, MOST_RANGES, BLOCK_SECTORS, MOST_RANGE_SECTORS, MOST_RANGES] {
        config.extend(word.to_le_bytes());
    }
    // Zeros may be unmapped.
    config.extend([1, 0, 0, 0]);
    config
}
