//! The host's end of connections: it sends or takes what a guest asks for, and keeps the sum.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::content;

/// Of the word that a connection begins with: what follows comes from the guest. The rest counts MiB.
const FROM_GUEST: u64 = 1 << 63;

/// How long after a guest the peer may be done.
const PATIENCE: Duration = Duration::from_secs(5);

/// A peer. Its thread ends with this program.
pub(super) struct Peer {
    sums: Receiver<Option<String>>,
}

impl Peer {
    /// On the host's loopback; with its port.
    ///
    /// # Errors
    /// If there is none to be had.
    pub(super) fn tcp() -> Result<(Self, u16)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
        let port = listener.local_addr()?.port();
        Ok((Self::new(move || listener.accept().map(|(stream, _)| stream)), port))
    }

    /// On a Unix socket.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn unix(path: &Path) -> Result<Self> {
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot make '{}'", path.display()))?;
        Ok(Self::new(move || listener.accept().map(|(stream, _)| stream)))
    }

    fn new<S: Read + Write>(accept: impl Fn() -> io::Result<S> + Send + 'static) -> Self {
        let (sender, sums) = channel();
        thread::spawn(move || {
            while let Ok(mut stream) = accept() {
                let sum = serve(&mut stream).ok().map(content::Sum::text);
                if sender.send(sum).is_err() {
                    return;
                }
            }
        });
        Self { sums }
    }

    /// The sum of what went over the next connection, if that came to a good end.
    pub(super) fn sum(&self) -> Option<String> {
        self.sums.recv_timeout(PATIENCE).ok()?
    }
}

fn serve(stream: &mut (impl Read + Write)) -> io::Result<content::Sum> {
    let mut greeting = [0; 8];
    stream.read_exact(&mut greeting)?;
    let greeting = u64::from_le_bytes(greeting);
    let mib = greeting & !FROM_GUEST;
    if greeting & FROM_GUEST == 0 {
        return content::write(stream, mib);
    }
    let sum = content::read(stream, mib, |_| ())?;
    stream.write_all(&sum.value().to_le_bytes())?;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn both_ways_give_the_same_sum() {
        let (peer, port) = Peer::tcp().unwrap();
        let connect = |greeting: u64| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            stream.write_all(&greeting.to_le_bytes()).unwrap();
            stream
        };
        let mut bytes = Vec::new();
        connect(1).read_to_end(&mut bytes).unwrap();
        let mut stream = connect(FROM_GUEST | 1);
        stream.write_all(&bytes).unwrap();
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).unwrap();
        let sum = content::read(&mut bytes.as_slice(), 1, |_| ()).unwrap();
        assert_eq!(u64::from_le_bytes(answer), sum.value());
        assert_eq!([peer.sum(), peer.sum()], [Some(sum.text()), Some(sum.text())]);
    }
}
