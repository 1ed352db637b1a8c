//! Images against a model of the disk, and against QEMU's own tools where the host has them.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use super::*;

const DISK: u64 = 5 << 20;

/// A random number, always the same ones.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// Runs one of QEMU's tools; none, said aloud, if the host has it not.
fn tool(name: &str, args: &[&str]) -> Option<(bool, String)> {
    match Command::new(name).args(args).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
        }
        Err(_) => {
            eprintln!("SKIPPED: what needs {name}, which 'apt install qemu-utils' brings");
            None
        }
    }
}

fn assert_clean(path: &Path) {
    if let Some((clean, said)) = tool("qemu-img", &["check", "-f", "qcow2", path.to_str().unwrap()]) {
        assert!(clean, "{said}");
    }
}

fn open(path: &Path, below: Option<Arc<dyn Disk>>) -> Result<Qcow2, Problem> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let bytes = file.metadata().unwrap().len();
    Qcow2::open(file, bytes, below, false, true)
}

fn read(disk: &dyn Disk, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; index(len)];
    disk.read(offset, &Targets::of(&mut bytes)).unwrap();
    bytes
}

/// Something below that is shorter than the disk above.
fn below(directory: &Path) -> Arc<dyn Disk> {
    let path = directory.join("below");
    let bytes: Vec<u8> = (0..DISK / 2 + 512).map(|n| (n / 512 % 251) as u8).collect();
    std::fs::write(&path, bytes).unwrap();
    Arc::new(crate::RawDisk::open(&path, true).unwrap())
}

/// Writes, zeroes, discards and reads at random, and compares with a model all the time.
fn exercise(disk: &dyn Disk, model: &mut [u8], random: &mut Random, rounds: u32) {
    for round in 0..rounds {
        let longest = if random.below(4) == 0 { 600 } else { 40 };
        let len = (1 + random.below(longest)) * 512;
        let offset = random.below((DISK - len) / 512 + 1) * 512;
        let part = index(offset)..index(offset + len);
        match random.below(8) {
            0..=3 => {
                let bytes: Vec<u8> = (0..len).map(|n| (u64::from(round) + n / 512) as u8).collect();
                disk.write(offset, &Sources::of(&bytes)).unwrap();
                model[part].copy_from_slice(&bytes);
            }
            4 => {
                disk.write_zeroes(offset, len, random.below(2) == 0).unwrap();
                model[part].fill(0);
            }
            5 => {
                disk.discard(offset, len).unwrap();
                model[part.clone()].copy_from_slice(&read(disk, offset, len));
            }
            _ => assert!(read(disk, offset, len) == model[part], "round {round} at {offset} for {len}"),
        }
    }
    assert!(read(disk, 0, DISK) == model);
}

#[test]
fn an_image_is_what_was_written_to_it() {
    let mut random = Random(0x1234_5678_9abc_def1);
    for upon in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let below = upon.then(|| below(dir.path()));
        create(&File::create_new(&path).unwrap(), DISK, None).unwrap();
        let mut model = vec![0; index(DISK)];
        if let Some(below) = &below {
            below.read(0, &Targets::of(&mut model[..index(below.bytes())])).unwrap();
        }
        for _ in 0..4 {
            let disk = open(&path, below.clone()).unwrap();
            exercise(&disk, &mut model, &mut random, 150);
            drop(disk);
            assert_clean(&path);
            let file = File::open(&path).unwrap();
            let bytes = file.metadata().unwrap().len();
            assert_eq!(check(file, bytes), Ok(Report::default()));
        }
        assert!(path.metadata().unwrap().len() < 3 * DISK, "clusters are used again");
    }
}

/// What QEMU makes is understood, and what we write to it QEMU reads: small and large clusters, version 2, compression.
#[test]
fn images_of_others_are_read_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, path) = (dir.path().join("raw"), dir.path().join("image"));
    let (raw_name, name) = (raw.to_str().unwrap(), path.to_str().unwrap());
    let mut random = Random(77);
    for (options, compressed) in [
        ("compat=1.1", false),
        ("compat=0.10", false),
        ("cluster_size=512", false),
        ("cluster_size=2M", false),
        ("cluster_size=4k", true),
        ("lazy_refcounts=on", true),
        ("compat=0.10,cluster_size=1k", true),
    ] {
        let mut model: Vec<u8> =
            (0..DISK).map(|n| if n % 70_000 < 40_000 { (n / 1000) as u8 } else { 0 }).collect();
        std::fs::write(&raw, &model).unwrap();
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", options];
        args.extend(compressed.then_some("-c").iter().chain(&[raw_name, name]));
        let Some((made, said)) = tool("qemu-img", &args) else { return };
        assert!(made, "{said}");
        let disk = open(&path, None).unwrap();
        assert!(read(&disk, 0, DISK) == model, "{options}");
        exercise(&disk, &mut model, &mut random, 120);
        drop(disk);
        assert_clean(&path);
        let (same, said) = {
            std::fs::write(&raw, &model).unwrap();
            tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", raw_name, name]).unwrap()
        };
        assert!(same, "{options}: {said}");
    }
}

/// A table of refcounts that is full grows, more than once.
#[test]
fn small_clusters_make_tables_grow() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let name = path.to_str().unwrap();
    let made = tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", name, "64M"]);
    if made.is_none() {
        return;
    }
    let disk = open(&path, None).unwrap();
    let before = disk.tables.as_ref().unwrap().lock().unwrap().refcounts.own(&disk.clusters).1;
    let block: Vec<u8> = (0..1 << 20).map(|n: u32| (n / 300) as u8).collect();
    for number in 0..40 {
        disk.write(number << 20, &Sources::of(&block)).unwrap();
    }
    let after = disk.tables.as_ref().unwrap().lock().unwrap().refcounts.own(&disk.clusters).1;
    assert!(after >= 4 * before, "{before} {after}");
    drop(disk);
    assert_clean(&path);
    assert!(read(&open(&path, None).unwrap(), 39 << 20, 1 << 20) == block);
}

#[test]
fn images_that_cannot_be_written_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let name = path.to_str().unwrap();
    for options in ["compat=1.1,refcount_bits=64", "compat=1.1"] {
        let Some((made, said)) = tool("qemu-img", &["create", "-f", "qcow2", "-o", options, name, "1M"])
        else {
            return;
        };
        assert!(made, "{said}");
        assert!(tool("qemu-io", &["-f", "qcow2", "-c", "write -P 5 0 64k", name]).is_none_or(|it| it.0));
        tool("qemu-img", &["snapshot", "-c", "first", name]);
        assert!(matches!(open(&path, None), Err(Problem::NotWritable(_))));
        let file = File::open(&path).unwrap();
        let bytes = file.metadata().unwrap().len();
        let disk = Qcow2::open(file, bytes, None, true, true).unwrap();
        assert_eq!(read(&disk, 0, 512), [5; 512]);
        assert!(disk.write(0, &Sources::of(&[1; 512])).is_err() && disk.discard(0, 512).is_err());
        assert!(disk.write_zeroes(0, 512, true).is_err());
    }
}

/// An image that was not closed: wrong counts, in either direction, are made right before it is written again.
#[test]
fn an_image_that_was_not_closed_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    create(&File::create_new(&path).unwrap(), DISK, None).unwrap();
    let disk = open(&path, None).unwrap();
    disk.write(0, &Sources::of(&[1; 4096])).unwrap();
    let copy = dir.path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    assert_clean(&copy);
    // What died: one cluster lost, one whose count has not arrived.
    let file = File::options().read(true).write(true).open(&copy).unwrap();
    let clusters = Clusters { file, bits: 16, durable: true };
    let report = |clusters: &Clusters| {
        let bytes = clusters.file.metadata().unwrap().len();
        super::check(clusters.file.try_clone().unwrap(), bytes).unwrap()
    };
    assert_eq!(report(&clusters), Report::default());
    clusters.write(&[0, 0, 0, 1], (2 << 16) + 5 * 2).unwrap();
    clusters.file.set_len(7 << 16).unwrap();
    assert_eq!(report(&clusters), Report { leaks: 1, low: 1, wrong: 0 });
    let again = open(&copy, None).unwrap();
    assert_eq!(report(&clusters), Report::default());
    again.write(1 << 20, &Sources::of(&[2; 65536])).unwrap();
    assert_eq!((read(&again, 0, 4096), read(&again, 1 << 20, 10)), (vec![1; 4096], vec![2; 10]));
    drop(again);
    assert_clean(&copy);
    let header = read_header(&clusters.file).unwrap();
    assert_eq!(header.incompatible, 0, "closed");
    assert_eq!(read_header(&disk.clusters.file).unwrap().incompatible, header::DIRTY, "open");
}

/// An image whose disk was made smaller has a longer L1 table than it needs, and that is no lost space.
#[test]
fn the_whole_l1_table_is_the_images() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let name = path.to_str().unwrap();
    for args in [
        &["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", name, "64M"][..],
        &["resize", "-q", "--shrink", "-f", "qcow2", name, "2M"],
    ] {
        let Some((done, said)) = tool("qemu-img", args) else { return };
        assert!(done, "{said}");
    }
    let file = || File::options().read(true).write(true).open(&path).unwrap();
    let bytes = file().metadata().unwrap().len();
    assert!(
        read_header(&file()).unwrap().l1_entries * 8 > 512,
        "more than a cluster, which is what 2 MiB take"
    );
    assert_eq!(check(file(), bytes), Ok(Report::default()));
    assert_eq!(repair(file(), bytes), Ok(true));
    open(&path, None).unwrap().write(0, &Sources::of(&[7; 1 << 20])).unwrap();
    assert_clean(&path);
}

/// What is counted by additions that nobody here knows is not taken for lost, and is given up when the image is written.
#[test]
fn additions_are_not_repaired_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    create(&File::create_new(&path).unwrap(), DISK, None).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let bytes = file.metadata().unwrap().len();
    file.write_all_at(&1_u64.to_be_bytes(), header::AUTOCLEAR_AT).unwrap();
    assert!(matches!(check(file.try_clone().unwrap(), bytes), Err(Problem::Unsupported(_))));
    assert!(matches!(repair(file.try_clone().unwrap(), bytes), Err(Problem::Unsupported(_))));
    drop(open(&path, None).unwrap());
    assert_eq!(check(file, bytes), Ok(Report::default()));
}

#[test]
fn a_table_that_data_leads_to_is_not_repaired() {
    let dir = tempfile::tempdir().unwrap();
    for leads_to in ["the L1 table", "the refcounts", "the L2 table itself"] {
        let path = dir.path().join(leads_to);
        create(&File::create_new(&path).unwrap(), DISK, None).unwrap();
        let disk = open(&path, None).unwrap();
        disk.write(0, &Sources::of(&[1; 512])).unwrap();
        let table = disk.l2_table(0).unwrap().unwrap();
        drop(disk);
        let place = match leads_to {
            "the L1 table" => 3 << CLUSTER_BITS,
            "the refcounts" => 2 << CLUSTER_BITS,
            _ => table,
        };
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let bytes = file.metadata().unwrap().len();
        file.write_all_at(&(entry::OWN | place).to_be_bytes(), table + 8).unwrap();
        let before = std::fs::read(&path).unwrap();
        let found = check(file.try_clone().unwrap(), bytes).unwrap();
        assert_eq!((found.wrong, found.low), (1, 1), "{leads_to}");
        assert_eq!(repair(file, bytes), Ok(false), "{leads_to}");
        assert!(std::fs::read(&path).unwrap() == before);
    }
}

/// Writers on several threads, as a disk's queues are, on clusters that they share.
#[test]
fn threads_do_not_get_into_each_others_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let below = below(dir.path());
    create(&File::create_new(&path).unwrap(), DISK, None).unwrap();
    let disk = open(&path, Some(below.clone())).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (disk, below) = (&disk, &below);
            scope.spawn(move || {
                let mut random = Random(1000 + thread);
                let mine = |n: u64| (n * 4 + thread) * 512;
                let mut written = vec![None; index(DISK / 2048)];
                for round in 0..2000 {
                    let n = random.below(DISK / 2048);
                    let seen = read(disk, mine(n), 512);
                    let expected = written[index(n)].unwrap_or_else(|| {
                        if mine(n) < below.bytes() { read(&**below, mine(n), 1)[0] } else { 0 }
                    });
                    assert_eq!(seen, [expected; 512], "{thread} {round}");
                    disk.write(mine(n), &Sources::of(&[round as u8; 512])).unwrap();
                    written[index(n)] = Some(round as u8);
                }
            });
        }
    });
    drop(disk);
    assert_clean(&path);
}
