//! Network interfaces, by rtnetlink(7): the loopback, and the adapter that the machine has, with the addresses that are known
//! beforehand.

use std::fs;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use init::{Network, Root};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, send, socket};

use crate::Failure;

/// What a kernel calls its first adapter as long as nobody renames it.
const ADAPTER: &str = "eth0";
/// The loopback's index.
const LOOPBACK: u32 = 1;

// Messages (rtnetlink(7)) and their flags (netlink(7)).
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const REQUEST_ACK: u16 = 1 | 4;
const CREATE: u16 = 0x400;

/// An interface is up.
const UP: u32 = 1;
/// An address is used without asking whether somebody else has it.
const NO_DETECTION: u8 = 2;

// Attributes.
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const INTERFACE: u16 = 4;
const GATEWAY: u16 = 5;

/// Sets the interfaces up.
pub(crate) fn set_up(network: Option<&Network>, root: &Root) -> Result<(), Failure> {
    let failed = |error: Errno| Failure::new("cannot set the network up", error);
    // The protocol is NETLINK_ROUTE, which is 0.
    let kernel = socket(AddressFamily::NETLINK, SocketType::RAW, None).map_err(failed)?;
    up(&kernel, LOOPBACK).map_err(failed)?;
    let index = fs::read_to_string(format!("/sys/class/net/{ADAPTER}/ifindex"));
    if let (Some(network), Some(index)) = (network, index.ok().and_then(|index| index.trim().parse().ok())) {
        adapter(&kernel, index, network).map_err(failed)?;
        if !network.name_servers.is_empty() {
            resolver(network, root)?;
        }
    }
    Ok(())
}

fn adapter(kernel: &OwnedFd, index: u32, network: &Network) -> Result<(), Errno> {
    if !network.routers.is_empty() {
        // All that routers would say is known. A kernel without IPv6 needs no telling.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{ADAPTER}/accept_ra"), "0");
    }
    up(kernel, index)?;
    for (address, prefix) in &network.addresses {
        let mut body = vec![family(address), *prefix, NO_DETECTION, 0];
        body.extend(index.to_le_bytes());
        attribute(&mut body, LOCAL, &octets(address));
        attribute(&mut body, ADDRESS, &octets(address));
        unless_absent(address, ask(kernel, NEW_ADDRESS, CREATE, &body))?;
    }
    for router in &network.routers {
        // To everywhere, in the main table (254), made at the start (3), for single destinations (1).
        let mut body = vec![family(router), 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
        attribute(&mut body, GATEWAY, &octets(router));
        attribute(&mut body, INTERFACE, &index.to_le_bytes());
        unless_absent(router, ask(kernel, NEW_ROUTE, CREATE, &body))?;
    }
    Ok(())
}

/// What became of setting an address or a router. A kernel without IPv6, or told to do without (`ipv6.disable=1`), has IPv4.
fn unless_absent(address: &IpAddr, outcome: Result<(), Errno>) -> Result<(), Errno> {
    if address.is_ipv6() { Ok(()) } else { outcome }
}

fn up(kernel: &OwnedFd, index: u32) -> Result<(), Errno> {
    // Any family and type; the last word says which flags change.
    let body = [0, index, UP, UP].map(u32::to_le_bytes).concat();
    ask(kernel, NEW_LINK, 0, &body)
}

/// Writes who is asked for names. The root's file may lead to where the guest has nothing; on a disk, which outlives the
/// guest, it is covered and not changed.
fn resolver(network: &Network, root: &Root) -> Result<(), Failure> {
    const OURS: &str = "/run/umbra-resolv.conf";
    let path = if let Root::Shared(_) = root { "/etc/resolv.conf" } else { OURS };
    let _ = fs::remove_file(path);
    let text: String = network.name_servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    match fs::write(path, text) {
        // A root without /etc looks no names up.
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::new(format_args!("cannot write {path}"), error));
        }
        _ => {}
    }
    if path == OURS
        && let Ok(covered) = fs::canonicalize("/etc/resolv.conf")
    {
        // A system that has it in no file asks whom it likes.
        let _ = rustix::mount::mount_bind(OURS, &covered);
    }
    Ok(())
}

fn family(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Appends an attribute: its length, its number, its value; values here are whole words.
fn attribute(body: &mut Vec<u8>, number: u16, value: &[u8]) {
    body.extend((value.len() as u16 + 4).to_le_bytes());
    body.extend(number.to_le_bytes());
    body.extend_from_slice(value);
}

/// The message with its header.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = (body.len() as u32 + 16).to_le_bytes().to_vec();
    message.extend(kind.to_le_bytes());
    message.extend((REQUEST_ACK | flags).to_le_bytes());
    // No sequence, from whoever has this socket.
    message.extend([0; 8]);
    message.extend_from_slice(body);
    message
}

/// Asks the kernel for something and hears whether it did that.
fn ask(kernel: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> Result<(), Errno> {
    send(kernel, &message(kind, flags, body), SendFlags::empty())?;
    let mut answer = [0; 1024];
    recv(kernel, &mut answer[..], RecvFlags::empty())?;
    // Behind the header, an error's number or zero.
    let [_, _, _, _, error, ..] = answer.as_chunks().0 else { return Err(Errno::PROTO) };
    match i32::from_le_bytes(*error) {
        0 => Ok(()),
        error => Err(Errno::from_raw_os_error(error.wrapping_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_laid_out_as_the_manual_has_them() {
        let mut body = vec![2, 24, 0, 0, 5, 0, 0, 0];
        attribute(&mut body, LOCAL, &[10, 0, 2, 15]);
        let bytes = message(NEW_ADDRESS, CREATE, &body);
        assert_eq!(bytes.len(), 32);
        assert_eq!(bytes[..8], [32, 0, 0, 0, 20, 0, 5, 4]);
        assert_eq!(bytes[24..], [8, 0, 2, 0, 10, 0, 2, 15]);
    }
}
