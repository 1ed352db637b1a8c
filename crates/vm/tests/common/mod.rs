//! Tiny guests, assembled on the spot, and the VMs they run in.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use vm::{BootImages, Builder, OnReset, SerialSink, Stopped, VmHandle};

/// How long a test waits for a guest. Never a measure of speed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Where the guests' code starts: behind the Multiboot header.
const BASE: u32 = 0x10_0000;
const HEADER: u32 = 32;
/// A stack below the code.
pub(crate) const STACK: u32 = 0x8_0000;

/// Assembles a 32-bit Multiboot kernel (Multiboot 0.6.96, 3.1.1, with the address fields filled in).
pub(crate) fn kernel(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(32).unwrap();
    a.mov(esp, STACK).unwrap();
    write(&mut a).unwrap();
    let code = a.assemble(u64::from(BASE + HEADER)).unwrap();
    let (magic, flags) = (0x1bad_b002_u32, 0x1_0000_u32);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let header = [magic, flags, checksum, BASE, BASE, 0, 0, BASE + HEADER];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.extend(code);
    image
}

/// Writes AL to COM1 once there is room.
pub(crate) fn put_al(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    a.mov(ah, al)?;
    a.mov(dx, 0x3fd)?;
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.jz(wait)?;
    a.mov(al, ah)?;
    a.mov(dx, 0x3f8)?;
    a.out(dx, al)
}

/// Writes a text to COM1.
pub(crate) fn print(a: &mut CodeAssembler, text: &str) -> Result<(), IcedError> {
    for byte in text.bytes() {
        a.mov(al, u32::from(byte))?;
        put_al(a)?;
    }
    Ok(())
}

/// Waits for a byte from COM1; it is in AL then.
pub(crate) fn get_al(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    a.mov(dx, 0x3fd)?;
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, 1)?;
    a.jz(wait)?;
    a.mov(dx, 0x3f8)?;
    a.in_(al, dx)
}

/// Switches the machine off through ACPI, then waits.
pub(crate) fn power_off(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dx, 0x604)?;
    a.mov(ax, 0x2000)?;
    a.out(dx, ax)?;
    hang(a)
}

/// Leaves through `isa-debug-exit` with EAX.
pub(crate) fn debug_exit_eax(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dx, 0xf4)?;
    a.out(dx, eax)?;
    hang(a)
}

/// CLI and HLT for ever.
pub(crate) fn hang(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut forever = a.create_label();
    a.cli()?;
    a.set_label(&mut forever)?;
    a.hlt()?;
    a.jmp(forever)
}

/// Loads a GDT, and an IDT whose vector 0x20 leads to EBX, and starts the PIT at `hz` through the PICs.
pub(crate) fn tables_and_pit(a: &mut CodeAssembler, hz: u32) -> Result<(), IcedError> {
    const GDT: u32 = 0x6_0000;
    const IDT: u32 = 0x7_0000;
    const GATE: u32 = IDT + 0x20 * 8;
    // A pointer to a table: limit, base.
    const POINTER: u32 = 0x5_0000;
    // Flat code at 8, flat data at 16.
    let gdt = [0, 0, 0xffff, 0x00cf_9b00, 0xffff, 0x00cf_9300];
    for (at, word) in (GDT..).step_by(4).zip(gdt) {
        a.mov(dword_ptr(at), word)?;
    }
    a.mov(word_ptr(POINTER), 23)?;
    a.mov(dword_ptr(POINTER + 2), GDT)?;
    a.lgdt(ptr(POINTER))?;
    a.mov(word_ptr(POINTER), 0x21 * 8 - 1)?;
    a.mov(dword_ptr(POINTER + 2), IDT)?;
    a.lidt(ptr(POINTER))?;
    a.mov(eax, 16)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(ss, eax)?;
    // CS: a far return to the next instruction but one.
    let (mut reload, mut over) = (a.create_label(), a.create_label());
    a.call(reload)?;
    a.jmp(over)?;
    a.set_label(&mut reload)?;
    a.pop(eax)?;
    a.push(8)?;
    a.push(eax)?;
    a.retf()?;
    a.set_label(&mut over)?;
    // The gate: offset 15:0, selector 8, present 32-bit interrupt gate, offset 31:16.
    a.mov(word_ptr(GATE), bx)?;
    a.mov(word_ptr(GATE + 2), 8)?;
    a.mov(word_ptr(GATE + 4), 0x8e00)?;
    a.shr(ebx, 16)?;
    a.mov(word_ptr(GATE + 6), bx)?;
    let divisor = 1_193_182 / hz;
    let setting = [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0x21, 0xfe), // master: vector 0x20, only IRQ 0
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 2),
        (0xa1, 1),
        (0xa1, 0xff), // slave: all masked
        (0x43, 0x34),
        (0x40, divisor & 0xff),
        (0x40, divisor >> 8), // channel 0: rate generator
    ];
    for (port, value) in setting {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    Ok(())
}

/// What a guest wrote, for whoever waits for it.
#[derive(Clone, Default)]
pub(crate) struct Screen(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl SerialSink for Screen {
    fn write(&mut self, bytes: &[u8]) {
        self.0.0.lock().unwrap().extend_from_slice(bytes);
        self.0.1.notify_all();
    }
}

impl Screen {
    /// All that was written so far.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().clone()
    }

    /// The same as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Waits until what was written satisfies `enough`.
    pub(crate) fn wait_until(&self, enough: impl Fn(&[u8]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = self.0.0.lock().unwrap();
        while !enough(&bytes) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the guest wrote only {:?}", String::from_utf8_lossy(&bytes));
            bytes = self.0.1.wait_timeout(bytes, left).unwrap().0;
        }
    }
}

/// A description of the smallest VM.
pub(crate) fn spec() -> spec::VmSpec {
    spec::VmSpec {
        name: "test".parse().unwrap(),
        memory: "16M".parse().unwrap(),
        cpus: spec::CpuCount::ONE,
        cpu: x86::cpuid::CpuRequest::default(),
        engine: spec::EngineChoice::Interp,
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

/// A VM with a screen on COM1, about to be built.
pub(crate) fn builder(kernel: Vec<u8>) -> (Builder, Screen) {
    let screen = Screen::default();
    let images = BootImages { kernel: kernel.into(), initrds: Vec::new() };
    (Builder::new(&spec(), images).serial(0, Box::new(screen.clone())), screen)
}

/// Starts a guest in a VM that a reset stops.
pub(crate) fn start(kernel: Vec<u8>) -> (VmHandle, Screen) {
    let (builder, screen) = builder(kernel);
    (builder.on_reset(OnReset::Stop).build().unwrap().start().unwrap(), screen)
}

/// Waits for the end.
pub(crate) fn end(vm: &VmHandle) -> Stopped {
    vm.wait_timeout(PATIENCE).expect("the guest does not come to an end")
}
