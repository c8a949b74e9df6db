//! `overlayctl`.
