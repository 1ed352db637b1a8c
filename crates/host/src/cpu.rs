//! What the host's processor says about itself.

use core::arch::x86_64::__cpuid_count;

/// CPUID.1:ECX bit 27, OSXSAVE: the operating system has enabled XGETBV (SDM vol. 2A, CPUID).
const OSXSAVE: u32 = 1 << 27;

/// Executes CPUID and returns EAX, EBX, ECX, EDX. Under a hypervisor this costs an exit, so keep the answer.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = __cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// XCR0: the state components that the host's operating system has enabled; 0 where there is no XSAVE.
pub fn xgetbv0() -> u64 {
    if cpuid(1, 0)[2] & OSXSAVE == 0 {
        return 0;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE is set, so XGETBV exists in user mode, and XCR0 always does (SDM vol. 2, XGETBV). It reads no
    // memory and writes EAX and EDX only.
    unsafe {
        core::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Whether the host's operating system lets user programs execute WRGSBASE (AT_HWCAP2, `HWCAP2_FSGSBASE`).
pub fn has_fsgsbase() -> bool {
    let (_, hwcap2) = rustix::param::linux_hwcap();
    hwcap2 & 2 != 0
}

/// Whether BMI2's instructions exist (CPUID.7.0:EBX bit 8).
pub fn has_bmi2() -> bool {
    cpuid(0, 0)[0] >= 7 && cpuid(7, 0)[1] & 1 << 8 != 0
}

/// Whether AVX's instructions exist and the operating system saves their registers.
pub fn has_avx() -> bool {
    cpuid(1, 0)[2] & 1 << 28 != 0 && xgetbv0() & 6 == 6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_a_64_bit_processor() {
        assert!(cpuid(0x8000_0000, 0)[0] >= 0x8000_0001);
        assert_ne!(cpuid(0x8000_0001, 0)[3] & (1 << 29), 0, "long mode");
    }

    #[test]
    fn x87_state_is_always_enabled_in_xcr0() {
        let xcr0 = xgetbv0();
        assert!(xcr0 == 0 || xcr0 & 1 == 1);
    }
}
