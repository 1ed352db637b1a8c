//! The user-mode network, as Debian's kernels use it.
//!
//! Like the other tests with Debian's packages, these say so and pass where those cannot be had.

mod common;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{KERNELS, complaint, debian_kernel_with_modules, umbra};

/// Runs a script in a VM; its output.
fn run(kernel: &str, options: &[&str], script: &str) -> String {
    let first = ["run", "--kernel", kernel, "--timeout", "10m"];
    let output = umbra(&[&first[..], options, &["--", "sh", "-c", script]].concat()).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!((output.status.code(), complaint(&output).as_str()), (Some(0), ""), "{out}");
    out
}

fn pattern(bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// Serves one document by HTTP to whoever asks.
fn http_server(at: &str, document: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind(at).unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut question = Vec::new();
            let mut bytes = [0; 1024];
            while !question.ends_with(b"\r\n\r\n") {
                match stream.read(&mut bytes) {
                    Ok(1..) => question.extend(bytes.iter().take_while(|byte| **byte != 0)),
                    _ => break,
                }
                bytes = [0; 1024];
            }
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", document.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&document));
        }
    });
    at
}

/// Takes in all that comes by one connection.
fn sink() -> (u16, thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let reader = thread::spawn(move || {
        let mut data = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut data).unwrap();
        data
    });
    (port, reader)
}

#[test]
fn data_goes_in_and_out_unchanged() {
    for package in KERNELS {
        let Some(kernel) = debian_kernel_with_modules(package) else { continue };
        let document = pattern(20 << 20);
        let server = http_server("127.0.0.1:0", document.clone());
        let (port, reader) = sink();
        let script = format!(
            "wget -q -O /file http://10.0.2.2:{}/document && nc 10.0.2.2 {port} </file && wc -c </file",
            server.port()
        );
        assert_eq!(run(&kernel, &[], &script).trim(), document.len().to_string(), "{package}");
        assert!(reader.join().unwrap() == document, "{package}: what came back is something else");
    }
}

/// More pairs than processors, of which Linux uses as many as it has.
#[test]
fn several_pairs_of_queues_carry_several_connections() {
    for package in KERNELS {
        let Some(kernel) = debian_kernel_with_modules(package) else { continue };
        let document = pattern(5 << 20);
        let server = http_server("127.0.0.1:0", document.clone());
        let (port, reader) = sink();
        let script = format!(
            "ls -1 /sys/class/net/eth0/queues
            for i in 1 2 3 4; do wget -q -O /file$i http://10.0.2.2:{}/document & done; wait
            for i in 2 3 4; do cmp /file1 /file$i || exit; done
            nc 10.0.2.2 {port} </file1",
            server.port()
        );
        let seen = run(&kernel, &["--cpus", "2", "--net", "user,queues=3"], &script);
        assert_eq!(seen, "rx-0\nrx-1\ntx-0\ntx-1\n", "{package}");
        assert!(reader.join().unwrap() == document, "{package}: what came back is something else");
    }
}

#[test]
fn the_network_is_there_as_documented() {
    let Some(kernel) = debian_kernel_with_modules(KERNELS[0]) else { return };
    let server = http_server("[::1]:0", b"by IPv6\n".to_vec());
    let script = format!(
        "ip -4 -o addr show eth0 | awk '{{print $4}}'
        cat /etc/resolv.conf
        ping -q -c 2 10.0.2.2 | grep -o '2 packets received'
        ping -q -c 2 fec0::2 | grep -o '2 packets received'
        wget -q -O - 'http://[fec0::2]:{}/'
        udhcpc -i eth0 -n -q -f -s /bin/true 2>&1 | grep -o 'lease of 10.0.2.15 obtained'
        echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_ra
        ip link set eth0 down; ip link set eth0 up; sleep 6
        ip -6 -o addr show eth0 | grep -o 'fec0::5054:ff:fe12:3456/64'",
        server.port()
    );
    let expected = "10.0.2.15/24\nnameserver 10.0.2.3\n2 packets received\n2 packets received\nby IPv6\n\
                    lease of 10.0.2.15 obtained\nfec0::5054:ff:fe12:3456/64\n";
    assert_eq!(run(&kernel, &[], &script), expected);
}

#[test]
fn there_is_no_adapter_if_none_is_wanted() {
    let Some(kernel) = debian_kernel_with_modules(KERNELS[0]) else { return };
    assert_eq!(run(&kernel, &["--net", "none"], "ls /sys/class/net"), "lo\n");
}

#[test]
fn names_are_asked_for_where_the_option_says() {
    let Some(kernel) = debian_kernel_with_modules(KERNELS[0]) else { return };
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let option = format!("user,dns={}", server.local_addr().unwrap());
    thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((count, peer)) = server.recv_from(&mut bytes) {
            let _ = server.send_to(&dns_answer(&bytes[..count]), peer);
        }
    });
    let out = run(&kernel, &["--net", &option], "nslookup -type=a host.example");
    assert!(out.contains("host.example") && out.contains("192.0.2.99"), "{out}");
}

/// Every name has the address 192.0.2.99 (RFC 1035, 4.1).
fn dns_answer(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    // A response, recursion available; one answer.
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..8].copy_from_slice(&[0, 1]);
    // The question's name, type A, class IN, a minute, four bytes.
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 99]);
    answer
}

/// A VM that is ended when the test is.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What a server in the guest says to whoever connects, once it is there.
fn answer_from(port: u16) -> String {
    let start = Instant::now();
    loop {
        let mut said = String::new();
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            let _ = stream.write_all(b"GET /motd HTTP/1.0\r\n\r\n");
            let _ = stream.read_to_string(&mut said);
        }
        if said.contains("200 OK") {
            return said;
        }
        assert!(start.elapsed() < Duration::from_secs(300), "no answer from the guest");
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn servers_in_the_guest_are_reached_by_ports_of_the_host() {
    let Some(kernel) = debian_kernel_with_modules(KERNELS[0]) else { return };
    let port = free_port();
    let option = format!("{port}:80");
    let script = "mkdir /www; echo hello from inside >/www/motd; httpd -f -h /www";
    let args = ["run", "--kernel", &kernel, "--timeout", "10m", "-p", &option, "--", "sh", "-c", script];
    let running = Running(umbra(&args).stdout(Stdio::null()).spawn().unwrap());
    assert!(answer_from(port).ends_with("hello from inside\n"));

    // Many in a row leave nothing behind.
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", running.0.id())).unwrap().count();
    let before = descriptors();
    for _ in 0..200 {
        answer_from(port);
    }
    let start = Instant::now();
    while descriptors() > before && start.elapsed() < Duration::from_secs(30) {
        thread::sleep(Duration::from_millis(100));
    }
    assert!(descriptors() <= before, "{} descriptors, {before} before", descriptors());
}

#[test]
fn a_port_of_somebody_else_is_refused_in_a_sentence() {
    let Some(kernel) = debian_kernel_with_modules(KERNELS[0]) else { return };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let option = format!("{}:80", taken.local_addr().unwrap().port());
    let output = umbra(&["run", "--kernel", &kernel, "-p", &option, "--", "true"]).output().unwrap();
    assert!(complaint(&output).contains("somebody else does"), "{}", complaint(&output));
    let output = umbra(&["run", "--net", "none", "-p", "1:2", "--", "true"]).output().unwrap();
    assert!(complaint(&output).contains("--net none"), "{}", complaint(&output));
}

#[test]
fn the_hosts_loopback_is_out_of_reach_if_so_wished() {
    let Some(kernel) = debian_kernel_with_modules(KERNELS[0]) else { return };
    let server = http_server(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).to_string(), b"secret\n".to_vec());
    let script = format!(
        "for host in 10.0.2.2 '[fec0::2]' 127.0.0.1; do
            wget -q -O - http://$host:{}/ 2>/dev/null || echo refused
        done",
        server.port()
    );
    assert_eq!(run(&kernel, &["--net", "user,loopback=off"], &script), "refused\nrefused\nrefused\n");
    assert_eq!(run(&kernel, &[], &script), "secret\nsecret\nrefused\n");
}
