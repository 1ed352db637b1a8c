//! Who has to go when there is no room.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::*;
use crate::net::user::tests::trouble::Ringing;

/// Connections that share one descriptor.
struct Crowd {
    tcp: Tcp,
    file: Arc<UnixStream>,
    now: Instant,
    next: u64,
}

impl Crowd {
    fn new() -> Self {
        let file = Arc::new(UnixStream::pair().unwrap().0);
        Self { tcp: Tcp::default(), file, now: Instant::now(), next: 0 }
    }

    /// One more, if there is room; its number.
    fn add(&mut self, from_outside: bool, phase: Phase) -> Option<u64> {
        if !self.tcp.make_room(from_outside, self.now) {
            return None;
        }
        let id = self.next;
        self.next += 1;
        let port = u16::try_from(id).unwrap();
        let ends = Ends { guest: ([10, 0, 2, 15], port).into(), remote: ([192, 0, 2, 1], 80).into() };
        let mut flow = Flow::from_outside(ends, Box::new(Ringing(self.file.clone())), 0, self.now);
        (flow.from_outside, flow.phase) = (from_outside, phase);
        self.tcp.add(id, flow, self.now);
        self.now += Duration::from_millis(1);
        Some(id)
    }

    fn many(&mut self, count: usize, from_outside: bool, phase: Phase) -> Vec<u64> {
        (0..count).map(|_| self.add(from_outside, phase).expect("room")).collect()
    }

    fn left(&self, ids: &[u64]) -> usize {
        ids.iter().filter(|id| self.tcp.flows.contains_key(id)).count()
    }
}

#[test]
fn calls_in_progress_push_out_who_is_silent_while_they_are_few() {
    let mut crowd = Crowd::new();
    let silent = crowd.many(MOST_FLOWS - 1, false, Phase::Open);
    crowd.now += SILENT;
    let calls = crowd.many(MOST_HALF_OPEN, false, Phase::Connecting);
    assert_eq!((crowd.left(&calls), crowd.left(&silent)), (MOST_HALF_OPEN, MOST_FLOWS - MOST_HALF_OPEN));
    // There are enough of them now.
    let more = crowd.many(10, false, Phase::Connecting);
    assert_eq!((crowd.left(&calls[..10]), crowd.left(&calls[10..])), (0, MOST_HALF_OPEN - 10));
    assert_eq!((crowd.left(&more), crowd.left(&silent)), (10, MOST_FLOWS - MOST_HALF_OPEN));
}

#[test]
fn without_silent_ones_the_oldest_call_goes_or_nobody_comes() {
    let mut crowd = Crowd::new();
    let call = crowd.many(1, false, Phase::Connecting);
    let busy = crowd.many(MOST_FLOWS - 1, false, Phase::Open);
    assert!(crowd.add(false, Phase::Open).is_some());
    assert_eq!((crowd.left(&call), crowd.left(&busy)), (0, MOST_FLOWS - 1));
    assert_eq!(crowd.add(false, Phase::Connecting), None);
}

#[test]
fn outside_has_its_share_and_no_more() {
    let mut crowd = Crowd::new();
    let own = crowd.many(100, false, Phase::Open);
    let calls = crowd.many(20, false, Phase::Connecting);
    let outside = crowd.many(MOST_FROM_OUTSIDE, true, Phase::Open);
    assert_eq!(crowd.add(true, Phase::Calling), None, "all are in use");
    crowd.now += SILENT;
    let more = crowd.many(1000, true, Phase::Calling);
    // They have pushed out those that were silent, then each other; never what is the guest's.
    assert_eq!((crowd.left(&own), crowd.left(&calls)), (100, 20));
    assert_eq!(crowd.left(&outside) + crowd.left(&more), MOST_FROM_OUTSIDE);
    assert_eq!(crowd.left(&more), MOST_HALF_OPEN - 20);
    assert!(crowd.add(false, Phase::Connecting).is_some());
}
