//! A vCPU thread that sleeps unless woken misses nothing, whoever interrupts it.

use super::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const ROUNDS: u64 = 5_000;
/// Far beyond any scheduling delay: when it passes, a wake was lost.
const LOST: Duration = Duration::from_secs(60);

struct Guest {
    fabric: Arc<InterruptFabric>,
    memory: Bytes,
    wakes: mpsc::Receiver<()>,
    shared: Arc<Shared>,
}

/// How often each vector was served, and whether the guest shall stop.
struct Shared {
    served: [AtomicU64; 256],
    stop: AtomicBool,
}

/// Only the vector is wanted here; the line has gone low by the time it is asked for.
struct Pic(Arc<InterruptFabric>);

impl BehindApics for Pic {
    fn end_of_interrupt(&self, _: u8) {}

    fn acknowledge_extint(&self) -> u8 {
        self.0.intr_line().set(false);
        0x30
    }
}

impl Guest {
    /// What a kernel does: sleeps, is woken, serves what there is, ends it by the paravirtual word or by register.
    fn run(&self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            while self.fabric.pending(BOOT).is_some() {
                let Some(vector) = self.fabric.acknowledge(BOOT) else { continue };
                if vector != 0x30 {
                    let offered = std::mem::take(&mut self.memory.0.lock().unwrap()[0]);
                    if offered == 0 {
                        self.fabric.mmio_write(BOOT, EOI, &[0; 4]);
                    }
                }
                self.shared.served[usize::from(vector)].fetch_add(1, Ordering::SeqCst);
            }
            self.wakes.recv_timeout(LOST).expect("a wake was lost");
        }
    }
}

#[test]
fn no_wake_is_lost() {
    let (sender, wakes) = mpsc::channel();
    let memory = Bytes::default();
    let fabric = InterruptFabric::new(FabricSetup {
        features: FEATURES,
        clock: Arc::new(ManualClock::default()),
        alarms: vec![Arc::new(ManualClock::default())],
        tsc: Arc::new(Tsc),
        memory: Arc::new(memory.clone()),
        wake: Box::new(move |_| {
            let _ = sender.send(());
        }),
    });
    let pic: Arc<dyn BehindApics> = Arc::new(Pic(fabric.clone()));
    fabric.connect(Arc::downgrade(&pic));
    assert_eq!(fabric.write_msr(BOOT, 0x4b56_4d04, 0x1001), MsrOutcome::Done(()));
    let served = [const { AtomicU64::new(0) }; 256];
    let shared = Arc::new(Shared { served, stop: AtomicBool::new(false) });
    let guest = Guest { fabric: fabric.clone(), memory, wakes, shared: shared.clone() };

    std::thread::scope(|scope| {
        let (fabric, shared) = (&fabric, &*shared);
        let wait = move |vector: u8, round| {
            let start = Instant::now();
            while shared.served[usize::from(vector)].load(Ordering::SeqCst) < round {
                assert!(start.elapsed() < LOST, "{vector:#x} was never served");
                std::thread::yield_now();
            }
        };
        let mut sources = Vec::new();
        for vector in [0x41, 0x42, 0x61] {
            sources.push(scope.spawn(move || {
                for round in 1..=ROUNDS {
                    fabric.msi(APIC_BASE, u32::from(vector));
                    wait(vector, round);
                }
            }));
        }
        sources.push(scope.spawn(move || {
            let line = fabric.intr_line();
            for round in 1..=ROUNDS {
                line.set(true);
                wait(0x30, round);
            }
        }));
        let vcpu = scope.spawn(move || guest.run());
        for source in sources {
            source.join().unwrap();
        }
        shared.stop.store(true, Ordering::SeqCst);
        fabric.msi(APIC_BASE, 0x71);
        vcpu.join().unwrap();
    });
}
