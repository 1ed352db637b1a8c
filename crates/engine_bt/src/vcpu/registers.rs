//! Registers, between the interpreter's state and the context that translated code works on.

use interp::{PlainReturns, Registers};
use translate::Mode;
use translate::context::{Return, Table, fast_segments};
use x86::PAGE_MASK;
use x86::bits::low32;
use x86::rflags::{IF, STATUS};

use super::BtVcpu;
use crate::modes::{fast_selectors, returns, translatable};
use crate::{status, x87};

impl BtVcpu {
    /// Where IRETQ may return to by itself.
    fn returns(&self, user_closed: bool) -> [Return; 3] {
        // What a user's system call leads to seldom ends in one; the next entry will be the supervisor's.
        if self.mode.has(Mode::USER) {
            return [Return::NONE; 3];
        }
        let known = self.slow.plain_returns();
        returns(PlainReturns { user: known.user.filter(|_| !user_closed), ..known })
    }

    /// The registers go from the interpreter's state into the context.
    pub(super) fn registers_in(&mut self) {
        let registers = self.slow.registers();
        let mxcsr = self.slow.vector().mxcsr;
        let system = self.slow.system_registers();
        let tsc_offset = self.slow.tsc_offset();
        // With interrupts on whoever waits has been let in.
        let waiting = registers.rflags & IF == 0 && self.slow.event_waits();
        // Where user code is executed directly no translated code returns to it.
        let user_closed = self.views.code_mode(Table::User) != self.user_mode || self.is_direct();
        let returns = self.returns(user_closed);
        let control = self.slow.control_registers();
        let context = self.views.context();
        context.gpr = registers.gpr;
        context.status = status::to_ax(registers.rflags);
        context.system_flags = registers.rflags & !STATUS;
        context.page = registers.rip & !PAGE_MASK;
        context.mxcsr = mxcsr;
        context.segment_base = [system.fs_base, system.gs_base];
        context.kernel_gs_base = system.kernel_gs_base;
        context.waiting = waiting.into();
        context.segments = fast_segments::NONE;
        context.selectors = system.selectors;
        context.fast_selectors = fast_selectors(system.star);
        context.returns = returns;
        context.user_closed = user_closed.into();
        context.control = control;
        context.lstar = system.lstar;
        context.flag_keep = !system.fmask;
        context.tsc_offset = tsc_offset;
        context.tsc_aux = low32(system.tsc_aux).into();
    }

    /// And back, with RIP as it is at an exit.
    pub(super) fn registers_out(&mut self, rip: u64) {
        let context = self.views.context();
        let rflags = context.system_flags | status::from_ax(context.status);
        let registers = Registers { gpr: context.gpr, rip, rflags };
        let (mxcsr, segments) = (context.mxcsr, context.segments);
        let ([fs, gs], kernel_gs) = (context.segment_base, context.kernel_gs_base);
        context.segments = fast_segments::NONE;
        self.slow.set_registers(&registers);
        self.slow.set_bases(fs, gs, kernel_gs);
        self.slow.vector().mxcsr = mxcsr;
        x87::note_pointer(&mut self.slow, self.views.context());
        match segments {
            fast_segments::SYSCALL => self.slow.load_syscall_segments(),
            fast_segments::SYSRET => self.slow.load_sysret_segments(),
            fast_segments::NESTED => self.slow.load_nested_segments(),
            _ => {}
        }
        if let Some(mode) = translatable(&self.slow.regime()) {
            self.mode = mode;
        }
    }
}
