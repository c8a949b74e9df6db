//! The log through its public face, on disks that cut power, tear writes, fail and decay: what was
//! acknowledged is there at the next start, or the start says why not. In `sim` it is one of several, with
//! agents and clients, under a time of their own.

mod damage;
mod disk;
mod faults;
mod powercut;
mod replicas;
mod sim;
mod speed;
mod workload;
