//! One connection by a clock of the test's, the guest's segments written by hand.

use std::io::Write;
use std::os::unix::net::UnixStream;

use smoltcp::wire::TcpSeqNumber;

use super::*;

const START: u32 = 1000;
const WINDOW: u16 = 60_000;

/// A connection of a guest, whose first byte has number 1.
struct Bench {
    flow: Flow,
    far: UnixStream,
    now: Instant,
}

/// What was sent to the guest.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    control: TcpControl,
    seq: u32,
    len: usize,
}

fn segment(control: TcpControl, seq: u32, ack: Option<u32>, window_len: u16) -> TcpRepr<'static> {
    TcpRepr {
        src_port: 40_000,
        dst_port: 80,
        control,
        seq_number: TcpSeqNumber(seq.cast_signed()),
        ack_number: ack.map(|ack| TcpSeqNumber(ack.cast_signed())),
        window_len,
        window_scale: None,
        max_seg_size: Some(1460),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

impl Bench {
    /// The guest has called and the host's end is there.
    fn called() -> Self {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let ends = Ends { guest: ([10, 0, 2, 15], 40_000).into(), remote: ([192, 0, 2, 1], 80).into() };
        let now = Instant::now();
        let call = segment(TcpControl::Syn, 0, None, WINDOW);
        let mut flow = Flow::from_guest(ends, &call, Box::new(near), START, now);
        flow.host_ready(false, true);
        assert_eq!(flow.phase, Phase::Answering);
        Self { flow, far, now }
    }

    /// Both ends are there.
    fn open() -> Self {
        let mut bench = Self::called();
        assert_eq!(bench.sent(), [Sent { control: TcpControl::Syn, seq: START, len: 0 }]);
        bench.acknowledges(START + 1, WINDOW);
        assert_eq!(bench.flow.phase, Phase::Open);
        assert_eq!(bench.sent(), []);
        bench
    }

    /// Somebody outside says something.
    fn outside_says(&mut self, bytes: usize) {
        self.far.write_all(&vec![7; bytes]).unwrap();
        self.flow.host_ready(true, true);
    }

    fn arrives(&mut self, segment: &TcpRepr<'_>) {
        self.flow.arrive(segment, self.now);
        self.flow.watch_clock(self.now);
    }

    fn acknowledges(&mut self, ack: u32, window: u16) {
        let seq = self.flow.expected;
        self.arrives(&segment(TcpControl::None, seq, Some(ack), window));
    }

    /// All that there is to send.
    fn sent(&mut self) -> Vec<Sent> {
        let mut all = Vec::new();
        let mut take = |segment: &Outgoing<'_>| {
            let len = segment.data.iter().map(|part| part.len()).sum();
            all.push(Sent { control: segment.control, seq: segment.seq, len });
            true
        };
        while self.flow.emit(1460, 1460, self.now, &mut take) == Emitted::Segment {}
        self.flow.watch_clock(self.now);
        all
    }

    fn passes(&mut self, time: Duration) {
        self.now += time;
        self.flow.watch_clock(self.now);
    }
}

#[test]
fn an_end_is_sent_once_and_the_guest_may_go_on() {
    let mut bench = Bench::open();
    bench.far.shutdown(std::net::Shutdown::Write).unwrap();
    bench.flow.host_ready(true, true);
    let end = Sent { control: TcpControl::Fin, seq: START + 1, len: 0 };
    assert_eq!(bench.sent(), [end]);
    bench.acknowledges(START + 2, WINDOW);
    for _ in 0..100 {
        let data = TcpRepr {
            payload: b"still here",
            ..segment(TcpControl::Psh, bench.flow.expected, Some(START + 2), WINDOW)
        };
        bench.arrives(&data);
        assert_eq!(bench.sent(), [Sent { control: TcpControl::None, seq: START + 2, len: 0 }]);
        bench.passes(Duration::from_secs(20));
        assert_eq!((bench.sent(), bench.flow.phase), (Vec::new(), Phase::Open));
    }
    // Both are done.
    bench.arrives(&segment(TcpControl::Fin, bench.flow.expected, Some(START + 2), WINDOW));
    assert_eq!(bench.sent(), [Sent { control: TcpControl::None, seq: START + 2, len: 0 }]);
    assert_eq!(bench.flow.phase, Phase::Over);
}

#[test]
fn a_closed_window_is_asked_after_for_ever_and_opens() {
    let mut bench = Bench::open();
    bench.outside_says(3000);
    let seqs = |sent: Vec<Sent>| sent.iter().map(|sent| (sent.seq, sent.len)).collect::<Vec<_>>();
    assert_eq!(seqs(bench.sent()), [(START + 1, 1460), (START + 1461, 1460), (START + 2921, 80)]);
    bench.acknowledges(START + 3001, 0);
    bench.outside_says(3000);
    let mut probes = 0;
    // An hour.
    for _ in 0..360 {
        bench.passes(Duration::from_secs(10));
        for probe in seqs(bench.sent()) {
            assert_eq!(probe, (START + 3001, 1));
            bench.acknowledges(START + 3001, 0);
            probes += 1;
        }
        assert_eq!(bench.flow.phase, Phase::Open);
    }
    assert!(probes > 100, "{probes}");
    // The byte of the last probe was not taken: it comes again, and at once.
    while bench.flow.next == bench.flow.first {
        bench.passes(Duration::from_secs(10));
        bench.sent();
    }
    bench.acknowledges(START + 3001, WINDOW);
    assert_eq!(seqs(bench.sent()), [(START + 3001, 1460), (START + 4461, 1460), (START + 5921, 80)]);
}

#[test]
fn a_guest_that_is_silent_behind_a_closed_window_is_given_up() {
    let mut bench = Bench::open();
    bench.acknowledges(START + 1, 0);
    bench.outside_says(10);
    for _ in 0..30 {
        bench.passes(Duration::from_secs(10));
        bench.sent();
    }
    assert_eq!(bench.flow.phase, Phase::Over);
}

#[test]
fn a_call_repeated_before_its_answer_is_acknowledged_changes_nothing() {
    let mut bench = Bench::called();
    bench.sent();
    bench.arrives(&segment(TcpControl::Syn, 0, None, WINDOW));
    bench.acknowledges(START + 1, WINDOW);
    assert_eq!(bench.flow.phase, Phase::Open);
    bench.sent();
    bench.outside_says(10);
    assert_eq!(bench.sent(), [Sent { control: TcpControl::Psh, seq: START + 1, len: 10 }]);
}
