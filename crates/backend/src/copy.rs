//! A disk's contents onto another disk, with no room for zeros.

use std::io;

use host::io::{Sources, Targets};

use crate::Disk;
use crate::qcow2::CLUSTER_BYTES;

/// How much is read at once.
const PIECE: usize = 16 * CLUSTER_BYTES;
static ZEROS: [u8; CLUSTER_BYTES] = [0; CLUSTER_BYTES];

/// Copies all of `from` to `to`, which is as long or longer and is zeros, and makes it durable. Nothing is written where there are zeros,
/// so that no room is taken for them. `progress` hears how far it is, in bytes.
///
/// # Errors
/// If either cannot be read or written.
pub fn copy(from: &dyn Disk, to: &dyn Disk, mut progress: impl FnMut(u64)) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    while offset < from.bytes() {
        let extent = from.extent(offset, from.bytes() - offset)?;
        let mut len = extent.len;
        if !extent.zeros {
            let piece = usize::try_from(len).unwrap_or(PIECE).min(PIECE);
            let bytes = buffer.split_at_mut(piece).0;
            from.read(offset, &Targets::of(bytes))?;
            write(to, offset, bytes)?;
            len = piece as u64;
        }
        // Nothing is ever nothing; a loop that does not end would be worse.
        offset += len.max(1);
        progress(offset);
    }
    to.flush()
}

/// Writes what is not zeros, a cluster at a time, neighbours together.
fn write(to: &dyn Disk, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let is_zeros = |cluster: &[u8]| ZEROS.get(..cluster.len()) == Some(cluster);
    let mut at = offset;
    for run in bytes.chunks(CLUSTER_BYTES).collect::<Vec<_>>().chunk_by(|a, b| is_zeros(a) == is_zeros(b)) {
        let len: usize = run.iter().map(|cluster| cluster.len()).sum();
        let begin = usize::try_from(at - offset).unwrap_or(usize::MAX);
        if !run.first().is_none_or(|cluster| is_zeros(cluster)) {
            to.write(at, &Sources::of(bytes.get(begin..begin + len).unwrap_or_default()))?;
        }
        at += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use crate::{Changes, Format, Image, create};

    #[test]
    fn contents_are_the_same_in_every_format_and_zeros_take_no_room() {
        const BYTES: u64 = 40 << 20;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let first = File::create(path("0")).unwrap();
        first.set_len(BYTES).unwrap();
        for at in [0, 5 << 20, (5 << 20) + 70_000, (12 << 20) - 512, BYTES - 512] {
            first.write_all_at(&[7; 512], at).unwrap();
        }
        // Zeros that are written are zeros still.
        first.write_all_at(&vec![0; 3 << 20], 20 << 20).unwrap();
        let image = |number: usize, format, changes| Image {
            file: path(&number.to_string()),
            format: Some(format),
            changes,
            backing: None,
        };
        let formats = [Format::Raw, Format::Qcow2, Format::Qcow2, Format::Raw];
        for (number, pair) in formats.windows(2).enumerate() {
            let file = File::create_new(path(&(number + 1).to_string())).unwrap();
            create(&file, pair[1], BYTES, None).unwrap();
            let from = image(number, pair[0], Changes::Refused).open().unwrap();
            let to = image(number + 1, pair[1], Changes::Made).open().unwrap();
            let mut seen = Vec::new();
            super::copy(&*from, &*to, |at| seen.push(at)).unwrap();
            assert!(seen.is_sorted() && seen.last() == Some(&BYTES));
            assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20, "{number}");
        }
        assert!(std::fs::read(path("3")).unwrap() == std::fs::read(path("0")).unwrap());
    }
}
