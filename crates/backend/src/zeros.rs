//! Zeros in a file, by the cheapest means that the host has.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use host::io::{punch_hole, zero_range};

/// What zeros are written from where the host has no better way.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Gives the blocks of a range back if the host can; it is zeros then, and otherwise what it was.
pub(crate) fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if_supported(punch_hole(file.as_fd(), offset, len)).map(drop)
}

/// Makes a range zeros, and gives its blocks back if `unmap`, where the host can.
pub(crate) fn write(file: &File, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
    let done = unmap && if_supported(punch_hole(file.as_fd(), offset, len))?
        || if_supported(zero_range(file.as_fd(), offset, len))?;
    if done { Ok(()) } else { write_plainly(file, offset, len) }
}

/// Writes zeros the long way.
pub(crate) fn write_plainly(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let part = usize::try_from(len - done).unwrap_or(ZEROS.len()).min(ZEROS.len());
        file.write_all_at(ZEROS.get(..part).unwrap_or_default(), offset + done)?;
        done += part as u64;
    }
    Ok(())
}

/// What a host that cannot says is not a failure.
fn if_supported(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
        Err(error) => Err(error),
    }
}
