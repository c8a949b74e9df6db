//! The inner packet's parser, and everything that trusts what it says.
#![no_main]

#[path = "../bodies.rs"]
#[expect(dead_code, reason = "each target runs one of them")]
mod bodies;

libfuzzer_sys::fuzz_target!(init: {
    #[cfg(feature = "plant")]
    overlay::plant::set("index");
}, |data: &[u8]| bodies::inner(data));
