//! One connection: the guest's TCP ends here, and a socket of the host goes on.
//!
//! # Towards the host
//! Data of the guest is written to the socket at once. What the socket does not take is kept, and the window that the guest is
//! offered is what room is left for more, so what is kept is bounded by a promise, not by hope. Everything accepted is
//! acknowledged.
//!
//! # Towards the guest
//! The socket is read into a ring as long as there is room, and segments are cut from the ring when the guest has buffers
//! for them. Bytes stay until the guest acknowledges them. Nothing is lost between us but inside the guest, so
//! going back to the first byte that was not acknowledged is recovery enough, after three repeated acknowledgements or a time.
//!
//! # Order of events
//! A connection of the guest is answered only when the host's is there, so a refusal is a refusal. A forwarded one is there
//! already, and its other end finds itself reset if the guest refuses.
//!
//! Reference: RFC 9293; window scale: RFC 7323.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use smoltcp::wire::{TcpControl, TcpRepr};

use crate::net::user::link::Ends;
use crate::net::user::outside::Stream;
use crate::net::user::ring::Ring;

/// The most bytes of the guest that wait for a socket.
pub(super) const MOST_KEPT: usize = 256 << 10;
/// Our windows are in units of 8 bytes.
const SCALE: u8 = 3;
/// What a guest takes that does not say (RFC 9293, 3.7.1).
const DEFAULT_MSS: u16 = 536;
/// How long to wait for an acknowledgement at first; twice as long each time.
const PATIENCE: Duration = Duration::from_millis(400);
/// How often to ask again.
const MOST_RETRIES: u32 = 8;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest has called; the host's connection is being made.
    Connecting,
    /// The host's connection is there and the guest is told.
    Answering,
    /// Somebody outside has called, and the guest is called.
    Calling,
    /// Both ends are there.
    Open,
    /// It is broken, and the guest is to hear of it.
    Broken,
    /// It is over.
    Over,
}

/// A segment for the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) ends: Ends,
    pub(super) control: TcpControl,
    pub(super) seq: u32,
    pub(super) ack: Option<u32>,
    pub(super) window: u16,
    /// Our window scale, in a call or an answer to one.
    pub(super) scale: Option<u8>,
    /// The most data that a segment of the guest's network may have.
    pub(super) mss: u16,
    pub(super) data: [&'a [u8]; 2],
}

/// What `emit` has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Emitted {
    Segment,
    Nothing,
    NoRoom,
}

/// What there is to send next.
#[derive(Clone, Copy)]
struct Step {
    control: TcpControl,
    offset: usize,
    len: usize,
}

/// A connection.
pub(super) struct Flow {
    // Static.
    pub(super) ends: Ends,
    /// Whether somebody outside has made it.
    pub(super) from_outside: bool,
    stream: Box<dyn Stream>,
    // Volatile.
    pub(super) phase: Phase,
    pub(super) touched: Instant,
    /// Whether it is among those that have something to send.
    pub(super) queued: bool,
    /// When to ask again.
    pub(super) deadline: Option<Instant>,
    retries: u32,
    can_read: bool,
    can_write: bool,
    // From the guest (RFC 9293, 3.3.1: RCV).
    expected: u32,
    promised: u32,
    kept: VecDeque<u8>,
    guest_done: bool,
    told_host: bool,
    ack_due: bool,
    // To the guest (SND).
    ring: Ring,
    first: u32,
    next: u32,
    highest: u32,
    window: u32,
    scales: Option<u8>,
    mss: u16,
    repeated: u8,
    probe: bool,
    host_done: bool,
    end_acknowledged: bool,
}

/// Whether `a` comes before `b` among sequence numbers.
fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) > 1 << 31
}

fn distance(from: u32, to: u32) -> usize {
    usize::try_from(to.wrapping_sub(from)).unwrap_or(usize::MAX)
}

fn wide(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// A sequence number as a number.
pub(super) fn number(seq: smoltcp::wire::TcpSeqNumber) -> u32 {
    seq.0.cast_unsigned()
}

impl Flow {
    /// A connection with nothing said; `start` is our first sequence number.
    fn new(ends: Ends, stream: Box<dyn Stream>, phase: Phase, start: u32, now: Instant) -> Self {
        Self {
            ends,
            from_outside: phase == Phase::Calling,
            stream,
            phase,
            touched: now,
            queued: false,
            deadline: None,
            retries: 0,
            can_read: false,
            can_write: false,
            expected: 0,
            promised: 0,
            kept: VecDeque::new(),
            guest_done: false,
            told_host: false,
            ack_due: false,
            ring: Ring::default(),
            first: start,
            next: start,
            highest: start,
            window: 0,
            scales: None,
            mss: DEFAULT_MSS,
            repeated: 0,
            probe: false,
            host_done: false,
            end_acknowledged: false,
        }
    }

    /// A connection that the guest calls for, `stream` being on its way.
    pub(super) fn from_guest(
        ends: Ends,
        call: &TcpRepr<'_>,
        stream: Box<dyn Stream>,
        start: u32,
        now: Instant,
    ) -> Self {
        let mut flow = Self::new(ends, stream, Phase::Connecting, start, now);
        flow.learn(call);
        flow
    }

    /// A connection that somebody outside has made.
    pub(super) fn from_outside(ends: Ends, stream: Box<dyn Stream>, start: u32, now: Instant) -> Self {
        Self::new(ends, stream, Phase::Calling, start, now)
    }

    /// Takes over what a call says.
    fn learn(&mut self, call: &TcpRepr<'_>) {
        self.expected = number(call.seq_number).wrapping_add(1);
        self.promised = self.expected;
        self.scales = call.window_scale;
        self.mss = call.max_seg_size.unwrap_or(DEFAULT_MSS).max(64);
        // The window of a call is never scaled.
        self.window = call.window_len.into();
    }

    /// Whether one end is missing still.
    pub(super) fn is_half_open(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Answering | Phase::Calling)
    }

    /// The most data of a segment that the guest takes.
    pub(super) fn mss(&self) -> u16 {
        self.mss
    }

    /// Gives up: the other end on the host is reset.
    pub(super) fn abort(&mut self) {
        self.stream.abort();
        self.phase = Phase::Over;
    }

    /// Breaks off: both ends are reset.
    fn fail(&mut self) {
        self.stream.abort();
        self.phase = Phase::Broken;
    }

    // ---- the host's end --------------------------------------------------------------------------------------------

    /// The socket is ready.
    pub(super) fn host_ready(&mut self, readable: bool, writable: bool) {
        self.can_read |= readable;
        self.can_write |= writable;
        if self.phase == Phase::Connecting && writable {
            match self.stream.connected() {
                Ok(()) => self.phase = Phase::Answering,
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                Err(_) => self.phase = Phase::Broken,
            }
        }
        self.move_on();
    }

    /// Moves what can be moved between the socket and what is kept.
    fn move_on(&mut self) {
        if !matches!(self.phase, Phase::Answering | Phase::Calling | Phase::Open) {
            return;
        }
        self.write_kept();
        self.read();
    }

    fn read(&mut self) {
        while self.can_read && !self.host_done && !self.ring.is_full() {
            match self.ring.fill(&mut self.stream) {
                Ok(0) => self.host_done = true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.can_read = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.fail(),
            }
        }
    }

    fn write_kept(&mut self) {
        let before = self.kept.len();
        while self.can_write && !self.kept.is_empty() {
            let outcome = self.stream.write(self.kept.as_slices().0);
            let count = self.written(outcome);
            self.kept.drain(..count);
        }
        // A guest that was offered little hears when there is room again.
        let room = distance(self.expected, self.promised);
        if self.kept.len() < before && room < MOST_KEPT / 2 && MOST_KEPT - self.kept.len() >= MOST_KEPT / 2 {
            self.ack_due = true;
        }
        if self.guest_done && self.kept.is_empty() && !self.told_host {
            self.told_host = true;
            self.stream.end();
        }
    }

    /// After writing to the socket: how much was taken.
    fn written(&mut self, outcome: io::Result<usize>) -> usize {
        match outcome {
            Ok(0) => self.can_write = false,
            Ok(count) => return count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.can_write = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                self.can_write = false;
                self.fail();
            }
        }
        0
    }

    // ---- the guest's end -------------------------------------------------------------------------------------------

    /// Takes a segment of the guest.
    pub(super) fn arrive(&mut self, segment: &TcpRepr<'_>, now: Instant) {
        self.touched = now;
        let seq = number(segment.seq_number);
        if segment.control == TcpControl::Rst {
            let ours = segment.ack_number.map(number);
            let believed = match self.phase {
                Phase::Calling => ours == Some(self.next),
                _ => distance(self.expected, seq) <= MOST_KEPT,
            };
            if believed {
                self.abort();
            }
            return;
        }
        match self.phase {
            Phase::Connecting | Phase::Broken | Phase::Over => {}
            Phase::Calling => self.answered(segment),
            Phase::Answering | Phase::Open if segment.control == TcpControl::Syn => {
                // Our answer was lost; or it is a new call, which hears where we are (RFC 9293, 3.10.7.4).
                if self.phase == Phase::Answering {
                    self.next = self.first;
                }
                self.ack_due = true;
            }
            Phase::Answering | Phase::Open => {
                let Some(ack) = segment.ack_number else { return };
                self.acknowledged(number(ack), segment);
                if self.phase == Phase::Open {
                    self.take(segment);
                    self.move_on();
                }
            }
        }
    }

    /// The guest has answered our call.
    fn answered(&mut self, segment: &TcpRepr<'_>) {
        if segment.control != TcpControl::Syn || segment.ack_number.map(number) != Some(self.next) {
            return;
        }
        self.learn(segment);
        self.first = self.next;
        self.opened();
        self.ack_due = true;
        self.move_on();
    }

    fn opened(&mut self) {
        self.phase = Phase::Open;
        (self.deadline, self.retries) = (None, 0);
    }

    fn acknowledged(&mut self, ack: u32, segment: &TcpRepr<'_>) {
        let (count, out) = (distance(self.first, ack), distance(self.first, self.highest));
        if count > out {
            // Of what was never sent, or old.
            self.ack_due |= !before(ack, self.first);
            return;
        }
        let window = u32::from(segment.window_len) << self.scales.unwrap_or(0).min(14);
        if self.phase == Phase::Answering {
            if count == 0 {
                return;
            }
            // It is our call that was acknowledged, and nothing else is out.
            (self.first, self.next) = (ack, ack);
            self.window = window;
            return self.opened();
        }
        if count == 0 && self.window == 0 {
            // A guest that answers may keep its window closed as long as it likes (RFC 9293, 3.8.6.1).
            self.retries = 0;
            if window > 0 {
                // What it was asked with is not what it took.
                (self.next, self.deadline) = (self.first, None);
            }
        }
        if count > 0 {
            self.end_acknowledged |= self.host_done && count > self.ring.len();
            self.ring.consume(count);
            self.first = ack;
            if before(self.next, self.first) {
                self.next = self.first;
            }
            (self.retries, self.repeated, self.deadline) = (0, 0, None);
        } else if out > 0 && segment.payload.is_empty() && window == self.window {
            self.repeated = self.repeated.saturating_add(1);
            if self.repeated == 3 {
                self.next = self.first;
            }
        }
        self.window = window;
    }

    /// Takes data and the end of data.
    fn take(&mut self, segment: &TcpRepr<'_>) {
        let seq = number(segment.seq_number);
        let mut data = segment.payload;
        let ends = segment.control == TcpControl::Fin;
        if seq != self.expected {
            let known = distance(seq, self.expected);
            if !before(seq, self.expected) || known > data.len() {
                // A gap, a repetition, or a question whether we are there: the answer says where we are.
                self.ack_due = true;
                return;
            }
            data = data.get(known..).unwrap_or_default();
        }
        if self.guest_done {
            self.ack_due |= !data.is_empty() || ends;
            return;
        }
        let room = distance(self.expected, self.promised);
        let whole = data.len() <= room;
        let data = data.get(..room).unwrap_or(data);
        self.ack_due |= !data.is_empty() || !whole;
        self.accept(data);
        self.expected = self.expected.wrapping_add(wide(data.len()));
        if ends && whole {
            self.guest_done = true;
            self.expected = self.expected.wrapping_add(1);
            self.ack_due = true;
        }
    }

    fn accept(&mut self, data: &[u8]) {
        let mut rest = data;
        while self.can_write && self.kept.is_empty() && !rest.is_empty() {
            let outcome = self.stream.write(rest);
            let count = self.written(outcome);
            rest = rest.get(count..).unwrap_or_default();
        }
        self.kept.extend(rest);
    }

    // ---- segments --------------------------------------------------------------------------------------------------

    /// What to send next, with `most` bytes of data at most.
    fn step(&self, most: usize) -> Option<Step> {
        let plain = |control| Some(Step { control, offset: 0, len: 0 });
        match self.phase {
            Phase::Connecting | Phase::Over => None,
            Phase::Broken => plain(TcpControl::Rst),
            Phase::Answering | Phase::Calling if self.next == self.first => plain(TcpControl::Syn),
            Phase::Answering | Phase::Calling => None,
            Phase::Open => {
                let offset = distance(self.first, self.next);
                let waits = self.ring.len().saturating_sub(offset);
                let window = usize::try_from(self.window).unwrap_or(usize::MAX);
                let len = waits.min(window.saturating_sub(offset).max(usize::from(self.probe))).min(most);
                // No bits of data behind what is out (RFC 9293, 3.8.6.2.1), unless they are the last.
                if len > 0 && (len == waits || offset == 0 || len >= most.min(self.mss.into())) {
                    return Some(Step { control: TcpControl::Psh, offset, len });
                }
                if self.host_done && !self.end_acknowledged && waits == 0 && offset <= self.ring.len() {
                    return Some(Step { control: TcpControl::Fin, offset, len: 0 });
                }
                if self.ack_due { plain(TcpControl::None) } else { None }
            }
        }
    }

    /// Whether there is anything to send.
    pub(super) fn has_segment(&self) -> bool {
        self.step(1 << 16).is_some()
    }

    /// Hands the next segment, with `most` bytes of data at most, to `deliver`, which says whether there was room for it.
    pub(super) fn emit(
        &mut self,
        most: usize,
        mss: u16,
        now: Instant,
        deliver: &mut dyn FnMut(&Outgoing<'_>) -> bool,
    ) -> Emitted {
        let Some(step) = self.step(most) else { return Emitted::Nothing };
        let call = step.control == TcpControl::Syn;
        let (window, promised) = self.offer(call);
        let segment = Outgoing {
            ends: self.ends,
            control: step.control,
            seq: self.next,
            ack: (self.phase != Phase::Calling).then_some(self.expected),
            window,
            scale: (call && (self.phase == Phase::Calling || self.scales.is_some())).then_some(SCALE),
            mss,
            data: self.ring.part(step.offset, step.len),
        };
        if !deliver(&segment) {
            return Emitted::NoRoom;
        }
        if before(self.promised, promised) {
            self.promised = promised;
        }
        self.ack_due = false;
        self.sent(step, now);
        Emitted::Segment
    }

    /// The window field, and the end of what it offers.
    fn offer(&self, call: bool) -> (u16, u32) {
        let scale = if call || self.scales.is_none() { 0 } else { SCALE };
        let room = wide(MOST_KEPT.saturating_sub(self.kept.len()));
        let field = u16::try_from(room >> scale).unwrap_or(u16::MAX);
        (field, self.expected.wrapping_add(u32::from(field) << scale))
    }

    fn sent(&mut self, step: Step, now: Instant) {
        if step.control == TcpControl::Rst {
            self.phase = Phase::Over;
            return;
        }
        let end = u32::from(matches!(step.control, TcpControl::Syn | TcpControl::Fin));
        self.next = self.next.wrapping_add(wide(step.len)).wrapping_add(end);
        if before(self.highest, self.next) {
            self.highest = self.next;
        }
        if step.len > 0 || end > 0 {
            self.probe = false;
            self.deadline = self.deadline.or(now.checked_add(self.patience()));
        }
        // Once the guest knows that we know that it is done, there is nothing left.
        if self.guest_done && self.told_host && self.end_acknowledged {
            self.phase = Phase::Over;
        }
    }

    fn patience(&self) -> Duration {
        PATIENCE * 2u32.saturating_pow(self.retries.min(MOST_RETRIES))
    }

    /// Sees to it that somebody asks again: for an acknowledgement, or whether a closed window has opened.
    pub(super) fn watch_clock(&mut self, now: Instant) {
        let closed =
            self.phase == Phase::Open && self.next == self.first && self.ring.len() > 0 && self.window == 0;
        if self.deadline.is_none() && (closed || self.next != self.first) {
            self.deadline = now.checked_add(self.patience());
        }
        // A guest's last acknowledgement ends what it need not be answered for.
        if self.guest_done && self.told_host && self.end_acknowledged && !self.ack_due {
            self.phase = Phase::Over;
        }
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        self.deadline = None;
        if self.next == self.first && !closed {
            // Everything has been acknowledged; or what is to be repeated has had no room yet.
            return;
        }
        self.retries += 1;
        if self.retries > MOST_RETRIES {
            return self.fail();
        }
        self.probe = closed;
        self.next = self.first;
    }
}
