//! The inner packet's parser, and everything that trusts what it says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use overlay::{
    engine::datapath::{
        coalesce::Run,
        mss,
        offload::{self, Segmentation},
        segment::{MAX_HEADER, Segments},
    },
    wire::{
        checksum,
        envelope::Checksum,
        icmp::{self, IcmpError},
        inner::Inner,
        vnet::VnetHeader,
    },
};

fuzz_target!(init: {
    #[cfg(feature = "plant")]
    overlay::plant::set("index");
}, |data: &[u8]| {
    let Some((header, bytes)) = data.split_first_chunk() else { return };
    let mut packet = bytes.to_vec();
    let Ok(inner) = Inner::parse(&packet) else { return };
    let _ = inner.flow_hash();
    let mut out = vec![0; 70_000];
    icmp::echo_reply(&packet, &inner, &mut out);
    icmp::error(IcmpError::TooBig { mtu: 1280 }, inner.destination, &packet, &inner, &mut out);
    mss::clamp(&mut packet.clone(), &inner, Checksum::Complete, 1280);
    checksum::complete(&mut packet.clone(), &inner);
    let vnet = VnetHeader::parse(header);
    if let Ok((sum, how)) = offload::interpret(&vnet, &mut packet, &inner) {
        cut_and_join(&mut packet, &inner, sum, how);
    }
});

/// Every cut packet is one that the parser takes, and joining takes what it may.
fn cut_and_join(packet: &mut [u8], inner: &Inner, sum: Checksum, how: Segmentation) {
    let mut template = [0; MAX_HEADER];
    let Some(mut segments) = Segments::new(&mut template, packet, inner, how) else { return };
    let mut run: Option<(Run, Vec<u8>)> = None;
    while let Some(range) = segments.next(packet) {
        let one = packet[range].to_vec();
        let parsed = Inner::parse(&one).expect("a cut packet is a packet");
        match &mut run {
            Some((run, first)) => {
                run.append(first, &one, &parsed, sum);
            }
            None => run = Some((Run::start(&one, &parsed, sum), one)),
        }
    }
    if let Some((run, mut first)) = run {
        run.finish(&mut first);
    }
}
