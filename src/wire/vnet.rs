//! The `virtio_net_hdr` in front of every packet of an offloaded TUN queue (Virtio 1.2, section
//! 5.1.6), ten bytes in the machine's own byte order.

/// The header's length.
pub const LEN: usize = 10;

/// The transport checksum holds only the pseudo header's sum.
pub const NEEDS_CSUM: u8 = 1;

/// Kinds of segmentation, without the ECN bit.
pub mod gso {
    /// None.
    pub const NONE: u8 = 0;
    /// TCP over IPv4.
    pub const TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const TCPV6: u8 = 4;
    /// UDP datagrams of equal length.
    pub const UDP_L4: u8 = 5;
    /// The bit that says that CWR stands on the first segment only.
    pub const ECN: u8 = 0x80;
}

/// The header's fields, not checked against any packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`] and others.
    pub flags: u8,
    /// A kind of [`gso`].
    pub gso_type: u8,
    /// How much of the packet is header, as a hint.
    pub hdr_len: u16,
    /// The payload of each segment.
    pub gso_size: u16,
    /// Where summing starts.
    pub csum_start: u16,
    /// Where the sum goes, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Reads the header.
    pub fn parse(bytes: &[u8; LEN]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// Writes the header.
    pub fn emit(&self) -> [u8; LEN] {
        let [a, b] = self.hdr_len.to_ne_bytes();
        let [c, d] = self.gso_size.to_ne_bytes();
        let [e, f] = self.csum_start.to_ne_bytes();
        let [g, h] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed_again(bytes: [u8; LEN]) {
            prop_assert_eq!(VnetHeader::parse(&bytes).emit(), bytes);
        }
    }
}
