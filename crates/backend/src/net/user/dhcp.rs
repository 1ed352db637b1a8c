//! A DHCP server with one address to give (RFC 2131, options of RFC 2132).

use std::net::Ipv4Addr;

use super::plan::UserConfig;

/// The server's port.
pub(super) const SERVER_PORT: u16 = 67;
/// The client's.
pub(super) const CLIENT_PORT: u16 = 68;

// Where fields are.
const FLAGS: usize = 10;
const CLIENT: usize = 12;
const YOURS: usize = 16;
const SERVER: usize = 20;
const OPTIONS: usize = 240;
const MAGIC: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
/// The least that old clients take for a message.
const LEAST: usize = 300;
/// A day; nobody else wants the address.
const LEASE_S: u32 = 86_400;

// Options.
const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const NAME_SERVER: u8 = 6;
const MTU: u8 = 26;
const REQUESTED: u8 = 50;
const LEASE_TIME: u8 = 51;
const MESSAGE_TYPE: u8 = 53;
const SERVER_IDENTIFIER: u8 = 54;
const PAD: u8 = 0;
const END: u8 = 255;

// Types of messages.
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
const INFORM: u8 = 8;

/// What is said to a client, and to which address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) to: Ipv4Addr,
    pub(super) message: Vec<u8>,
}

/// The value of an option, of those behind the fixed fields.
fn option(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = message.get(OPTIONS..)?;
    loop {
        let (&kind, after) = rest.split_first()?;
        match kind {
            END => return None,
            PAD => rest = after,
            _ => {
                let (&len, after) = after.split_first()?;
                let (value, after) = after.split_at_checked(len.into())?;
                if kind == wanted {
                    return Some(value);
                }
                rest = after;
            }
        }
    }
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from_octets(*bytes.first_chunk()?))
}

/// The answer to a message of a client, if there is to be one.
pub(super) fn answer(config: &UserConfig, message: &[u8]) -> Option<Reply> {
    let good = message.first_chunk()? == &[1u8, 1, 6] && message.get(OPTIONS - 4..OPTIONS)? == MAGIC;
    let [kind] = option(message, MESSAGE_TYPE)? else { return None };
    if !good {
        return None;
    }
    let ours = config.plan.guest4;
    let client = address(message.get(CLIENT..)?)?;
    let meant_for_us = option(message, SERVER_IDENTIFIER)
        .and_then(address)
        .is_none_or(|server| server == config.plan.gateway4);
    let wanted = option(message, REQUESTED).and_then(address).unwrap_or(client);
    let kind = match *kind {
        DISCOVER => OFFER,
        REQUEST if !meant_for_us => return None,
        REQUEST if wanted == ours => ACK,
        REQUEST => NAK,
        INFORM => ACK,
        _ => return None,
    };
    let yours = if kind == NAK || client != Ipv4Addr::UNSPECIFIED && client != ours {
        Ipv4Addr::UNSPECIFIED
    } else {
        ours
    };
    // A client that has no address hears what is said to all (4.1).
    let broadcast = kind == NAK || client == Ipv4Addr::UNSPECIFIED;
    let to = if broadcast { Ipv4Addr::BROADCAST } else { client };
    Some(Reply { to, message: reply(config, message, kind, yours) })
}

fn reply(config: &UserConfig, message: &[u8], kind: u8, yours: Ipv4Addr) -> Vec<u8> {
    let plan = config.plan;
    // Identifier, flags, relay and hardware address come back as they came.
    let mut reply = message.get(..OPTIONS).unwrap_or_default().to_vec();
    let mut put = |at: usize, bytes: &[u8]| {
        for (place, byte) in reply.iter_mut().skip(at).zip(bytes) {
            *place = *byte;
        }
    };
    put(0, &[2]);
    put(FLAGS - 2, &[0, 0]);
    put(YOURS, &yours.octets());
    put(SERVER, &plan.gateway4.octets());
    // No names of servers or files.
    put(44, &[0; 192]);
    let mut add = |kind: u8, value: &[u8]| {
        reply.extend([kind, u8::try_from(value.len()).unwrap_or(0)]);
        reply.extend_from_slice(value);
    };
    add(MESSAGE_TYPE, &[kind]);
    add(SERVER_IDENTIFIER, &plan.gateway4.octets());
    if kind != NAK {
        add(SUBNET_MASK, &plan.mask4().to_be_bytes());
        add(ROUTER, &plan.gateway4.octets());
        add(NAME_SERVER, &plan.dns4.octets());
        add(MTU, &config.mtu.to_be_bytes());
        if yours != Ipv4Addr::UNSPECIFIED {
            add(LEASE_TIME, &LEASE_S.to_be_bytes());
        }
    }
    reply.push(END);
    reply.resize(reply.len().max(LEAST), PAD);
    reply
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::config;
    use super::*;

    fn message(client: [u8; 4], options: &[u8]) -> Vec<u8> {
        let mut message = vec![0; OPTIONS];
        message[..8].copy_from_slice(&[1, 1, 6, 0, 9, 8, 7, 6]);
        message[12..16].copy_from_slice(&client);
        message[28..34].copy_from_slice(&[0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        message[236..].copy_from_slice(&MAGIC);
        message.extend_from_slice(options);
        message
    }

    fn kind_of(reply: &Reply) -> u8 {
        option(&reply.message, MESSAGE_TYPE).unwrap()[0]
    }

    #[test]
    fn an_address_is_offered_and_given() {
        let config = config();
        let offer = answer(&config, &message([0; 4], &[PAD, 53, 1, DISCOVER, END])).unwrap();
        assert_eq!((kind_of(&offer), offer.to), (OFFER, Ipv4Addr::BROADCAST));
        assert_eq!(&offer.message[..8], &[2, 1, 6, 0, 9, 8, 7, 6]);
        assert_eq!(&offer.message[16..20], &[10, 0, 2, 15]);
        assert_eq!(&offer.message[28..34], &[0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let request = [53, 1, REQUEST, 54, 4, 10, 0, 2, 2, 50, 4, 10, 0, 2, 15, END];
        let ack = answer(&config, &message([0; 4], &request)).unwrap();
        assert_eq!(kind_of(&ack), ACK);
        let value = |kind| option(&ack.message, kind).unwrap().to_vec();
        assert_eq!(value(SUBNET_MASK), [255, 255, 255, 0]);
        assert_eq!((value(ROUTER), value(NAME_SERVER)), (vec![10, 0, 2, 2], vec![10, 0, 2, 3]));
        assert_eq!((value(MTU), value(LEASE_TIME)), (vec![5, 220], 86_400u32.to_be_bytes().to_vec()));
        // Renewal: the client has the address already.
        let renewal = answer(&config, &message([10, 0, 2, 15], &[53, 1, REQUEST, END])).unwrap();
        assert_eq!((kind_of(&renewal), renewal.to), (ACK, Ipv4Addr::new(10, 0, 2, 15)));
    }

    #[test]
    fn what_is_not_ours_is_refused_or_ignored() {
        let config = config();
        let other = [53, 1, REQUEST, 50, 4, 192, 168, 1, 9, END];
        assert_eq!(kind_of(&answer(&config, &message([0; 4], &other)).unwrap()), NAK);
        let elsewhere = [53, 1, REQUEST, 54, 4, 10, 0, 2, 9, 50, 4, 10, 0, 2, 15, END];
        assert_eq!(answer(&config, &message([0; 4], &elsewhere)), None);
        for cut in 0..OPTIONS + 3 {
            assert_eq!(answer(&config, &message([0; 4], &[53, 1, DISCOVER])[..cut]), None, "{cut}");
        }
        assert_eq!(answer(&config, &message([0; 4], &[50, 200, 1, 53, 1, 1])), None);
        assert_eq!(answer(&config, &message([0; 4], &[53, 2, 1, 1, END])), None);
    }
}
