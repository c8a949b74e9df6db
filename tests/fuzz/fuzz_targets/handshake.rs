//! The three datagrams of a handshake and its payload: what is accepted is written back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use overlay::wire::handshake::{CookieReply, Initiation, Payload, Response};

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = Initiation::parse(data) {
        assert_eq!(message.emit(), data);
    }
    if let Ok(message) = Response::parse(data) {
        assert_eq!(message.emit(), data);
    }
    if let Ok(message) = CookieReply::parse(data) {
        assert_eq!(message.emit(), data);
    }
    if let Ok(payload) = Payload::parse(data) {
        assert_eq!(Payload::parse(&payload.emit()), Ok(payload));
    }
});
