//! The world as the network sees it: sockets, behind two small traits, so that tests and fuzzing bring a world of their own.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

/// A connection to somewhere outside. It never blocks.
pub trait Stream: Read + Write + AsFd + Send {
    /// What became of connecting, once the stream is writable.
    ///
    /// # Errors
    /// Why there is no connection.
    fn connected(&self) -> io::Result<()>;

    /// Says that nothing more will be written.
    fn end(&self);

    /// Makes closing it a reset.
    fn abort(&self);
}

impl Stream for TcpStream {
    fn connected(&self) -> io::Result<()> {
        match self.take_error()? {
            Some(error) => Err(error),
            None => self.peer_addr().map(drop),
        }
    }

    fn end(&self) {
        // Who has gone already need not be told.
        let _ = self.shutdown(Shutdown::Write);
    }

    fn abort(&self) {
        // Without it the other end takes an end for a good one, which is all that can be done then.
        let _ = host::socket::reset_on_close(self);
    }
}

impl Stream for UnixStream {
    fn connected(&self) -> io::Result<()> {
        Ok(())
    }

    fn end(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }

    fn abort(&self) {}
}

/// Datagrams to and from somewhere outside. Nothing blocks.
pub trait Datagrams: AsFd + Send {
    /// Sends one.
    ///
    /// # Errors
    /// As send(2); also for one that was sent before and could not be delivered.
    fn send(&self, datagram: &[u8]) -> io::Result<usize>;

    /// Receives one.
    ///
    /// # Errors
    /// As recv(2).
    fn receive(&self, to: &mut [u8]) -> io::Result<usize>;
}

impl Datagrams for UdpSocket {
    fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        Self::send(self, datagram)
    }

    fn receive(&self, to: &mut [u8]) -> io::Result<usize> {
        self.recv(to)
    }
}

impl Datagrams for UnixDatagram {
    fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        Self::send(self, datagram)
    }

    fn receive(&self, to: &mut [u8]) -> io::Result<usize> {
        self.recv(to)
    }
}

/// Where connections lead.
pub trait Outside: Send {
    /// Begins a connection.
    ///
    /// # Errors
    /// As connect(2).
    fn stream(&self, to: SocketAddr) -> io::Result<Box<dyn Stream>>;

    /// Datagrams over UDP.
    ///
    /// # Errors
    /// As connect(2).
    fn datagrams(&self, to: SocketAddr) -> io::Result<Box<dyn Datagrams>>;

    /// ICMP echo requests out, replies in: messages from their ICMP header on.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] if the host does not let us.
    fn echo(&self, to: IpAddr) -> io::Result<Box<dyn Datagrams>>;
}

/// The host's own network.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostNetwork;

impl Outside for HostNetwork {
    fn stream(&self, to: SocketAddr) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(host::socket::connect_tcp(to)?))
    }

    fn datagrams(&self, to: SocketAddr) -> io::Result<Box<dyn Datagrams>> {
        Ok(Box::new(host::socket::connect_udp(to)?))
    }

    fn echo(&self, to: IpAddr) -> io::Result<Box<dyn Datagrams>> {
        Ok(Box::new(host::socket::connect_ping(to)?))
    }
}
