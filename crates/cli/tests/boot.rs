//! Debian's kernels, unmodified, and what umbra promises of a command in them.
//!
//! These tests need Debian's packages, from the user's cache or through apt. Where they cannot be had, they say so on
//! standard error and pass.

mod common;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use common::{KERNELS, complaint, debian_kernel, umbra};

/// Runs the command with `input`.
fn run(mut command: Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// Programs at work, a way through every kind of byte, and a status.
const WORK: &str = r#"
cat >/tmp/in
sha256sum </tmp/in
gzip -c /tmp/in | gunzip -c | cmp - /tmp/in && echo same
awk 'BEGIN { for (i = 1; i <= 1000; i++) s += i; print s }'
i=0; while [ $i -lt 200 ]; do i=$((i+1)); done; echo $i
echo to-stderr >&2
cat /tmp/in
exit 42
"#;

#[test]
fn debians_kernels_run_a_command() {
    for (package, engine) in [(KERNELS[0], "auto"), (KERNELS[0], "interp"), (KERNELS[1], "auto")] {
        let Some(kernel) = debian_kernel(package) else { continue };
        let input: Vec<u8> = (0..30_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let output = run(
            umbra(&[
                "run",
                "--engine",
                engine,
                "--kernel",
                &kernel,
                "--timeout",
                "10m",
                "--",
                "sh",
                "-c",
                WORK,
            ]),
            &input,
        );
        let text = complaint(&output);
        assert_eq!(output.status.code(), Some(42), "{package}: {text}");
        assert_eq!(text, "to-stderr\n", "{package}: the kernel or umbra said more");
        let mut sum = run(Command::new("sha256sum"), &input).stdout;
        sum.extend(b"same\n500500\n200\n");
        sum.extend(&input);
        assert!(output.stdout == sum, "{package}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn arguments_arrive_exactly_and_a_script_comes_through_a_pipe() {
    let Some(kernel) = debian_kernel(KERNELS[0]) else { return };
    let odd = "a b'c\"d$e`f\\g*\n\u{e4}";
    let output = run(
        umbra(&["run", "--kernel", &kernel, "--timeout", "10m", "--", "printf", "%s|", odd, "", "-n"]),
        b"",
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{odd}||-n|"));
    assert_eq!(output.status.code(), Some(0));
    let script = b"uname\nread line\ndata\necho got $line\nexit 3\n";
    let output = run(umbra(&["run", "--kernel", &kernel, "--timeout", "10m"]), script);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Linux\ngot data\n");
    assert_eq!(output.status.code(), Some(0), "without CMD, a power-off is a success");
}

#[test]
fn a_kernel_that_panics_is_our_failure() {
    let Some(kernel) = debian_kernel(KERNELS[0]) else { return };
    let crash = "echo c >/proc/sysrq-trigger";
    let output = run(umbra(&["run", "--kernel", &kernel, "--timeout", "10m", "--", "sh", "-c", crash]), b"");
    let text = complaint(&output);
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(text.contains("Kernel panic"), "{text}");
    assert!(text.lines().last().unwrap_or_default().starts_with("umbra: the guest's kernel"), "{text}");
}
