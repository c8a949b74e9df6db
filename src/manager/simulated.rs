//! The parts of a manager, for a test that puts several of them together in one process.

pub use super::{
    dispatch::{Ahead, Dispatcher, Due, SessionHandle},
    manager_key::ManagerKey,
    random::seeded,
    trust::Trust,
};
