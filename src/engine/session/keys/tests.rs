//! Both directions of one session against each other.

use super::*;
use crate::{
    types::Vni,
    wire::{
        envelope::{Checksum, NextProtocol},
        tests::golden,
    },
};

const START: Moment = Moment::from_nanos(0);

fn pair(cipher: Cipher, lanes: u8) -> (SendKey, ReceiveKey) {
    let send = SendKey::new(cipher, &[7; 32], 99, START).unwrap();
    let receive =
        ReceiveKey::new(cipher, &[7; 32], NodeId::from_u128(1), 99, lanes, START).unwrap();
    (send, receive)
}

fn sealed(send: &SendKey, lane: u8, payload: &[u8]) -> Vec<u8> {
    let vni = Vni::new(5).unwrap();
    let mut plain = Prefix { vni, next: NextProtocol::Ipv4(Checksum::Partial) }.emit().to_vec();
    plain.extend(payload);
    let mut out = vec![0; payload.len() + OVERHEAD];
    let counter = send.reserve(lane, 1, START).unwrap();
    send.seal(lane, counter, &plain, &mut out).unwrap();
    out
}

fn open(receive: &ReceiveKey, datagram: &[u8]) -> Result<Vec<u8>, OpenError> {
    let mut copy = datagram.to_vec();
    let header = DataHeader::parse(&copy).unwrap();
    receive.open(header, &mut copy, START).map(|opened| opened.inner.to_vec())
}

#[test]
fn what_is_sealed_opens_once() {
    for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
        let (send, receive) = pair(cipher, 4);
        for lane in 0..4 {
            let datagram = sealed(&send, lane, b"hello");
            assert_eq!(open(&receive, &datagram), Ok(b"hello".to_vec()));
            assert_eq!(open(&receive, &datagram), Err(OpenError::Replay));
        }
        assert_eq!((send.sealed(), receive.opened()), (4, 4));
    }
}

#[test]
fn a_bit_changed_anywhere_does_not_open_and_marks_nothing() {
    let (send, receive) = pair(Cipher::Aes256Gcm, 4);
    let datagram = sealed(&send, 0, b"hello");
    for place in 0..datagram.len() {
        let mut bent = datagram.clone();
        bent[place] ^= 0x10;
        let Ok(header) = DataHeader::parse(&bent) else { continue };
        let refused = receive.open(header, &mut bent, START).unwrap_err();
        let expected = if place == 2 { OpenError::Lane } else { OpenError::NotAuthentic };
        assert_eq!(refused, expected, "byte {place}");
    }
    assert_eq!(open(&receive, &datagram), Ok(b"hello".to_vec()));
}

#[test]
fn a_lane_beyond_the_stated_count_is_not_even_tried() {
    let (send, receive) = pair(Cipher::Aes256Gcm, 2);
    assert_eq!(open(&receive, &sealed(&send, 2, b"x")), Err(OpenError::Lane));
}

#[test]
fn an_old_key_neither_seals_nor_opens() {
    let (send, receive) = pair(Cipher::Aes256Gcm, 4);
    let mut datagram = sealed(&send, 0, b"x");
    let late = START + REJECT_AFTER;
    assert_eq!(send.reserve(0, 1, late), Err(SealError::Expired));
    let header = DataHeader::parse(&datagram).unwrap();
    assert_eq!(receive.open(header, &mut datagram, late).unwrap_err(), OpenError::Expired);
}

#[test]
fn a_counter_that_runs_out_seals_nothing_more() {
    let (send, _) = pair(Cipher::Aes256Gcm, 4);
    assert_eq!(send.reserve(0, LAST_COUNTER + 1, START), Ok(0));
    assert_eq!(send.reserve(0, 1, START), Err(SealError::Expired));
    assert_eq!(send.reserve(1, 1, START), Ok(0), "another lane has its own");
}

#[test]
fn a_key_that_failed_too_often_is_closed() {
    let (send, receive) = pair(Cipher::Aes256Gcm, 4);
    let datagram = sealed(&send, 0, b"x");
    receive.failures.store(MAX_FAILURES + 1, Ordering::Relaxed);
    assert_eq!(open(&receive, &datagram), Err(OpenError::NotAuthentic));
}

#[test]
fn the_two_ciphers_have_different_keys_and_the_room_must_fit() {
    let (send, _) = pair(Cipher::Aes256Gcm, 4);
    let (_, receive) = pair(Cipher::ChaCha20Poly1305, 4);
    assert_eq!(open(&receive, &sealed(&send, 0, b"x")), Err(OpenError::NotAuthentic));
    assert_eq!(send.seal(0, 0, &[0; 8], &mut [0; 8 + 31]), Err(SealError::Room));
    assert_eq!(send.seal(0, 0, &[0; 8], &mut [0; 10]), Err(SealError::Room));
}

#[test]
fn the_golden_datagram_is_sealed_and_opened() {
    let (datagram, plain) = (golden("data"), golden("data-opened"));
    let split: [u8; 32] = std::array::from_fn(|place| place as u8);
    let (index, lane, counter) = (0x0102_0304, 3, 0x0506_0708_090a_0b0c);
    let send = SendKey::new(Cipher::ChaCha20Poly1305, &split, index, START).unwrap();
    let mut out = vec![0; datagram.len()];
    send.seal(lane, counter, &plain, &mut out).unwrap();
    assert_eq!(out, datagram);
    let peer = NodeId::from_u128(1);
    let receive = ReceiveKey::new(Cipher::ChaCha20Poly1305, &split, peer, index, 4, START).unwrap();
    assert_eq!(open(&receive, &datagram), Ok(plain[PREFIX_LEN..].to_vec()));
}
