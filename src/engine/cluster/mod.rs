//! The manager's brain.
