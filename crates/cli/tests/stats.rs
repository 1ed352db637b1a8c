//! What umbra says of how it works: counters, names for profilers, blocks beside their translation.

mod common;

use std::process::Output;

use common::{ECHO, HANG, POWER_OFF, Place, complaint, kernel, umbra};
use serde_json::Value;

/// The engine that `auto` is here, by what the doctor says.
fn automatic() -> &'static str {
    let output = umbra(&["doctor"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.contains(" engine ")).unwrap();
    if line.contains("bt: ") { "bt" } else { "interp" }
}

fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", complaint(output));
    serde_json::from_str(complaint(output).lines().last().unwrap()).unwrap()
}

#[test]
fn counters_are_the_engines_own() {
    let place = Place::new();
    let auto = json(&place.run(POWER_OFF, &["--stats=json"]));
    assert_eq!(auto["engine"], automatic());
    assert!(auto["guest_time_ns"].as_u64() > Some(0));
    let interp = json(&place.run(POWER_OFF, &["--stats=json", "--engine", "interp"]));
    let vcpu = &interp["vcpus"][0];
    // Debug exit and serial ports are not used: one OUT.
    assert_eq!((&vcpu["instructions"], &vcpu["io_accesses"]), (&Value::from(4), &Value::from(1)));
    assert!(vcpu["counters"]["tlb.fills"].as_u64() > Some(0));
    assert!(vcpu["counters"].get("cache.blocks").is_none());
    if automatic() == "bt" {
        let vcpu = &auto["vcpus"][0];
        assert!(vcpu["instructions"].is_null(), "the translator does not count");
        assert_eq!(vcpu["counters"]["cache.flushes"], 0);
    }
}

#[test]
fn every_technique_is_there_and_counts() {
    let place = Place::new();
    for technique in ["walk", "vtlb", "lazy", "eager", "nested", "nested-2m", "nested-4k"] {
        let stats = json(&place.run(POWER_OFF, &["--stats=json", "--mmu", technique]));
        let tables = stats["mmu"]["mmu.tables"].as_u64();
        // The guest's paging is off: a host table is in use, shadows are not.
        assert_eq!(tables > Some(0), technique.starts_with("nested"), "{technique}: {stats}");
        assert!(stats["vcpus"][0]["counters"]["mmu.guest_refs"].is_u64(), "{stats}");
    }
}

#[test]
fn the_table_says_what_is_counted() {
    let output = Place::new().run(HANG, &["--stats", "--engine", "interp", "--timeout", "200ms"]);
    assert_eq!(output.status.code(), Some(124));
    let text = complaint(&output);
    assert!(text.contains("vCPU 0, engine interp\n"), "{text}");
    assert!(text.contains("TLB misses that were resolved"), "{text}");
}

#[test]
fn figures_do_not_claim_what_was_not_counted() {
    for engine in ["auto", "interp"] {
        let output = Place::new().run(POWER_OFF, &["--verbose", "--engine", engine]);
        let text = complaint(&output);
        let counts = engine == "interp" || automatic() == "interp";
        assert_eq!(text.contains(" instructions in "), counts, "{text}");
        assert!(text.contains("s of guest time"), "{text}");
    }
}

#[test]
fn perf_gets_a_map() {
    if automatic() != "bt" {
        return;
    }
    let place = Place::new();
    place.file("guest", &kernel(ECHO));
    let mut command = place.umbra(&["run", "guest", "-m", "16M", "--perf-map", "--timeout", "300ms"]);
    let mut child = command.spawn().unwrap();
    let path = format!("/tmp/perf-{}.map", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(124));
    let map = std::fs::read_to_string(&path).unwrap();
    let fields: Vec<&str> = map.lines().next().unwrap().splitn(3, ' ').collect();
    assert!(u64::from_str_radix(fields[0], 16).is_ok() && u64::from_str_radix(fields[1], 16).is_ok());
    assert_eq!(fields[2], "umbra:routines");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_block_is_shown_beside_its_translation() {
    let place = Place::new();
    // mov rax, [rdi]; ret
    let code = [0x48, 0x8b, 0x07, 0xc3];
    place.file("code", &[&[0xcc; 16][..], &code].concat());
    let at = ["--at", "0xffffffff81000010"];
    let print = |args: &[&str]| {
        let args: Vec<&str> = ["debug", "block"].iter().chain(args).chain(&at).copied().collect();
        let output = place.umbra(&args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", complaint(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = print(&["488b", "07c3"]);
    assert!(text.contains("ffffffff81000010  mov     rax, [rdi]") && text.contains("supervisor"), "{text}");
    assert_eq!(text, print(&["--file", "code", "--offset", "0x10"]));
    assert!(print(&["488b07c3", "--mode", "user"]).contains("user_"));
    assert!(print(&["40c3", "--mode", "user32"]).contains("inc     eax"));
}
