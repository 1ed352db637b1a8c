//! Resets, pauses, shutdowns, and the saved form.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backend::{Counted, Disk, Extent, RawDisk, Volume};
use bus::Lifecycle;
use host::io::{Sources, Targets};
use state::Record;

use super::rig::*;
use super::{READ, WRITE};

const PATIENCE: Duration = Duration::from_secs(60);

/// A disk of zeros that waits for a permit before each request, and says that it has begun.
struct Slow {
    began: Mutex<Sender<&'static str>>,
    permits: Mutex<Receiver<()>>,
}

impl Slow {
    fn new() -> (Arc<Self>, Receiver<&'static str>, Sender<()>) {
        let ((begin, began), (permit, permits)) = (channel(), channel());
        (Arc::new(Self { began: Mutex::new(begin), permits: Mutex::new(permits) }), began, permit)
    }

    fn wait(&self, what: &'static str) -> io::Result<()> {
        self.began.lock().unwrap().send(what).unwrap();
        self.permits.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        Ok(())
    }
}

impl Disk for Slow {
    fn bytes(&self) -> u64 {
        BYTES
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, _: u64, to: &Targets<'_>) -> io::Result<()> {
        to.zero();
        self.wait("read")
    }
    fn extent(&self, _: u64, most: u64) -> io::Result<Extent> {
        Ok(Extent { len: most, zeros: false })
    }
    fn write(&self, _: u64, _: &Sources<'_>) -> io::Result<()> {
        self.wait("write")
    }
    fn flush(&self) -> io::Result<()> {
        self.wait("flush")
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        self.wait("discard")
    }
    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        self.wait("zeroes")
    }
}

#[test]
fn a_reset_is_over_when_nothing_is_out() {
    let (disk, began, permit) = Slow::new();
    let rig = Rig::new(disk);
    let (_, mut queue) = rig.start(true);
    for _ in 0..3 {
        queue.put(&rig, io(READ, 0, 1, [DATA, 0]));
    }
    queue.ring(&rig);
    std::thread::scope(|scope| {
        scope.spawn(|| rig.workers[1].step());
        began.recv_timeout(PATIENCE).unwrap();
        rig.write(CONFIGURATION, 0);
        assert_eq!(rig.read(STATUS), 1, "it is ready still");
        rig.write(CONFIGURATION, ENABLED);
        assert_eq!(rig.read(STATUS), 1, "and hears of nothing else");
        rig.messages();
        permit.send(()).unwrap();
    });
    assert_eq!((rig.read(STATUS), queue.peek(&rig)), (0, None));
    assert!(rig.messages().is_empty());
    let (mut admin_queue, _) = rig.start(true);
    assert_eq!(admin_queue.run(&rig, admin(6, 0, 1, 0)).status, 0);
}

#[test]
fn a_queue_is_deleted_when_nothing_of_it_is_out() {
    let (disk, began, permit) = Slow::new();
    let rig = Rig::new(disk);
    let (mut admin_queue, mut queue) = rig.start(true);
    let ids = [0; 2].map(|_| queue.put(&rig, io(READ, 0, 1, [DATA, 0])));
    queue.ring(&rig);
    let mut delete = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| rig.workers[1].step());
        began.recv_timeout(PATIENCE).unwrap();
        delete = admin_queue.put(&rig, admin(0, 0, 1, 0));
        admin_queue.ring(&rig);
        rig.workers[0].step();
        assert_eq!(admin_queue.peek(&rig), None);
        permit.send(()).unwrap();
    });
    let done = admin_queue.peek(&rig).unwrap();
    assert_eq!((done.command, done.status), (delete, 0));
    admin_queue.consume(&rig);
    assert_eq!(queue.peek(&rig).unwrap().command, ids[0]);
    assert_eq!(queue.peek(&rig), None, "what was not taken is forgotten");
    queue.consume(&rig);
    assert_eq!(admin_queue.run(&rig, admin(0, 0, 1, 0)).status, 0x101);
}

#[test]
fn a_pause_waits_for_one_command_and_the_rest_goes_on_elsewhere() {
    let (disk, began, permit) = Slow::new();
    let rig = Rig::new(disk.clone());
    let (mut admin_queue, mut queue) = rig.start(true);
    admin_queue.put(&rig, admin(0x0c, 0, 0, 0));
    admin_queue.ring(&rig);
    rig.workers[0].step();
    let ids = [0; 3].map(|_| queue.put(&rig, io(WRITE, 0, 1, [DATA, 0])));
    queue.ring(&rig);
    std::thread::scope(|scope| {
        scope.spawn(|| rig.workers[1].step());
        began.recv_timeout(PATIENCE).unwrap();
        let pausing = scope.spawn(|| rig.device.lock().unwrap().pause());
        // The worker sees the pause, or serves one more and sees it then.
        permit.send(()).unwrap();
        permit.send(()).unwrap();
        permit.send(()).unwrap();
        pausing.join().unwrap();
    });
    while began.try_recv().is_ok() {}
    let served = std::iter::from_fn(|| queue.peek(&rig)).count();
    assert!(!rig.workers[1].step(), "a paused device takes nothing");
    let record = rig.device.lock().unwrap().save();
    let bytes = rig.memory.clone();
    let (again, _began, permit) = Slow::new();
    let other = Rig::with(Volume::new(again), bytes);
    other.device.lock().unwrap().restore(&record).unwrap();
    assert_eq!(other.device.lock().unwrap().save(), record);
    other.device.lock().unwrap().resume();
    for _ in served..3 {
        permit.send(()).unwrap();
    }
    other.workers[1].step();
    let rest: Vec<u16> = std::iter::from_fn(|| queue.peek(&other)).map(|done| done.command).collect();
    assert_eq!(rest, ids[served..]);
    // The request for an event has come along.
    other.write(0x1ffc, 1);
    assert_eq!(admin_queue.peek(&other).unwrap().result, 0x1_0000);
}

#[test]
fn a_shutdown_makes_everything_durable() {
    let (disk, began, permit) = Slow::new();
    let rig = Rig::new(disk);
    let (_, mut queue) = rig.start(true);
    queue.put(&rig, io(READ, 0, 1, [DATA, 0]));
    rig.write(CONFIGURATION, ENABLED | 1 << 14);
    assert_eq!(rig.read(STATUS), 1 | 1 << 2);
    queue.ring(&rig);
    assert!(!rig.workers[1].step(), "nothing is taken any more");
    std::thread::scope(|scope| {
        scope.spawn(|| rig.workers[0].step());
        assert_eq!(began.recv_timeout(PATIENCE).unwrap(), "flush");
        assert_eq!(rig.read(STATUS), 1 | 1 << 2);
        permit.send(()).unwrap();
    });
    assert_eq!(rig.read(STATUS), 1 | 2 << 2);
    assert!(!rig.workers[0].step());
    rig.start(true);
}

#[test]
fn a_driver_without_a_write_cache_writes_through() {
    let (disk, began, permit) = Slow::new();
    let rig = Rig::new(disk);
    let (mut admin_queue, mut queue) = rig.start(true);
    let mut seen = |command| {
        permit.send(()).unwrap();
        permit.send(()).unwrap();
        assert_eq!(queue.run(&rig, command).status, 0);
        began.try_iter().collect::<Vec<_>>()
    };
    let write = io(WRITE, 0, 1, [DATA, 0]);
    let mut durable = write;
    durable.words[2] |= 1 << 30;
    assert_eq!(seen(write), ["write"]);
    assert_eq!(seen(durable), ["write", "flush"]);
    admin_queue.run(&rig, admin(9, 0, 6, 0));
    assert_eq!(seen(write), ["write", "flush"]);
}

/// What waits for a limit waits in the ring, and a reset or a pause does not wait for it.
#[test]
fn a_limit_holds_commands_back_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(RawDisk::open(&image(dir.path()), false).unwrap());
    let memory = Rig::new(disk.clone()).memory;
    let rig = Rig::with(Volume::new(disk).limited(Counted::Requests, 1), memory);
    let (_, mut queue) = rig.start(true);
    assert_eq!(queue.run(&rig, io(READ, 0, 1, [DATA, 0])).status, 0);
    queue.put(&rig, io(READ, 0, 1, [DATA, 0]));
    queue.ring(&rig);
    let begin = Instant::now();
    assert!(!rig.workers[1].step(), "it is held back");
    rig.device.lock().unwrap().pause();
    assert!(begin.elapsed() < Duration::from_millis(700), "a pause does not wait");
    rig.device.lock().unwrap().resume();
    while !rig.workers[1].step() {
        assert!(begin.elapsed() < Duration::from_secs(20), "it never comes");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(begin.elapsed() >= Duration::from_millis(600), "{:?}", begin.elapsed());
}

/// Ends the workers, whatever becomes of the test.
struct End<'a>(&'a Rig);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.device.lock().unwrap_or_else(PoisonError::into_inner).end();
    }
}

/// Workers on their threads, several queues, and resets in between.
#[test]
fn threads_serve_queues_until_the_device_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::on(&image(dir.path()), false);
    std::thread::scope(|scope| {
        let _end = End(&rig);
        for worker in &rig.workers {
            scope.spawn(|| worker.live());
        }
        for _ in 0..6 {
            rig.plug_in(true);
            let mut pairs = vec![rig.enable()];
            let await_one = |pair: &mut Pair| {
                let begin = Instant::now();
                loop {
                    if let Some(done) = pair.peek(&rig) {
                        pair.consume(&rig);
                        return done;
                    }
                    assert!(begin.elapsed() < PATIENCE, "no completion");
                    std::thread::sleep(Duration::from_micros(50));
                }
            };
            for id in 1..3u32 {
                for (opcode, base) in
                    [(5, 0x2000 + 0x2000 * u64::from(id)), (1, 0x1000 + 0x2000 * u64::from(id))]
                {
                    let mut command = admin(opcode, 0, u32::from(SIZE - 1) << 16 | id, id << 16 | 3);
                    command.prp[0] = base;
                    pairs[0].put(&rig, command);
                    pairs[0].ring(&rig);
                    assert_eq!(await_one(&mut pairs[0]).status, 0);
                }
                pairs.push(rig.pair(u16::try_from(id).unwrap()));
            }
            for sector in 0..20 {
                for pair in &mut pairs[1..] {
                    pair.put(&rig, io(READ, sector, 1, [DATA, 0]));
                    pair.ring(&rig);
                }
                for pair in &mut pairs[1..] {
                    assert_eq!(await_one(pair).status, 0);
                }
            }
        }
        rig.device.lock().unwrap().reset();
        rig.plug_in(true);
        assert_eq!(rig.read(STATUS), 0);
    });
}

#[test]
fn damaged_states_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::on(&image(dir.path()), false);
    rig.start(true);
    let mut device = rig.device.lock().unwrap();
    device.pause();
    let record = device.save();
    // A record is a name, a version, and a body with its length.
    let (name, version, body) = parts(&record);
    let mut refused = 0;
    for at in 0..body.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bad = body.clone();
            bad[at] = value;
            match device.restore(&record_of(&name, version, &bad)) {
                Ok(()) => device.restore(&record).unwrap(),
                Err(_) => refused += 1,
            }
            assert_eq!(device.save(), record, "byte {at}");
        }
    }
    assert!(refused > body.len() / 2, "{refused} of {}", 4 * body.len());
    assert!(device.restore(&record_of("virtio-pci", version, &body)).is_err());
}

fn parts(record: &Record) -> (String, u16, Vec<u8>) {
    postcard::from_bytes(&postcard::to_stdvec(record).unwrap()).unwrap()
}

fn record_of(name: &str, version: u16, body: &[u8]) -> Record {
    postcard::from_bytes(&postcard::to_stdvec(&(name, version, body)).unwrap()).unwrap()
}
