//! `umbra cp`: files between here and a guest that runs. One side makes an archive and the other unpacks it ([`copy`]); in the guest that is the
//! program that runs commands there ([`init::Copying`]), so the archive is a command's standard output or input ([`super::exec`]).

use std::ffi::OsStr;
use std::io::{self, BufWriter, Read, Write, stderr, stdin, stdout};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use copy::{CopyError, Place};
use init::{Copying, Directory, Settings};

use super::args::CpArgs;
use super::exec;
use super::home::{Registry, Vm};
use crate::message;
use crate::status::Status;
use control::Kind;

/// Permissions that a file from a guest may have: none that make whoever runs it another user.
const HARMLESS: u32 = 0o777;
/// An archive on standard input or output instead of files.
const ARCHIVE: &str = "-";

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Here.
    Here(PathBuf),
    /// In a VM, from its root.
    There(String, PathBuf),
}

impl End {
    /// As docker understands it: what is before a colon is a VM, unless it has a slash.
    fn of(text: &OsStr) -> Self {
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|byte| *byte == b':');
        let parts = colon.and_then(|at| Some((bytes.get(..at)?, bytes.get(at + 1..)?)));
        match parts {
            Some((name, path)) if !name.is_empty() && !name.contains(&b'/') => {
                Self::There(String::from_utf8_lossy(name).into_owned(), OsStr::from_bytes(path).into())
            }
            _ => Self::Here(text.into()),
        }
    }
}

/// Copies.
///
/// # Errors
/// If it cannot be done.
pub(crate) fn run(args: &CpArgs) -> Result<Status> {
    match (End::of(&args.source), End::of(&args.target)) {
        (End::There(vm, path), End::Here(target)) => from_guest(&vm, &path, &target),
        (End::Here(source), End::There(vm, path)) => to_guest(&source, &vm, &path),
        (End::Here(_), End::Here(_)) => {
            bail!("neither path is in a VM: write one as VM:PATH, for example box:/etc/hostname")
        }
        (End::There(..), End::There(..)) => bail!("both paths are in a VM: copy to this machine first"),
    }
}

/// The program in the guest, at work.
struct Far {
    stream: UnixStream,
    /// What it has said and nobody has read yet.
    said: io::Cursor<Vec<u8>>,
    status: Option<u8>,
}

impl Far {
    fn start(name: &str, what: Copying, path: &Path) -> Result<Self> {
        ensure!(!path.as_os_str().is_empty(), "there is no path behind '{name}:': '{name}:/' is its root");
        let vm: Vm = Registry::of_user()?.find(name)?;
        let settings = Settings {
            directory: Directory::Exactly("/".into()),
            user: Some("0".to_owned()),
            command: vec!["/proc/self/exe".into(), what.name().into(), path.into()],
            ..Settings::default()
        };
        let stream = exec::begin(&vm, &settings, Duration::from_secs(exec::PATIENCE_S))?;
        Ok(Self { stream, said: io::Cursor::default(), status: None })
    }

    /// Waits for its end; what went wrong there it has said itself.
    fn end(mut self) -> io::Result<Status> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(if self.status == Some(0) { Status::OK } else { Status::REFUSED })
    }
}

/// Its standard output.
impl Read for Far {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.said.read(to)?;
            if read > 0 || to.is_empty() || self.status.is_some() {
                return Ok(read);
            }
            match control::read_frame(&mut self.stream)? {
                Some((Kind::Output, bytes)) => self.said = io::Cursor::new(bytes),
                Some((Kind::Error, bytes)) => stderr().write_all(&bytes)?,
                Some((Kind::End, bytes)) => self.status = bytes.first().copied().or(Some(Status::KILLED.0)),
                _ => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the VM's process was killed")),
            }
        }
    }
}

/// Its standard input.
impl Write for Far {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        control::send_frames(&mut self.stream, Kind::Input, bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn from_guest(vm: &str, path: &Path, target: &Path) -> Result<Status> {
    let mut far = Far::start(vm, Copying::Pack, path)?;
    // Who has ended by now needs no input.
    let _ = control::send_frames(&mut far.stream, Kind::InputEnd, &[]);
    let copied = if target == Path::new(ARCHIVE) {
        io::copy(&mut far, &mut stdout().lock())
            .map(drop)
            .context("cannot write the archive to standard output")
    } else {
        let place = Place::Named(Some(copy::name_of(path)));
        copy::unpack(&mut far, target, place, HARMLESS).map_err(anyhow::Error::from)
    };
    match (far.status, copied) {
        // It has said why the archive has no end.
        (Some(1..), _) => Ok(Status::REFUSED),
        (_, Err(error)) => Err(error),
        (_, Ok(())) => Ok(far.end()?),
    }
}

fn to_guest(source: &Path, vm: &str, path: &Path) -> Result<Status> {
    let is_archive = source == Path::new(ARCHIVE);
    if !is_archive {
        // Before anything is asked of the guest.
        source.symlink_metadata().with_context(|| format!("cannot read '{}'", source.display()))?;
    }
    let mut far = Far::start(vm, if is_archive { Copying::Extract } else { Copying::Unpack }, path)?;
    let sent = if is_archive {
        io::copy(&mut stdin().lock(), &mut far).map(drop).map_err(CopyError::CutShort)
    } else {
        let to = BufWriter::with_capacity(64 << 10, &mut far);
        copy::pack(source, to, &mut |path| message::note(&CopyError::Special(path.to_owned()).to_string()))
    };
    match sent {
        // An archive without its end is no success there, and nobody has to hear of that.
        Err(error) if !matches!(error, CopyError::CutShort(_)) => Err(error.into()),
        // Who has ended before all was sent says why.
        _ => {
            let _ = control::send_frames(&mut far.stream, Kind::InputEnd, &[]);
            far.end().context("the copy was cut short")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let there = |vm: &str, path: &str| End::There(vm.into(), path.into());
        for (text, end) in [
            ("box:/etc/passwd", there("box", "/etc/passwd")),
            ("box:a:b", there("box", "a:b")),
            ("box:", there("box", "")),
            ("./a:b", End::Here("./a:b".into())),
            (":a", End::Here(":a".into())),
            ("a", End::Here("a".into())),
            ("-", End::Here("-".into())),
        ] {
            assert_eq!(End::of(OsStr::new(text)), end, "{text}");
        }
    }
}
