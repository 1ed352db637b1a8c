//! What std does not do with sockets: connections that are begun without waiting, echo requests without privileges, open files
//! that go to another process.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, ipproto, recvmsg, sendmsg,
};

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// Begins a TCP connection. The stream does not block; it becomes writable when it is connected or has an error.
///
/// # Errors
/// As connect(2), if it is refused at once.
pub fn connect_tcp(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = rustix::net::socket_with(family(to.ip()), SocketType::STREAM, FLAGS, None)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A stream that does not block to whoever listens at a path.
///
/// # Errors
/// As connect(2); a listener that has too many callers waiting refuses.
pub fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let to = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
    rustix::net::connect(&socket, &to)?;
    Ok(socket.into())
}

/// A datagram socket that does not block and hears `to` only.
///
/// # Errors
/// As connect(2).
pub fn connect_udp(to: SocketAddr) -> io::Result<UdpSocket> {
    connect_datagrams(to, None)
}

/// A socket for echo requests to `to` and its replies (icmp(7)): messages begin with the ICMP header, whose identifier
/// and checksum are the kernel's. It does not block.
///
/// # Errors
/// As socket(2): [`io::ErrorKind::PermissionDenied`] if the host does not let this user (`net.ipv4.ping_group_range`).
pub fn connect_ping(to: IpAddr) -> io::Result<UdpSocket> {
    let protocol = if to.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
    connect_datagrams((to, 0).into(), Some(protocol))
}

fn connect_datagrams(to: SocketAddr, protocol: Option<Protocol>) -> io::Result<UdpSocket> {
    let socket = rustix::net::socket_with(family(to.ip()), SocketType::DGRAM, FLAGS, protocol)?;
    rustix::net::connect(&socket, &to)?;
    Ok(socket.into())
}

/// Makes closing the stream a reset for the other end.
///
/// # Errors
/// As setsockopt(2).
pub fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_linger(stream, Some(std::time::Duration::ZERO))?)
}

/// The most files that are sent at once.
pub const MOST_FILES: usize = 40;

/// Sends open files to the process at the other end, with a byte that says nothing.
///
/// # Errors
/// If there are more than [`MOST_FILES`], or nobody takes them.
pub fn send_files(to: &UnixStream, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut with = SendAncillaryBuffer::new(&mut space);
    if files.len() > MOST_FILES || !with.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(to, &[IoSlice::new(&[0])], &mut with, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes files that [`send_files`] has sent; those beyond [`MOST_FILES`] are closed.
///
/// # Errors
/// If none are coming.
pub fn receive_files(from: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut with = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let message =
        recvmsg(from.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut with, RecvFlags::CMSG_CLOEXEC)?;
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let files = |message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    };
    Ok(with.drain().filter_map(files).flatten().collect())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_connection_is_begun_and_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = connect_tcp(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        theirs.write_all(b"x").unwrap();
        ours.set_nonblocking(false).unwrap();
        ours.read_exact(&mut [0]).unwrap();
        reset_on_close(&ours).unwrap();
        drop(ours);
        assert_eq!(theirs.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn datagrams_come_from_one_side_only() {
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let near = connect_udp(far.local_addr().unwrap()).unwrap();
        let at = near.local_addr().unwrap();
        other.send_to(b"other", at).unwrap();
        far.send_to(b"far", at).unwrap();
        near.set_nonblocking(false).unwrap();
        let mut bytes = [0; 8];
        assert_eq!(near.recv(&mut bytes).unwrap(), 3);
        assert_eq!(&bytes[..3], b"far");
    }
    #[test]
    fn open_files_go_to_another_process() {
        use std::io::Write;
        let (here, there) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"x").unwrap();
        send_files(&here, &[file.as_fd(), here.as_fd()]).unwrap();
        let taken = receive_files(&there).unwrap();
        assert_eq!(taken.len(), 2);
        let again = std::fs::File::from(taken.into_iter().next().unwrap());
        assert_eq!(again.metadata().unwrap().len(), 1);
        assert!(send_files(&here, &[file.as_fd(); MOST_FILES + 1]).is_err());
        (&here).write_all(b"no files").unwrap();
        assert!(receive_files(&there).unwrap().is_empty());
        drop(here);
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut &there, &mut rest).unwrap();
        assert!(receive_files(&there).is_err(), "nobody is there");
    }
}
