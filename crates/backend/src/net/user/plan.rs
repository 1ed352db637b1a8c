//! Who is who on the user-mode network, and where its addresses lead on the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::resolvers::DNS_PORT;
use crate::net::Mac;

/// The addresses on the guest's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPlan {
    /// The guest's, as DHCP gives it.
    pub guest4: Ipv4Addr,
    /// The router's.
    pub gateway4: Ipv4Addr,
    /// The name server's.
    pub dns4: Ipv4Addr,
    /// How many bits they have in common.
    pub prefix4: u8,
    /// The guest's that ports are forwarded to.
    pub guest6: Ipv6Addr,
    /// The router's.
    pub gateway6: Ipv6Addr,
    /// The name server's. All three have 64 bits in common.
    pub dns6: Ipv6Addr,
    /// The router's address on the link.
    pub router_link: Ipv6Addr,
    /// The guest's Ethernet address.
    pub guest_mac: Mac,
    /// That of everybody else.
    pub router_mac: Mac,
}

impl AddressPlan {
    /// The mask of the IPv4 network.
    pub(super) fn mask4(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix4.min(32))).unwrap_or(0)
    }

    /// The router's address of the family that another address has.
    pub(super) fn gateway(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.gateway4.into() } else { self.gateway6.into() }
    }
}

/// What a port is forwarded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// For what.
    pub transport: Transport,
    /// Where the host listens.
    pub listen: SocketAddr,
    /// The guest's port.
    pub port: u16,
}

/// A user-mode network, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserConfig {
    /// Its addresses.
    pub plan: AddressPlan,
    /// The most bytes of an IP packet on it.
    pub mtu: u16,
    /// Whether the gateway's addresses lead to the host's loopback.
    pub loopback: bool,
    /// Name servers, the first of which is asked first.
    pub resolvers: Vec<SocketAddr>,
    /// Ports of the host that lead into the guest.
    pub forwards: Vec<Forward>,
}

/// Where an address of the guest's view leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// There, on the host's side.
    To(SocketAddr),
    /// To the host's name servers, of which this is the first.
    Resolvers(SocketAddr),
    /// Nowhere: nobody listens.
    Refused,
    /// Nowhere: there is no such place, or it is none of the guest's business.
    None,
}

impl UserConfig {
    /// Whether a frame of the guest may come from this address.
    pub(super) fn is_inside(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => (v4.to_bits() ^ self.plan.gateway4.to_bits()) & self.plan.mask4() == 0,
            IpAddr::V6(v6) => v6.is_unicast_link_local() || network6(v6) == network6(self.plan.gateway6),
        }
    }

    /// Whether the address is one of ours.
    pub(super) fn is_ours(&self, address: IpAddr) -> bool {
        let AddressPlan { gateway4, dns4, gateway6, dns6, router_link, .. } = self.plan;
        match address {
            IpAddr::V4(v4) => v4 == gateway4 || v4 == dns4,
            IpAddr::V6(v6) => v6 == gateway6 || v6 == dns6 || v6 == router_link,
        }
    }

    /// Where what the guest sends to `remote` leads.
    ///
    /// The host's loopback is reached by the gateway's address and no other: addresses that Linux takes for the host itself
    /// (0.0.0.0/8, IPv4 addresses in IPv6 ones) lead nowhere, as do groups and links.
    pub(super) fn route(&self, remote: SocketAddr) -> Route {
        let AddressPlan { dns4, dns6, .. } = self.plan;
        let (ip, port) = (remote.ip(), remote.port());
        if ip == self.plan.gateway(ip) {
            let loopback: IpAddr =
                if ip.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            return if self.loopback { Route::To((loopback, port).into()) } else { Route::Refused };
        }
        if ip == IpAddr::V4(dns4) || ip == IpAddr::V6(dns6) {
            return match self.resolvers.first() {
                Some(first) if port == DNS_PORT => Route::Resolvers(*first),
                _ => Route::Refused,
            };
        }
        let possible = !self.is_inside(ip)
            && match ip {
                IpAddr::V4(v4) => {
                    let host = v4.is_loopback() || v4.octets()[0] == 0;
                    !(host || v4.is_multicast() || v4.is_broadcast() || v4.is_link_local())
                }
                IpAddr::V6(v6) => {
                    // ::/96 has the unspecified address, the loopback and IPv4 addresses of old.
                    !(v6.is_multicast() || v6.to_ipv4().is_some() || v6.to_ipv4_mapped().is_some())
                }
            };
        if possible { Route::To(remote) } else { Route::None }
    }

    /// How the guest sees somebody who has come in by a forwarded port.
    pub(super) fn visible(&self, peer: SocketAddr) -> SocketAddr {
        let ip = peer.ip().to_canonical();
        // Whoever is on the host has the gateway's address there. So has who has an address of this network on the host's:
        // the guest would look for it on its link.
        let nearby = ip.is_loopback() || self.is_inside(ip);
        (if nearby { self.plan.gateway(ip) } else { ip }, peer.port()).into()
    }

    /// The guest's end of a connection from `remote`.
    pub(super) fn guest_end(&self, remote: SocketAddr, port: u16) -> SocketAddr {
        let ip: IpAddr = if remote.is_ipv4() { self.plan.guest4.into() } else { self.plan.guest6.into() };
        (ip, port).into()
    }
}

fn network6(address: Ipv6Addr) -> u128 {
    address.to_bits() >> 64
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn config() -> UserConfig {
        UserConfig {
            plan: AddressPlan {
                guest4: Ipv4Addr::new(10, 0, 2, 15),
                gateway4: Ipv4Addr::new(10, 0, 2, 2),
                dns4: Ipv4Addr::new(10, 0, 2, 3),
                prefix4: 24,
                guest6: "fec0::15".parse().unwrap(),
                gateway6: "fec0::2".parse().unwrap(),
                dns6: "fec0::3".parse().unwrap(),
                router_link: "fe80::2".parse().unwrap(),
                guest_mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
                router_mac: [0x52, 0x55, 0x0a, 0, 2, 2],
            },
            mtu: 1500,
            loopback: true,
            resolvers: vec!["192.0.2.53:53".parse().unwrap()],
            forwards: Vec::new(),
        }
    }

    #[test]
    fn the_loopback_is_reached_by_the_gateway_only() {
        let mut config = config();
        let route = |config: &UserConfig, to: &str| config.route(to.parse().unwrap());
        assert_eq!(route(&config, "10.0.2.2:80"), Route::To("127.0.0.1:80".parse().unwrap()));
        assert_eq!(route(&config, "[fec0::2]:80"), Route::To("[::1]:80".parse().unwrap()));
        config.loopback = false;
        assert_eq!(route(&config, "10.0.2.2:80"), Route::Refused);
        let nowhere = [
            "127.0.0.1:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "[::]:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
            "[::127.0.0.1]:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[ff02::1]:80",
            "[fe80::9]:80",
            "10.0.2.77:80",
            "169.254.1.1:80",
            "[fec0::77]:80",
        ];
        for to in nowhere {
            assert_eq!(route(&config, to), Route::None, "{to}");
        }
        assert_eq!(route(&config, "192.0.2.1:80"), Route::To("192.0.2.1:80".parse().unwrap()));
        assert_eq!(route(&config, "[2001:db8::1]:80"), Route::To("[2001:db8::1]:80".parse().unwrap()));
        assert_eq!(route(&config, "10.0.2.3:53"), Route::Resolvers(config.resolvers[0]));
        assert_eq!(route(&config, "10.0.2.3:54"), Route::Refused);
    }

    #[test]
    fn who_comes_from_the_host_is_the_gateway() {
        let seen = |peer: &str| config().visible(peer.parse().unwrap()).to_string();
        assert_eq!(seen("127.0.0.1:5"), "10.0.2.2:5");
        assert_eq!(seen("[::ffff:127.0.0.1]:5"), "10.0.2.2:5");
        assert_eq!(seen("[::1]:5"), "[fec0::2]:5");
        assert_eq!(seen("192.0.2.7:5"), "192.0.2.7:5");
        // The host may be on a network with the same addresses.
        assert_eq!(seen("10.0.2.15:5"), "10.0.2.2:5");
        assert_eq!(seen("[fec0::15]:5"), "[fec0::2]:5");
        assert_eq!(seen("[fe80::15]:5"), "[fec0::2]:5");
    }
}
