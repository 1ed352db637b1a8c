//! A model: one frame, one writer, two readers, and every interleaving of their steps.
//!
//! A step is one access to what is shared. The writer's plain stores wait in a store buffer, as a processor's do; its
//! locked steps wait until that is empty. Readers store nothing plainly. Of the code there is the old and the new.

use std::collections::HashSet;

/// What of the protocol is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Right,
    /// Who watches keeps what it decodes without asking who has heard.
    KeepAtOnce,
    /// Who watches first takes the mark away, so that the next one does not ask.
    ForgetAtOnce,
    /// Who comes in does not look at the epoch.
    EnterUnseen,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) states: usize,
    /// Somebody kept code.
    pub(super) kept: bool,
    /// After how many states a reader ran the old code although it had seen the flag.
    pub(super) stale: Option<usize>,
}

const AWAY: u8 = u8::MAX;
/// How often a reader runs the code.
const TURNS: u8 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Event {
    Watched,
    Written,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Store {
    Code,
    Flag,
    Heard(u8),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Shared {
    new: bool,
    flag: bool,
    watched: bool,
    writable: bool,
    changes: u8,
    log: Vec<Event>,
    /// The writer's seat.
    heard: u8,
    /// Version and epoch.
    pending: Option<(u8, u8)>,
    locked: bool,
}

impl Shared {
    fn epoch(&self) -> u8 {
        u8::try_from(self.log.len()).unwrap()
    }

    /// Only of use while the frame is watched.
    fn version(&self) -> Option<u8> {
        self.watched.then_some(self.changes)
    }

    /// True if a watch ended.
    fn written(&mut self) -> bool {
        let ended = std::mem::take(&mut self.watched);
        self.changes += u8::from(ended);
        ended
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum WriterAt {
    Enter,
    Look {
        entering: bool,
    },
    /// To be noted, having read this epoch.
    Note {
        epoch: u8,
        entering: bool,
    },
    Announce {
        epoch: u8,
        entering: bool,
    },
    Heard {
        epoch: u8,
        entering: bool,
    },
    Fill,
    Code,
    NoteCode,
    AnnounceCode,
    Flag,
    Leave,
    Done,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Writer {
    at: WriterAt,
    seen: u8,
    holds: bool,
    buffer: Vec<Store>,
}

impl Writer {
    /// The next step; false if it cannot be made.
    fn step(&mut self, shared: &mut Shared, protocol: Protocol) -> bool {
        use WriterAt as At;
        let waits = matches!(
            self.at,
            At::Enter | At::Note { .. } | At::Announce { .. } | At::Fill | At::NoteCode | At::AnnounceCode
        );
        if self.at == At::Done || waits && !self.buffer.is_empty() {
            return false;
        }
        let after = |entering| if entering { At::Fill } else { At::Leave };
        self.at = match self.at {
            At::Enter => {
                shared.heard = self.seen;
                if protocol == Protocol::EnterUnseen { At::Fill } else { At::Look { entering: true } }
            }
            At::Look { entering } => match shared.epoch() {
                epoch if epoch == self.seen => after(entering),
                epoch => {
                    let changes = &shared.log[usize::from(self.seen)..usize::from(epoch)];
                    if self.holds && changes.contains(&Event::Watched) {
                        At::Note { epoch, entering }
                    } else {
                        At::Heard { epoch, entering }
                    }
                }
            },
            At::Note { epoch, entering } => {
                self.holds = false;
                if shared.written() {
                    At::Announce { epoch, entering }
                } else {
                    At::Heard { epoch, entering }
                }
            }
            At::Announce { epoch, entering } => {
                shared.log.push(Event::Written);
                At::Heard { epoch, entering }
            }
            At::Heard { epoch, entering } => {
                self.seen = epoch;
                self.buffer.push(Store::Heard(epoch));
                after(entering)
            }
            At::Fill => {
                if !self.holds && !shared.watched {
                    shared.writable = true;
                    self.holds = true;
                }
                At::Code
            }
            At::Code => {
                self.buffer.push(Store::Code);
                if self.holds { At::Flag } else { At::NoteCode }
            }
            At::NoteCode => {
                if shared.written() {
                    At::AnnounceCode
                } else {
                    At::Flag
                }
            }
            At::AnnounceCode => {
                shared.log.push(Event::Written);
                At::Flag
            }
            At::Flag => {
                self.buffer.push(Store::Flag);
                At::Look { entering: false }
            }
            At::Leave => {
                self.buffer.push(Store::Heard(AWAY));
                At::Done
            }
            At::Done => At::Done,
        };
        true
    }

    /// The oldest store becomes visible.
    fn drain(&mut self, shared: &mut Shared) -> bool {
        if self.buffer.is_empty() {
            return false;
        }
        match self.buffer.remove(0) {
            Store::Code => shared.new = true,
            Store::Flag => shared.flag = true,
            Store::Heard(epoch) => shared.heard = epoch,
        }
        true
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ReaderAt {
    Begin,
    Version,
    Watch,
    Lock,
    Heard { last: bool },
    Settle { heard: u8, last: bool },
    Ask { last: bool },
    Announce,
    Read { settled: bool },
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Reader {
    at: ReaderAt,
    turns: u8,
    told: bool,
    version: u8,
    kept: Option<(u8, bool)>,
    stale: bool,
}

impl Reader {
    fn step(&mut self, shared: &mut Shared, protocol: Protocol) -> bool {
        use ReaderAt as At;
        if self.turns == TURNS || self.at == At::Lock && shared.locked {
            return false;
        }
        self.at = match self.at {
            At::Begin => {
                self.told = shared.flag;
                At::Version
            }
            At::Version => match self.kept {
                Some((version, new)) if shared.version() == Some(version) => self.ran(new),
                _ => At::Watch,
            },
            At::Watch => {
                shared.watched = true;
                self.version = shared.changes;
                let ask = shared.writable;
                shared.writable &= protocol != Protocol::ForgetAtOnce;
                if ask { At::Lock } else { At::Read { settled: true } }
            }
            At::Lock => {
                shared.locked = true;
                At::Heard { last: false }
            }
            At::Heard { last } => At::Settle { heard: shared.heard, last },
            At::Settle { heard, last } => {
                if let Some((version, epoch)) = shared.pending
                    && epoch <= heard
                {
                    if shared.version() == Some(version) {
                        shared.writable = false;
                    }
                    shared.pending = None;
                }
                At::Ask { last }
            }
            At::Ask { last } => {
                let unsettled = shared.version() == Some(self.version) && shared.writable
                    || protocol == Protocol::ForgetAtOnce && !last;
                let known = shared.pending.is_some_and(|(version, _)| version == self.version);
                if unsettled && !known && !last {
                    At::Announce
                } else {
                    shared.locked = false;
                    // The version has to be what it was, too: that is compared when the code is run.
                    At::Read { settled: !unsettled || protocol == Protocol::KeepAtOnce }
                }
            }
            At::Announce => {
                shared.log.push(Event::Watched);
                shared.pending = Some((self.version, shared.epoch()));
                At::Heard { last: true }
            }
            At::Read { settled } => {
                self.kept = settled.then_some((self.version, shared.new));
                self.ran(shared.new)
            }
        };
        true
    }

    fn ran(&mut self, new: bool) -> ReaderAt {
        self.stale |= self.told && !new;
        self.turns += 1;
        ReaderAt::Begin
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    shared: Shared,
    writer: Writer,
    readers: [Reader; 2],
}

impl State {
    fn new(holds: bool) -> Self {
        let reader =
            Reader { at: ReaderAt::Begin, turns: 0, told: false, version: 0, kept: None, stale: false };
        Self {
            shared: Shared {
                new: false,
                flag: false,
                watched: false,
                writable: holds,
                changes: 0,
                log: Vec::new(),
                heard: AWAY,
                pending: None,
                locked: false,
            },
            writer: Writer { at: WriterAt::Enter, seen: 0, holds, buffer: Vec::new() },
            readers: [reader.clone(), reader],
        }
    }

    /// What may come next, by who moves.
    fn next(&self, mover: usize, protocol: Protocol) -> Option<Self> {
        let mut next = self.clone();
        let moved = match mover {
            0 => next.writer.step(&mut next.shared, protocol),
            1 => next.writer.drain(&mut next.shared),
            reader => next.readers[reader - 2].step(&mut next.shared, protocol),
        };
        moved.then_some(next)
    }
}

/// Visits every state that can be reached; the writer holds a cached translation at the start, or not.
pub(super) fn explore(protocol: Protocol, holds: bool) -> Report {
    let start = State::new(holds);
    let mut report = Report::default();
    let mut known = HashSet::from([start.clone()]);
    let mut open = vec![start];
    while let Some(state) = open.pop() {
        report.kept |= state.readers.iter().any(|reader| reader.kept.is_some());
        if state.readers.iter().any(|reader| reader.stale) {
            report.stale = Some(known.len());
            break;
        }
        for next in (0..4).filter_map(|mover| state.next(mover, protocol)) {
            if known.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    report.states = known.len();
    report
}
