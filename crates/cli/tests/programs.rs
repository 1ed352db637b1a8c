//! Programs of the host, in a guest and natively: what they print is the same.
//!
//! Like the other tests with Debian's packages, these say so and pass where those cannot be had; a program that is not
//! installed is named.

mod common;

use std::process::{Command, Output};

use common::{complaint, is_installed, kernels_that_share, umbra};

/// A program, and what it is to do.
const PROGRAMS: [(&str, &str); 9] = [
    (
        "perl",
        r#"perl -e 'my %h; $h{$_ % 1013} += $_ * 3.5 for 1..200000;
            print join(",", map { "$_=$h{$_}" } sort { $a <=> $b } keys %h), "\n"'"#,
    ),
    (
        "python3",
        r#"python3 -I -c 'import hashlib, json, math, re, zlib
words = re.findall(r"[a-z]+", " ".join(chr(97 + i * i % 26) * (i % 7) for i in range(20000)))
counts = {w: words.count(w) for w in set(words)}
print(json.dumps(counts, sort_keys=True), sum(math.sin(i) ** 2 for i in range(50000)), 7 ** 5000 % 10 ** 50)
print(hashlib.sha512(zlib.compress(str(words).encode())).hexdigest())'"#,
    ),
    (
        "sqlite3",
        r#"sqlite3 :memory: "create table t(a integer primary key, b); with recursive c(x) as
            (select 1 union all select x + 1 from c where x < 50000) insert into t select x, x * x % 997 from c;
            create index i on t(b); select b, count(*), sum(a), avg(a) from t group by b order by 3, b;""#,
    ),
    ("openssl", "seq 1 300000 | openssl dgst -sha256; seq 1 300000 | openssl dgst -sha3-512"),
    ("openssl", "seq 1 300000 | openssl enc -aes-256-cbc -K 0011 -iv 2233 | openssl dgst -md5"),
    ("openssl", "openssl speed -seconds 1 -bytes 4096 sha256 >/dev/null 2>&1; echo $?"),
    ("xz", "seq 1 200000 | xz -6 -c | sha256sum; seq 1 200000 | xz -1 -c | xz -dc | sha256sum"),
    (
        "gcc",
        r#"dir=$(mktemp -d) && cd $dir && cat >a.c <<'END'
#include <math.h>
#include <stdio.h>
int main(void) { double s = 0; for (int i = 1; i < 100000; i++) s += sin(i) / i * (i % 3); printf("%.17g\n", s); }
END
gcc -O2 -S -o - a.c | sha256sum; gcc -O3 -mavx2 -ffast-math -o a a.c -lm && ./a"#,
    ),
    ("awk", "seq 1 100000 | awk '{ s += sqrt($1); n[$1 % 97]++ } END { printf \"%.15g %d\\n\", s, n[5] }'"),
];

/// Each program's part begins with a line that names it.
fn script() -> String {
    let installed = PROGRAMS.iter().filter(|(program, _)| is_installed(program));
    installed.map(|(program, what)| format!("echo '== {program}'\n(\n{what}\n)\n")).collect()
}

fn parts(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).split("== ").map(str::to_owned).collect()
}

#[test]
fn what_programs_print_is_what_they_print_natively() {
    let script = script();
    let native = Command::new("sh").args(["-c", &script]).output().unwrap();
    for kernel in kernels_that_share() {
        let args = ["run", "host", "--kernel", kernel, "--timeout", "10m", "--", "sh", "-c", &script];
        let output = umbra(&args).output().unwrap();
        assert_eq!(output.status.code(), native.status.code(), "{kernel}: {}", complaint(&output));
        assert_eq!(parts(&output), parts(&native), "{kernel}: {}", complaint(&output));
    }
}
