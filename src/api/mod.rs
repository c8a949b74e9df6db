//! What processes agree on.
