//! TCP's maximum segment size option is clamped on SYNs (RFC 9293, section 3.7.1), so that
//! connections fit the path even where ICMP does not come through.

use crate::wire::{
    checksum,
    envelope::Checksum,
    inner::{Fragment, Inner, protocol, tcp_flags},
};

/// Lowers the MSS option of a SYN to what a path of `mtu` carries. Other packets stay as they are.
pub fn clamp(packet: &mut [u8], inner: &Inner, sum: Checksum, mtu: u16) {
    let syn = inner.protocol == protocol::TCP
        && inner.tcp_flags & tcp_flags::SYN != 0
        && inner.fragment == Fragment::Whole;
    if !syn {
        return;
    }
    let transport = usize::from(inner.transport);
    let fixed = if inner.is_ipv4() { 20 + 20 } else { 40 + 20 };
    let limit = mtu.saturating_sub(fixed);
    let Some(header) = packet.get_mut(transport..usize::from(inner.payload)) else { return };
    let Some(place) = option_place(header) else { return };
    let old = u16::from_be_bytes([header[place], header[place + 1]]);
    if old <= limit {
        return;
    }
    header[place..place + 2].copy_from_slice(&limit.to_be_bytes());
    // A partial sum does not cover the header.
    if sum == Checksum::Complete {
        // An option may start at an odd place, and then its value counts with its bytes swapped.
        let (was, is) =
            if place % 2 == 0 { (old, limit) } else { (old.swap_bytes(), limit.swap_bytes()) };
        let field = u16::from_be_bytes([header[16], header[17]]);
        header[16..18].copy_from_slice(&checksum::update(field, was, is).to_be_bytes());
    }
}

/// Finds the value of the MSS option in a TCP header.
fn option_place(header: &[u8]) -> Option<usize> {
    let mut at = 20;
    loop {
        match *header.get(at)? {
            END => return None,
            NOP => at += 1,
            kind => {
                let len = usize::from(*header.get(at + 1)?);
                if len < 2 || at + len > header.len() {
                    return None;
                }
                if kind == MSS && len == 4 {
                    return Some(at + 2);
                }
                at += len;
            }
        }
    }
}

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};

    use super::*;

    fn syn(options: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([1; 4], [2; 4], 9)
            .tcp(1, 2, 3, 4)
            .syn()
            .options_raw(options)
            .unwrap()
            .write(&mut packet, &[])
            .unwrap();
        packet
    }

    fn check(options: &[u8], expected: Option<u16>) {
        let mut packet = syn(options);
        let inner = Inner::parse(&packet).unwrap();
        clamp(&mut packet, &inner, Checksum::Complete, 1000);
        let slices = SlicedPacket::from_ip(&packet).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = slices.transport else { panic!() };
        let mss = tcp.options_iterator().find_map(|option| match option {
            Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
            _ => None,
        });
        assert_eq!(mss, expected);
        assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4([1; 4], [2; 4]).unwrap());
    }

    #[test]
    fn the_option_is_lowered_and_never_raised() {
        check(&[2, 4, 5, 180], Some(960));
        check(&[2, 4, 1, 0], Some(256));
        check(&[1, 2, 4, 5, 180, 0, 0, 0], Some(960));
        check(&[1, 1, 1, 1], None);
    }

    #[test]
    fn bent_options_are_left_alone() {
        for options in [[2, 0, 5, 180], [2, 9, 5, 180], [8, 1, 2, 4], [1, 1, 1, 2], [2, 3, 5, 0]] {
            let mut packet = syn(&options);
            let before = packet.clone();
            let inner = Inner::parse(&packet).unwrap();
            clamp(&mut packet, &inner, Checksum::Complete, 1000);
            assert_eq!(packet, before, "{options:?}");
        }
    }
}
