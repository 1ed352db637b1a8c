//! Where a guest's connections over vsock lead: Unix sockets of the host, as with Firecracker's hybrid vsock.
//!
//! Programs of the host reach the guest by the socket at `PATH`: they say `CONNECT port` and hear `OK port` when the guest has
//! answered. What the guest calls by port `P` is the socket at `PATH_P`, if somebody listens there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The longest path, so that one with a port behind it is a socket's address still (unix(7)).
const LONGEST_PATH: usize = 107 - "_4294967295".len();

/// Why a path cannot be a VM's.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// No socket's address is that long.
    #[error("'{}' is too long for a socket: use a path of at most {LONGEST_PATH} bytes", .0.display())]
    TooLong(PathBuf),
    /// Another VM, or program, listens there.
    #[error("somebody listens at '{}': use another path", .0.display())]
    InUse(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen at '{}'", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The host's ends of connections. No stream blocks.
pub trait Doors: Send {
    /// What becomes readable when somebody calls the guest, if anybody can.
    fn listener(&self) -> Option<BorrowedFd<'_>>;

    /// Somebody who calls the guest.
    ///
    /// # Errors
    /// As accept(2).
    fn answer(&self) -> io::Result<UnixStream>;

    /// Calls whoever listens at a port of the host.
    ///
    /// # Errors
    /// As connect(2); a listener that is busy refuses.
    fn call(&self, port: u32) -> io::Result<UnixStream>;
}

/// Sockets by their paths.
#[derive(Debug)]
pub struct SocketFiles {
    path: PathBuf,
    listener: UnixListener,
}

impl SocketFiles {
    /// Listens at a path. What a VM that has ended left there is removed.
    ///
    /// # Errors
    /// If that is not possible.
    pub fn open(path: &Path) -> Result<Self, VsockError> {
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(VsockError::TooLong(path.to_owned()));
        }
        let listening = |source| VsockError::Listen { path: path.to_owned(), source };
        if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            match host::socket::connect_unix(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(listening)?;
                }
                _ => return Err(VsockError::InUse(path.to_owned())),
            }
        }
        let listener = UnixListener::bind(path).map_err(listening)?;
        listener.set_nonblocking(true).map_err(listening)?;
        // The guest's calls are made by name, whatever directory the process is in then.
        let path = std::path::absolute(path).map_err(listening)?;
        Ok(Self { path, listener })
    }
}

impl Doors for SocketFiles {
    fn listener(&self) -> Option<BorrowedFd<'_>> {
        Some(self.listener.as_fd())
    }

    fn answer(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    fn call(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        host::socket::connect_unix(Path::new(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_vms_and_can_be_used_again_when_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let first = SocketFiles::open(&path).unwrap();
        assert!(matches!(SocketFiles::open(&path), Err(VsockError::InUse(_))));
        drop(first);
        SocketFiles::open(&path).unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        assert!(matches!(SocketFiles::open(&dir.path().join("file")), Err(VsockError::Listen { .. })));
        let long = dir.path().join("x".repeat(LONGEST_PATH));
        assert!(matches!(SocketFiles::open(&long), Err(VsockError::TooLong(_))));
    }

    #[test]
    fn a_port_is_a_socket_beside_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let doors = SocketFiles::open(&dir.path().join("vsock")).unwrap();
        assert!(doors.call(52).is_err());
        let listener = UnixListener::bind(dir.path().join("vsock_52")).unwrap();
        doors.call(52).unwrap();
        listener.accept().unwrap();
    }
}
