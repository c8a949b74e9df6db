//! What happens to a packet: one parsed packet in, one verdict out, from immutable tables.
//!
//! | file | what |
//! |---|---|
//! | `tables` | the snapshot that verdicts are read from, and the two questions: outbound, inbound |
//! | `offload` | what a virtio_net_hdr from a container may mean |
//! | `segment` | a super-packet becomes packets, headers stamped in front of the payload where it lies |
//! | `coalesce` | consecutive packets of a flow become a super-packet, payload where it lies |
//! | `fragment` | a packet that is longer than its path's datagrams carry becomes pieces |
//! | `reassembly` | pieces become packets again |
//! | `mss` | the clamp of TCP's maximum segment size |

pub mod coalesce;
pub mod fragment;
pub mod mss;
pub mod offload;
pub mod reassembly;
pub mod segment;
mod tables;

pub use tables::{MIN_INNER_MTU, PeerRoute, PortId, Reply, Tables, Verdict, inner_mtu};
