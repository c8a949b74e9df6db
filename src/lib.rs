//! The map of the overlay network.
//!
//! | folder | what it is |
//! |---|---|
//! | [`types`] | vocabulary: ids, objects, counters, drop reasons |
//! | [`wire`] | bytes <-> values: inner packet, envelope, handshake, control messages, ICMP. Never panics on input |
//! | [`engine`] | decisions, pure: no socket, clock, disk, thread or random source |
//! | [`sys`] | the only `unsafe`: system calls that no crate offers safely |
//! | [`io`] | kernel handles in safe form: TUN, UDP, netlink, namespaces |
//! | [`executor`] | tasks that are processes of the node: their supervisors, and what tells those |
//! | [`api`] | what processes agree on: `.proto`, generated types, client |
//! | [`agent`] | the shell of a node: forwarder threads, sessions thread, link to a manager, local API |
//! | [`manager`] | the shell of a manager: log, trust, control API, dispatch |
//! | [`cli`] | `overlayctl` |
//! | [`config`] | the settings of `overlayd` |
//!
//! `cargo xtask tidy` holds the table of who may import whom.
//!
//! # A packet
//! ```text
//! out: container -> TUN -> agent::worker reads a super-packet -> wire::inner parses it once
//!      -> engine::datapath decides -> engine::session seals every segment into the arena -> one sendmsg with UDP_SEGMENT
//! in:  UDP_GRO train -> wire::envelope -> engine::session opens, replay window -> engine::datapath: inner source check
//!      -> segments of one flow become one super-packet -> writev to the TUN
//! ```
//!
//! # A control update
//! ```text
//! overlayctl -> local API of the agent -> manager: authorise, propose -> log -> engine::cluster applies
//!      -> dispatcher: for each node what it must know -> stream -> engine::membership table -> new snapshot for the workers
//! ```
//!
//! # Invariants
//! * A sealed network's packet never leaves in clear: there is no code path that would.
//! * `engine` computes; `sys` and `io` touch the kernel; `agent` and `manager` connect the two.
//! * Every packet that is not forwarded has a [`types::DropReason`].

pub mod agent;
pub mod api;
pub mod cli;
pub mod config;
pub mod engine;
pub mod executor;
pub mod io;
pub mod manager;
#[cfg(feature = "plant")]
pub mod plant;
pub mod sys;
pub mod types;
pub mod wire;
