//! One peer's session.
