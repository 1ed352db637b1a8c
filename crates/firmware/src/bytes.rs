//! Reading numbers and ranges out of an untrusted file: nothing here can panic or allocate.

/// The `N` bytes at `offset`.
fn array<const N: usize>(bytes: &[u8], offset: u64) -> Option<[u8; N]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..)?.first_chunk().copied()
}

/// The byte at `offset`.
pub(crate) fn u8_at(bytes: &[u8], offset: u64) -> Option<u8> {
    array::<1>(bytes, offset).map(u8::from_le_bytes)
}

/// The little-endian 16-bit number at `offset`.
pub(crate) fn u16_at(bytes: &[u8], offset: u64) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

/// The little-endian 32-bit number at `offset`.
pub(crate) fn u32_at(bytes: &[u8], offset: u64) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

/// The little-endian 64-bit number at `offset`.
pub(crate) fn u64_at(bytes: &[u8], offset: u64) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// The `len` bytes at `offset`.
pub(crate) fn slice_at(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let len = usize::try_from(len).ok()?;
    bytes.get(start..start.checked_add(len)?)
}

/// Whether `bytes` has `magic` at `offset`.
pub(crate) fn has(bytes: &[u8], offset: u64, magic: &[u8]) -> bool {
    slice_at(bytes, offset, magic.len() as u64) == Some(magic)
}

/// Stores `value` at `offset` of a structure that is being built. The caller's offsets are constants of a format
/// within the structure's size; one outside is ignored.
pub(crate) fn put(structure: &mut [u8], offset: usize, value: &[u8]) {
    let end = offset.saturating_add(value.len());
    debug_assert!(end <= structure.len());
    if let Some(slot) = structure.get_mut(offset..end) {
        slot.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_little_endian_within_bounds_only() {
        let b = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(u8_at(&b, 8), Some(9));
        assert_eq!(u16_at(&b, 7), Some(0x0908));
        assert_eq!(u32_at(&b, 1), Some(0x0504_0302));
        assert_eq!(u64_at(&b, 1), Some(0x0908_0706_0504_0302));
        assert_eq!((u16_at(&b, 8), u64_at(&b, 2), u32_at(&b, u64::MAX)), (None, None, None));
        assert_eq!(slice_at(&b, 9, 0), Some(&[][..]));
        assert_eq!((slice_at(&b, 8, 2), slice_at(&b, 1, u64::MAX)), (None, None));
    }
}
