//! A limit on how much passes in either direction.

use std::time::{Duration, Instant};

use host::poll::Bell;

use super::{Abilities, Frame, Network, Offload};

/// For how long a network that was quiet may be faster.
const BURST: Duration = Duration::from_millis(100);

/// One direction: time goes on with each byte, and may be ahead of the clock by [`BURST`] before anybody has to wait. So
/// whatever the length of frames, in the long run no more passes than the rate, and a frame is never cut.
#[derive(Clone, Copy, Debug)]
struct Meter {
    bytes_per_s: u64,
    /// When everything that has passed would have, at the rate.
    even: Instant,
}

impl Meter {
    fn is_open(&self, now: Instant) -> bool {
        self.even <= now + BURST
    }

    fn count(&mut self, bytes: usize, now: Instant) {
        let ns = (bytes as u64).saturating_mul(1_000_000_000) / self.bytes_per_s.max(1);
        // A rate of a byte a year is as good as none.
        self.even = self.even.max(now) + Duration::from_nanos(ns).min(Duration::from_secs(3600));
    }

    /// How long it is closed.
    fn closed_for(&self, now: Instant) -> Duration {
        self.even.saturating_duration_since(now + BURST)
    }
}

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
        let meter = Meter { bytes_per_s, even: Instant::now() };
        Self { network, from_guest: meter, to_guest: meter, held: false }
    }
}

impl<N: Network> Network for Limited<N> {
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
        self.from_guest.count(frame.len(), Instant::now());
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
                meter.count(frame.bytes(), now);
            }
            taken
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_passes_than_the_rate_and_no_less() {
        let start = Instant::now();
        let mut meter = Meter { bytes_per_s: 1_000_000, even: start };
        let (mut passed, mut now) = (0u64, start);
        for _ in 0..1000 {
            while meter.is_open(now) {
                meter.count(60_000, now);
                passed += 60_000;
            }
            now += meter.closed_for(now);
        }
        let seconds = now.duration_since(start).as_secs_f64();
        let even = seconds * 1e6;
        assert!(
            passed as f64 >= even && (passed as f64) < even + 0.1 * 1e6 + 2.0 * 60_000.0,
            "{passed} in {seconds}"
        );
        // What was not used is not saved up.
        now += Duration::from_secs(100);
        let before = passed;
        while meter.is_open(now) {
            meter.count(1000, now);
            passed += 1000;
        }
        assert!(passed - before <= 102_000, "{}", passed - before);
    }

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
