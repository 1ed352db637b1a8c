//! The host's name servers (resolv.conf(5)).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The most that are used, as by the host's own resolver.
const MOST: usize = 3;
/// The port of name servers.
pub(super) const DNS_PORT: u16 = 53;

/// The name servers that a resolv.conf names; without any, the one on the host itself, as everybody takes it.
pub fn resolvers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // An address on a link says which link, and that is nobody that a socket of ours could be told.
        address.parse::<IpAddr>().ok()
    };
    let mut servers: Vec<IpAddr> = text.lines().filter_map(server).take(MOST).collect();
    if servers.is_empty() {
        servers.push(Ipv4Addr::LOCALHOST.into());
    }
    servers.into_iter().map(|ip| (ip, DNS_PORT).into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_found_among_everything_else() {
        let text = "# nameserver 1.1.1.1\nsearch example.org\nnameserver 127.0.0.53 # local\n  nameserver\t2001:db8::1\n\
                    nameserver fe80::1%eth0\nnameserver name\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions edns0\n";
        let seen: Vec<String> = resolvers(text).iter().map(ToString::to_string).collect();
        assert_eq!(seen, ["127.0.0.53:53", "[2001:db8::1]:53", "192.0.2.1:53"]);
        assert_eq!(resolvers(""), ["127.0.0.1:53".parse().unwrap()]);
    }
}
