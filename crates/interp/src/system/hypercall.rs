//! VMCALL and VMMCALL, which are hypercalls where CPUID names a hypervisor. Both vendors' instruction is known whatever the
//! model's vendor: a guest that takes the other one needs no patching.

use engine::hypercall::REFUSED;
use x86::Mode;
use x86::bits::low32;

use crate::cpu::Cpu;
use crate::op::{Op, Step};

const RAX: u8 = 0;
/// RBX, RCX, RDX and RSI.
const ARGUMENTS: [u8; 4] = [3, 1, 2, 6];

/// Outside of 64-bit mode numbers, arguments and answer are 32 bits wide.
pub(crate) fn call(cpu: &mut Cpu, _: &Op) -> Step {
    let wide = cpu.mode == Mode::Long;
    let cut = |value| if wide { value } else { u64::from(low32(value)) };
    let answer = if cpu.cpl == 0 {
        let arguments = ARGUMENTS.map(|slot| cut(cpu.reg(slot)));
        cpu.platform.hypercall(cpu.id, cut(cpu.reg(RAX)), arguments)
    } else {
        REFUSED
    };
    *cpu.reg_mut(RAX) = cut(answer);
    Ok(())
}
