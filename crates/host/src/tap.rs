//! TAP devices: network adapters of the host whose cable ends in a program (Documentation/networking/tuntap.rst).
//!
//! A device is made beforehand, by somebody who may (`ip tuntap add dev NAME mode tap user USER`), and belongs to a user, who
//! needs no privileges to open it. Each frame is one read or write, with a header before it (`struct virtio_net_hdr_v1`) that
//! says what is left to be done to it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use libc::{c_int, c_short, c_uint, c_ulong, ifreq};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketType};

/// The bytes of the header before each frame.
pub const HEADER: usize = 12;

const TUN: &str = "/dev/net/tun";

/// A TAP device, open. Reads and writes do not block.
#[derive(Debug)]
pub struct Tap(OwnedFd);

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its Ethernet address on the host.
    pub address: [u8; 6],
    /// The most bytes of a packet.
    pub mtu: u16,
}

/// What whoever reads frames can do to them: it takes them with that left to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums.
    pub checksum: bool,
    /// Segments of TCP over IPv4; with checksums only.
    pub tcp4: bool,
    /// And over IPv6.
    pub tcp6: bool,
}

impl Tap {
    /// Opens a device that is there.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none of that name or no TAP device at all, [`io::ErrorKind::PermissionDenied`] if it
    /// is another user's, [`io::ErrorKind::ResourceBusy`] if a program has it, [`io::ErrorKind::InvalidInput`] if it is
    /// something else.
    pub fn open(name: &str) -> io::Result<(Self, Facts)> {
        let mut request = request(name).ok_or(io::ErrorKind::InvalidInput)?;
        let facts = facts(&mut request)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(TUN, flags, Mode::empty())?;
        // SAFETY: a union of plain data, of which this field is the one that TUNSETIFF reads.
        request.ifr_ifru.ifru_flags = c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: TUNSETIFF reads and writes an ifreq, which this is.
        unsafe { ioctl(file.as_raw_fd(), libc::TUNSETIFF, (&raw mut request).addr()) }?;
        let bytes = c_int::try_from(HEADER).unwrap_or(0);
        // SAFETY: TUNSETVNETHDRSZ reads an int, which this is.
        unsafe { ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, (&raw const bytes).addr()) }?;
        let tap = Self(file);
        tap.set_offloads(Offloads::default())?;
        Ok((tap, facts))
    }

    /// A file that is not a device, but carries one message for each frame.
    pub fn standing_in(file: OwnedFd) -> Self {
        Self(file)
    }

    /// Says what frames to read may have left to be done.
    ///
    /// # Errors
    /// As ioctl(2).
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let bit = |on: bool, bit: c_uint| if on { bit } else { 0 };
        let bits = bit(offloads.checksum, libc::TUN_F_CSUM)
            | bit(offloads.tcp4, libc::TUN_F_TSO4)
            | bit(offloads.tcp6, libc::TUN_F_TSO6);
        // SAFETY: TUNSETOFFLOAD takes a number, and reads no memory of ours.
        unsafe { ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, bits as usize) }
    }

    /// Reads header and frame; returns how many bytes they have together. What does not fit is lost.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is none.
    pub fn read(&self, to: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, to)?)
    }

    /// Writes a frame with its header.
    ///
    /// # Errors
    /// As writev(2): the device is down, or the kernel does not take such a frame.
    pub fn write(&self, header: &[u8; HEADER], frame: &[u8]) -> io::Result<()> {
        rustix::io::writev(&self.0, &[io::IoSlice::new(header), io::IoSlice::new(frame)])?;
        Ok(())
    }
}

impl From<Tap> for OwnedFd {
    fn from(tap: Tap) -> Self {
        tap.0
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A request about the device of this name, if it can be one.
fn request(name: &str) -> Option<ifreq> {
    // SAFETY: plain data, of which all zeros is a value.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // The last place is for the NUL.
    let room = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room || name.contains(['%', '\0', '/']) {
        return None;
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    Some(request)
}

/// What the device is.
fn facts(request: &mut ifreq) -> io::Result<Facts> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let gone = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENODEV) => io::ErrorKind::NotFound.into(),
        _ => error,
    };
    let mut ask = |what: c_ulong| {
        // SAFETY: both requests read and write an ifreq, which this is.
        unsafe { ioctl(socket.as_raw_fd(), what, (&raw mut *request).addr()) }.map_err(gone)
    };
    ask(libc::SIOCGIFHWADDR)?;
    // SAFETY: SIOCGIFHWADDR has set this field of the union.
    let hardware = unsafe { request.ifr_ifru.ifru_hwaddr };
    let [a, b, c, d, e, f, ..] = hardware.sa_data.map(i8::cast_unsigned);
    let mut ask = |what: c_ulong| {
        // SAFETY: as above.
        unsafe { ioctl(socket.as_raw_fd(), what, (&raw mut *request).addr()) }.map_err(gone)
    };
    ask(libc::SIOCGIFMTU)?;
    // SAFETY: SIOCGIFMTU has set this field of the union.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(Facts { address: [a, b, c, d, e, f], mtu: u16::try_from(mtu).unwrap_or(u16::MAX) })
}

/// Calls ioctl(2).
///
/// # Safety
/// `argument` is what the request takes: a number, or the address of what it reads and writes.
unsafe fn ioctl(file: RawFd, request: c_ulong, argument: usize) -> io::Result<()> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::ioctl(file, request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_and_devices_that_are_not_there() {
        for name in ["", "a/b", "tap%d", "sixteen-letters-", "nul\0"] {
            assert_eq!(Tap::open(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
        assert_eq!(Tap::open("umbra-nowhere").unwrap_err().kind(), io::ErrorKind::NotFound);
        // No TAP device: refused for what it is, or because this user may not open any.
        assert!(Tap::open("lo").is_err());
    }
}
