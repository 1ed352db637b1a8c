//! The driver with vCPUs that follow a script instead of executing instructions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::{
    Counter, Engine, EngineError, Event, Exit, Kick, Platform, PortWidth, Vcpu, VcpuId, VcpuSetup, VcpuStats,
};
use x86::CpuState;

use crate::{BootImages, Builder, OnReset, State, Stopped, VmError, VmHandle};

/// One step of a script: `None` goes on to the next step.
type Step = dyn Fn(&Cpu<'_>) -> Option<Exit> + Send + Sync;

/// What a step sees.
struct Cpu<'a> {
    platform: &'a dyn Platform,
    /// The number of the step since the last reset.
    step: u64,
}

const ME: VcpuId = VcpuId(0);

impl Cpu<'_> {
    fn out(&self, port: u16, width: PortWidth, value: u32) -> Option<Exit> {
        self.platform.port_write(ME, port, width, value);
        None
    }

    fn debug_exit(&self, value: u32) -> Option<Exit> {
        self.out(0xf4, PortWidth::Dword, value)
    }
}

struct Scripted(Arc<Step>);

struct ScriptedVcpu {
    script: Arc<Step>,
    platform: Arc<dyn Platform>,
    kick: Kick,
    state: CpuState,
    step: u64,
    stats: VcpuStats,
}

impl Engine for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(ScriptedVcpu {
            script: self.0.clone(),
            platform: setup.platform,
            kick: Kick::polled(),
            state: CpuState::reset(),
            step: 0,
            stats: VcpuStats::default(),
        }))
    }
}

impl Vcpu for ScriptedVcpu {
    fn run(&mut self) -> Exit {
        loop {
            if self.kick.is_raised() && self.kick.take() {
                return Exit::Kicked;
            }
            let cpu = Cpu { platform: &*self.platform, step: self.step };
            self.step += 1;
            *self.stats.instructions.get_or_insert(0) += 1;
            if let Some(exit) = (self.script)(&cpu) {
                return exit;
            }
        }
    }

    fn kick_handle(&self) -> Kick {
        self.kick.clone()
    }

    fn state(&self) -> CpuState {
        self.state.clone()
    }

    fn set_state(&mut self, state: &CpuState) {
        self.state = state.clone();
        self.step = 0;
    }

    fn flush_tlb(&mut self) {}

    fn stats(&self) -> VcpuStats {
        self.stats
    }

    fn counters(&self) -> Vec<Counter> {
        vec![Counter::new("steps", self.step, "steps since the last reset")]
    }
}

fn spec() -> spec::VmSpec {
    spec::VmSpec {
        name: "test".parse().unwrap(),
        memory: "2M".parse().unwrap(),
        cpus: spec::CpuCount::ONE,
        cpu: x86::cpuid::CpuRequest::default(),
        engine: spec::EngineChoice::Auto,
        translator: spec::TranslatorSpec::default(),
        mmu: spec::MmuChoice::default(),
        boot: spec::BootSpec { kernel: "guest".into(), initrds: Vec::new(), command_line: String::new() },
        disks: Vec::new(),
        shares: Vec::new(),
        net: spec::NetSpec::None,
        ports: Vec::new(),
        vsock: None,
        slots: spec::SlotCount::default(),
        balloon: true,
        debug_exit: true,
    }
}

fn builder(script: impl Fn(&Cpu<'_>) -> Option<Exit> + Send + Sync + 'static) -> Builder {
    // A Multiboot kernel of nothing but its header.
    let (magic, flags, base) = (0x1bad_b002_u32, 0x1_0000_u32, 0x10_0000_u32);
    let header = [magic, flags, 0u32.wrapping_sub(magic).wrapping_sub(flags), base, base, 0, 0, base];
    let kernel: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    Builder::new(&spec(), BootImages { kernel: kernel.into(), initrds: Vec::new() })
        .engine(Arc::new(Scripted(Arc::new(script))))
}

fn start(script: impl Fn(&Cpu<'_>) -> Option<Exit> + Send + Sync + 'static) -> VmHandle {
    builder(script).on_reset(OnReset::Stop).build().unwrap().start().unwrap()
}

fn end(vm: &VmHandle) -> Stopped {
    vm.wait_timeout(Duration::from_secs(30)).expect("the VM does not end")
}

#[test]
fn machine_events_end_the_vm() {
    let vm = start(|cpu| cpu.out(0x604, PortWidth::Word, 0x2000));
    assert!(matches!(end(&vm), Stopped::PowerOff));
    let vm = start(|cpu| cpu.debug_exit(77));
    assert!(matches!(end(&vm), Stopped::DebugExit(77)));
    let vm = start(|cpu| cpu.out(0xcf9, PortWidth::Byte, 6));
    assert!(matches!(end(&vm), Stopped::Reset));
    let vm = start(|_| Some(Exit::Shutdown));
    let Stopped::TripleFault(dump) = end(&vm) else { panic!("not a triple fault") };
    assert!(dump.to_string().contains("vCPU 0: 32-bit protected mode"), "{dump}");
}

#[test]
fn a_panic_of_ours_is_told() {
    let vm = start(|_| panic!("on purpose"));
    let Stopped::Failed(why) = end(&vm) else { panic!("not a failure") };
    assert!(why.contains("virtual CPU"), "{why}");
    struct Bad;
    impl crate::SerialSink for Bad {
        fn write(&mut self, _: &[u8]) {
            panic!("on purpose");
        }
    }
    let machine = builder(|cpu| cpu.out(0x3f8, PortWidth::Byte, 1)).serial(0, Box::new(Bad)).build().unwrap();
    assert!(matches!(end(&machine.start().unwrap()), Stopped::Failed(_)));
}

#[test]
fn a_halted_vcpu_sleeps_until_its_interrupt() {
    let runs = Arc::new(AtomicU64::new(0));
    let counted = runs.clone();
    let vm = start(move |cpu| {
        counted.fetch_add(1, Ordering::SeqCst);
        let setup = [
            (0x20, 0x11),
            (0x21, 0x20),
            (0x21, 4),
            (0x21, 1),
            (0x21, 0xfe),
            (0x43, 0x30),
            (0x40, 0),
            (0x40, 0x80),
        ];
        match cpu.step {
            0 => setup.iter().for_each(|(port, value)| {
                cpu.out(*port, PortWidth::Byte, *value);
            }),
            _ if cpu.platform.pending(ME) == Some(Event::Interrupt) => {
                let vector = cpu.platform.acknowledge(ME).unwrap();
                cpu.debug_exit(vector.into());
            }
            _ => return Some(Exit::Halted),
        }
        None
    });
    assert!(matches!(end(&vm), Stopped::DebugExit(0x20)));
    // 0x8000 ticks of 838 ns.
    assert!(vm.stats().guest_time_ns > 27_000_000);
    assert!(runs.load(Ordering::SeqCst) < 10, "it polled");
}

#[test]
fn pauses_from_any_state_and_counts() {
    for halts in [false, true] {
        let vm = start(move |_| halts.then_some(Exit::Halted));
        for _ in 0..50 {
            vm.pause().unwrap();
            let (first, second) = (vm.stats(), vm.stats());
            assert_eq!((first, vm.state()), (second, State::Paused));
            vm.resume().unwrap();
            std::thread::sleep(Duration::from_micros(200));
            vm.stats();
        }
        vm.pause().unwrap();
        assert!(matches!(vm.stop(), Stopped::Killed));
        assert!(matches!(vm.resume(), Err(VmError::Stopped)));
        assert!(vm.stats().vcpus[0].common.instructions > Some(0));
    }
}

#[test]
fn reboots_until_the_guest_has_enough() {
    let boots = AtomicU64::new(0);
    let script = move |cpu: &Cpu<'_>| match cpu.step {
        0 if boots.fetch_add(1, Ordering::SeqCst) == 5 => cpu.out(0x604, PortWidth::Word, 0x2000),
        // Asking more than once is asking once.
        _ => {
            cpu.out(0x64, PortWidth::Byte, 0xfe);
            cpu.out(0xcf9, PortWidth::Byte, 6)
        }
    };
    let vm = builder(script).build().unwrap().start().unwrap();
    assert!(matches!(end(&vm), Stopped::PowerOff));
    assert_eq!(vm.stats().resets, 5);
}

#[test]
fn the_vm_ends_with_its_last_handle() {
    let alive = Arc::new(());
    let held = Arc::downgrade(&alive);
    let vm = start(move |_| {
        let _ = &alive;
        Some(Exit::Halted)
    });
    let other = vm.clone();
    drop(vm);
    assert_eq!(other.state(), State::Running);
    drop(other);
    while held.upgrade().is_some() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_machine_is_freed_also_if_it_never_starts() {
    let alive = Arc::new(());
    let held = Arc::downgrade(&alive);
    let machine = builder(move |_| {
        let _ = &alive;
        None
    });
    drop(machine.build().unwrap());
    assert!(held.upgrade().is_none());
}

#[test]
fn output_is_complete_when_the_end_is_told() {
    #[derive(Clone, Default)]
    struct Lazy(Arc<Mutex<usize>>);
    impl crate::SerialSink for Lazy {
        fn write(&mut self, bytes: &[u8]) {
            std::thread::sleep(Duration::from_millis(120));
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) += bytes.len();
        }
    }
    let lazy = Lazy::default();
    let script = |cpu: &Cpu<'_>| match cpu.step {
        0..3 => cpu.out(0x3f8, PortWidth::Byte, 1),
        _ => cpu.out(0x604, PortWidth::Word, 0x2000),
    };
    let machine = builder(script).serial(0, Box::new(lazy.clone())).build().unwrap();
    assert!(matches!(end(&machine.start().unwrap()), Stopped::PowerOff));
    assert_eq!(*lazy.0.lock().unwrap(), 3);
}

#[test]
fn every_part_survives_a_save() {
    let vm = start(|_| Some(Exit::Halted));
    vm.pause().unwrap();
    let records = vm.save().unwrap();
    let restore = |records| builder(|cpu| cpu.debug_exit(1)).restore(records);
    let machine = restore(&records).unwrap();
    assert_eq!(machine.save().unwrap(), records);
    assert!(restore(&records[1..]).is_err() && restore(&records[..5]).is_err());
    assert!(restore(&[&records[..], &records[..1]].concat()).is_err());
    assert!(matches!(end(&machine.start().unwrap()), Stopped::DebugExit(1)));
}

#[test]
fn frames_in_the_balloon_stay_there() {
    let frames = [0x180, 0x181, 0x1f0].map(x86::Gfn);
    let machine = builder(|_| Some(Exit::Halted)).build().unwrap();
    machine.memory.inflate(&frames).unwrap();
    let vm = machine.start().unwrap();
    vm.pause().unwrap();
    assert_eq!(vm.stats().ram_ballooned_bytes, 3 << 12);
    let records = vm.save().unwrap();
    let machine = builder(|cpu| cpu.debug_exit(1)).restore(&records).unwrap();
    assert!(frames.iter().all(|&gfn| machine.memory.entry(gfn).kind == memory::FrameKind::Ballooned));
    assert_eq!(machine.save().unwrap(), records);
}

#[test]
fn files_and_hosts_that_do_not_do_are_told_in_a_sentence() {
    let images = BootImages { kernel: b"just text\n".to_vec().into(), initrds: Vec::new() };
    let error = Builder::new(&spec(), images).engine(Arc::new(Scripted(Arc::new(|_| None)))).build();
    let text = error.err().unwrap().to_string();
    assert!(text.starts_with("guest: ") && text.contains("text") && !text.contains('\n'), "{text}");
}
