//! The few messages that the tests' items need, written out as in `linux/rtnetlink.h`.

use evergate_keeper::hex;

const NEWADDR: (u16, u16) = (20, 21);
const NEWROUTE: (u16, u16) = (24, 25);
/// Request, acknowledge; create and replace for additions.
const REQUEST: u16 = 0x5;
const CREATE_REPLACE: u16 = 0x500;

fn message((add, del): (u16, u16), adding: bool, body: &[u8]) -> String {
    let mut bytes = (16 + body.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(if adding { add } else { del }.to_ne_bytes());
    bytes.extend((REQUEST | if adding { CREATE_REPLACE } else { 0 }).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    hex::encode(&bytes)
}

fn attribute(kind: u16, value: [u8; 4]) -> Vec<u8> {
    [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value].concat()
}

/// `ip addr add|del <net> dev <link>`
pub fn address(adding: bool, link: u32, net: &str) -> String {
    let net: ipnet::Ipv4Net = net.parse().expect("an address with its prefix length");
    let address = net.addr().octets();
    // struct ifaddrmsg: AF_INET, prefix length, flags, scope, index; IFA_LOCAL, IFA_ADDRESS.
    let mut body = vec![2, net.prefix_len(), 0, 0];
    body.extend(link.to_ne_bytes());
    body.extend(attribute(2, address));
    body.extend(attribute(1, address));
    message(NEWADDR, adding, &body)
}

/// `ip route add|del default via <gateway> dev <link> proto static`
pub fn default_route(adding: bool, link: u32, gateway: [u8; 4]) -> String {
    // struct rtmsg: AF_INET, dst_len, src_len, tos, table main, protocol static, scope universe, unicast, flags.
    let mut body = vec![2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
    body.extend(attribute(5, gateway));
    body.extend(attribute(4, link.to_ne_bytes()));
    message(NEWROUTE, adding, &body)
}
