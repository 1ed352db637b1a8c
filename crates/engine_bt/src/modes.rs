//! From the processor as the interpreter has it to what translations depend on: modes, and where fast ways lead.

use interp::{PlainReturns, Regime};
use mmu::Privilege;
use translate::Mode;
use translate::context::Return;
use x86::bits::low16;

/// The mode in which code may be translated, if it may.
pub(crate) fn translatable(regime: &Regime) -> Option<Mode> {
    if regime.careful || !matches!(regime.cpl, 0 | 3) {
        return None;
    }
    let compat = match (regime.mode, regime.flat) {
        (x86::Mode::Long, _) => Mode::new(),
        (x86::Mode::Protected32, Some(flat)) if regime.cpl == 3 => {
            Mode::COMPAT.with(Mode::FS, flat.fs).with(Mode::GS, flat.gs)
        }
        _ => return None,
    };
    Some(
        compat
            .with(Mode::USER, regime.cpl == 3)
            .with(Mode::AC, regime.privilege == Privilege::SupervisorAc)
            .with(Mode::SSE, regime.sse)
            .with(Mode::AVX, regime.avx)
            .with(Mode::X87, regime.x87)
            .with(Mode::TSC, regime.tsc)
            .with(Mode::FSGSBASE, regime.fsgsbase)
            .with(Mode::SYSCALL, regime.syscall),
    )
}

/// The mode that 64-bit code at CPL 0 has when a mode is in force.
pub(crate) fn supervisor_mode(mode: Mode) -> Mode {
    const OF_PRIVILEGE: [Mode; 5] = [Mode::USER, Mode::AC, Mode::COMPAT, Mode::FS, Mode::GS];
    OF_PRIVILEGE.into_iter().fold(mode, Mode::without).with(Mode::TSC, true)
}

/// The mode that 64-bit code at CPL 3 has then.
pub(crate) fn user_mode(mode: Mode, regime: &Regime) -> Mode {
    let user = supervisor_mode(mode).with(Mode::USER, true);
    if regime.user_tsc { user } else { user.without(Mode::TSC) }
}

/// Where IRETQ may return to by itself.
pub(crate) fn returns(known: PlainReturns) -> [Return; 3] {
    let [user, supervisor] = [known.user, known.supervisor].map(|plain| {
        plain.map_or(Return::NONE, |plain| Return {
            selectors: u64::from(plain.code.selector) | u64::from(plain.stack.selector) << 32,
            descriptor: plain.code.address,
            code: plain.code.descriptor,
            stack: plain.stack.descriptor,
        })
    });
    let nested = match known.supervisor {
        Some(plain) => Return { selectors: plain.code.selector.into(), ..supervisor },
        None => Return::NONE,
    };
    [user, supervisor, nested]
}

/// The selectors of CS and SS that SYSCALL and SYSRET to 64-bit code load (SDM vol. 2).
pub(crate) fn fast_selectors(star: u64) -> [[u16; 2]; 2] {
    let kernel = low16(star >> 32) & !3;
    let user = low16(star >> 48);
    [[kernel, kernel.wrapping_add(8)], [user.wrapping_add(16) | 3, user.wrapping_add(8) | 3]]
}

#[cfg(test)]
mod tests {
    use interp::Flat;

    use super::*;

    const REGIME: Regime = Regime {
        mode: x86::Mode::Long,
        cpl: 3,
        privilege: Privilege::User,
        careful: false,
        sse: true,
        avx: false,
        x87: true,
        tsc: false,
        user_tsc: false,
        fsgsbase: true,
        syscall: true,
        flat: None,
    };

    #[test]
    fn what_may_be_translated() {
        let compat = Regime { mode: x86::Mode::Protected32, ..REGIME };
        let flat = Regime { flat: Some(Flat { fs: false, gs: true }), ..compat };
        assert!(translatable(&REGIME).is_some_and(|mode| !mode.has(Mode::COMPAT)));
        assert_eq!(translatable(&compat), None, "segments that are not flat");
        let mode = translatable(&flat).unwrap();
        assert!(mode.has(Mode::COMPAT.with(Mode::GS, true)) && !mode.has(Mode::FS));
        assert_eq!(translatable(&Regime { cpl: 0, ..flat }), None);
        assert_eq!(translatable(&Regime { cpl: 1, ..REGIME }), None);
        assert_eq!(translatable(&Regime { careful: true, ..REGIME }), None);
    }

    #[test]
    fn one_processor_has_one_mode_for_each_kind_of_code() {
        let user = translatable(&REGIME).unwrap();
        let supervisor = Regime { cpl: 0, privilege: Privilege::Supervisor, tsc: true, ..REGIME };
        let kernel = translatable(&supervisor).unwrap();
        assert_eq!((supervisor_mode(user), user_mode(kernel, &supervisor)), (kernel, user));
        let ac = translatable(&Regime { privilege: Privilege::SupervisorAc, ..supervisor }).unwrap();
        assert_eq!(supervisor_mode(ac).with(Mode::AC, true), ac);
    }
}
