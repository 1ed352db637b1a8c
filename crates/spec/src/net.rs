//! A VM's network, as people name it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::{ByteSize, SpecError};

/// What a VM's network adapter leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetSpec {
    /// There is none.
    None,
    /// The user-mode network.
    User(UserNetSpec),
    /// A TAP device of the host.
    Tap(TapNetSpec),
}

impl NetSpec {
    /// Whether it is the user-mode network, which has addresses of its own and ports that lead into it.
    pub fn is_user(&self) -> bool {
        matches!(self, Self::User(_))
    }
}

/// How many pairs of queues an adapter has, 1 to [`NetQueues::MOST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetQueues(u16);

impl NetQueues {
    /// The most.
    pub const MOST: u16 = 8;

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let count = text.parse().ok().filter(|count| (1..=Self::MOST).contains(count));
        count.filter(|_| !text.starts_with('+')).map(Self)
    }
}

/// A TAP device of the host: `tap=NAME[,mac=ADDRESS][,rate=SIZE][,queues=N]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapNetSpec {
    /// The device.
    pub device: String,
    /// The Ethernet address of the guest's adapter; nothing: one made from the device's own.
    pub mac: Option<[u8; 6]>,
    /// How many bytes may pass each second, in each direction; nothing: as many as can.
    pub rate: Option<ByteSize>,
    /// How many pairs of queues the adapter has; nothing: one.
    pub queues: Option<NetQueues>,
}

impl TapNetSpec {
    /// The longest name of a device of Linux's.
    const LONGEST_NAME: usize = 15;

    fn parse<'a>(device: &str, options: impl Iterator<Item = &'a str>) -> Option<Self> {
        let possible = (1..=Self::LONGEST_NAME).contains(&device.len())
            && !device.contains(|c: char| c.is_whitespace() || c.is_control() || "/%:".contains(c));
        let mut tap =
            possible.then(|| Self { device: device.to_owned(), mac: None, rate: None, queues: None })?;
        for option in options {
            match option.split_once('=')? {
                ("mac", mac) => tap.mac = Some(parse_mac(mac)?),
                ("rate", rate) => tap.rate = Some(parse_rate(rate).ok()??),
                ("queues", count) => tap.queues = Some(NetQueues::parse(count)?),
                _ => return None,
            }
        }
        Some(tap)
    }
}

/// Six bytes in hexadecimal with colons in between, of one adapter and not of a group.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let [first, ..] = mac;
    (parts.next().is_none() && first & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// A rate; nothing if it lets nothing pass.
fn parse_rate(text: &str) -> Result<Option<ByteSize>, SpecError> {
    let rate: ByteSize = text.parse()?;
    Ok(Some(rate).filter(|rate| rate.bytes() > 0))
}

/// The user-mode network: `user[,dns=IP[:PORT]][,loopback=off][,rate=SIZE][,queues=N]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserNetSpec {
    /// The name server that the guest's questions go to; nothing: those of the host.
    pub dns: Option<SocketAddr>,
    /// Whether the gateway's address leads to the host's loopback.
    pub loopback: bool,
    /// How many bytes may pass each second, in each direction; nothing: as many as can.
    pub rate: Option<ByteSize>,
    /// How many pairs of queues the adapter has; nothing: one.
    pub queues: Option<NetQueues>,
}

impl UserNetSpec {
    // Addresses on the network, the same as with other programs of this kind, which their users know.

    /// The guest's.
    pub const GUEST4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    /// The router's.
    pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    /// The name server's.
    pub const DNS4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
    /// How many bits they have in common.
    pub const PREFIX4: u8 = 24;
    /// The guest's, which ports are forwarded to from IPv6.
    pub const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0x15);
    /// The router's.
    pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
    /// The name server's.
    pub const DNS6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 3);
    /// The router's on the link.
    pub const ROUTER_LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    /// How many bits the IPv6 addresses have in common.
    pub const PREFIX6: u8 = 64;
    /// The Ethernet address of the guest's adapter.
    pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
    /// That of whoever else is on the network.
    pub const ROUTER_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];
}

impl Default for UserNetSpec {
    fn default() -> Self {
        Self { dns: None, loopback: true, rate: None, queues: None }
    }
}

impl Default for NetSpec {
    fn default() -> Self {
        Self::User(UserNetSpec::default())
    }
}

const DNS_PORT: u16 = 53;

impl FromStr for NetSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refusal = || SpecError::Net { text: text.to_owned() };
        let mut parts = text.split(',');
        match parts.next() {
            Some("none") if parts.next().is_none() => return Ok(Self::None),
            Some("user") => {}
            Some(tap) => {
                let device = tap.strip_prefix("tap=").ok_or_else(refusal)?;
                return TapNetSpec::parse(device, parts).map(Self::Tap).ok_or_else(refusal);
            }
            None => return Err(refusal()),
        }
        let mut user = UserNetSpec::default();
        for option in parts {
            match option.split_once('=') {
                Some(("dns", server)) => {
                    let alone = || server.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
                    user.dns = Some(server.parse().or_else(|_| alone()).map_err(|_| refusal())?);
                }
                Some(("loopback", "off")) => user.loopback = false,
                Some(("loopback", "on")) => user.loopback = true,
                Some(("rate", rate)) => {
                    user.rate = parse_rate(rate)?;
                    if user.rate.is_none() {
                        return Err(refusal());
                    }
                }
                Some(("queues", count)) => user.queues = Some(NetQueues::parse(count).ok_or_else(refusal)?),
                _ => return Err(refusal()),
            }
        }
        Ok(Self::User(user))
    }
}

impl fmt::Display for NetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = match self {
            Self::None => return f.write_str("none"),
            Self::Tap(tap) => return tap.fmt(f),
            Self::User(user) => user,
        };
        f.write_str("user")?;
        if let Some(dns) = user.dns {
            write!(f, ",dns={dns}")?;
        }
        if !user.loopback {
            f.write_str(",loopback=off")?;
        }
        show_limits(f, user.rate, user.queues)
    }
}

impl fmt::Display for TapNetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tap={}", self.device)?;
        if let Some([a, b, c, d, e, g]) = self.mac {
            write!(f, ",mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")?;
        }
        show_limits(f, self.rate, self.queues)
    }
}

/// The options that every network has.
fn show_limits(f: &mut fmt::Formatter<'_>, rate: Option<ByteSize>, queues: Option<NetQueues>) -> fmt::Result {
    rate.map_or(Ok(()), |rate| write!(f, ",rate={rate}"))?;
    queues.map_or(Ok(()), |queues| write!(f, ",queues={}", queues.get()))
}

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to one of the guest's: `[IP:]HOST:GUEST[/tcp|/udp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Where the host listens.
    pub listen: SocketAddr,
    /// The guest's port.
    pub guest: u16,
    /// What for.
    pub kind: PortKind,
}

impl FromStr for PortSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let refusal = || SpecError::Port { text: text.to_owned() };
        let (ports, kind) = match text.rsplit_once('/') {
            None => (text, PortKind::Tcp),
            Some((ports, "tcp")) => (ports, PortKind::Tcp),
            Some((ports, "udp")) => (ports, PortKind::Udp),
            Some(_) => return Err(refusal()),
        };
        let (listen, guest) = ports.rsplit_once(':').ok_or_else(refusal)?;
        let guest: u16 = guest.parse().map_err(|_| refusal())?;
        let alone = || listen.parse::<u16>().map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
        let listen = listen.parse().or_else(|_| alone()).map_err(|_| refusal())?;
        // Nobody listens on port 0 of the guest; that of the host would be one that nobody is told.
        if guest == 0 || listen.port() == 0 { Err(refusal()) } else { Ok(Self { listen, guest, kind }) }
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == PortKind::Udp { "/udp" } else { "" };
        write!(f, "{}:{}{kind}", self.listen, self.guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let user = |dns: Option<&str>, loopback| {
            Ok(NetSpec::User(UserNetSpec {
                dns: dns.map(|dns| dns.parse().unwrap()),
                loopback,
                rate: None,
                queues: None,
            }))
        };
        assert_eq!("none".parse(), Ok(NetSpec::None));
        assert_eq!("user".parse::<NetSpec>(), Ok(NetSpec::default()));
        assert_eq!("user,dns=192.0.2.1".parse(), user(Some("192.0.2.1:53"), true));
        assert_eq!("user,dns=127.0.0.1:5353,loopback=off".parse(), user(Some("127.0.0.1:5353"), false));
        assert_eq!("user,dns=2001:db8::1".parse(), user(Some("[2001:db8::1]:53"), true));
        for bad in [
            "",
            "none,",
            "user,",
            "tap",
            "user,dns=name",
            "user,loopback=maybe",
            "none,loopback=off",
            "user,rate=0K",
            "user,rate=9",
            "tap=",
            "tap=a/b",
            "tap=sixteen-letters-",
            "tap=t0,mac=52:54:00:12:34",
            "tap=t0,mac=53:54:00:12:34:56",
            "tap=t0,mac=52:54:00:12:34:+6",
            "tap=t0,rate=0K",
            "tap=t0,loopback=off",
            "tap=t0,",
            "tap=t0,queues=0",
            "user,queues=9",
            "user,queues=+2",
        ] {
            assert!(bad.parse::<NetSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports() {
        let seen = |text: &str| text.parse::<PortSpec>().map(|port| port.to_string());
        assert_eq!(seen("8080:80").unwrap(), "127.0.0.1:8080:80");
        assert_eq!(seen("0.0.0.0:8080:80/tcp").unwrap(), "0.0.0.0:8080:80");
        assert_eq!(seen("[::1]:5:6/udp").unwrap(), "[::1]:5:6/udp");
        for bad in ["80", "a:80", "80:0", "0:80", "80:65536", "1:2/sctp", "::1:5:6", "1.2.3:4:5", "/udp"] {
            assert!(seen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_is_understood() {
        for text in [
            "none",
            "user",
            "user,dns=[::1]:99,loopback=off",
            "user,rate=10 MiB",
            "user,queues=2",
            "tap=t0,rate=1 KiB,queues=8",
            "tap=t0",
            "tap=t0,mac=52:54:00:12:34:5f,rate=1 KiB",
        ] {
            assert_eq!(text.parse::<NetSpec>().unwrap().to_string(), text);
        }
    }
}
