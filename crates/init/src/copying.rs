//! The guest's end of `umbra cp`: the program as a command that makes an archive of files, or files of an archive. So it needs nothing of the
//! guest's own programs.

use std::ffi::OsString;
use std::io::{BufWriter, stdin, stdout};
use std::path::{Path, PathBuf};

use copy::{CopyError, Place};
use init::Copying;

/// All permissions: the guest's root may give them to itself.
const ALL: u32 = 0o7777;

/// Does it, and returns a status.
pub(crate) fn run(what: Copying, mut arguments: impl Iterator<Item = OsString>) -> i32 {
    let path = PathBuf::from(arguments.next().unwrap_or_default());
    match carry_out(what, &path) {
        Ok(()) => 0,
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            eprintln!("umbra: in the guest: {error}{cause}");
            1
        }
    }
}

fn carry_out(what: Copying, path: &Path) -> Result<(), CopyError> {
    let place = match what {
        Copying::Pack => {
            return copy::pack(path, BufWriter::with_capacity(64 << 10, stdout().lock()), &mut |path| {
                eprintln!("umbra: in the guest: {}", CopyError::Special(path.to_owned()));
            });
        }
        // The host is trusted to send what it was asked for.
        Copying::Unpack => Place::Named(None),
        Copying::Extract => Place::Inside,
    };
    copy::unpack(stdin().lock(), path, place, ALL)
}
