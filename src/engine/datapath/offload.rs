//! What the virtio_net_hdr of a container's packet may mean. The container wrote it, so every field
//! is held against our own parse of the packet; a header that claims the impossible drops the
//! packet, a partial checksum that we could not describe to the other side is completed here.

use crate::wire::{
    checksum,
    envelope::Checksum,
    inner::{Fragment, Inner, protocol},
    vnet::{NEEDS_CSUM, VnetHeader, gso},
};

/// How a packet is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmentation {
    /// Not at all.
    None,
    /// Into TCP segments with so many bytes of payload.
    Tcp(u16),
    /// Into UDP datagrams with so many bytes of payload.
    Udp(u16),
}

/// Says that the header does not fit its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads the header of `packet`, and completes the checksum where it is partial in a way that the
/// receiver's own parse would not find.
pub fn interpret(
    vnet: &VnetHeader,
    packet: &mut [u8],
    inner: &Inner,
) -> Result<(Checksum, Segmentation), Malformed> {
    let checksum = if vnet.flags & NEEDS_CSUM == 0 {
        Checksum::Complete
    } else if inner.checksum_offset() == Some(vnet.csum_offset)
        && inner.transport == vnet.csum_start
    {
        Checksum::Partial
    } else {
        complete_elsewhere(vnet, packet)?;
        Checksum::Complete
    };
    let segmentation = match vnet.gso_type & !gso::ECN {
        gso::NONE => return Ok((checksum, Segmentation::None)),
        gso::TCPV4 if inner.is_ipv4() && inner.protocol == protocol::TCP => {
            Segmentation::Tcp(vnet.gso_size)
        }
        gso::TCPV6 if !inner.is_ipv4() && inner.protocol == protocol::TCP => {
            Segmentation::Tcp(vnet.gso_size)
        }
        gso::UDP_L4 if inner.protocol == protocol::UDP => Segmentation::Udp(vnet.gso_size),
        _ => return Err(Malformed),
    };
    let bad = vnet.gso_size == 0
        || checksum != Checksum::Partial
        || inner.fragment != Fragment::Whole
        || inner.payload >= inner.len
        || usize::from(inner.payload) > super::segment::MAX_HEADER;
    if bad { Err(Malformed) } else { Ok((checksum, segmentation)) }
}

/// Completes a checksum whose place is not the one of the outermost transport header: a container's
/// own tunnel, or a raw socket. The start is inside the packet and past its IP header.
fn complete_elsewhere(vnet: &VnetHeader, packet: &mut [u8]) -> Result<(), Malformed> {
    let start = usize::from(vnet.csum_start);
    let place = start + usize::from(vnet.csum_offset);
    if start < 20 || place + 2 > packet.len() {
        return Err(Malformed);
    }
    // The field holds the pseudo header's sum, which is part of what is summed.
    let sum = !checksum::fold(checksum::add_bytes(0, &packet[start..]));
    packet[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn tcp(payload: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 3], 64)
            .tcp(1, 2, 3, 4)
            .write(&mut packet, &vec![7; payload])
            .unwrap();
        packet
    }

    const TSO: VnetHeader = VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: gso::TCPV4,
        hdr_len: 40,
        gso_size: 1000,
        csum_start: 20,
        csum_offset: 16,
    };

    fn check(vnet: VnetHeader) -> Result<(Checksum, Segmentation), Malformed> {
        let mut packet = tcp(5000);
        let inner = Inner::parse(&packet).unwrap();
        interpret(&vnet, &mut packet, &inner)
    }

    #[test]
    fn a_fitting_header_is_taken() {
        assert_eq!(check(TSO), Ok((Checksum::Partial, Segmentation::Tcp(1000))));
        let ecn = VnetHeader { gso_type: gso::TCPV4 | gso::ECN, ..TSO };
        assert_eq!(check(ecn), Ok((Checksum::Partial, Segmentation::Tcp(1000))));
        let none = VnetHeader::default();
        assert_eq!(check(none), Ok((Checksum::Complete, Segmentation::None)));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for bad in [
            VnetHeader { gso_size: 0, ..TSO },
            VnetHeader { flags: 0, ..TSO },
            VnetHeader { gso_type: gso::TCPV6, ..TSO },
            VnetHeader { gso_type: gso::UDP_L4, ..TSO },
            VnetHeader { gso_type: 3, ..TSO },
            VnetHeader { csum_start: 5039, ..TSO },
            VnetHeader { csum_start: 19, ..TSO },
            VnetHeader { csum_offset: u16::MAX, ..TSO },
            VnetHeader { csum_start: 24, csum_offset: 12, ..TSO },
        ] {
            assert_eq!(check(bad), Err(Malformed), "{bad:?}");
        }
    }

    #[test]
    fn a_sum_at_another_place_is_completed() {
        let mut packet = tcp(100);
        let inner = Inner::parse(&packet).unwrap();
        let vnet =
            VnetHeader { flags: NEEDS_CSUM, csum_start: 60, csum_offset: 4, ..Default::default() };
        assert_eq!(
            interpret(&vnet, &mut packet, &inner),
            Ok((Checksum::Complete, Segmentation::None))
        );
        let mut zeroed = packet.clone();
        zeroed[64..66].copy_from_slice(&[7, 7]);
        let sum = !checksum::fold(checksum::add_bytes(0, &zeroed[60..]));
        assert_eq!(packet[64..66], sum.to_be_bytes());
    }
}
