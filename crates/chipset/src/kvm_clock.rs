//! The KVM paravirtual clock: guest time as a linear function of the TSC, published in guest memory.
//!
//! A guest registers a page's worth of parameters per vCPU and from then on computes the time by itself:
//! `time = system_time + ((tsc - tsc_timestamp) << shift) * mul >> 32`. So the parameters are written only when the
//! relation between TSC and guest time may have changed: at registration, and when the machine goes on after a stop,
//! which is then also flagged, so that the guest's watchdogs do not take the stop for a hang.
//!
//! All vCPUs share one pair of (TSC, time), sampled once per stretch of running: their TSCs are one, and two pairs
//! sampled apart would disagree by some nanoseconds, which a guest that trusts the "stable" flag would see as time
//! going back between processors.
//!
//! A structure is written under a version that is odd meanwhile, so a reader on another vCPU retries. A guest that
//! registers an address without memory gets no clock and no fault, as under KVM.
//!
//! Reference: Linux, `Documentation/virt/kvm/x86/msr.rst`.

use std::sync::Arc;

use bus::{Device, GuestTime, Lifecycle, Region};
use memory::{GuestMemory, MemoryError};
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};
use x86::{Gpa, msr};

use crate::kvm_version;

const NS_PER_S: u64 = 1_000_000_000;

/// Bit 0 of the system-time MSR.
const ENABLE: u64 = 1;

/// `pvclock_vcpu_time_info.flags`.
const TSC_STABLE: u8 = 1 << 0;
const GUEST_STOPPED: u8 = 1 << 1;

/// The TSC that guests read and guest time, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The time-stamp counter, the same on all vCPUs.
    pub tsc: u64,
    /// Guest time.
    pub time: GuestTime,
}

/// The source of moments.
pub trait TscClock: Send + Sync {
    /// The moment now.
    fn moment(&self) -> Moment;
}

/// The factor from TSC ticks to nanoseconds in the guest's fixed-point form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scale {
    shift: i8,
    mul: u32,
}

impl Scale {
    /// The factor for a TSC of `khz`, with all 32 bits of the multiplier used.
    fn of(khz: u64) -> Self {
        let hz = u128::from(khz.max(1)) * 1000;
        // 10^9 / hz in 64.64 fixed point, at most 10^6.
        let ratio = (u128::from(NS_PER_S) << 64) / hz;
        // ratio = mul * 2^(shift + 32) with mul in [2^31, 2^32).
        let bits = 128 - ratio.leading_zeros();
        let mul = if bits >= 32 { ratio >> (bits - 32) } else { ratio << (32 - bits) };
        let shift = i8::try_from(i64::from(bits) - 64).unwrap_or(0);
        Self { shift, mul: x86::bits::low32(x86::bits::low64(mul)) }
    }
}

/// The paravirtual clocks of all vCPUs.
pub struct KvmClock {
    // Static.
    scale: Scale,
    unix_ns: u64,
    // Glue.
    memory: Arc<GuestMemory>,
    tsc: Arc<dyn TscClock>,
    /// The moment that the clocks of this stretch of running are based on.
    base: Option<Moment>,
    /// The clocks stood still, or memory holds another machine's: they must be written before the vCPUs go on.
    stale: bool,
    // Volatile.
    state: KvmClockState,
}

#[derive(Clone, Serialize, Deserialize)]
struct KvmClockState {
    wall_clock: u64,
    wall_version: u32,
    vcpus: Vec<VcpuClock>,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct VcpuClock {
    /// The MSR: an address, and whether it is in use.
    system_time: u64,
    version: u32,
}

impl Saved for KvmClockState {
    const NAME: &'static str = "kvm-clock";
    const VERSION: u16 = 1;
}

impl KvmClockState {
    fn new(vcpus: usize) -> Self {
        Self { wall_clock: 0, wall_version: 0, vcpus: vec![VcpuClock::default(); vcpus] }
    }
}

impl KvmClock {
    /// Clocks for `vcpus` processors with a TSC of `tsc_khz`; the wall clock showed `unix_ns`, nanoseconds since 1970,
    /// at guest time 0.
    pub fn new(
        vcpus: usize,
        tsc_khz: u64,
        unix_ns: u64,
        memory: Arc<GuestMemory>,
        tsc: Arc<dyn TscClock>,
    ) -> Self {
        let state = KvmClockState::new(vcpus);
        Self { scale: Scale::of(tsc_khz), unix_ns, memory, tsc, base: None, stale: false, state }
    }

    /// RDMSR on a vCPU; `None` if the register is not the clock's.
    pub fn read_msr(&self, vcpu: usize, register: u32) -> Option<u64> {
        match register {
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW => Some(self.state.wall_clock),
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW => {
                self.state.vcpus.get(vcpu).map(|clock| clock.system_time)
            }
            _ => None,
        }
    }

    /// WRMSR on a vCPU; false if the register is not the clock's.
    pub fn write_msr(&mut self, vcpu: usize, register: u32, value: u64) -> bool {
        match register {
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW => {
                self.state.wall_clock = value;
                // Without memory there, nobody will read it.
                let _ = self.publish_wall_clock();
                true
            }
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW => {
                let Some(clock) = self.state.vcpus.get_mut(vcpu) else { return false };
                clock.system_time = value;
                self.publish(vcpu, 0);
                true
            }
            _ => false,
        }
    }

    /// The vCPU acts on INIT: it has no clock until it registers one, as under KVM.
    pub fn init(&mut self, vcpu: usize) {
        if let Some(clock) = self.state.vcpus.get_mut(vcpu) {
            clock.system_time = 0;
        }
    }

    /// Writes the wall clock at guest time 0, as `pvclock_wall_clock`: version, seconds, nanoseconds.
    fn publish_wall_clock(&mut self) -> Result<(), MemoryError> {
        let at = Gpa(self.state.wall_clock);
        if at == Gpa(0) {
            return Ok(());
        }
        let seconds = x86::bits::low32(self.unix_ns / NS_PER_S);
        let rest = x86::bits::low32(self.unix_ns % NS_PER_S);
        let mut body = [0; 8];
        body[..4].copy_from_slice(&seconds.to_le_bytes());
        body[4..].copy_from_slice(&rest.to_le_bytes());
        publish(&self.memory, at, &mut self.state.wall_version, &body)
    }

    /// Writes a vCPU's `pvclock_vcpu_time_info`, if it has registered one.
    fn publish(&mut self, vcpu: usize, flags: u8) {
        let base = *self.base.get_or_insert_with(|| self.tsc.moment());
        let Some(clock) = self.state.vcpus.get_mut(vcpu) else { return };
        if clock.system_time & ENABLE == 0 {
            return;
        }
        let at = Gpa(clock.system_time & !ENABLE);
        // After the version and a pad word: tsc_timestamp, system_time, mul, shift, flags, two pad bytes.
        let mut body = [0; 28];
        body[4..12].copy_from_slice(&base.tsc.to_le_bytes());
        body[12..20].copy_from_slice(&base.time.0.to_le_bytes());
        body[20..24].copy_from_slice(&self.scale.mul.to_le_bytes());
        body[24] = self.scale.shift.cast_unsigned();
        body[25] = TSC_STABLE | flags;
        if publish(&self.memory, at, &mut clock.version, &body).is_err() {
            clock.system_time &= !ENABLE;
        }
    }
}

/// Writes `body` behind its version.
fn publish(memory: &GuestMemory, at: Gpa, version: &mut u32, body: &[u8]) -> Result<(), MemoryError> {
    kvm_version::publish(memory, at, version, || memory.write(at.wrapping_add(4), body))
}

/// A device without registers of its own, for the sake of its life: it is plugged in with the others.
impl Device for KvmClock {
    fn regions(&self) -> Vec<Region> {
        Vec::new()
    }

    fn read(&mut self, _region: usize, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _region: usize, _offset: u64, _data: &[u8]) {}
}

impl Lifecycle for KvmClock {
    fn name(&self) -> &'static str {
        KvmClockState::NAME
    }

    fn reset(&mut self) {
        self.state = KvmClockState::new(self.state.vcpus.len());
        self.base = None;
        self.stale = false;
    }

    fn pause(&mut self) {
        self.stale = true;
    }

    fn resume(&mut self) {
        if std::mem::take(&mut self.stale) {
            self.base = None;
            for vcpu in 0..self.state.vcpus.len() {
                self.publish(vcpu, GUEST_STOPPED);
            }
        }
    }

    fn save(&self) -> Record {
        Record::encode(&self.state)
    }

    fn restore(&mut self, record: &Record) -> Result<(), StateError> {
        let state: KvmClockState = record.decode()?;
        if state.vcpus.len() != self.state.vcpus.len() {
            let reason = format!("{} vCPUs, this machine has {}", state.vcpus.len(), self.state.vcpus.len());
            return Err(StateError::Damaged { name: KvmClockState::NAME, reason });
        }
        self.state = state;
        self.stale = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::harness::{self, Rig};
    use memory::RamRange;
    use proptest::prelude::*;

    const KHZ: u64 = 2_100_000;
    const UNIX_NS: u64 = 1_700_000_000_123_456_789;

    struct Fixed(Mutex<Moment>);

    impl TscClock for Fixed {
        fn moment(&self) -> Moment {
            *self.0.lock().unwrap()
        }
    }

    fn clock() -> (KvmClock, Arc<GuestMemory>, Arc<Fixed>) {
        let memory = Arc::new(GuestMemory::new(&[RamRange::from_bytes(Gpa(0), 1 << 20)]).unwrap());
        let tsc = Arc::new(Fixed(Mutex::new(Moment { tsc: 5_000, time: GuestTime(77) })));
        (KvmClock::new(2, KHZ, UNIX_NS, memory.clone(), tsc.clone()), memory, tsc)
    }

    fn page(memory: &GuestMemory, at: u64) -> (u32, u64, u64, u8) {
        let word = |offset| memory.read_word::<u64>(Gpa(at + offset)).unwrap();
        (memory.read_word(Gpa(at)).unwrap(), word(8), word(16), memory.read_word(Gpa(at + 29)).unwrap())
    }

    #[test]
    fn registration_publishes_one_base_for_all() {
        let (mut clock, memory, tsc) = clock();
        assert!(clock.write_msr(0, msr::KVM_SYSTEM_TIME_NEW, 0x1001));
        *tsc.0.lock().unwrap() = Moment { tsc: 9_000, time: GuestTime(99) };
        assert!(clock.write_msr(1, msr::KVM_SYSTEM_TIME, 0x1041));
        assert_eq!(page(&memory, 0x1000), (2, 5_000, 77, TSC_STABLE));
        assert_eq!(page(&memory, 0x1040), (2, 5_000, 77, TSC_STABLE));
        assert_eq!(clock.read_msr(1, msr::KVM_SYSTEM_TIME_NEW), Some(0x1041));
        assert_eq!(clock.read_msr(2, msr::KVM_SYSTEM_TIME_NEW), None);
        assert_eq!(clock.read_msr(0, msr::IA32_TSC), None);
    }

    #[test]
    fn init_ends_a_registration() {
        let (mut clock, memory, tsc) = clock();
        clock.write_msr(0, msr::KVM_SYSTEM_TIME_NEW, 0x1001);
        clock.write_msr(1, msr::KVM_SYSTEM_TIME_NEW, 0x1041);
        clock.init(1);
        clock.init(7);
        assert_eq!(clock.read_msr(1, msr::KVM_SYSTEM_TIME), Some(0));
        clock.pause();
        *tsc.0.lock().unwrap() = Moment { tsc: 6_000, time: GuestTime(78) };
        clock.resume();
        assert_eq!((page(&memory, 0x1000).1, page(&memory, 0x1040).1), (6_000, 5_000));
        clock.write_msr(1, msr::KVM_SYSTEM_TIME_NEW, 0x1041);
        assert_eq!(page(&memory, 0x1040), (4, 6_000, 78, TSC_STABLE));
    }

    #[test]
    fn a_stop_is_left_out_and_told() {
        let (mut clock, memory, tsc) = clock();
        clock.write_msr(0, msr::KVM_SYSTEM_TIME_NEW, 0x1001);
        clock.resume();
        assert_eq!(page(&memory, 0x1000).0, 2, "nothing has stopped");
        clock.pause();
        *tsc.0.lock().unwrap() = Moment { tsc: 1_000_000, time: GuestTime(78) };
        clock.resume();
        assert_eq!(page(&memory, 0x1000), (4, 1_000_000, 78, TSC_STABLE | GUEST_STOPPED));
    }

    #[test]
    fn a_restored_clock_is_published_anew_before_the_vcpus_go_on() {
        let (mut old, _, _) = clock();
        old.write_msr(1, msr::KVM_SYSTEM_TIME_NEW, 0x2001);
        let (mut new, memory, tsc) = clock();
        new.restore(&old.save()).unwrap();
        *tsc.0.lock().unwrap() = Moment { tsc: 3, time: GuestTime(4) };
        new.resume();
        assert_eq!(page(&memory, 0x2000), (4, 3, 4, TSC_STABLE | GUEST_STOPPED));
        assert!(KvmClock::new(1, KHZ, 0, memory, tsc).restore(&old.save()).is_err());
    }

    #[test]
    fn the_wall_clock_is_that_of_guest_time_0() {
        let (mut clock, memory, _) = clock();
        clock.write_msr(0, msr::KVM_WALL_CLOCK_NEW, 0x3000);
        let words = [0, 4, 8].map(|offset| memory.read_word::<u32>(Gpa(0x3000 + offset)).unwrap());
        assert_eq!(words, [2, 1_700_000_000, 123_456_789]);
    }

    #[test]
    fn no_memory_no_clock() {
        let (mut clock, _, _) = clock();
        for address in [1 << 20, u64::MAX - 1, (1 << 20) - 16] {
            assert!(clock.write_msr(0, msr::KVM_SYSTEM_TIME_NEW, address | ENABLE));
            assert_eq!(clock.read_msr(0, msr::KVM_SYSTEM_TIME_NEW), Some(address));
            assert!(clock.write_msr(0, msr::KVM_WALL_CLOCK_NEW, address));
        }
    }

    proptest! {
        /// The guest's computation of a second's ticks gives a second.
        #[test]
        fn the_scale_is_right(khz in 1_000..100_000_000u64) {
            let Scale { shift, mul } = Scale::of(khz);
            prop_assert!(mul >= 1 << 31);
            let ticks = khz * 1000;
            let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
            let ns = (u128::from(shifted) * u128::from(mul)) >> 32;
            prop_assert!(ns.abs_diff(1_000_000_000) <= 2, "{ns}");
        }
    }

    #[test]
    fn stands_any_msr_write_and_survives_a_save() {
        harness::check(|| {
            let (clock, _, _) = clock();
            Rig::new(clock).stimulated(|clock, number| {
                let registers = [msr::KVM_SYSTEM_TIME_NEW, msr::KVM_WALL_CLOCK_NEW, msr::KVM_SYSTEM_TIME];
                let vcpu = x86::bits::index(number >> 60);
                clock.write_msr(vcpu, registers[x86::bits::index(number % 3)], number >> 8);
            })
        });
    }
}
