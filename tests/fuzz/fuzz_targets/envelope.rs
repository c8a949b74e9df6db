//! The clear header and the sealed prefix: what is accepted is written back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use overlay::wire::envelope::{DataHeader, HEADER_LEN, Kind, PREFIX_LEN, Prefix};

fuzz_target!(|data: &[u8]| {
    let kind = Kind::of(data);
    if let Ok(header) = DataHeader::parse(data) {
        assert_eq!(kind, Ok(Kind::Data));
        assert_eq!(header.emit(), data[..HEADER_LEN]);
    }
    if let Some(bytes) = data.first_chunk::<PREFIX_LEN>()
        && let Ok(prefix) = Prefix::parse(*bytes)
    {
        assert_eq!(prefix.emit(), *bytes);
    }
});
