//! A limit on how much passes in either direction.

use std::time::{Duration, Instant};

use host::jail::Role;
use host::poll::Bell;

use super::{Abilities, Frame, Network, Offload};
use crate::limit::Meter;

/// A network with a limit.
pub struct Limited<N> {
    network: N,
    from_guest: Meter,
    to_guest: Meter,
    /// A frame for the guest waits for its time.
    held: bool,
}

impl<N: Network> Limited<N> {
    /// Lets so many bytes of frames pass each second, in each direction.
    pub fn new(network: N, bytes_per_s: u64) -> Self {
        let meter = Meter::new(bytes_per_s);
        Self { network, from_guest: meter, to_guest: meter, held: false }
    }
}

impl<N: Network> Network for Limited<N> {
    fn role(&self) -> Role {
        self.network.role()
    }

    fn bell(&self) -> Bell {
        self.network.bell()
    }

    fn wait(&mut self, limit: Option<Duration>) {
        let now = Instant::now();
        let sending = Some(self.from_guest.closed_for(now)).filter(|wait| !wait.is_zero());
        let receiving = self.held.then(|| self.to_guest.closed_for(now));
        self.network.wait([limit, sending, receiving].into_iter().flatten().min());
    }

    fn is_open(&self) -> bool {
        self.network.is_open() && self.from_guest.is_open(Instant::now())
    }

    fn transmit(&mut self, frame: &[u8], offload: Offload) {
        self.from_guest.count(frame.len() as u64, Instant::now());
        self.network.transmit(frame, offload);
    }

    fn receive(&mut self, abilities: Abilities, deliver: &mut dyn FnMut(&Frame<'_>) -> bool) -> bool {
        let (meter, held) = (&mut self.to_guest, &mut self.held);
        *held = false;
        self.network.receive(abilities, &mut |frame| {
            let now = Instant::now();
            if !meter.is_open(now) {
                *held = true;
                return false;
            }
            let taken = deliver(frame);
            if taken {
                meter.count(frame.bytes() as u64, now);
            }
            taken
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Source(Bell, u32);

    impl Network for Source {
        fn bell(&self) -> Bell {
            self.0.clone()
        }

        fn wait(&mut self, limit: Option<Duration>) {
            std::thread::sleep(limit.expect("it is waited for a time"));
        }

        fn transmit(&mut self, _: &[u8], _: Offload) {}

        fn receive(&mut self, _: Abilities, deliver: &mut dyn FnMut(&Frame<'_>) -> bool) -> bool {
            while deliver(&Frame { parts: [&[0; 1000], &[], &[]], offload: Offload::default() }) {
                self.1 += 1;
            }
            true
        }
    }

    #[test]
    fn frames_wait_for_their_time() {
        let mut network = Limited::new(Source(Bell::new().unwrap(), 0), 1_000_000);
        let mut rounds = 0;
        while network.network.1 < 200 {
            network.receive(Abilities::default(), &mut |_| true);
            network.wait(None);
            rounds += 1;
            assert!(rounds < 1000, "it spins");
        }
        let mut sent = 0;
        while network.is_open() {
            network.transmit(&[0; 50_000], Offload::default());
            sent += 1;
        }
        assert!((2..=4).contains(&sent), "{sent}");
    }
}
