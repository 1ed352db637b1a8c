//! IN and OUT.

use engine::PortWidth;
use x86::Mode;
use x86::bits::{low16, low32};

use crate::cpu::Cpu;
use crate::op::{Op, Step};
use crate::width::Width;

fn port_width<W: Width>() -> PortWidth {
    match W::BITS {
        8 => PortWidth::Byte,
        16 => PortWidth::Word,
        _ => PortWidth::Dword,
    }
}

impl Cpu {
    /// IOPL, then the permission bitmap (SDM vol. 1, 19.5).
    pub(crate) fn check_port(&mut self, port: u64, size: u64) -> Step {
        let port = port & 0xffff;
        let trusted = self.mode != Mode::V86 && self.cpl <= self.iopl();
        if self.mode == Mode::Real || trusted || self.io_bitmap_allows(port, size)? {
            self.note_io_breakpoints(port, size);
            Ok(())
        } else {
            Err(self.gp0())
        }
    }

    /// Reads a port that [`Cpu::check_port`] has let through.
    pub(crate) fn port_in<W: Width>(&mut self, port: u64) -> u64 {
        self.stats.io_accesses += 1;
        u64::from(self.platform.port_read(self.id, low16(port), port_width::<W>())) & W::MASK
    }

    /// Writes a port likewise.
    pub(crate) fn port_out<W: Width>(&mut self, port: u64, value: u64) {
        self.stats.io_accesses += 1;
        self.look = true;
        self.platform.port_write(self.id, low16(port), port_width::<W>(), low32(value & W::MASK));
    }
}

/// IN AL/AX/EAX; the port is [`Op::src`]: DX or the immediate.
pub(crate) fn input<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let port = cpu.get::<u16>(op, op.src)?;
    cpu.check_port(port, W::SIZE)?;
    let value = cpu.port_in::<W>(port);
    cpu.put_reg::<W>(0, value);
    Ok(())
}

/// OUT; the port is [`Op::dst`].
pub(crate) fn output<W: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let port = cpu.get::<u16>(op, op.dst)?;
    cpu.check_port(port, W::SIZE)?;
    cpu.port_out::<W>(port, cpu.reg(0));
    Ok(())
}
