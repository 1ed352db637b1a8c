//! Connections in both directions, packet by packet, and the device through its rings.

use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bus::Lifecycle;
use x86::Gpa;

use super::connection::BUFFER;
use super::wire::{Address, STREAM, operation, shutdown};
use super::*;
use crate::transport::tests::rig::*;

const GUEST: u32 = 3;
const DATA: u64 = 0x2_0000;

/// The host's ends: who was called at which port, and who calls.
#[derive(Default)]
struct Hall {
    called: Vec<(u32, UnixStream)>,
    callers: Vec<UnixStream>,
}

#[derive(Clone, Default)]
struct Desk(Arc<Mutex<Hall>>);

impl Doors for Desk {
    fn listener(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn answer(&self) -> io::Result<UnixStream> {
        self.0.lock().unwrap().callers.pop().ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// Nobody listens at port 1.
    fn call(&self, port: u32) -> io::Result<UnixStream> {
        if port == 1 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        self.0.lock().unwrap().called.push((port, theirs));
        Ok(ours)
    }
}

/// A guest without a driver.
struct Peer {
    exchange: Exchange,
    desk: Desk,
    room: Vec<u8>,
}

impl Peer {
    fn new() -> Self {
        let (desk, bell) = (Desk::default(), Bell::new().unwrap());
        let exchange = Exchange::new(GUEST.into(), Box::new(desk.clone()), &bell).unwrap();
        Self { exchange, desk, room: vec![0; LONGEST] }
    }

    /// A packet from a port of the guest to one of the host, with credit for 1,000 bytes.
    fn packet(from: u32, to: u32, operation: u16) -> Header {
        Header {
            source: Address { cid: GUEST.into(), port: from },
            target: Address { cid: 2, port: to },
            kind: STREAM,
            operation,
            buffer: 1000,
            ..Header::default()
        }
    }

    fn says(&mut self, header: Header, data: &[u8]) {
        self.exchange.take(&Header { len: u32::try_from(data.len()).unwrap(), ..header }, data);
    }

    /// What it hears next: operation, ports (its own first) and data.
    fn hears(&mut self) -> Option<(u16, u32, u32, Vec<u8>)> {
        self.exchange.wait(Some(Duration::from_millis(1)));
        let header = self.exchange.next(&mut self.room)?;
        assert_eq!((header.source.cid, header.target.cid), (2, GUEST.into()));
        let data = self.room[..header.len as usize].to_vec();
        Some((header.operation, header.target.port, header.source.port, data))
    }

    /// A connection from port 10 to port 20, and the host's end.
    fn connected() -> (Self, UnixStream) {
        let mut peer = Self::new();
        peer.says(Self::packet(10, 20, operation::REQUEST), &[]);
        assert_eq!(peer.hears(), Some((operation::RESPONSE, 10, 20, Vec::new())));
        let (port, far) = peer.desk.0.lock().unwrap().called.pop().unwrap();
        assert_eq!(port, 20);
        (peer, far)
    }

    fn data(data: &[u8]) -> Option<(u16, u32, u32, Vec<u8>)> {
        Some((operation::DATA, 10, 20, data.to_vec()))
    }
}

#[test]
fn headers_are_what_they_were() {
    let bytes: Vec<u8> = (1..=44).collect();
    let bytes = bytes.try_into().unwrap();
    let header = Header::parse(&bytes);
    assert_eq!((header.source.cid, header.target.port), (0x0807_0605_0403_0201, 0x1817_1615));
    assert_eq!((header.len, header.kind, header.operation), (0x1c1b_1a19, 0x1e1d, 0x201f));
    assert_eq!((header.flags, header.buffer, header.forwarded), (0x2423_2221, 0x2827_2625, 0x2c2b_2a29));
    assert_eq!(header.bytes(), bytes);
}

#[test]
fn a_guest_calls_the_host_and_both_talk() {
    let (mut peer, mut far) = Peer::connected();
    peer.says(Peer::packet(10, 20, operation::DATA), b"hello");
    let mut heard = [0; 5];
    far.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    far.write_all(b"hi").unwrap();
    assert_eq!(peer.hears(), Peer::data(b"hi"));
    assert_eq!(peer.hears(), None);
}

#[test]
fn who_is_not_there_is_not_reached() {
    let mut peer = Peer::new();
    peer.says(Peer::packet(10, 1, operation::REQUEST), &[]);
    assert_eq!(peer.hears(), Some((operation::RESET, 10, 1, Vec::new())));
    // Data without a connection, a socket of another kind; and what is not for the host, or not from the guest.
    peer.says(Peer::packet(10, 20, operation::DATA), b"x");
    assert_eq!(peer.hears(), Some((operation::RESET, 10, 20, Vec::new())));
    peer.says(Header { kind: 2, ..Peer::packet(10, 20, operation::REQUEST) }, &[]);
    assert_eq!(peer.hears(), Some((operation::RESET, 10, 20, Vec::new())));
    peer.says(Peer::packet(10, 20, operation::RESET), &[]);
    let elsewhere = Address { cid: 9, port: 1 };
    peer.says(Header { source: elsewhere, ..Peer::packet(10, 20, operation::REQUEST) }, &[]);
    assert_eq!(peer.hears(), None);
}

#[test]
fn the_host_sends_no_more_than_there_is_room_for() {
    let (mut peer, mut far) = Peer::connected();
    far.write_all(&[7; 1500]).unwrap();
    assert_eq!(peer.hears(), Peer::data(&[7; 1000]));
    assert_eq!(peer.hears(), Some((operation::CREDIT_REQUEST, 10, 20, Vec::new())), "asked once");
    assert_eq!(peer.hears(), None);
    peer.says(Header { forwarded: 200, ..Peer::packet(10, 20, operation::CREDIT_UPDATE) }, &[]);
    assert_eq!(peer.hears(), Peer::data(&[7; 200]));
    // A count that cannot be gives no room, and does no harm.
    peer.says(Header { forwarded: 5000, ..Peer::packet(10, 20, operation::CREDIT_UPDATE) }, &[]);
    assert_eq!(peer.hears(), Some((operation::CREDIT_REQUEST, 10, 20, Vec::new())));
    peer.says(Header { forwarded: 1200, ..Peer::packet(10, 20, operation::CREDIT_UPDATE) }, &[]);
    assert_eq!(peer.hears(), Peer::data(&[7; 300]));
}

#[test]
fn what_the_host_does_not_read_is_kept_as_far_as_was_said() {
    let (mut peer, mut far) = Peer::connected();
    // Until the host's socket is full, and then as much as there is room for.
    let piece = vec![1; 8 << 10];
    let mut sent: u32 = 0;
    let mut told: u32 = 0;
    while sent - told + 8192 <= BUFFER {
        peer.says(Peer::packet(10, 20, operation::DATA), &piece);
        sent += 8192;
        peer.exchange.wait(Some(Duration::ZERO));
        if let Some(header) = peer.exchange.next(&mut peer.room) {
            assert_eq!((header.operation, header.buffer), (operation::CREDIT_UPDATE, BUFFER));
            told = header.forwarded;
        }
    }
    assert!(told > 0, "credit was given while the socket had room");
    // It is read, and there is room again.
    let mut all = vec![0; sent as usize];
    let (mut done, mut updates) = (0, 0);
    while done < all.len() {
        done += far.read(&mut all[done..]).unwrap();
        if let Some((operation, ..)) = peer.hears() {
            assert_eq!(operation, operation::CREDIT_UPDATE);
            updates += 1;
        }
    }
    assert!(all.iter().all(|byte| *byte == 1) && updates > 0);
    // Who sends more than that is cut off.
    (0..3 * BUFFER / 8192).for_each(|_| peer.says(Peer::packet(10, 20, operation::DATA), &piece));
    let last = std::iter::from_fn(|| peer.hears()).last().unwrap();
    assert_eq!(last.0, operation::RESET);
}

#[test]
fn either_side_ends_its_half_or_all() {
    // The guest has said its last, and still hears.
    let (mut peer, mut far) = Peer::connected();
    peer.says(Peer::packet(10, 20, operation::DATA), b"bye");
    peer.says(Header { flags: shutdown::SEND, ..Peer::packet(10, 20, operation::SHUTDOWN) }, &[]);
    let mut all = Vec::new();
    far.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"bye");
    far.write_all(b"well").unwrap();
    assert_eq!(peer.hears(), Peer::data(b"well"));
    // Then it wants nothing any more: that is answered by a reset.
    peer.says(Header { flags: shutdown::RECEIVE, ..Peer::packet(10, 20, operation::SHUTDOWN) }, &[]);
    assert_eq!(peer.hears(), Some((operation::RESET, 10, 20, Vec::new())));
    assert_eq!(far.read(&mut [0]).unwrap(), 0);

    let flags = |peer: &mut Peer| {
        peer.exchange.wait(Some(Duration::from_millis(1)));
        let header = peer.exchange.next(&mut peer.room).unwrap();
        assert_eq!(header.operation, operation::SHUTDOWN);
        header.flags
    };
    let (mut peer, far) = Peer::connected();
    far.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(flags(&mut peer), shutdown::SEND, "the host has said its last, and still hears");
    let (mut peer, far) = Peer::connected();
    drop(far);
    assert_eq!(flags(&mut peer), shutdown::SEND | shutdown::RECEIVE);
    peer.says(Peer::packet(10, 20, operation::RESET), &[]);
    assert_eq!(peer.hears(), None);
}

/// Somebody who calls the guest, in words.
fn caller(peer: &mut Peer, words: &str) -> UnixStream {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.write_all(words.as_bytes()).unwrap();
    peer.desk.0.lock().unwrap().callers.push(ours);
    peer.exchange.answer_callers();
    theirs
}

#[test]
fn the_host_calls_the_guest() {
    let mut peer = Peer::new();
    let mut theirs = caller(&mut peer, "CONNECT 1234\nearly");
    let (asked, guest, host, _) = peer.hears().unwrap();
    assert_eq!((asked, guest), (operation::REQUEST, 1234));
    peer.says(Peer::packet(1234, host, operation::RESPONSE), &[]);
    let line = format!("OK {host}\n");
    let mut said = vec![0; line.len()];
    theirs.read_exact(&mut said).unwrap();
    assert_eq!(said, line.as_bytes());
    assert_eq!(peer.hears(), Some((operation::DATA, 1234, host, b"early".to_vec())), "nothing is lost");
    // A second call to the same port has a port of its own, and the guest may refuse it.
    let mut second = caller(&mut peer, "CONNECT 1234\n");
    let (_, _, other, _) = peer.hears().unwrap();
    assert_ne!(other, host);
    peer.says(Peer::packet(1234, other, operation::RESET), &[]);
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
}

#[test]
fn callers_that_say_anything_else_are_cut_off() {
    for words in [
        "CONNECT\n",
        "connect 1\n",
        "CONNECT -1\n",
        "CONNECT 4294967296\n",
        "GET / HTTP/1.1\n",
        &"C".repeat(100),
    ] {
        let mut peer = Peer::new();
        let mut theirs = caller(&mut peer, words);
        assert_eq!(peer.hears(), None, "{words}");
        let end = theirs.read(&mut [0]);
        // With something unread, the end is a reset.
        assert!(end.is_err() || end.is_ok_and(|count| count == 0), "{words}");
    }
}

#[test]
fn there_are_no_more_connections_than_there_may_be() {
    let mut peer = Peer::new();
    let mut answers = Vec::new();
    for port in 0..600 {
        peer.says(Peer::packet(port, 20, operation::REQUEST), &[]);
        answers.extend(peer.hears().map(|heard| heard.0));
    }
    assert_eq!(answers.iter().filter(|answer| **answer == operation::RESPONSE).count(), 512);
    assert_eq!(answers.iter().filter(|answer| **answer == operation::RESET).count(), 88);
    peer.exchange.clear();
    peer.says(Peer::packet(1000, 20, operation::REQUEST), &[]);
    assert_eq!(peer.hears().unwrap().0, operation::RESPONSE);
}

struct Bench {
    rig: Rig,
    desk: Desk,
}

impl Bench {
    fn new() -> Self {
        let desk = Desk::default();
        let rig = Rig::new(Box::new(Vsock::new(GUEST, Box::new(desk.clone())).unwrap()));
        rig.enable(true);
        Self { rig, desk }
    }
}

#[test]
fn packets_leave_in_any_cut_and_the_configuration_has_the_guests_number() {
    for features in [0, PACKED, EVENT_INDEX | INDIRECT] {
        let bench = Bench::new();
        assert_eq!(u64::from_le_bytes(bench.rig.read(0x2000)), u64::from(GUEST));
        let mut driver = bench.rig.start_queue(1, features);
        let request = Peer::packet(10, 20, operation::REQUEST).bytes();
        bench.rig.memory.write(Gpa(DATA), &request).unwrap();
        let data = Header { len: 3, ..Peer::packet(10, 20, operation::DATA) };
        bench.rig.memory.write(Gpa(DATA + 0x100), &[&data.bytes()[..], b"abc"].concat()).unwrap();
        let buffers: [&[_]; 2] = [
            &[(DATA, 20, false), (DATA + 20, 24, false)],
            &[(DATA + 0x100, 45, false), (DATA + 0x12d, 2, false)],
        ];
        for chain in buffers {
            driver.offer(chain, false).unwrap();
            bench.rig.write(0x3000 + 4, &[1, 0]);
            bench.rig.serve();
            assert_eq!(driver.collect().map(|(_, written)| written), Some(0));
        }
        let (_, mut far) = bench.desk.0.lock().unwrap().called.pop().unwrap();
        let mut heard = [0; 3];
        far.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"abc");
        // The driver begins anew: what it knew is over.
        bench.rig.start_queue(1, features);
        bench.rig.serve();
        assert_eq!(far.read(&mut heard).unwrap(), 0);
    }
}

#[test]
fn a_guest_that_goes_on_elsewhere_is_told_that_its_connections_are_gone() {
    let bench = Bench::new();
    let mut driver = bench.rig.start_queue(2, 0);
    let name = driver.offer(&[(DATA, 8, true)], false).unwrap();
    let mut device = bench.rig.device.lock().unwrap();
    device.pause();
    let saved = device.save();
    device.restore(&saved).unwrap();
    assert_eq!(device.save(), saved);
    device.resume();
    drop(device);
    bench.rig.memory.write(Gpa(DATA), &[0xff; 8]).unwrap();
    bench.rig.write(0x3000 + 8, &[2, 0]);
    bench.rig.serve();
    assert_eq!(driver.collect(), Some((name, 4)));
    let mut event = [0; 8];
    bench.rig.memory.read(Gpa(DATA), &mut event).unwrap();
    assert_eq!(event, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
}
