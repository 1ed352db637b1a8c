//! A stock Debian kernel, from its first instruction to user space and power-off.
//!
//! The kernels are those that `umbra` keeps in its cache (`umbra run` with no source fetches one). Where there is none
//! the test says so and passes. User space is one program of a few instructions, assembled here: it writes a line to
//! the console, waits for one, and switches the machine off. While it waits, the whole machine is saved and goes on in
//! another VM, on another engine or under another technique of memory virtualization: state is nobody's but the
//! architecture's.

mod common;

use std::path::{Path, PathBuf};

use common::*;
use iced_x86::code_asm::*;
use spec::{EngineChoice, MmuChoice};
use vm::{Automatic, BootImages, Builder, Initrd, OnReset, Stopped};

/// The kernels in the cache, by name; some have several names.
fn cached_kernels() -> Vec<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".cache"))
    });
    let Some(Ok(entries)) = cache.map(|cache| std::fs::read_dir(cache.join("umbra/debian"))) else {
        return Vec::new();
    };
    let kernels = entries.flatten().map(|entry| entry.path().join("vmlinuz"));
    let mut kernels: Vec<PathBuf> = kernels.filter_map(|path| path.canonicalize().ok()).collect();
    kernels.sort();
    kernels.dedup();
    kernels
}

const GREETING: &[u8] = b"greetings from user space\n";

/// The program: write(1, GREETING), read(0, the stack, 1), reboot(POWER_OFF).
fn init_code(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut text, mut over) = (a.create_label(), a.create_label());
    a.jmp(over)?;
    a.set_label(&mut text)?;
    a.db(GREETING)?;
    a.set_label(&mut over)?;
    a.mov(eax, 1)?;
    a.mov(edi, 1)?;
    a.lea(rsi, ptr(text))?;
    a.mov(edx, GREETING.len() as u32)?;
    a.syscall()?;
    a.xor(eax, eax)?;
    a.xor(edi, edi)?;
    a.lea(rsi, ptr(rsp - 64))?;
    a.mov(edx, 1)?;
    a.syscall()?;
    a.mov(eax, 169)?;
    a.mov(edi, 0xfee1_dead_u32)?;
    a.mov(esi, 0x2812_1969)?;
    a.mov(edx, 0x4321_fedc)?;
    a.syscall()?;
    a.ud2()
}

/// A static ELF64 program of one segment (System V ABI, "Object Files").
fn init_program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut a = CodeAssembler::new(64).unwrap();
    init_code(&mut a).unwrap();
    let code = a.assemble(BASE + HEADERS).unwrap();
    let len = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [0u16, 0, 64, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, readable and executable.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, BASE, BASE, len, len, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// Appends a file to a cpio archive (Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`).
fn cpio(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
    let (len, name_len) = (data.len() as u32, name.len() as u32 + 1);
    let fields = [archive.len() as u32, mode, 0, 0, 1, 0, len, 0, 0, device.0, device.1, name_len, 0];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes().chain([0]));
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

fn initramfs() -> Vec<u8> {
    let mut archive = Vec::new();
    cpio(&mut archive, "dev", 0o040_755, (0, 0), &[]);
    cpio(&mut archive, "dev/console", 0o020_600, (5, 1), &[]);
    cpio(&mut archive, "init", 0o100_755, (0, 0), &init_program());
    cpio(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    archive
}

/// The kernel with our user space, about to be built, with a screen on COM1.
fn debian(kernel: &Path, engine: EngineChoice, mmu: MmuChoice) -> (Builder, Screen) {
    let mut spec = spec();
    (spec.engine, spec.mmu) = (engine, mmu);
    // Much too little for a kernel's boot: the code cache is emptied many times.
    spec.translator.code_cache = "1M".parse().unwrap();
    spec.memory = "256M".parse().unwrap();
    spec.cpus = spec::CpuCount::new(2).unwrap();
    spec.boot.command_line = "console=ttyS0 panic=-1".into();
    let screen = Screen::default();
    let images = BootImages {
        kernel: std::fs::read(kernel).unwrap().into(),
        initrds: vec![Initrd { name: "initramfs".into(), image: initramfs().into() }],
    };
    let builder = Builder::new(&spec, images).serial(0, Box::new(screen.clone())).on_reset(OnReset::Stop);
    (builder, screen)
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn debian_kernels_reach_user_space_move_and_power_off() {
    let kernels = cached_kernels();
    if kernels.is_empty() {
        eprintln!("skipped: no Debian kernel in the cache; `umbra run` with no source fetches one");
    }
    let engines = match vm::automatic() {
        Automatic::Bt => vec![EngineChoice::Interp, EngineChoice::Bt],
        Automatic::Interp(why) => {
            eprintln!("skipped: the translator: {why}");
            vec![EngineChoice::Interp]
        }
    };
    for kernel in kernels {
        for (engine, next) in engines.iter().zip(engines.iter().cycle().skip(1)) {
            let mmu = MmuChoice::default();
            boot_move_and_power_off(&kernel, (*engine, mmu), (*next, mmu));
        }
    }
}

#[test]
fn debian_boots_under_every_technique_and_moves_to_the_next() {
    let techniques = [MmuChoice::Vtlb, MmuChoice::Lazy, MmuChoice::Eager, MmuChoice::Nested];
    for kernel in cached_kernels() {
        for (mmu, next) in techniques.iter().zip(techniques.iter().cycle().skip(1)) {
            boot_move_and_power_off(&kernel, (EngineChoice::Auto, *mmu), (EngineChoice::Auto, *next));
        }
    }
}

/// Boots on one engine, under one technique of memory virtualization, and goes on on another.
fn boot_move_and_power_off(
    kernel: &Path,
    (engine, mmu): (EngineChoice, MmuChoice),
    (next, next_mmu): (EngineChoice, MmuChoice),
) {
    let (builder, screen) = debian(kernel, engine, mmu);
    let vm = builder.build().unwrap().start().unwrap();
    screen.wait_until(|bytes| has(bytes, b"greetings from user space"));
    vm.pause().unwrap();
    if engine == EngineChoice::Bt {
        check_counters(&vm.stats());
    }
    let (records, time) = (vm.save().unwrap(), vm.stats().guest_time_ns);
    vm.stop();
    let text = screen.text();
    // Time is told, not measured.
    for measured in ["pit: ", "Fast TSC calibration", "APIC timer calibration"] {
        assert!(!text.contains(measured), "a calibration loop: {text}");
    }

    let (builder, screen) = debian(kernel, next, next_mmu);
    let vm = builder.restore(&records).unwrap().start().unwrap();
    assert!(vm.serial_input(0).unwrap().send(b"\n"));
    let end = vm.wait_timeout(PATIENCE);
    let text = screen.text();
    assert!(matches!(end, Some(Stopped::PowerOff)), "{}: {end:?}\n{text}", kernel.display());
    assert!(!text.contains("greetings") && text.contains("Power down"), "{text}");
    assert!(vm.stats().guest_time_ns > time);
}

/// What a boot on the translator must have counted, with a cache of 1 MiB.
fn check_counters(stats: &vm::Stats) {
    assert_eq!((stats.engine, stats.vcpus[0].common.instructions), ("bt", None));
    let counters = &stats.vcpus[0].counters;
    let value = |name: &str| counters.iter().find(|counter| counter.name == name).unwrap().value;
    for name in ["cache.blocks", "cache.links", "cache.flushes", "exits.miss", "exits.lookup", "tlb.fills"] {
        assert!(value(name) > 0, "{name} in {counters:?}");
    }
    let left = counters.iter().filter(|counter| counter.name.starts_with("left."));
    assert_eq!(left.map(|counter| counter.value).sum::<u64>(), value("exits.interpret"));
}
