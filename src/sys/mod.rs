//! System calls that no crate offers safely; the only place of `unsafe`.
#![allow(unsafe_code)]
