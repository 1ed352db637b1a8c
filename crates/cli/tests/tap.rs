//! A guest on a TAP device of the host's, in a network namespace of its own.
//!
//! Where such a namespace or a device in it cannot be had, the test says so and passes, as those with Debian's packages do.

mod common;

use std::process::{Command, Output};

use common::{KERNELS, complaint, debian_kernel_with_modules, is_installed, skipped, umbra};

/// Runs a script as root of a user and network namespace.
fn in_namespace(script: &str, kernel: &str) -> Output {
    Command::new("unshare")
        .args(["-Urn", "sh", "-ec", script])
        .env("UMBRA", env!("CARGO_BIN_EXE_umbra"))
        .env("KERNEL", kernel)
        .output()
        .unwrap()
}

const DEVICE: &str = "
ip link set lo up
ip tuntap add dev cable mode tap
ip addr add 10.9.0.1/24 dev cable
ip link set cable up mtu 1400
";

/// Serves one document, and takes one; the sum of either is printed.
const SERVER: &str = r#"
cat >"$0.py" <<'PY'
import hashlib, http.server, os, socket, threading
document = os.urandom(24 << 20)
print("sent", hashlib.sha256(document).hexdigest(), flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(document)))
        self.end_headers()
        self.wfile.write(document)
    def log_message(self, *args):
        pass
sink = socket.create_server(("10.9.0.1", 8001))
def take():
    far, _ = sink.accept()
    came = hashlib.sha256()
    while part := far.recv(1 << 16):
        came.update(part)
    print("came", came.hexdigest(), flush=True)
    far.close()
threading.Thread(target=take, daemon=True).start()
http.server.ThreadingHTTPServer(("10.9.0.1", 8000), Handler).serve_forever()
PY
python3 "$0.py" & server=$!
trap 'kill $server; rm -f "$0.py"' EXIT
"#;

const GUEST: &str = r#"
"$UMBRA" run --kernel "$KERNEL" --net tap=cable --timeout 10m -- sh -c '
    cat /sys/class/net/eth0/mtu
    ip addr add 10.9.0.2/24 dev eth0
    until ping -c 1 -W 1 10.9.0.1 >/dev/null; do :; done
    until wget -qO /tmp/got http://10.9.0.1:8000/; do sleep 1; done
    echo got $(sha256sum </tmp/got)
    nc 10.9.0.1 8001 </tmp/got'
"#;

#[test]
fn a_guest_is_on_the_network_of_a_tap_device() {
    if !(is_installed("unshare") && is_installed("python3") && is_installed("ip")) {
        return;
    }
    let Some(kernel) = debian_kernel_with_modules(KERNELS[0]) else { return };
    let possible = in_namespace(DEVICE, &kernel);
    if !possible.status.success() {
        return skipped(&format!("no TAP device can be made here: {}", complaint(&possible).trim()));
    }
    let place = tempfile::tempdir().unwrap();
    let server = SERVER.replace("$0", &place.path().join("server").to_string_lossy());
    let output = in_namespace(&[DEVICE, &server, GUEST].concat(), &kernel);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!((output.status.code(), complaint(&output).as_str()), (Some(0), ""), "{text}");
    let said = |what: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_else(|| panic!("{text}"));
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(text.lines().find(|line| line.len() == 4), Some("1400"), "{text}");
    assert_eq!((said("sent"), said("sent")), (said("got"), said("came")), "{text}");
}

#[test]
fn devices_that_cannot_be_had() {
    let output = umbra(&["run", "--net", "tap=umbra-nowhere", "--", "true"]).output().unwrap();
    let text = complaint(&output);
    if text.contains("linux-image") || text.contains("busybox") {
        return skipped("no kernel");
    }
    assert_eq!((output.status.code(), text.lines().count()), (Some(125), 1), "{text}");
    assert!(
        text.contains("there is no TAP device 'umbra-nowhere'") && text.contains("ip tuntap add"),
        "{text}"
    );
    let output = umbra(&["run", "--net", "tap=t0", "-p", "80:80", "--", "true"]).output().unwrap();
    assert!(complaint(&output).contains("user-mode network"));
}
