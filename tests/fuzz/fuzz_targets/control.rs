//! Control messages: what is accepted is written back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use overlay::wire::control::{Control, MAX_LEN};

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = Control::parse(data) {
        let mut out = [0; MAX_LEN];
        let len = message.emit(&mut out);
        assert_eq!(out[..len], *data);
    }
});
