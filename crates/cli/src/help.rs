//! The parts of the help that teach: examples and exit statuses. The man pages are made of the same text.

/// Below `umbra --help`.
pub(crate) const TOP: &str = "\
Examples:
  umbra run                          a shell in a Debian kernel of its own
  umbra run -- uname -a              one command, its output and its exit status
  umbra run host -v .:/work -- make -C /work
                                     what is installed here, in a VM
  umbra run debian                   a Debian of its own, with systemd, ssh and apt
  umbra run ./disk.qcow2             the system on a disk image, which is not changed
  umbra run ./bzImage --append 'console=ttyS0'
                                     a kernel of yours
  umbra run -d --name web -p 8080:80 -- httpd -f
                                     a VM in the background: see ps, logs, console, exec, stop
  umbra doctor                       what this machine can do

'umbra run --help' has the exit statuses and more examples.";

/// Below `umbra run -h`.
pub(crate) const RUN_SHORT: &str = "'umbra run --help' has more, with examples and exit statuses.";

/// Below `umbra run --help`.
pub(crate) const RUN: &str = "\
Console:
  The guest's first serial port is standard input and output. On a terminal it is raw, and Ctrl-]
  stops the VM. In a pipe it is transparent: bytes go through as they are, end of input reaches CMD,
  and the kernel's messages and CMD's standard error go to standard error.

Profiling:
  With --perf-map, perf(1) knows translated code by the address at which the guest first ran it:
  guest:user:0x401000, guest:kernel:0xffffffff81000000. Record from the start, in the same /tmp:
    perf record -g umbra run --perf-map -- CMD; perf report --sort symbol
  When the code cache is full everything in it is translated anew, and old names blur; a larger
  --code-cache helps. --stats counts what engine and MMU did; cache.flushes says whether that happened.

Background:
  With --detach, umbra prints the VM's name when it runs and ends. There is no daemon: each VM is a
  process, with a directory in $XDG_RUNTIME_DIR/umbra (or /tmp/umbra-UID). 'umbra ps', 'logs',
  'console', 'exec', 'cp', 'stop', 'kill', 'pause', 'resume', 'plug', 'stats', 'inspect', 'wait' and 'rm' take its name; but
  for 'logs' and 'console' also that of a VM in the foreground.

Exit status:
  0     the guest powered off
  N     CMD's own status, where there is a CMD; 127 if the guest has no such command, 128+S if
        signal S killed it
  2V+1  the guest wrote V to port 0xf4, with --debug-exit; the low 8 bits count
  124   --timeout ran out
  125   umbra itself failed; one sentence on standard error says why
  128+S umbra was stopped by signal S (130: Ctrl-C, 141: nobody reads its output, 143: kill)
  137   'umbra kill' ended it, or 'umbra stop' did when its time was over
  139   the guest's processor shut down (triple fault); its registers are on standard error

Examples:
  umbra run
  umbra run -- sh -c 'free; exit 3'; echo $?
  umbra run host -v .:/work -- sh -c 'cd /work && make'
  umbra run host -u nobody -e LANG -w /tmp -- sh
  umbra run ./rootfs -- /bin/sh
  umbra run debian
  umbra run -d --name box -p 2222:22 debian:bookworm; ssh -p 2222 root@localhost
  umbra run debian --packages gcc,make,libc6-dev -v .:/work -- make -C /work
  umbra run image.qcow2,overlay=changes.qcow2
  umbra run cloud.qcow2 --name box --cloud-init user-data.yaml
  umbra run image.qcow2 -- cat /etc/os-release
  tar c src | umbra run -m 1G -- sh -c 'tar x && find src | wc -l'
  umbra run --timeout 30s --kernel bzImage -- dmesg
  umbra run --kernel \"$(umbra fetch --cached linux-image-6.12-cloud-amd64)\" -- uname -r
  umbra disk create disk.img 1G; umbra run --disk disk.img -- mke2fs /dev/vda
  umbra run ./bzImage --disk root.img,bus=nvme --append 'console=ttyS0 root=/dev/nvme0n1'
  umbra run -p 8080:80 -- httpd -f -h /etc
  umbra run kernel.elf --initrd module.bin --debug-exit";

/// Below the help of commands that act on VMs.
pub(crate) const VMS: &str = "\
Exit status:
  0     it was done to every VM
  1     not to every VM; a sentence on standard error says why
  125   umbra itself failed";

/// Below `umbra update --help`.
pub(crate) const UPDATE: &str = "\
Examples:
  umbra run -d --name box -m 4G host -- sleep infinity
  umbra update --memory 1G box

Exit status:
  0     every VM was told
  1     not every VM; a sentence on standard error says why
  125   umbra itself failed";

/// Below `umbra plug --help`.
pub(crate) const PLUG: &str = "\
Examples:
  umbra run -d --name box --slots 2 host -- sleep infinity
  umbra plug box --disk disk.qcow2
  umbra exec box cat /sys/block/vda/serial

Exit status:
  0     it is plugged in
  1     it is not; a sentence on standard error says why
  125   umbra itself failed";

/// Below `umbra unplug --help`.
pub(crate) const UNPLUG: &str = "\
Examples:
  umbra unplug box slot1
  umbra unplug box slot1 --force

Exit status:
  0     it is out, and its files are closed
  1     it is not (yet); a sentence on standard error says why
  125   umbra itself failed";

/// Below `umbra ps --help`.
pub(crate) const PS: &str = "\
Examples:
  umbra ps
  umbra stop $(umbra ps -q)
  umbra ps -a --format json

Exit status:
  0, or 125 with one sentence on standard error";

/// Below `umbra exec --help`.
pub(crate) const EXEC: &str = "\
Exit status:
  N     CMD's own status; 127 if the guest has no such command, 126 if it cannot be run, 128+S if
        signal S killed it
  1     there is no such VM, or no commands can be run in it
  125   umbra itself failed, or CMD cannot be started as asked
  137   the VM ended

Examples:
  umbra run -d --name box host -v .:/work -- sleep infinity
  umbra exec -it -w /work box bash
  tar c src | umbra exec -i box tar x -C /tmp";

/// Below `umbra cp --help`.
pub(crate) const CP: &str = "\
Exit status:
  0     everything was copied but sockets, devices and the like, which standard error names
  1     not everything; a sentence on standard error says why

Examples:
  umbra cp ./src box:/root
  umbra cp box:/var/log/. logs
  umbra cp box:/etc - | tar t
  tar c . | umbra cp - box:/tmp";

/// Below `umbra console --help`.
pub(crate) const CONSOLE: &str = "\
Exit status:
  0     detached
  1     there is no such VM, or no console to attach to
  N     the VM ended, with this status

Examples:
  umbra run -d --name box; umbra console box
  echo 'poweroff -f' | umbra console box";

/// Below `umbra disk create --help`.
pub(crate) const DISK_CREATE: &str = "\
Examples:
  umbra disk create disk.img 10G
  umbra disk create disk.qcow2 10G
  umbra disk create changes.qcow2 --backing debian.qcow2

Exit status:
  0, or 125 with one sentence on standard error";

/// Below `umbra disk info --help`.
pub(crate) const DISK_INFO: &str = "\
Examples:
  umbra disk info disk.qcow2
  umbra disk info debian.img,format=qcow2

Exit status:
  0, or 125 with one sentence on standard error";

/// Below `umbra disk check --help`.
pub(crate) const DISK_CHECK: &str = "\
Examples:
  umbra disk check disk.qcow2
  umbra disk check --repair disk.qcow2

Exit status, as that of qemu-img check:
  0     the image is in order
  1     it could not be checked; one sentence on standard error says why
  2     it is corrupt: contents are lost, or may get lost when it is written
  3     it has lost space, and nothing else
  63    it is no qcow2 image, and there is nothing to be checked";

/// Below `umbra disk convert --help`.
pub(crate) const DISK_CONVERT: &str = "\
Examples:
  umbra disk convert debian.qcow2 debian.img
  umbra disk convert disk.img disk.qcow2
  umbra disk convert cloud.img,format=qcow2 plain.qcow2
  umbra disk convert changes.qcow2,backing=/srv/images whole.qcow2

Exit status:
  0, or 125 with one sentence on standard error; there is no new image then";

/// Below `umbra fetch --help`.
pub(crate) const FETCH: &str = "\
Examples:
  umbra fetch
  umbra fetch linux-image-6.12-cloud-amd64
  umbra fetch debian:bookworm

Files:
  $XDG_CACHE_HOME/umbra, or ~/.cache/umbra: the cache, which can be deleted at any time; but disks that VMs have kept
  ($XDG_DATA_HOME/umbra/disks, or ~/.local/share/umbra/disks) stand upon roots in it

Exit status:
  0, or 125 with one sentence on standard error";

/// Below `umbra doctor --help`.
pub(crate) const DOCTOR: &str = "\
Exit status:
  0     'umbra run' has all it needs
  1     something is missing
  125   umbra itself failed";

/// Below `umbra debug block --help`.
pub(crate) const DEBUG_BLOCK: &str = "\
Examples:
  umbra debug block 48 8b 07 48 01 c3 c3
  umbra debug block --at 0xffffffff81000000 --file vmlinux --offset 0x200000

Exit status:
  0, or 125 with one sentence on standard error";

/// Below `umbra completions --help`.
pub(crate) const COMPLETIONS: &str = "\
Examples:
  umbra completions bash > ~/.local/share/bash-completion/completions/umbra
  umbra completions zsh > ~/.zfunc/_umbra
  umbra completions fish > ~/.config/fish/completions/umbra.fish";

/// Below `umbra man --help`.
pub(crate) const MAN: &str = "\
Examples:
  umbra man | man -l -
  umbra man ~/.local/share/man/man1";
