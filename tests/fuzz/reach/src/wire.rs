//! The parsers of the package, compiled into this program so that nothing else is instrumented.

#[path = "../../../../src/wire/checksum.rs"]
pub mod checksum;
#[path = "../../../../src/wire/control.rs"]
pub mod control;
#[path = "../../../../src/wire/envelope.rs"]
pub mod envelope;
#[path = "../../../../src/wire/fragment.rs"]
pub mod fragment;
#[path = "../../../../src/wire/handshake.rs"]
pub mod handshake;
#[path = "../../../../src/wire/inner.rs"]
pub mod inner;
#[path = "../../../../src/wire/vnet.rs"]
pub mod vnet;
