//! Disks, as Debian's kernels use them.
//!
//! Like the other tests with Debian's packages, these say so and pass where those cannot be had.

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use common::{HANG, KERNELS, Place, complaint, debian_kernel_with_modules, kernel, umbra};

/// Runs a script in a VM with these disks; its output, and umbra's status.
fn run(kernel: &str, disks: &[&str], script: &str) -> (String, Option<i32>, String) {
    let mut args = vec!["run", "--kernel", kernel, "--timeout", "10m"];
    for disk in disks {
        args.extend(["--disk", disk]);
    }
    args.extend(["--", "sh", "-c", script]);
    let output = umbra(&args).output().unwrap();
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code(), complaint(&output))
}

fn image(place: &Place, name: &str, bytes: u64) -> String {
    let path = place.path().join(name);
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Makes a file system and a file on the first disk, raw blocks on the second, and says what the devices are.
const FILL: &str = r#"
set -e
mke2fs /dev/vda >/dev/null
mkdir /mnt
mount -t ext2 /dev/vda /mnt
dd if=/dev/urandom of=/mnt/file bs=64k count=100 2>/dev/null
sha256sum </mnt/file
umount /mnt
printf 'seen by the host' | dd of=/dev/vdb bs=512 seek=3 conv=notrunc,fsync 2>/dev/null
for disk in vda vdb; do
    echo $disk $(cat /sys/block/$disk/size /sys/block/$disk/ro /sys/block/$disk/serial /sys/block/$disk/queue/write_cache)
done
cat /sys/class/misc/hw_random/rng_current
dd if=/dev/hwrng bs=512 count=4 2>/dev/null | wc -c
grep -c virtio /proc/interrupts
"#;

/// Looks at what the first run left, on a disk that it may only read.
const LOOK: &str = r#"
cat /sys/block/vda/ro
mkdir /mnt
mount -t ext2 -o ro /dev/vda /mnt && sha256sum </mnt/file
touch /mnt/other 2>/dev/null || echo not writable
umount /mnt
dd if=/dev/zero of=/dev/vda bs=4k count=1 2>/dev/null || echo refused
"#;

#[test]
fn a_file_system_on_a_disk_outlives_the_guest_and_the_host_sees_what_was_flushed() {
    for package in KERNELS {
        let Some(kernel) = debian_kernel_with_modules(package) else { continue };
        let place = Place::new();
        let (first, second) = (image(&place, "first", 32 << 20), image(&place, "second,1", 1 << 20));
        let (out, status, said) = run(&kernel, &[&first, &second.replace(',', ",,")], FILL);
        assert_eq!((status, said.as_str()), (Some(0), ""), "{package}: {out}");
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[1], "vda 65536 0 disk0write back", "{package}: {out}");
        assert_eq!(lines[2..5], ["vdb 2048 0 disk1write back", "virtio_rng.0", "2048"], "{package}");
        assert!(lines[5].parse::<u32>().unwrap() >= 5, "a vector for each queue and configuration: {out}");
        let mut seen = [0; 16];
        File::open(&second).unwrap().read_exact_at(&mut seen, 3 * 512).unwrap();
        assert_eq!(&seen, b"seen by the host");

        let before = std::fs::read(&first).unwrap();
        let (again, status, said) = run(&kernel, &[&format!("{first},ro")], LOOK);
        assert_eq!((status, said.as_str()), (Some(0), ""), "{package}: {again}");
        let again: Vec<&str> = again.lines().collect();
        assert_eq!(again, ["1", lines[0], "not writable", "refused"], "{package}");
        assert!(before == std::fs::read(&first).unwrap(), "a disk that may only be read has changed");
    }
}

/// Without messages the same disk works by its interrupt pin.
#[test]
fn a_guest_without_messages_uses_the_interrupt_pin() {
    let Some(kernel) = debian_kernel_with_modules(KERNELS[0]) else { return };
    let place = Place::new();
    let disk = image(&place, "disk", 1 << 20);
    let script = "echo through | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null; grep -c IO-APIC.*virtio /proc/interrupts";
    let args =
        ["run", "--kernel", &kernel, "--disk", &disk, "--net=none", "--append=pci=nomsi", "--timeout=10m"];
    let output = umbra(&[&args[..], &["--", "sh", "-c", script]].concat()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2\n", "{}", complaint(&output));
    assert!(std::fs::read(&disk).unwrap().starts_with(b"through\n"));
}

/// Writes and flushes block by block, says each time how far it is, and goes on for ever.
const WRITE_ON: &str = r#"
block=0
while true; do
    block=$((block+1))
    printf 'block %06d' $block | dd of=/dev/vda bs=512 seek=$block conv=notrunc,fsync 2>/dev/null
    echo $block
done
"#;

#[test]
fn what_was_flushed_is_there_after_a_kill() {
    let Some(kernel) = debian_kernel_with_modules(KERNELS[0]) else { return };
    let place = Place::new();
    let disk = image(&place, "disk", 1 << 20);
    let args = ["run", "--kernel", &kernel, "--disk", &disk, "--timeout", "10m", "--", "sh", "-c", WRITE_ON];
    let mut vm = umbra(&args).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(vm.stdout.take().unwrap()).lines();
    let flushed: u64 =
        lines.map(|line| line.unwrap().trim().parse().unwrap()).find(|block| *block >= 20).unwrap();
    vm.kill().unwrap();
    vm.wait().unwrap();
    let file = File::open(&disk).unwrap();
    for block in 1..=flushed {
        let mut text = [0; 12];
        file.read_exact_at(&mut text, block * 512).unwrap();
        assert_eq!(String::from_utf8_lossy(&text), format!("block {block:06}"));
    }
    let (_, status, said) = run(&kernel, &[&disk], "true");
    assert_eq!(status, Some(0), "the dead process holds no lock: {said}");
}

#[test]
fn images_that_are_none_are_refused_in_a_sentence() {
    let place = Place::new();
    place.file("guest", &kernel(HANG));
    place.file("odd", &[0; 1000]);
    let says = |disk: &str| {
        let output = place.umbra(&["run", "guest", "-m", "16M", "--disk", disk]).output().unwrap();
        assert!(!output.status.success());
        complaint(&output)
    };
    assert!(says("none").contains("truncate -s"), "{}", says("none"));
    assert!(says("odd").contains("1000 bytes"));
    assert!(says(".").contains("is not a disk image"));
    assert!(says("odd,rw").contains("'rw'"));
}
