//! What works.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use smoltcp::socket::udp;

use super::guest::Guest;
use crate::net::user::plan::tests::config;
use crate::net::user::{Forward, Transport};

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 31 % 253) as u8).collect()
}

/// A server that sends back what it got, when it has all of it.
fn echo_server(at: &str) -> SocketAddr {
    let listener = TcpListener::bind(at).unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut data = Vec::new();
            if stream.read_to_end(&mut data).is_ok() {
                let _ = stream.write_all(&data);
            }
        }
    });
    at
}

/// A port that is free now, of many that are.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn data_goes_there_and_back() {
    let data = pattern(300_000);
    for (at, gateway) in [("127.0.0.1:0", "10.0.2.2"), ("[::1]:0", "fec0::2")] {
        let server = echo_server(at);
        let mut guest = Guest::new(config());
        for _ in 0..3 {
            let handle = guest.connect(SocketAddr::new(gateway.parse().unwrap(), server.port()));
            assert!(guest.exchange(handle, &data) == data);
        }
    }
}

#[test]
fn what_is_lost_is_sent_again() {
    let data = pattern(150_000);
    let server = echo_server("127.0.0.1:0");
    let mut guest = Guest::new(config()).losing(40);
    let handle = guest.connect(SocketAddr::new([10, 0, 2, 2].into(), server.port()));
    assert!(guest.exchange(handle, &data) == data);
}

#[test]
fn a_forwarded_port_leads_into_the_guest() {
    let mut config = config();
    let listen: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    config.forwards = vec![Forward { transport: Transport::Tcp, listen, port: 80 }];
    let mut guest = Guest::new(config);
    let data = pattern(100_000);
    for _ in 0..2 {
        let handle = guest.socket();
        guest.tcp(handle).listen(80).unwrap();
        let sent = data.clone();
        let client = thread::spawn(move || {
            let mut stream = TcpStream::connect(listen).unwrap();
            stream.write_all(b"question").unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert!(answer == sent);
        });
        guest.until("a call", |guest| guest.tcp(handle).may_send());
        assert_eq!(
            guest.tcp(handle).remote_endpoint().unwrap().addr,
            std::net::IpAddr::from([10, 0, 2, 2]).into()
        );
        // It has more to say than to hear.
        guest.exchange(handle, &data);
        guest.until("the end", |guest| {
            let _ = guest;
            client.is_finished()
        });
        client.join().unwrap();
    }
}

#[test]
fn datagrams_go_there_and_back() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let forwarded: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let mut config = config();
    config.forwards = vec![Forward { transport: Transport::Udp, listen: forwarded, port: 53 }];
    let mut guest = Guest::new(config);
    let handle = guest.sockets.add(udp_socket(53));
    let gateway: SocketAddr = ([10, 0, 2, 2], port).into();
    guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(b"question", gateway).unwrap();
    server.set_nonblocking(true).unwrap();
    let mut bytes = [0; 64];
    let mut peer = None;
    guest.until("a question", |_| {
        peer = server.recv_from(&mut bytes).ok();
        peer.is_some()
    });
    let (count, peer) = peer.unwrap();
    assert_eq!(&bytes[..count], b"question");
    server.send_to(b"answer", peer).unwrap();
    let heard = |guest: &mut Guest| {
        let mut seen = None;
        guest.until("an answer", |guest| {
            let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
            seen = socket.recv().ok().map(|(bytes, from)| (bytes.to_vec(), from.endpoint));
            seen.is_some()
        });
        seen.unwrap()
    };
    let (bytes, from) = heard(&mut guest);
    assert_eq!((&bytes[..], from), (&b"answer"[..], gateway.into()));
    // And from outside in, by the forwarded port, and back.
    let caller = UdpSocket::bind("127.0.0.1:0").unwrap();
    caller.send_to(b"from outside", forwarded).unwrap();
    let (bytes, from) = heard(&mut guest);
    assert_eq!(bytes, b"from outside");
    guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(b"inside", from).unwrap();
    caller.set_nonblocking(true).unwrap();
    let mut bytes = [0; 64];
    guest.until("an answer outside", |_| {
        caller.recv_from(&mut bytes).is_ok_and(|(_, from)| from == forwarded)
    });
    assert_eq!(&bytes[..6], b"inside");
}

fn udp_socket(port: u16) -> udp::Socket<'static> {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(port).unwrap();
    socket
}

#[test]
fn a_name_server_that_is_silent_gives_way_to_the_next() {
    let (silent, talking) =
        (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let mut config = config();
    config.resolvers = vec![silent.local_addr().unwrap(), talking.local_addr().unwrap()];
    let mut guest = Guest::new(config);
    let handle = guest.sockets.add(udp_socket(5000));
    talking.set_nonblocking(true).unwrap();
    let dns: SocketAddr = ([10, 0, 2, 3], 53).into();
    let mut asked = std::time::Instant::now();
    let mut ask = true;
    let mut bytes = [0; 64];
    guest.until("the other name server", |guest| {
        if ask || asked.elapsed() > std::time::Duration::from_millis(700) {
            guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(b"name?", dns).unwrap();
            (ask, asked) = (false, std::time::Instant::now());
        }
        match talking.recv_from(&mut bytes) {
            Ok((_, peer)) => talking.send_to(b"number", peer).is_ok(),
            Err(_) => false,
        }
    });
    guest.until("an answer", |guest| {
        let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.recv().is_ok_and(|(bytes, from)| bytes == b"number" && from.endpoint == dns.into())
    });
    silent.recv_from(&mut bytes).unwrap();
}
