//! A TAP device of the host behind an adapter: the guest is on whatever network the host has connected that with.
//!
//! Frames pass as they are, each with the header that says what is left to be done to it, which the kernel and the guest
//! understand alike ([`super::header`]). Which of that the guest does itself may change when its driver does; then the kernel is
//! told, and frames from before that ask too much are lost.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use host::jail::Role;
use host::poll::{Bell, Poller, Trigger};
use host::tap::{HEADER, Offloads, Tap};

use super::{Abilities, Frame, IpVersion, LONGEST_FRAME, Network, Offload, header};

/// The network.
pub struct TapNetwork {
    tap: Tap,
    bell: Bell,
    poller: Poller,
    /// What the kernel was told.
    abilities: Abilities,
    /// A header and a frame.
    buffer: Box<[u8]>,
    /// How many bytes of the buffer are a frame that waits for room.
    held: usize,
}

impl TapNetwork {
    /// The network behind this device.
    ///
    /// # Errors
    /// If the host has no descriptors left.
    pub fn new(tap: Tap) -> io::Result<Self> {
        let (bell, poller) = (Bell::new()?, Poller::new()?);
        poller.add(bell.as_fd(), 0, Trigger::Edge)?;
        poller.add(tap.as_fd(), 1, Trigger::Edge)?;
        let buffer = vec![0; HEADER + LONGEST_FRAME].into_boxed_slice();
        Ok(Self { tap, bell, poller, abilities: Abilities::default(), buffer, held: 0 })
    }

    fn follow(&mut self, abilities: Abilities) {
        if self.abilities != abilities {
            self.abilities = abilities;
            let Abilities { checksum, tcp4, tcp6 } = abilities;
            // A kernel that cannot leave it undone does it.
            let _ = self.tap.set_offloads(Offloads { checksum, tcp4, tcp6 });
        }
    }
}

/// Whether the guest takes a frame with that left to be done.
fn takes(abilities: Abilities, offload: Offload) -> bool {
    let segments = match offload.segments.map(|segments| segments.version) {
        None => true,
        Some(IpVersion::V4) => abilities.tcp4,
        Some(IpVersion::V6) => abilities.tcp6,
    };
    segments && (abilities.checksum || offload.checksum.is_none())
}

impl Network for TapNetwork {
    fn role(&self) -> Role {
        Role::Tap
    }

    fn bell(&self) -> Bell {
        self.bell.clone()
    }

    fn wait(&mut self, limit: Option<Duration>) {
        // It fails for what cannot be: a set that is none. What is ready is found by reading.
        let _ = self.poller.wait(&mut Vec::new(), limit);
    }

    fn transmit(&mut self, frame: &[u8], offload: Offload) {
        // A device that is down or full loses it, as a cable that is pulled out.
        let _ = self.tap.write(&header::build(offload, 0), frame);
    }

    fn receive(&mut self, abilities: Abilities, deliver: &mut dyn FnMut(&Frame<'_>) -> bool) -> bool {
        self.follow(abilities);
        loop {
            if self.held == 0 {
                match self.tap.read(&mut self.buffer) {
                    Ok(len) => self.held = len,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    // None, or the device has gone.
                    Err(_) => return false,
                }
            }
            let bytes = self.buffer.get(..self.held).unwrap_or_default();
            if let Some((head, frame)) = bytes.split_first_chunk::<HEADER>()
                && let Some(offload) = header::parse(head)
                && takes(abilities, offload)
                && !deliver(&Frame { parts: [frame, &[], &[]], offload })
            {
                return true;
            }
            if self.held == 0 {
                // Of a file that is no device any more.
                return false;
            }
            self.held = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::net::{PartialChecksum, Segments};

    const ALL: Abilities = Abilities { checksum: true, tcp4: true, tcp6: true };

    fn network() -> (TapNetwork, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        for socket in [&ours, &theirs] {
            socket.set_nonblocking(true).unwrap();
        }
        (TapNetwork::new(Tap::standing_in(ours.into())).unwrap(), theirs)
    }

    fn offloads() -> [Offload; 4] {
        let checksum = Some(PartialChecksum { start: 34, offset: 16 });
        let segments = |version| Some(Segments { version, headers: 54, payload: 1460 });
        [
            Offload { valid: true, ..Offload::default() },
            Offload { checksum, ..Offload::default() },
            Offload { checksum, segments: segments(IpVersion::V4), valid: false },
            Offload { checksum, segments: segments(IpVersion::V6), valid: false },
        ]
    }

    fn received(
        network: &mut TapNetwork,
        abilities: Abilities,
        most: usize,
    ) -> (Vec<(Vec<u8>, Offload)>, bool) {
        let mut seen = Vec::new();
        let left = network.receive(abilities, &mut |frame| {
            let room = seen.len() < most;
            if room {
                seen.push((frame.parts.concat(), frame.offload));
            }
            room
        });
        (seen, left)
    }

    #[test]
    fn frames_pass_with_what_is_left_to_be_done() {
        let (mut network, device) = network();
        for offload in offloads() {
            network.transmit(b"from the guest", offload);
            let mut bytes = [0; 100];
            let len = device.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[HEADER..len], b"from the guest");
            device.send(&bytes[..len]).unwrap();
        }
        let (seen, left) = received(&mut network, ALL, 2);
        assert!(left && seen.len() == 2);
        let (rest, left) = received(&mut network, ALL, 9);
        assert!(!left && rest.len() == 2);
        let seen: Vec<_> = seen.into_iter().chain(rest).map(|(_, offload)| offload).collect();
        assert_eq!(seen, offloads());
    }

    #[test]
    fn what_the_guest_does_not_do_itself_is_not_for_it() {
        let can = |checksum, tcp4| Abilities { checksum, tcp4, tcp6: false };
        for (abilities, expected) in
            [(can(false, false), 1), (can(true, false), 2), (can(true, true), 3), (ALL, 4)]
        {
            let (mut network, device) = network();
            for offload in offloads() {
                device.send(&[&header::build(offload, 0)[..], b"frame"].concat()).unwrap();
            }
            // No frame, and what nobody offered.
            device.send(b"short").unwrap();
            device.send(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]).unwrap();
            assert_eq!(received(&mut network, abilities, 9).0.len(), expected);
        }
    }

    #[test]
    fn a_frame_ends_the_wait() {
        let (mut network, device) = network();
        device.send(&[0; 60]).unwrap();
        network.wait(None);
        assert_eq!(received(&mut network, ALL, 9).0.len(), 1);
        network.bell().ring();
        network.wait(None);
        drop(device);
        assert!(!received(&mut network, ALL, 9).1);
    }
}
