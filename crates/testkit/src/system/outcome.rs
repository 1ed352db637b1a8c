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
use super::place::is_real_like;

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

/// Where a vCPU stopped.
#[derive(Clone, Debug)]
pub(super) enum Stop {
    /// At an address, with no handler there.
    Halted(u64),
    /// In the handler of a vector. `bare` and `coded` are the frame as it is without and with an error code.
    Handler { vector: u8, bare: Frame, coded: Frame },
    /// Triple fault.
    Shutdown,
    /// It did not stop by itself.
    Hung,
}

impl Stop {
    /// Reads off a stopped vCPU.
    pub(super) fn of(exit: Exit, state: &CpuState, memory: &GuestMemory, features: &PagingFeatures) -> Self {
        match exit {
            Exit::Halted => {}
            Exit::Shutdown => return Self::Shutdown,
            Exit::Kicked | Exit::WaitForSipi => return Self::Hung,
        }
        let base = if state.mode() == Mode::Long { 0 } else { state.cs().base };
        let at = base.wrapping_add(state.rip).wrapping_sub(1);
        let offset = at.wrapping_sub(HANDLERS);
        let vector = offset / HANDLER_BYTES;
        // HLT in virtual-8086 mode does not stop, so this is a handler of the IVT or the IDT.
        match u8::try_from(vector) {
            Ok(vector) if offset.is_multiple_of(HANDLER_BYTES) => {
                let frame = |coded| Reader::new(state, memory, features, vector).frame(coded);
                Self::Handler { vector, bare: frame(false), coded: frame(true) }
            }
            _ => Self::Halted(at),
        }
    }

    /// The frame that belongs to an outcome.
    pub(super) fn frame(&self, outcome: &Outcome) -> Option<Frame> {
        match (self, outcome) {
            (Self::Handler { bare, .. }, Outcome::Takes { .. }) => Some(bare.clone()),
            (Self::Handler { vector, bare, coded }, _) => {
                Some(if has_error_code(*vector) { coded.clone() } else { bare.clone() })
            }
            _ => None,
        }
    }

    /// Compares with what was to be; says what is wrong.
    pub(super) fn compare(&self, outcome: &Outcome, state: &CpuState) -> Result<(), String> {
        let frame = self.frame(outcome);
        let place = frame
            .as_ref()
            .map_or(0, |f| if is_real_like(state, f.flags) { (f.cs << 4) + f.ip } else { f.ip });
        let fits = match (self, outcome) {
            (Self::Halted(at), Outcome::Ends { at: end } | Outcome::Halts { at: end }) => at == end,
            // The HLT at the end, in ring 3.
            (Self::Handler { vector: vector::GP, .. }, Outcome::Ends { at: end }) => {
                place == *end && frame.as_ref().is_some_and(|f| f.error == Some(0) && f.stack.is_some())
            }
            (Self::Handler { vector, .. }, Outcome::Raises { vector: wanted, error, cr2, at }) => {
                let real = state.mode() == Mode::Real;
                let coded = frame.as_ref().and_then(|f| f.error);
                vector == wanted
                    && place == *at
                    && (real || coded == error.map(u64::from))
                    && cr2.is_none_or(|cr2| state.cr2 == cr2)
            }
            (Self::Handler { vector, .. }, Outcome::Takes { vector: wanted, at }) => {
                vector == wanted && place == *at
            }
            (Self::Shutdown, Outcome::ShutsDown) => true,
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
            Self::Hung => write!(f, "hung"),
            Self::Handler { vector, bare, coded } => {
                let name = vector_name(*vector);
                let frame = if has_error_code(*vector) { coded } else { bare };
                write!(f, "{name}")?;
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
    state: &'a CpuState,
    memory: &'a GuestMemory,
    features: &'a PagingFeatures,
    /// Bytes of a word.
    width: u64,
    at: u64,
}

impl<'a> Reader<'a> {
    fn new(state: &'a CpuState, memory: &'a GuestMemory, features: &'a PagingFeatures, vector: u8) -> Self {
        let long = state.long_mode_active();
        let ss = state.ss();
        let (base, mask) = match state.mode() {
            _ if long => (0, u64::MAX),
            Mode::Real => (ss.base, 0xffff),
            _ if ss.big() => (ss.base, 0xffff_ffff),
            _ => (ss.base, 0xffff),
        };
        let mut reader = Self { state, memory, features, width: 8, at: base + (state.gpr[4] & mask) };
        reader.width = match state.mode() {
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
        let context = PagingContext::of(self.state, self.features);
        let gpa = mmu::probe(self.memory, &context, Gva(va)).unwrap_or(Gpa(va));
        let mut buffer = [0; 8];
        let part = &mut buffer[..bytes as usize];
        let _ = self.memory.read(gpa, part);
        u64::from_le_bytes(buffer)
    }

    fn next(&mut self) -> u64 {
        let value = self.load(self.at, self.width);
        self.at += self.width;
        value
    }

    fn frame(mut self, coded: bool) -> Frame {
        let error = (coded && self.state.mode() != Mode::Real).then(|| self.next());
        let (ip, cs, flags) = (self.next(), self.next() & 0xffff, self.next());
        let mut frame = Frame { error, ip, cs, flags, stack: None, data: None };
        let virtual8086 = flags & VM != 0 && self.width == 4;
        let outer = cs & 3 > u64::from(self.state.cpl());
        if self.width == 8 || virtual8086 || outer && self.state.mode() != Mode::Real {
            frame.stack = Some((self.next(), self.next() & 0xffff));
        }
        if virtual8086 {
            frame.data = Some([(); 4].map(|()| self.next() & 0xffff));
        }
        frame
    }
}
