//! What became of a case: where it stopped, and what the last event pushed on the way there.

use std::fmt;

use engine::Exit;
use memory::GuestMemory;
use mmu::{PagingContext, PagingFeatures};
use x86::descriptor::system;
use x86::exception::vector;
use x86::rflags::VM;
use x86::{CpuState, Gpa, Gva, Mode, Segment, Selector};

use super::case::{Outcome, has_error_code, vector_name};
use super::layout::{HANDLER_BYTES, HANDLERS};

/// What an interrupt or exception pushed.
#[derive(Clone, Debug, Default)]
pub(super) struct Frame {
    pub(super) error: Option<u64>,
    pub(super) ip: u64,
    pub(super) cs: u64,
    pub(super) flags: u64,
    pub(super) stack: Option<(u64, u64)>,
    /// ES, DS, FS and GS, from virtual-8086 mode.
    pub(super) data: Option<[u64; 4]>,
}

impl Frame {
    /// A field by its name.
    pub(super) fn field(&self, name: &str) -> Option<u64> {
        let data = |i: usize| self.data.map(|d| d[i]);
        match name {
            "error" => self.error,
            "ip" => Some(self.ip),
            "cs" => Some(self.cs),
            "flags" => Some(self.flags),
            "sp" => self.stack.map(|(sp, _)| sp),
            "ss" => self.stack.map(|(_, ss)| ss),
            "es" => data(0),
            "ds" => data(1),
            "fs" => data(2),
            "gs" => data(3),
            _ => None,
        }
    }
}

/// A guest that has stopped.
#[derive(Clone, Copy)]
pub(super) struct Stopped<'a> {
    pub(super) state: &'a CpuState,
    pub(super) memory: &'a GuestMemory,
    pub(super) features: &'a PagingFeatures,
}

/// Where it stopped.
#[derive(Clone, Debug)]
pub(super) enum Stop {
    /// At an address, with no handler there.
    Halted(u64),
    /// In the handler of a vector.
    Handler { vector: u8, frame: Box<Frame> },
    /// Triple fault.
    Shutdown,
    /// It waits for a start-up IPI.
    Waiting,
    /// It did not stop by itself.
    Hung,
}

impl Stop {
    /// Reads off where a guest stopped. Whether its last event was an exception, with an error code, or an interrupt
    /// of the same vector, is not to be seen; it is taken to be what was expected.
    pub(super) fn of(exit: Exit, guest: Stopped<'_>, expected: &Outcome) -> Self {
        match exit {
            Exit::Halted => {}
            Exit::Shutdown => return Self::Shutdown,
            Exit::WaitForSipi => return Self::Waiting,
            Exit::Kicked => return Self::Hung,
        }
        let state = guest.state;
        let base = if state.mode() == Mode::Long { 0 } else { state.cs().base };
        let at = base.wrapping_add(state.rip).wrapping_sub(1);
        let offset = at.wrapping_sub(HANDLERS);
        match u8::try_from(offset / HANDLER_BYTES) {
            Ok(vector) if offset.is_multiple_of(HANDLER_BYTES) => {
                let exception = !matches!(expected, Outcome::Takes { .. });
                let coded = exception && has_error_code(vector) && state.mode() != Mode::Real;
                Self::Handler { vector, frame: Box::new(Reader::new(guest, vector).frame(coded)) }
            }
            _ => Self::Halted(at),
        }
    }

    /// What the last event pushed.
    pub(super) fn frame(&self) -> Option<&Frame> {
        match self {
            Self::Handler { frame, .. } => Some(frame),
            _ => None,
        }
    }

    /// Compares with what was expected; says what is wrong.
    pub(super) fn compare(&self, expected: &Outcome, state: &CpuState) -> Result<(), String> {
        let place = |frame: &Frame| {
            let real_like = state.mode() == Mode::Real || frame.flags & VM != 0;
            if real_like { (frame.cs << 4) + frame.ip } else { frame.ip }
        };
        let fits = match (self, expected) {
            (Self::Halted(at), Outcome::Ends { at: end } | Outcome::Halts { at: end }) => at == end,
            // The HLT at the end, in ring 3.
            (Self::Handler { vector: vector::GP, frame }, Outcome::Ends { at: end }) => {
                place(frame) == *end && frame.error == Some(0) && frame.stack.is_some()
            }
            (Self::Handler { vector, frame }, Outcome::Raises { vector: wanted, error, cr2, at }) => {
                // There are no error codes in real mode.
                let error = error.filter(|_| state.mode() != Mode::Real).map(u64::from);
                let cr2_fits = cr2.is_none_or(|cr2| state.cr2 == cr2);
                vector == wanted && place(frame) == *at && frame.error == error && cr2_fits
            }
            (Self::Handler { vector, frame }, Outcome::Takes { vector: wanted, at }) => {
                vector == wanted && place(frame) == *at
            }
            (Self::Shutdown, Outcome::ShutsDown) | (Self::Waiting, Outcome::Waits) => true,
            _ => false,
        };
        if fits { Ok(()) } else { Err(format!("{self}; CR2 = {:#x}", state.cr2)) }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Halted(at) => write!(f, "halted at {at:#x}"),
            Self::Shutdown => write!(f, "shut down"),
            Self::Waiting => write!(f, "waits for a start-up IPI"),
            Self::Hung => write!(f, "hung"),
            Self::Handler { vector, frame } => {
                write!(f, "{}", vector_name(*vector))?;
                if let Some(error) = frame.error {
                    write!(f, "({error:#x})")?;
                }
                write!(f, " at {:#x}:{:#x}, flags {:#x}", frame.cs, frame.ip, frame.flags)
            }
        }
    }
}

/// Reads a frame from the stack that a handler was entered with.
struct Reader<'a> {
    guest: Stopped<'a>,
    /// Bytes of a word.
    width: u64,
    at: u64,
}

impl<'a> Reader<'a> {
    fn new(guest: Stopped<'a>, vector: u8) -> Self {
        let (state, mode) = (guest.state, guest.state.mode());
        let long = state.long_mode_active();
        let ss = state.ss();
        let (base, mask) = match mode {
            _ if long => (0, u64::MAX),
            _ if mode != Mode::Real && ss.big() => (ss.base, 0xffff_ffff),
            _ => (ss.base, 0xffff),
        };
        let mut reader = Self { guest, width: 8, at: base + (state.gpr[4] & mask) };
        reader.width = match mode {
            _ if long => 8,
            Mode::Real => 2,
            _ => {
                let gate = reader.load(state.idtr.base + 8 * u64::from(vector), 8);
                let kind = Segment::from_descriptor(Selector(0), gate).kind();
                if matches!(kind, system::INTERRUPT_GATE | system::TRAP_GATE) { 4 } else { 2 }
            }
        };
        reader
    }

    /// A word at a linear address; zero where nothing is mapped.
    fn load(&self, va: u64, bytes: u64) -> u64 {
        let Stopped { state, memory, features } = self.guest;
        let context = PagingContext::of(state, features);
        let gpa = mmu::probe(memory, &context, Gva(va)).unwrap_or(Gpa(va));
        let mut buffer = [0; 8];
        let part = &mut buffer[..bytes as usize];
        let _ = memory.read(gpa, part);
        u64::from_le_bytes(buffer)
    }

    fn next(&mut self) -> u64 {
        let value = self.load(self.at, self.width);
        self.at += self.width;
        value
    }

    fn frame(mut self, coded: bool) -> Frame {
        let error = coded.then(|| self.next());
        let (ip, cs, flags) = (self.next(), self.next() & 0xffff, self.next());
        let mut frame = Frame { error, ip, cs, flags, stack: None, data: None };
        let state = self.guest.state;
        let virtual8086 = flags & VM != 0 && self.width == 4;
        let outer = cs & 3 > u64::from(state.cpl()) && state.mode() != Mode::Real;
        if self.width == 8 || virtual8086 || outer {
            frame.stack = Some((self.next(), self.next() & 0xffff));
        }
        if virtual8086 {
            frame.data = Some([(); 4].map(|()| self.next() & 0xffff));
        }
        frame
    }
}
