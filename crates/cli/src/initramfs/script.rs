//! `/init` of the guest that Umbra makes.
//!
//! Three serial ports, each with one job, so that nothing has to be told apart from anything else:
//!
//! | port | job |
//! |---|---|
//! | ttyS0 | the command's standard input and output |
//! | ttyS1 | control: lines of text in both directions, see [`crate::console`] |
//! | ttyS2 | the kernel's console; in a pipe also the command's standard error |
//!
//! On a terminal ttyS0 is an ordinary terminal of the size of the user's, and the command its session leader, so that
//! job control works. In a pipe ttyS0 must carry any byte both ways, and the end of input. Output has no processing.
//! Input stays in canonical mode, because only that mode has an end of file; every other special character is turned
//! off but the one that quotes the next, and the host quotes the two that are left. Flow control (crtscts) keeps the
//! line discipline from dropping input that the command does not read yet.
//!
//! ttyS0 and ttyS1 stay open (descriptors 4 and 3) from before `ready` is said, since the driver empties a port's
//! FIFO when the port is opened first.
//!
//! Before the machine goes, a kernel that is to be quiet is told not to announce it, and the ports are drained: stty sets what is set already, with TCSADRAIN, which waits until
//! everything written has been sent.

/// How the command meets the console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Session {
    /// On a terminal.
    Terminal {
        /// Height and width.
        size: (u16, u16),
        /// What TERM says.
        term: String,
    },
    /// In a pipe.
    Piped,
}

/// Where the command's script is.
pub(super) const COMMAND: &str = "/etc/umbra/command";

/// Where kernel modules are, named so that their order is the one to load them in.
pub(super) const MODULES: &str = "/etc/umbra/modules";

const PREPARE: &str = "\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=root LOGNAME=root SHELL=/bin/sh
mount -t devtmpfs -o mode=0755 devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
hostname -F /etc/hostname
ip link set lo up
for module in /etc/umbra/modules/*; do
    [ -f \"$module\" ] && insmod \"$module\"
done
";

const CONSOLE: &str = "\
cd /root
stty -F /dev/ttyS1 115200 -echo -isig -icrnl -opost
exec 3<>/dev/ttyS1 4<>/dev/ttyS0
";

/// An adapter on a network of which nothing is known.
const LINK: &str = "\
[ -e /sys/class/net/eth0 ] && ip link set eth0 up
";

/// The guest's network: what DHCP and router advertisements would say, without waiting for them.
fn network() -> String {
    use spec::UserNetSpec as Net;
    format!(
        "\
if [ -e /sys/class/net/eth0 ]; then
    echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
    echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_ra
    ip link set eth0 up
    ip addr add {}/{} dev eth0
    ip route add default via {}
    ip -6 addr add {}/{} dev eth0
    ip -6 route add default via {} dev eth0
    echo nameserver {} >/etc/resolv.conf
fi
",
        Net::GUEST4,
        Net::PREFIX4,
        Net::GATEWAY4,
        Net::GUEST6,
        Net::PREFIX6,
        Net::ROUTER_LINK,
        Net::DNS4
    )
}

const PIPED: &str = "\
stty -F /dev/ttyS0 115200 crtscts icanon iexten -echo -isig -icrnl -inlcr -igncr -ixon -ixoff -istrip -opost \
intr undef quit undef erase undef kill undef werase undef rprnt undef eol undef eol2 undef \
susp undef start undef stop undef eof ^D lnext ^V
stty -F /dev/ttyS2 -opost
";

const FINISH: &str = "\
status=$?
stty -F /dev/ttyS0 115200
stty -F /dev/ttyS2 115200
echo exit $status >&3
stty -F /dev/ttyS1 115200
grep -q quiet /proc/cmdline && echo 0 >/proc/sys/kernel/printk
exec poweroff -f
";

/// Follows the host: the terminal's size, and the wish that all end. The first process is spared (kill(2)).
fn follow(session: &Session, is_shell: bool) -> String {
    let hang_up = if is_shell { "; kill -HUP -1" } else { "" };
    let size = match session {
        Session::Terminal { .. } => "stty -F /dev/ttyS0 rows \"$rows\" cols \"$columns\"",
        Session::Piped => "",
    };
    format!(
        "\
while read -r word rows columns; do
    case \"$word\" in
    size) {size} ;;
    stop) kill -TERM -1{hang_up} ;;
    esac
done <&3 &
"
    )
}

/// The text of `/init`, which runs a command or a shell. The addresses of the user-mode network are known.
pub(super) fn init(session: &Session, is_shell: bool, user_network: bool) -> String {
    let follow = follow(session, is_shell);
    let network = if user_network { network() } else { LINK.to_owned() };
    let prepare = [PREPARE, &network, CONSOLE].concat();
    match session {
        Session::Terminal { size: (rows, columns), term } => format!(
            "{prepare}\
export TERM={term}
stty -F /dev/ttyS0 115200 sane rows {rows} cols {columns}
{follow}\
echo ready >&3
setsid -c {COMMAND} <&4 >&4 2>&4 3<&- 4<&-
{FINISH}"
        ),
        Session::Piped => format!(
            "{prepare}{PIPED}{follow}\
echo ready >&3
{COMMAND} <&4 >&4 2>/dev/ttyS2 3<&- 4<&-
{FINISH}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_scripts_are_scripts() {
        let terminal = Session::Terminal { size: (24, 80), term: "xterm-256color".into() };
        for session in [terminal, Session::Piped] {
            let mut sh = Command::new("sh").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
            sh.stdin.take().unwrap().write_all(init(&session, true, true).as_bytes()).unwrap();
            assert!(sh.wait().unwrap().success());
        }
    }
}
