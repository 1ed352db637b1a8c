//! Sockets between programs of the host and of a Linux guest.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use common::{KERNELS, Place, complaint, debian_kernel_with_modules, is_installed, skipped, umbra};

/// A kernel whose drivers for this are in the cache.
static KERNEL: LazyLock<Option<String>> = LazyLock::new(|| {
    let kernel = debian_kernel_with_modules(KERNELS[0]).filter(|_| is_installed("python3"))?;
    let there = Path::new(&kernel).with_file_name("drivers").join("vsock.ko").is_file();
    if !there {
        skipped("the cache is an earlier version's, without the driver for vsock");
    }
    there.then_some(kernel)
});

/// A guest that runs a program of python's, with sockets at `path`.
fn guest(kernel: &str, path: &Path, program: &str) -> Command {
    let path = path.display().to_string();
    let args = ["run", "host", "--kernel", kernel, "--vsock", &path, "--timeout", "3m", "--"];
    umbra(&[&args[..], &["python3", "-c", program]].concat())
}

/// Ends the guest with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Calls the guest until it answers.
fn call(path: &Path, port: u32) -> BufReader<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        assert!(Instant::now() < deadline, "nobody answers");
        let Ok(mut stream) = UnixStream::connect(path) else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        writeln!(stream, "CONNECT {port}").unwrap();
        let (mut stream, mut answer) = (BufReader::new(stream), String::new());
        if stream.read_line(&mut answer).is_ok_and(|len| len > 0) {
            assert!(answer.starts_with("OK ") && answer.trim_end()[3..].parse::<u32>().is_ok(), "{answer}");
            return stream;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 % 251) as u8).collect()
}

#[test]
fn a_program_of_the_host_reaches_one_in_the_guest() {
    let Some(kernel) = &*KERNEL else { return };
    let place = Place::new();
    let path = place.path().join("vsock");
    let program = "
import socket
listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
listener.bind((socket.VMADDR_CID_ANY, 1234))
listener.listen()
for _ in range(2):
    caller, (cid, port) = listener.accept()
    assert cid == 2
    while data := caller.recv(100000):
        caller.sendall(data)
    caller.close()
";
    let mut vm = Ended(guest(kernel, &path, program).spawn().unwrap());
    // A line, as a shell might; and more than all buffers hold, so that both sides wait for credit.
    for len in [5, 3 << 20] {
        let stream = call(&path, 1234);
        let mut sender = stream.get_ref().try_clone().unwrap();
        let sent = pattern(len);
        let bytes = sent.clone();
        let sending = std::thread::spawn(move || {
            sender.write_all(&bytes).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        let mut stream = stream;
        stream.read_to_end(&mut back).unwrap();
        sending.join().unwrap();
        assert!(back == sent, "{} bytes of {len} came back", back.len());
    }
    assert!(vm.0.wait().unwrap().success());
}

#[test]
fn a_program_in_the_guest_reaches_one_of_the_host_and_hears_if_there_is_none() {
    let Some(kernel) = &*KERNEL else { return };
    let place = Place::new();
    let path = place.path().join("vsock");
    let listener = UnixListener::bind(place.path().join("vsock_77")).unwrap();
    let program = "
import socket
def call(port):
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    s.connect((2, port))
    return s
s = call(77)
sent = bytes(n * 7 % 251 for n in range(1 << 20))
s.sendall(sent)
s.shutdown(socket.SHUT_WR)
back = b''.join(iter(lambda: s.recv(65536), b''))
print(back == sent)
try:
    call(78)
except ConnectionResetError:
    print('reset')
";
    let vm = guest(kernel, &path, program).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let host = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
        all
    });
    let output = vm.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "True\nreset\n", "{}", complaint(&output));
    assert!(host.join().unwrap() == pattern(1 << 20));
}

#[test]
fn a_path_of_somebody_else_is_refused_in_a_sentence() {
    let place = Place::new();
    let _listener = UnixListener::bind(place.path().join("taken")).unwrap();
    let output = place.run(common::POWER_OFF, &["--vsock", "taken"]);
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(complaint(&output).lines().count(), 1, "{}", complaint(&output));
    assert!(complaint(&output).contains("somebody listens at 'taken'"), "{}", complaint(&output));
    // What a VM leaves behind is no hindrance.
    for _ in 0..2 {
        assert_eq!(place.run(common::POWER_OFF, &["--vsock", "mine"]).status.code(), Some(0));
    }
}
