//! Random bytes as code, in every mode, on a guest that may be tampered with.
//!
//! The code stands across a page boundary. It is entered again and again, each time elsewhere, because most stretches of
//! random bytes end soon in an exception, whose handler halts.

use arbitrary::{Result, Unstructured};
use engine::{Exit, Vcpu, VcpuSetup};
use engine_bt::{Closeness, Lockstep, LockstepVcpu};
use interp::{Interp, InterpVcpu};
use x86::CpuState;
use x86::state::{Activity, Pending};

use super::guest::{self, CODE, CODE_BYTES, Guest, StartMode};
use super::tweak;
use crate::oracle::random::Random;

/// Blocks between two entries: enough for a loop or two, and for a string instruction to be cut several times.
const STRETCH: u64 = 24;
const ENTRIES: u64 = 8;

/// A vCPU that can be run for a bounded while.
pub(super) trait Bounded: Vcpu {
    /// Runs for so many blocks; an exit if it came to one.
    fn run_for(&mut self, blocks: u64) -> Option<Exit>;
}

impl Bounded for InterpVcpu {
    fn run_for(&mut self, blocks: u64) -> Option<Exit> {
        Self::run_for(self, blocks)
    }
}

impl Bounded for LockstepVcpu {
    fn run_for(&mut self, blocks: u64) -> Option<Exit> {
        let exit = Self::run_for(self, blocks);
        let differences = self.ledger().differences();
        assert!(differences.is_empty(), "{}", differences.join("\n"));
        exit
    }
}

pub(super) fn run(data: &[u8]) {
    let _ = attempt(data, |setup| Interp.vcpu(setup).expect("a vCPU"));
}

/// The same under the translator, with the interpreter beside it.
pub(super) fn run_in_lockstep(data: &[u8]) {
    let flag = |bit: u8| data.first().is_some_and(|byte| byte & bit != 0);
    let engine = Lockstep::new(Closeness { chained: flag(0x80), every: 1, checking: flag(0x40) });
    let _ = attempt(data, |setup| engine.vcpu(setup).expect("a vCPU"));
}

fn attempt<V: Bounded>(data: &[u8], make: impl FnOnce(VcpuSetup) -> V) -> Result<()> {
    let mut u = Unstructured::new(data);
    let (mode, flags, seed): (StartMode, u8, u32) = u.arbitrary()?;
    let user = flags & 1 != 0;
    let mut random = Random::new(seed.into(), 0);
    let mut guest = Guest::on(flags >> 1 & 7, random.bits(), make);
    guest.lay_out(&mut random);
    let mut state = guest::state(mode, user, &mut random);
    tweak::apply(&mut u, 10, &guest, &mut state)?;
    let logged = flags & 16 != 0;
    if logged {
        guest.memory.start_dirty_log();
    }
    let code = u.take_rest();
    // The middle of the code is at the end of a page.
    let length = (code.len() as u64).min(CODE_BYTES);
    let start = CODE + CODE_BYTES / 2 - length / 2;
    guest.put(start, &code[..length as usize]);
    for entry in 0..ENTRIES {
        state.rip = start + length * entry / ENTRIES;
        execute(&mut guest, &state);
        let after = guest.vcpu.state();
        if flags & 32 != 0 {
            // Go on from wherever that led.
            state = CpuState { activity: Activity::Running, pending: Pending::default(), ..after };
        }
        if logged {
            guest.memory.take_dirty();
        }
    }
    Ok(())
}

/// Runs from `state` for a while, and checks what holds of any state that an engine gives.
pub(super) fn execute<V: Bounded>(guest: &mut Guest<V>, state: &CpuState) -> Option<Exit> {
    guest.vcpu.set_state(state);
    let exit = guest.vcpu.run_for(STRETCH);
    let after = guest.vcpu.state();
    assert_eq!(after.rflags & x86::rflags::FIXED, x86::rflags::FIXED);
    assert_eq!(after.rflags & !x86::rflags::ALL, 0);
    match exit {
        Some(Exit::Halted) => assert_eq!(after.activity, Activity::Halted),
        Some(Exit::WaitForSipi) => assert_eq!(after.activity, Activity::WaitForSipi),
        Some(Exit::Shutdown) => assert_eq!(after.activity, Activity::Shutdown),
        Some(Exit::Kicked) => panic!("nobody kicked"),
        None => {}
    }
    guest.vcpu.set_state(&after);
    assert_eq!(guest.vcpu.state(), after, "a state that was given is taken");
    exit
}
