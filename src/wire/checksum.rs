//! The Internet checksum (RFC 1071) and the pseudo headers of TCP, UDP and ICMPv6.

use std::net::IpAddr;

use super::inner::{Inner, protocol};

/// Adds bytes to a running one's complement sum; an odd last byte is padded with zero.
pub fn add_bytes(mut sum: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let rest = words.remainder();
    let mut last = [0; 4];
    for (place, byte) in last.iter_mut().zip(rest) {
        *place = *byte;
    }
    sum + u64::from(u32::from_be_bytes(last))
}

/// Folds a running sum to 16 bits.
pub fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Sums the pseudo header of a transport segment of `length` bytes (RFC 9293 section 3.1, RFC 8200
/// section 8.1); not folded, not inverted.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let mut sum = u64::from(protocol) + length as u64;
    for addr in [source, destination] {
        sum = match addr {
            IpAddr::V4(v4) => add_bytes(sum, &v4.octets()),
            IpAddr::V6(v6) => add_bytes(sum, &v6.octets()),
        };
    }
    sum
}

/// Computes the checksum of an IPv4 header whose checksum field counts as zero.
pub fn ipv4_header(header: &[u8]) -> u16 {
    let sum = add_bytes(0, header);
    let old = header.get(10..12).map_or(0, |f| u64::from(u16::from_be_bytes([f[0], f[1]])));
    // The field sits in the low half of its word; taking it out of the unfolded sum is exact.
    !fold(sum - old)
}

/// Changes a checksum for one 16-bit word that changed from `old` to `new` (RFC 1624, equation 3).
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u64::from(!checksum) + u64::from(!old) + u64::from(new))
}

/// Completes the partial checksum of a whole TCP or UDP packet in place; other packets stay as
/// they are. A UDP sum of 0 becomes 0xffff (RFC 768).
pub fn complete(packet: &mut [u8], inner: &Inner) {
    let Some(offset) = inner.checksum_offset() else { return };
    let transport = usize::from(inner.transport);
    let place = transport + usize::from(offset);
    let Some(field) = packet.get_mut(place..place + 2) else { return };
    field.copy_from_slice(&[0, 0]);
    let segment = &packet[transport..];
    let pseudo = pseudo_header(inner.source, inner.destination, inner.protocol, segment.len());
    let sum = match (!fold(add_bytes(pseudo, segment)), inner.protocol) {
        (0, protocol::UDP) => 0xffff,
        (sum, _) => sum,
    };
    packet[place..place + 2].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slow(bytes: &[u8]) -> u16 {
        let mut sum: u32 = 0;
        for pair in bytes.chunks(2) {
            let word = u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum += word;
            if sum > 0xffff {
                sum -= 0xffff;
            }
        }
        sum as u16
    }

    proptest! {
        #[test]
        fn equals_the_sum_of_words(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            // 0 and 0xffff are the same number in one's complement.
            prop_assert_eq!(fold(add_bytes(0, &bytes)) % 0xffff, slow(&bytes) % 0xffff);
        }

        #[test]
        fn a_completed_sum_is_the_one_that_etherparse_makes(v6: bool, tcp: bool, payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            use etherparse::PacketBuilder;
            let ip = if v6 { PacketBuilder::ipv6([1; 16], [2; 16], 9) } else { PacketBuilder::ipv4([1; 4], [2; 4], 9) };
            let mut packet = Vec::new();
            if tcp { ip.tcp(1, 2, 3, 4).write(&mut packet, &payload).unwrap() } else { ip.udp(1, 2).write(&mut packet, &payload).unwrap() }
            let inner = Inner::parse(&packet).unwrap();
            let mut partial = packet.clone();
            let place = usize::from(inner.transport + inner.checksum_offset().unwrap());
            partial[place..place + 2].copy_from_slice(&[0xab, 0xcd]);
            complete(&mut partial, &inner);
            prop_assert_eq!(partial, packet);
        }

        #[test]
        fn an_update_equals_a_new_sum(mut bytes in proptest::collection::vec(any::<u8>(), 20..40), new: u16) {
            let before = !fold(add_bytes(0, &bytes));
            let old = u16::from_be_bytes([bytes[2], bytes[3]]);
            bytes[2..4].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(!update(before, old, new) % 0xffff, fold(add_bytes(0, &bytes)) % 0xffff);
        }
    }

    #[test]
    fn the_header_of_rfc_1071s_family_of_examples_verifies() {
        let mut header = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8,
            0, 0xc7,
        ];
        assert_eq!(ipv4_header(&header), 0xb861);
        header[8] = 0x3f;
        assert_eq!(ipv4_header(&header), 0xb961);
    }
}
