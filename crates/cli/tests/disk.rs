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
    let output = umbra(&[&args[..], &["--no-balloon", "--", "sh", "-c", script]].concat()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2\n", "{}", complaint(&output));
    assert!(std::fs::read(&disk).unwrap().starts_with(b"through\n"));
}

/// Writes and flushes block by block, says each time how far it is, and goes on for ever.
const WRITE_ON: &str = r#"
block=0
while true; do
    block=$((block+1))
    printf 'block %06d' $block | dd of=/dev/vda bs=1M seek=$block conv=notrunc,fsync 2>/dev/null
    echo $block
done
"#;

/// Runs `qemu-img`; none, said aloud, if the host has it not.
fn qemu_img(args: &[&str]) -> Option<(bool, String)> {
    match std::process::Command::new("qemu-img").args(args).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
        }
        Err(_) => {
            eprintln!("SKIPPED: what needs qemu-img, which 'apt install qemu-utils' brings");
            None
        }
    }
}

/// A disk upon 40 MiB of ones, as one image or as two; none if it cannot be made.
fn disk_of_ones(place: &Place, name: &str, qcow2: bool) -> Option<String> {
    place.file("ones", &vec![1; 40 << 20]);
    let path = place.path().join(name).to_str().unwrap().to_owned();
    if qcow2 {
        let (made, said) = qemu_img(&["create", "-f", "qcow2", "-F", "raw", "-b", "ones", &path])?;
        assert!(made, "{said}");
    } else {
        std::fs::copy(place.path().join("ones"), &path).unwrap();
    }
    Some(path)
}

#[test]
fn what_was_flushed_is_there_after_a_kill() {
    let Some(kernel) = debian_kernel_with_modules(KERNELS[0]) else { return };
    for qcow2 in [false, true] {
        let place = Place::new();
        let name = if qcow2 { "disk.qcow2" } else { "disk" };
        let Some(disk) = disk_of_ones(&place, name, qcow2) else { continue };
        let args =
            ["run", "--kernel", &kernel, "--disk", &disk, "--timeout", "10m", "--", "sh", "-c", WRITE_ON];
        let mut vm = umbra(&args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(vm.stdout.take().unwrap()).lines();
        let flushed: u64 =
            lines.map(|line| line.unwrap().trim().parse().unwrap()).find(|block| *block >= 30).unwrap();
        vm.kill().unwrap();
        vm.wait().unwrap();
        let raw = place.path().join("raw");
        if qcow2 {
            let (clean, said) = qemu_img(&["check", "-f", "qcow2", &disk]).unwrap();
            assert!(clean, "{said}");
            qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &disk, raw.to_str().unwrap()]).unwrap();
        } else {
            std::fs::copy(&disk, &raw).unwrap();
        }
        let file = File::open(&raw).unwrap();
        for block in 1..=flushed {
            let mut text = [0; 13];
            file.read_exact_at(&mut text, block << 20).unwrap();
            assert_eq!(String::from_utf8_lossy(&text), format!("block {block:06}\x01"));
        }
        let (_, status, said) = run(&kernel, &[&disk], "true");
        assert_eq!(status, Some(0), "the dead process holds no lock: {said}");
    }
}

/// Writes runs and single blocks in any order, trims and zeroes some, and reads all of it again, past the guest's cache.
const VERIFY: &str = r#"
use strict; use Fcntl;
my $blocks = 32 * 256; my @seen = (1) x $blocks;
my $device = $ENV{DEVICE}; sysopen(my $disk, $device, O_RDWR) or die "open: $!";
sub forget { open(my $drop, ">", "/proc/sys/vm/drop_caches") or die; print $drop "3\n"; close $drop }
sub at { sysseek($disk, $_[0] * 4096, 0) // die "seek: $!" }
sub put { my ($first, $count, $byte) = @_; at($first);
    syswrite($disk, chr($byte) x ($count * 4096)) == $count * 4096 or die "write: $!";
    @seen[$first .. $first + $count - 1] = ($byte) x $count }
sub verify { $disk->sync or die "sync: $!"; forget();
    for my $block (0 .. $blocks - 1) { at($block); my $data;
        sysread($disk, $data, 4096) == 4096 or die "read: $!";
        $data eq chr($seen[$block]) x 4096 or die "block $block is wrong" } }
use IO::Handle;
srand(7);
put(int(rand($blocks)), 1, 2 + int(rand(200))) for 1 .. 600;
verify();
for (1 .. 40) { my $count = 1 + int(rand(200)); put(int(rand($blocks - $count)), $count, 2 + int(rand(200))) }
verify();
for my $zero (1 .. 20) { my $count = 1 + int(rand(100)); my $first = int(rand($blocks - $count));
    $disk->sync; forget();
    system("blkdiscard", "-z", "-o", $first * 4096, "-l", $count * 4096, $device) == 0 or die;
    @seen[$first .. $first + $count - 1] = (0) x $count }
system("blkdiscard", "-o", 40 << 20, "-l", 1 << 20, $device);
for (my $first = 0; $first < $blocks; $first += 256) { put($first, 128, 3) }
verify();
print "verified\n";
"#;

#[test]
fn what_is_written_anywhere_is_read_again_and_overlays_take_it_all() {
    let Some(kernel) = debian_kernel_with_modules(KERNELS[0]) else { return };
    let place = Place::new();
    place.file("verify.pl", VERIFY.as_bytes());
    let script = place.path().join("verify.pl");
    let verify = |disk: &str| {
        let volume = format!("{}:/script:ro", script.parent().unwrap().display());
        let device = if disk.ends_with("bus=nvme") { "/dev/nvme0n1" } else { "/dev/vda" };
        let args = [
            "run",
            "host",
            "--kernel",
            &kernel,
            "--net=none",
            "--timeout=10m",
            "-v",
            &volume,
            "-e",
            &format!("DEVICE={device}"),
            "--disk",
            disk,
        ];
        let output = umbra(&[&args[..], &["--", "perl", "/script/verify.pl"]].concat()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "verified\n", "{disk}: {}", complaint(&output));
    };
    let raw = disk_of_ones(&place, "raw", false).unwrap();
    verify(&format!("{raw},overlay"));
    let kept = place.path().join("kept.qcow2").to_str().unwrap().to_owned();
    verify(&format!("{raw},overlay={kept}"));
    assert!(std::fs::read(&raw).unwrap() == vec![1; 40 << 20], "the image has changed");
    assert!(std::fs::metadata(&kept).unwrap().len() > 10 << 20);
    verify(&raw);
    let on_nvme = disk_of_ones(&place, "again", false).unwrap();
    verify(&format!("{on_nvme},bus=nvme"));
    let upon = disk_of_ones(&place, "upon.qcow2", true);
    upon.iter().for_each(|upon| verify(upon));
    let on_nvme = disk_of_ones(&place, "nvme.qcow2", true);
    on_nvme.iter().for_each(|upon| verify(&format!("{upon},bus=nvme")));
    for image in [Some(&kept), upon.as_ref(), on_nvme.as_ref()].into_iter().flatten() {
        if let Some((clean, said)) = qemu_img(&["check", "-f", "qcow2", image]) {
            assert!(clean, "{said}");
        }
        let features = &std::fs::read(image).unwrap()[72..80];
        assert_eq!(features, [0; 8], "it was closed, and is not marked as in use");
    }
}

/// Makes a system of the guest's own root on the second partition, whose init says so and powers off.
const INSTALL: &str = r#"
set -e
mke2fs /dev/vda2 >/dev/null
mkdir /mnt
mount -t ext2 /dev/vda2 /mnt
cp -a /bin /sbin /usr /etc /root /mnt
mkdir /mnt/proc /mnt/sys /mnt/dev /mnt/run /mnt/tmp
echo installed >/mnt/etc/marker
rm -f /mnt/sbin/init
cat >/mnt/sbin/init <<'END'
#!/bin/sh
echo "booted: $(cat /etc/marker) as $$"
poweroff -f
END
chmod +x /mnt/sbin/init
umount /mnt
"#;

/// Makes a system of the guest's own root on an NVMe disk. Its init says what it is on, and reads what it has written.
const INSTALL_ON_NVME: &str = r#"
set -e
mke2fs /dev/nvme0n1 >/dev/null
mkdir /mnt
mount -t ext2 /dev/nvme0n1 /mnt
cp -a /bin /sbin /usr /etc /mnt
mkdir /mnt/proc /mnt/sys /mnt/dev /mnt/tmp
rm -f /mnt/sbin/init
cat >/mnt/sbin/init <<'END'
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo "root: $(sed 's/.*root=\([^ ]*\).*/\1/' /proc/cmdline) $(cat /sys/block/nvme0n1/ro) $(cat /sys/class/nvme/nvme0/serial)"
dd if=/dev/urandom of=/tmp/file bs=64k count=40 2>/dev/null
sha256sum </tmp/file >/tmp/sum
sync
echo 3 >/proc/sys/vm/drop_caches
sha256sum </tmp/file | cmp - /tmp/sum && echo same
fstrim -v / 2>&1 | grep -c trimmed
grep -c nvme0q /proc/interrupts
poweroff -f
END
chmod +x /mnt/sbin/init
umount /mnt
"#;

/// No initial RAM disk: the kernels' NVMe driver is built in, and so is that for the file system.
#[test]
fn a_kernel_boots_from_an_nvme_disk_by_itself() {
    for package in KERNELS {
        let Some(kernel) = debian_kernel_with_modules(package) else { continue };
        let place = Place::new();
        let disk = image(&place, "system.img", 64 << 20);
        let (_, status, said) = run(&kernel, &[&format!("{disk},bus=nvme")], INSTALL_ON_NVME);
        assert_eq!(status, Some(0), "{package}: {said}");
        let line = "console=ttyS0 quiet loglevel=1 panic=-1 cryptomgr.notests root=/dev/nvme0n1 rw";
        for (cpus, messages, interrupts) in [("2", "", "3"), ("1", " pci=nomsi", "1")] {
            let disk = format!("{disk},bus=nvme");
            let append = format!("{line}{messages}");
            let args =
                ["run", &kernel, "-c", cpus, "--net=none", "--disk", &disk, "--timeout=10m", "--append"];
            let output = umbra(&[&args[..], &[&append]].concat()).output().unwrap();
            let out = String::from_utf8_lossy(&output.stdout).replace('\r', "");
            let lines: Vec<&str> = out.lines().take(4).collect();
            let expected = ["root: /dev/nvme0n1 0 disk0               ", "same", "1", interrupts];
            assert_eq!(lines, expected, "{package}{messages}: {}", complaint(&output));
        }
    }
}

/// A disk with a partition that is empty and one for a system.
fn partitioned(place: &Place) -> String {
    let disk = image(place, "system.img", 64 << 20);
    let mut table = [0; 512];
    for (number, (first, sectors)) in [(2048u32, 8192u32), (16384, 100_000)].into_iter().enumerate() {
        let entry = &mut table[446 + 16 * number..][..16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
    }
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    File::options().write(true).open(&disk).unwrap().write_all_at(&table, 0).unwrap();
    disk
}

#[test]
fn a_disk_image_is_a_system_that_boots_or_runs_a_command() {
    let Some(kernel) = debian_kernel_with_modules(KERNELS[0]) else { return };
    let place = Place::new();
    let disk = partitioned(&place);
    let (_, status, said) = run(&kernel, &[&disk], INSTALL);
    assert_eq!(status, Some(0), "{said}");
    let system = |source: &str, command: &[&str]| {
        let args = ["run", source, "--kernel", &kernel, "--timeout=10m"];
        let end: &[&str] = if command.is_empty() { &[] } else { &["--"] };
        let output = umbra(&[&args[..], end, command].concat()).output().unwrap();
        (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code(), complaint(&output))
    };
    let script =
        "cat /etc/marker; echo changed >/etc/marker; cat /etc/marker; mount | grep -c ' / ' ; exit 3";
    for (options, before) in [("", "installed"), (",rw", "installed"), ("", "changed")] {
        let (out, status, said) = system(&format!("{disk}{options}"), &["sh", "-c", script]);
        let expected = format!("{before}\nchanged\n1\n");
        assert_eq!((out, status), (expected, Some(3)), "{options}: {said}");
    }
    let on_nvme =
        system(&format!("{disk},bus=nvme"), &["sh", "-c", "mount | grep -c '^/dev/nvme0n1p2 on / '"]);
    assert_eq!((on_nvme.0.as_str(), on_nvme.1), ("1\n", Some(0)), "{}", on_nvme.2);
    let (out, status, _) = system(&format!("{disk},ro"), &["sh", "-c", "touch /x || echo refused"]);
    assert_eq!((out.as_str(), status), ("refused\n", Some(0)));
    let (out, status, said) = system(&disk, &[]);
    assert!(out.contains("booted: changed as 1") && status == Some(0), "{out} {said}");
    // Nothing on it.
    let empty = place.path().join("empty.img");
    std::fs::write(&empty, &std::fs::read(&disk).unwrap()[..16384 * 512]).unwrap();
    let (out, _, _) = system(empty.to_str().unwrap(), &[]);
    assert!(out.contains("no Linux system is on the disk image"), "{out}");
    let (_, status, said) = system(empty.to_str().unwrap(), &["true"]);
    assert!(
        status == Some(125) && said.contains("no Linux system is on the disk image"),
        "{status:?} {said}"
    );
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
    assert!(says("none").contains("umbra disk create"), "{}", says("none"));
    assert!(says("odd").contains("1000 bytes"));
    assert!(says(".").contains("is not a disk image"));
    assert!(says("odd,rw").contains("'rw'"));
}
