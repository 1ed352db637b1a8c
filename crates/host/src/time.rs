//! Clocks: the host's monotonic and wall clock, and the time-stamp counter with its frequency.

use std::sync::OnceLock;

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::cpu::cpuid;

/// CPUID.1:ECX bit 31, set by hypervisors.
const HYPERVISOR: u32 = 1 << 31;
/// How long one calibration lasts: 50 ms against clocks read to within 100 ns is a few parts in a million.
const CALIBRATION_NS: u64 = 50_000_000;

pub(crate) fn ns(t: Timespec) -> u64 {
    // Linux's clocks never show a negative time here; saturation keeps the function total.
    let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(t.tv_nsec).unwrap_or(0))
}

/// Nanoseconds since some moment in the past, never going back (`CLOCK_MONOTONIC`).
pub fn monotonic_ns() -> u64 {
    ns(clock_gettime(ClockId::Monotonic))
}

/// Nanoseconds for which the calling thread has run on a processor, since it began (`CLOCK_THREAD_CPUTIME_ID`).
pub fn thread_cpu_ns() -> u64 {
    ns(clock_gettime(ClockId::ThreadCPUTime))
}

/// Nanoseconds for which all threads of this process have run on a processor (`CLOCK_PROCESS_CPUTIME_ID`).
pub fn process_cpu_ns() -> u64 {
    ns(clock_gettime(ClockId::ProcessCPUTime))
}

/// Nanoseconds since 1970-01-01 00:00 UTC (`CLOCK_REALTIME`); may jump.
pub fn wall_clock_ns() -> u64 {
    ns(clock_gettime(ClockId::Realtime))
}

/// Makes timed waits of the calling thread end as soon after their time as the kernel can, instead of up to 50 µs later
/// (timer slack, prctl(2)). Where the kernel refuses, waits stay as they were.
pub fn precise_waits() {
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZero::new(1));
}

/// The time-stamp counter of the CPU that this thread happens to run on.
#[inline(always)]
pub fn rdtsc() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 processor, and Linux leaves CR4.TSD clear unless a process asks otherwise.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The frequency of the time-stamp counter in kHz, found once: from CPUID where the processor (leaf 0x15) or the
/// hypervisor (leaf 0x40000010) states it, else measured. Leaf 0x16 is not used: it gives a rounded marketing frequency.
pub fn tsc_khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| stated_by_hypervisor().or_else(stated_by_processor).unwrap_or_else(measured))
}

/// CPUID 0x40000010 EAX, "virtual TSC frequency in kHz", of hypervisors whose leaves reach that far.
fn stated_by_hypervisor() -> Option<u64> {
    if cpuid(1, 0)[2] & HYPERVISOR == 0 {
        return None;
    }
    let highest = cpuid(0x4000_0000, 0)[0];
    // Hyper-V's interface uses the same numbers for other things but stops below 0x40000010 or names itself
    // "Microsoft Hv", so a plausible highest leaf is not enough.
    if !(0x4000_0010..=0x4000_ffff).contains(&highest) || &vendor() == b"Microsoft Hv" {
        return None;
    }
    plausible(u64::from(cpuid(0x4000_0010, 0)[0]))
}

/// The hypervisor's signature, CPUID 0x40000000 EBX, ECX, EDX.
fn vendor() -> [u8; 12] {
    let [_, b, c, d] = cpuid(0x4000_0000, 0);
    let mut text = [0; 12];
    for (chunk, word) in text.chunks_exact_mut(4).zip([b, c, d]) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    text
}

/// CPUID 0x15: TSC = crystal (ECX Hz) × EBX / EAX (SDM vol. 3B, 20.7.3). An ECX of 0 means "not stated".
fn stated_by_processor() -> Option<u64> {
    if cpuid(0, 0)[0] < 0x15 {
        return None;
    }
    let [denominator, numerator, crystal_hz, _] = cpuid(0x15, 0).map(u64::from);
    plausible((crystal_hz * numerator).checked_div(denominator)? / 1000)
}

/// Between 100 MHz and 100 GHz, else the statement is nonsense.
fn plausible(khz: u64) -> Option<u64> {
    (100_000..=100_000_000).contains(&khz).then_some(khz)
}

fn measured() -> u64 {
    let (start_ns, start_tsc) = simultaneous();
    std::thread::sleep(std::time::Duration::from_nanos(CALIBRATION_NS));
    let (end_ns, end_tsc) = simultaneous();
    let elapsed_ns = u128::from(end_ns.saturating_sub(start_ns).max(1));
    let khz = u128::from(end_tsc.wrapping_sub(start_tsc)) * 1_000_000 / elapsed_ns;
    // A counter that stands still or runs absurdly fast would make later divisions meaningless.
    u64::try_from(khz).ok().and_then(plausible).unwrap_or(1_000_000)
}

/// Both clocks at one moment: the reading with the smallest gap of several, since the thread may be preempted.
fn simultaneous() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..16 {
        let before = rdtsc();
        let now_ns = monotonic_ns();
        let gap = rdtsc().wrapping_sub(before);
        if gap < best.0 {
            best = (gap, now_ns, before.wrapping_add(gap / 2));
        }
    }
    (best.1, best.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_and_the_counter_advance() {
        let (ns, tsc) = (monotonic_ns(), rdtsc());
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(monotonic_ns() >= ns + 1_000_000);
        assert!(rdtsc() > tsc);
    }

    #[test]
    fn the_wall_clock_is_past_2024() {
        assert!(wall_clock_ns() > 1_704_067_200_000_000_000);
    }

    #[test]
    fn the_stated_frequency_agrees_with_the_measured_one() {
        let (stated, measured) = (tsc_khz(), measured());
        // 1 % is far more than any preemption between two clock readings, far less than a wrong unit.
        assert!(stated.abs_diff(measured) < stated / 100, "{stated} {measured}");
    }
}
