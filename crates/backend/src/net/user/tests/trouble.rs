//! What does not work, as it should not.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use smoltcp::socket::tcp;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpProtocol, TcpControl,
    TcpPacket, TcpRepr, TcpSeqNumber,
};

use super::guest::Guest;
use crate::net::user::outside::{Datagrams, Outside, Stream};
use crate::net::user::packet::{self, Envelope, Incoming, Macs};
use crate::net::user::plan::tests::config;
use crate::net::{Abilities, Network, Offload};

/// A world in which every call is made for ever, and nobody may send echo requests.
struct Nowhere;

/// A connection on which nothing ever happens.
pub(in super::super) struct Ringing(pub(in super::super) Arc<UnixStream>);

impl Read for Ringing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl Write for Ringing {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Ringing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Stream for Ringing {
    fn connected(&self) -> io::Result<()> {
        Err(io::ErrorKind::NotConnected.into())
    }

    fn end(&self) {}

    fn abort(&self) {}
}

impl Outside for Nowhere {
    fn stream(&self, to: SocketAddr) -> io::Result<Box<dyn Stream>> {
        if to.port() == 9 {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        }
        Ok(Box::new(Ringing(Arc::new(UnixStream::pair()?.0))))
    }

    fn datagrams(&self, _: SocketAddr) -> io::Result<Box<dyn Datagrams>> {
        Err(io::ErrorKind::NetworkUnreachable.into())
    }

    fn echo(&self, _: IpAddr) -> io::Result<Box<dyn Datagrams>> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

const MACS: Macs = Macs { from: [0x52, 0x54, 0, 0x12, 0x34, 0x56], to: [0x52, 0x55, 0x0a, 0, 2, 2] };
const GUEST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 15));

/// A call from a port of the guest.
fn call(guest: &mut Guest, from: u16, to: SocketAddr) {
    let repr = TcpRepr {
        src_port: from,
        dst_port: to.port(),
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(0),
        ack_number: None,
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let mut frame = Envelope::new(MACS, GUEST, to.ip(), IpProtocol::Tcp).open(repr.buffer_len());
    let start = frame.len();
    frame.resize(start + repr.buffer_len(), 0);
    let ignored = smoltcp::phy::ChecksumCapabilities::ignored();
    let packet = &mut TcpPacket::new_unchecked(&mut frame[start..]);
    repr.emit(packet, &GUEST.into(), &to.ip().into(), &ignored);
    guest.net.transmit(&frame, Offload::default());
}

/// The frames that wait for the guest.
fn frames(guest: &mut Guest) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    guest.net.receive(Abilities::default(), &mut |frame| {
        frames.push(frame.parts.concat());
        true
    });
    frames
}

/// What the guest is told by ICMP, and by whom.
fn news(frames: &[Vec<u8>]) -> Vec<(IpAddr, Icmpv4DstUnreachable)> {
    let one = |frame: &Vec<u8>| {
        let view = EthernetFrame::new_checked(&frame[..]).ok()?;
        let Incoming { source, protocol: IpProtocol::Icmp, payload, .. } =
            packet::parse(view.ethertype(), view.payload())?
        else {
            return None;
        };
        let view = Icmpv4Packet::new_checked(payload).unwrap();
        match Icmpv4Repr::parse(&view, &smoltcp::phy::ChecksumCapabilities::default()).unwrap() {
            Icmpv4Repr::DstUnreachable { reason, .. } => Some((source, reason)),
            _ => None,
        }
    };
    frames.iter().filter_map(one).collect()
}

#[test]
fn a_flood_of_calls_pushes_out_nothing_but_itself() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut guest = Guest::with_outside(config(), Box::new(Nowhere));
    let before = descriptors();
    for port in 1000..6000 {
        call(&mut guest, port, "192.0.2.1:80".parse().unwrap());
    }
    // Other tests of this process have files open, too.
    assert!(descriptors() < before + 400, "{} descriptors, {before} before", descriptors());
    assert_eq!(frames(&mut guest).len(), 0);
}

#[test]
fn a_refusal_is_a_refusal() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut guest = Guest::new(config());
    for to in [SocketAddr::new([10, 0, 2, 2].into(), closed), "10.0.2.3:80".parse().unwrap()] {
        let handle = guest.connect(to);
        guest.until("a refusal", |guest| guest.tcp(handle).state() == tcp::State::Closed);
    }
}

#[test]
fn places_that_are_none_cannot_be_reached() {
    let mut guest = Guest::with_outside(config(), Box::new(Nowhere));
    let gateway = IpAddr::from([10, 0, 2, 2]);
    for to in ["127.0.0.1:80", "10.0.2.77:80", "192.0.2.1:9"] {
        call(&mut guest, 1000, to.parse().unwrap());
        assert_eq!(news(&frames(&mut guest)), [(gateway, Icmpv4DstUnreachable::NetUnreachable)], "{to}");
    }
}

#[test]
fn echo_requests_are_answered_or_prohibited() {
    let mut guest = Guest::with_outside(config(), Box::new(Nowhere));
    let mut ping = |to: [u8; 4], data: &[u8]| {
        let request = Icmpv4Repr::EchoRequest { ident: 5, seq_no: 6, data };
        let mut frame = Envelope::new(MACS, GUEST, to.into(), IpProtocol::Icmp).open(request.buffer_len());
        let start = frame.len();
        frame.resize(start + request.buffer_len(), 0);
        let checksums = smoltcp::phy::ChecksumCapabilities::default();
        request.emit(&mut Icmpv4Packet::new_unchecked(&mut frame[start..]), &checksums);
        guest.net.transmit(&frame, Offload::default());
        frames(&mut guest)
    };
    let answers = ping([10, 0, 2, 2], b"some data");
    let view = EthernetFrame::new_checked(&answers[0][..]).unwrap();
    let packet = packet::parse(EthernetProtocol::Ipv4, view.payload()).unwrap();
    let view = Icmpv4Packet::new_checked(packet.payload).unwrap();
    let answer = Icmpv4Repr::parse(&view, &smoltcp::phy::ChecksumCapabilities::default()).unwrap();
    assert_eq!(answer, Icmpv4Repr::EchoReply { ident: 5, seq_no: 6, data: b"some data" });
    let prohibited = [(IpAddr::from([10, 0, 2, 2]), Icmpv4DstUnreachable::CommProhibited)];
    // A packet of 1500 bytes can be answered, a longer one cannot.
    assert_eq!([ping([10, 0, 2, 2], &[0; 1472]).len(), ping([10, 0, 2, 2], &[0; 1473]).len()], [1, 0]);
    assert_eq!(news(&ping([192, 0, 2, 1], b"some data")), prohibited);
}

#[test]
fn nobody_at_a_port_is_said_so() {
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut guest = Guest::new(config());
    let to: SocketAddr = ([10, 0, 2, 2], closed.port()).into();
    let mut heard = Vec::new();
    let send = |guest: &mut Guest| {
        for frame in packet::udp(MACS, (GUEST, 700).into(), to, b"anybody?", 1500) {
            guest.net.transmit(&frame, Offload::default());
        }
    };
    send(&mut guest);
    for _ in 0..1000 {
        guest.net.wait(Some(std::time::Duration::from_millis(10)));
        heard.extend(news(&frames(&mut guest)));
        if !heard.is_empty() {
            break;
        }
    }
    assert_eq!(heard, [(to.ip(), Icmpv4DstUnreachable::PortUnreachable)]);
}

#[test]
fn a_reader_that_is_slow_stops_the_guest_and_loses_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = Guest::new(config());
    let handle = guest.connect(([10, 0, 2, 2], listener.local_addr().unwrap().port()).into());
    guest.until("a call", |guest| guest.tcp(handle).may_send());
    let (mut stream, _) = listener.accept().unwrap();
    let data: Vec<u8> = (0..64 << 20).map(|n: u32| (n >> 3) as u8).collect();
    let mut sent = 0;
    let mut quiet = 0;
    guest.until("a full window", |guest| {
        let socket = guest.tcp(handle);
        let count = if socket.can_send() { socket.send_slice(&data[sent..]).unwrap() } else { 0 };
        sent += count;
        quiet = if count == 0 { quiet + 1 } else { 0 };
        quiet > 100
    });
    assert!(sent < data.len(), "nothing stopped the guest");
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).unwrap();
        seen
    });
    let total = sent + 100_000;
    guest.exchange_rest(handle, &data[sent..total], &reader);
    assert!(reader.join().unwrap() == data[..total]);
}

#[test]
fn resets_pass_through() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to: SocketAddr = ([10, 0, 2, 2], listener.local_addr().unwrap().port()).into();
    let mut guest = Guest::new(config());
    let handle = guest.connect(to);
    guest.until("a call", |guest| guest.tcp(handle).may_send());
    let (mut stream, _) = listener.accept().unwrap();
    guest.tcp(handle).abort();
    stream.set_nonblocking(true).unwrap();
    guest.until(
        "a reset outside",
        |_| matches!(stream.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::ConnectionReset),
    );
    let handle = guest.connect(to);
    guest.until("a call", |guest| guest.tcp(handle).may_send());
    let (stream, _) = listener.accept().unwrap();
    host::socket::reset_on_close(&stream).unwrap();
    drop(stream);
    guest.until("a reset inside", |guest| guest.tcp(handle).state() == tcp::State::Closed);
}
