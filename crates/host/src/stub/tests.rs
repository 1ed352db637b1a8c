use super::*;

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x7fff_ffff_0000;

/// A stub with `code` in the first page of a file, and the second one for data.
fn stub(code: &[u8]) -> (Stub, Memfd, Mapping) {
    let file = Memfd::new("stub-test", 4 * PAGE_SIZE).unwrap();
    let memory = Mapping::new(&file, 0, 4 * PAGE_SIZE, Protection::ReadWrite).unwrap();
    // SAFETY: the code is shorter than a page.
    unsafe { memory.as_ptr().copy_from_nonoverlapping(code.as_ptr(), code.len()) };
    let mut stub = Stub::new(file.as_fd()).unwrap();
    stub.map(CODE, PAGE_SIZE, 0, Rights { write: false, execute: true }, true);
    (stub, file, memory)
}

fn at(rip: u64) -> Registers {
    Registers { rip, rflags: 2, ..Registers::default() }
}

#[test]
fn code_runs_until_its_system_call_which_is_not_made() {
    // lea rax, [rbx + r15]; mov rcx, rax; syscall
    let (mut stub, ..) = stub(&[0x4a, 0x8d, 0x04, 0x3b, 0x48, 0x89, 0xc1, 0x0f, 0x05]);
    for sum in [39, 60, u64::MAX] {
        let mut registers = at(CODE);
        (registers.gpr[3], registers.gpr[15], registers.fs_base) = (sum.wrapping_sub(5), 5, 0x1234_5000);
        assert_eq!(stub.run(&mut registers, || false).unwrap(), Stop::SystemCall);
        assert_eq!((registers.gpr[0], registers.gpr[15], registers.rip), (sum, 5, CODE + 9));
        assert_eq!(registers.fs_base, 0x1234_5000);
    }
}

#[test]
fn pages_come_and_go() {
    // mov [rdi], rsi; int3
    let (mut stub, _file, memory) = stub(&[0x48, 0x89, 0x37, 0xcc]);
    let mut registers = at(CODE);
    (registers.gpr[7], registers.gpr[6]) = (DATA + 8, 77);
    assert_eq!(stub.run(&mut registers, || false).unwrap(), Stop::PageFault(DATA + 8));
    stub.map(DATA, PAGE_SIZE, PAGE_SIZE, Rights::default(), false);
    assert_eq!(stub.run(&mut registers, || false).unwrap(), Stop::PageFault(DATA + 8));
    assert_eq!(registers.rip, CODE);
    stub.map(DATA, PAGE_SIZE, PAGE_SIZE, Rights { write: true, execute: false }, true);
    assert_eq!(stub.run(&mut registers, || false).unwrap(), Stop::Breakpoint);
    assert_eq!(registers.rip, CODE + 4);
    // SAFETY: inside the mapping.
    assert_eq!(unsafe { memory.as_ptr().add(4096 + 8).read_volatile() }, 77);
    stub.unmap_all();
    assert_eq!(stub.run(&mut at(CODE), || false).unwrap(), Stop::PageFault(CODE));
}

#[test]
fn a_script_may_be_longer_than_its_pages() {
    let (mut stub, ..) = stub(&[0xcc]);
    for n in 0..2 * MOST as u64 {
        // Neighbours that are not neighbours in the file do not become one.
        stub.map(DATA - n * PAGE_SIZE, PAGE_SIZE, n % 2 * PAGE_SIZE, Rights::default(), false);
    }
    assert_eq!(stub.run(&mut at(CODE), || false).unwrap(), Stop::Breakpoint);
}

#[test]
fn a_call_stops_it() {
    // jmp $
    let (mut stub, ..) = stub(&[0xeb, 0xfe]);
    assert_eq!(stub.run(&mut at(CODE), || true).unwrap(), Stop::Called, "who has looked is not called again");
    let caller = stub.caller();
    let done = Arc::new(AtomicBool::new(false));
    let over = done.clone();
    let thread = std::thread::spawn(move || {
        while !over.load(Ordering::SeqCst) {
            caller.call();
        }
    });
    for _ in 0..100 {
        let mut registers = at(CODE);
        assert_eq!(stub.run(&mut registers, || false).unwrap(), Stop::Called);
        assert_eq!(registers.rip, CODE);
        // However many calls come while it does something else.
        stub.map(DATA, PAGE_SIZE, PAGE_SIZE, Rights::default(), false);
    }
    done.store(true, Ordering::SeqCst);
    thread.join().unwrap();
}

#[test]
fn what_would_leave_stops() {
    // rdtsc; hlt; ud2; then the loop of the stub itself.
    let (mut stub, ..) = stub(&[0x0f, 0x31, 0xf4, 0x0f, 0x0b]);
    for rip in [CODE, CODE + 2, CODE + 3] {
        let mut registers = at(rip);
        assert_eq!(stub.run(&mut registers, || false).unwrap(), Stop::Other);
        assert_eq!(registers.rip, rip);
    }
    let mut registers = at(stub.base + image::LOOP_AT);
    registers.gpr[3] = stub.base + image::FIRST_SCRIPT_AT;
    assert_eq!(stub.run(&mut registers, || false).unwrap(), Stop::SystemCall, "its own loop calls nobody");
}

#[test]
fn a_signal_from_elsewhere_finds_no_secret() {
    // int3
    let (mut stub, ..) = stub(&[0xcc]);
    for signal in [libc::SIGTERM, libc::SIGCONT] {
        stub.map(DATA, PAGE_SIZE, PAGE_SIZE, Rights::default(), false);
        // SAFETY: the child is ours, and stopped.
        assert_eq!(unsafe { libc::kill(stub.child.pid, signal) }, 0);
        let before = at(CODE);
        let mut registers = before;
        assert_eq!(stub.run(&mut registers, || false).unwrap(), Stop::Called);
        assert_eq!(registers, before, "the loop's registers are not the guest's");
        assert_eq!(stub.run(&mut registers, || false).unwrap(), Stop::Breakpoint);
    }
}

#[test]
fn it_stops_before_instructions_with_a_breakpoint() {
    // inc eax; cpuid; inc eax; int3
    let (mut stub, ..) = stub(&[0xff, 0xc0, 0x0f, 0xa2, 0xff, 0xc0, 0xcc]);
    if !stub.has_breakpoints() {
        println!("SKIPPED: this host has no breakpoints for us");
        return;
    }
    stub.set_breakpoints([None, Some(CODE + 2), None, Some(CODE + 4)]);
    let mut registers = at(CODE);
    assert_eq!(stub.run(&mut registers, || false).unwrap(), Stop::Reached);
    assert_eq!((registers.rip, registers.gpr[0]), (CODE + 2, 1));
    assert_eq!(stub.run(&mut registers, || false).unwrap(), Stop::Reached, "it is not passed by itself");
    (registers.rip, registers.rflags) = (CODE + 4, 2 | rflags::RF);
    assert_eq!(stub.run(&mut registers, || false).unwrap(), Stop::Reached);
    stub.set_breakpoints([None; BREAKPOINTS]);
    assert_eq!(stub.run(&mut registers, || false).unwrap(), Stop::Breakpoint);
    assert_eq!((registers.rip, registers.gpr[0]), (CODE + 7, 2));
}

#[test]
fn a_call_of_the_vsyscall_page_is_not_made() {
    // call rax
    let (mut stub, _file, _memory) = stub(&[0xff, 0xd0]);
    stub.map(DATA, PAGE_SIZE, PAGE_SIZE, Rights { write: true, execute: false }, true);
    let mut registers = at(CODE);
    let page = 0xffff_ffff_ff60_0000;
    (registers.gpr[0], registers.gpr[4]) = (page, DATA + 64);
    match stub.run(&mut registers, || false).unwrap() {
        Stop::Vsyscall(address) => {
            assert_eq!((address, registers.rip, registers.gpr[4]), (page, CODE + 2, DATA + 64));
        }
        // A kernel without that page.
        stop => assert_eq!((stop, registers.rip), (Stop::PageFault(page), page)),
    }
}

#[test]
fn registers_that_no_program_has_are_refused_before_it_runs() {
    let (mut stub, ..) = stub(&[0xcc]);
    let mut registers = Registers { fs_base: 0xffff_8000_0000_0000, ..at(CODE) };
    assert!(stub.run(&mut registers, || false).is_err() && !stub.is_lost());
    assert_eq!(stub.run(&mut at(CODE), || false).unwrap(), Stop::Breakpoint);
}

#[test]
fn it_has_the_id_flag_that_it_is_given() {
    // pushfq; pop rax; int3
    let (mut stub, _file, _memory) = stub(&[0x9c, 0x58, 0xcc]);
    stub.map(DATA, PAGE_SIZE, PAGE_SIZE, Rights { write: true, execute: false }, true);
    for id in [0, rflags::ID, rflags::ID, 0] {
        let mut registers = at(CODE);
        (registers.rflags, registers.gpr[4]) = (2 | id, DATA + 64);
        assert_eq!(stub.run(&mut registers, || false).unwrap(), Stop::Breakpoint);
        assert_eq!((registers.gpr[0] & rflags::ID, registers.rflags & rflags::ID), (id, id));
    }
}

#[test]
fn vector_registers_go_in_and_out() {
    // paddb xmm3, xmm3; int3
    let (mut stub, ..) = stub(&[0x66, 0x0f, 0xfc, 0xdb, 0xcc]);
    let at_xmm3 = 160 + 3 * 16;
    stub.extended()[at_xmm3] = 21;
    stub.extended()[512] = 3;
    stub.load_extended().unwrap();
    assert_eq!(stub.run(&mut at(CODE), || false).unwrap(), Stop::Breakpoint);
    stub.save_extended().unwrap();
    assert_eq!(stub.extended()[at_xmm3], 42);
}

#[test]
fn nothing_is_left_of_it() {
    let (stub, ..) = stub(&[0xcc]);
    let path = format!("/proc/{}", stub.child.pid);
    let maps = std::fs::read_to_string(format!("{path}/maps")).unwrap();
    assert_eq!(maps.lines().filter(|line| !line.contains("vsyscall")).count(), 2, "{maps}");
    drop(stub);
    assert!(!std::path::Path::new(&path).exists());
}

#[test]
fn its_time_is_its_thread_s() {
    // jmp $
    let (mut stub, ..) = stub(&[0xeb, 0xfe]);
    let (own, all, caller) = (time::thread_ns(), time::process_ns(), stub.caller());
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(time::thread_ns(), 0, "another thread's");
        caller.call();
    });
    assert_eq!(stub.run(&mut at(CODE), || false).unwrap(), Stop::Called);
    thread.join().unwrap();
    let ran = time::thread_ns() - own;
    assert!(ran > 0 && time::process_ns() - all >= ran);
    drop(stub);
    assert!(time::process_ns() >= all + ran);
}
