//! One planted violation per rule, found; what is allowed, not found; the present tree, clean.

use super::*;

/// Checks one file below `//!` and compares what the findings say.
#[track_caller]
fn check(path: &str, code: &str, expected: &[&str]) {
    let found = file(path, format!("//! Planted.\n{code}")).expect("it parses");
    let texts: Vec<&str> = found.iter().map(|finding| finding.text.as_str()).collect();
    assert_eq!(texts, expected, "{path}: {code}");
}

#[test]
fn the_tree_is_clean() {
    let findings = tree(workspace::root()).unwrap();
    let shown: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(shown.is_empty(), "{}", shown.join("\n"));
}

#[test]
fn every_arrow_that_the_table_lacks_is_found() {
    for from in layers::LAYERS {
        for to in layers::LAYERS {
            let code = format!("use overlay::{}::Thing;", to.module);
            let path = format!("src/{}/planted.rs", from.module);
            if from.module == to.module || from.may.contains(&to.module) {
                check(&path, &code, &[]);
            } else {
                let text = format!(
                    "`{}` must not import `{}`: crate::{}::Thing",
                    from.module, to.module, to.module
                );
                check(&path, &code, &[&text]);
            }
        }
    }
}

#[test]
fn a_path_is_followed_however_it_is_written() {
    let agent = "`engine` must not import `agent`: crate::agent::Link";
    for code in [
        "use crate::agent::Link;",
        "use crate::{types, agent::{self, Link}};\nfn f() { let _: Link; }",
        "use crate::agent as helpers;\nfn f() -> helpers::Link { todo() }",
        "use crate as root;\nfn f(link: root::agent::Link) {}",
        "use super::super::super::agent::Link;",
        "fn f() { let _ = super::super::super::agent::Link; }",
        "fn f() { x!(a, crate::agent::Link) }",
        "fn f() { use crate::agent; agent::Link }",
        "mod inner { use super::super::super::super::agent::Link; }",
        "#[cfg(test)] mod tests { use crate::agent::Link; }",
    ] {
        let found = file("src/engine/datapath/nat.rs", format!("//! Planted.\n{code}")).unwrap();
        assert!(found.iter().any(|finding| finding.text == agent), "{code}: {found:?}");
    }
    let all = "`engine` must not import everything: crate::*";
    check("src/engine/nat.rs", "use crate::*;", &[all]);
    check("src/engine/nat.rs", "use super::super::*;", &[all]);
    check(
        "src/engine/nat.rs",
        "use crate::other::Thing;",
        &["`crate::other::Thing`: `other` is no module of the import table"],
    );
    check(
        "src/other/mod.rs",
        "use std::fmt;",
        &["the module `other` has no row in the import table"],
    );
    check("src/bin/overlayd.rs", "use crate::agent;\nmod agent;", &[]);
}

#[test]
fn engine_stays_pure() {
    for (code, what, path) in [
        ("fn f() { std::time::Instant::now(); }", "a clock", "std::time::Instant::now"),
        (
            "use std::time; fn f() { time::SystemTime::now(); }",
            "a clock",
            "std::time::SystemTime::now",
        ),
        ("use std::time::Instant as I; fn f() { g(I::now) }", "a clock", "std::time::Instant::now"),
        ("use std::time::*; fn f() { Instant::now(); }", "a clock", "Instant::now"),
        ("fn f() { vec![std::time::Instant::now()]; }", "a clock", "std::time::Instant::now"),
        ("fn f(t: T) { t.elapsed(); }", "a clock", "std::time::Instant::elapsed"),
        ("use tokio::sync::mpsc;", "async code", "tokio::sync::mpsc"),
        ("async fn f() {}", "async code", "async"),
        ("fn f() { async {}; }", "async code", "async"),
        ("use std::net::{IpAddr, UdpSocket};", "sockets", "std::net::UdpSocket"),
        ("use std::net::*;", "sockets", "std::net"),
        ("use libc::c_int;", "sockets", "libc::c_int"),
        ("fn f() { std::fs::read(p); }", "files, processes or the environment", "std::fs::read"),
        ("use std::{env, fmt};", "files, processes or the environment", "std::env"),
        ("use std::thread::spawn;", "threads", "std::thread::spawn"),
        ("use rand::Rng;", "a random source", "rand::Rng"),
        ("use aws_lc_rs::rand::fill;", "a random source", "aws_lc_rs::rand::fill"),
        ("use std::hash::RandomState;", "a random source", "std::hash::RandomState"),
        ("fn f() { println!(\"x\"); }", "logging", "println"),
        ("fn f() { tracing::info!(\"x\"); }", "logging", "tracing::info"),
    ] {
        for module in ["engine", "wire", "types"] {
            let text = format!("`{module}` must not use {what}: {path}");
            check(&format!("src/{module}/planted.rs"), code, &[&text]);
        }
        check("src/agent/planted.rs", code, &[]);
        check("src/engine/planted.rs", &format!("#[cfg(test)] mod tests {{ {code} }}"), &[]);
        check("src/engine/planted/tests.rs", code, &[]);
    }
    for allowed in [
        "use std::net::IpAddr;",
        "use std::time::{Duration, Instant}; fn f(now: Instant) -> Instant { now + g() }",
        "use super::table::*; fn f() { self::f(); Self::now(); }",
        "fn f() { let log = 1; let rand = log; }",
    ] {
        check("src/engine/planted.rs", allowed, &[]);
    }
}

#[test]
fn unsafe_is_only_in_sys() {
    for code in [
        "fn f() { unsafe { g() } }",
        "unsafe fn f() {}",
        "unsafe impl Send for X {}",
        "unsafe trait T {}",
        "impl X { unsafe fn f() {} }",
        "fn f() { x!(unsafe { g() }); }",
        "#[allow(unsafe_code)] fn f() {}",
    ] {
        check("src/io/tun.rs", code, &["`unsafe` outside of `src/sys`"]);
        check("src/sys/tun.rs", code, &[]);
    }
}

#[test]
fn files_open_with_what_they_guarantee() {
    let found = file("src/io/tun.rs", "use std::fmt;\n//! late".replace("//! late", "")).unwrap();
    assert_eq!(found[0].text, "the file does not open with `//!`: say what it guarantees");
    assert!(file("xtask/src/x.rs", "\n//! Good.\n".into()).unwrap().is_empty());
}

#[test]
fn files_and_functions_have_a_length() {
    let line = "const A: u8 = 1;\n";
    check("src/io/tun.rs", &line.repeat(799), &[]);
    check("src/io/tun.rs", &line.repeat(800), &["801 lines, at most 800: it is two things"]);
    let tests = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", line.repeat(799), line.repeat(500));
    check("src/io/tun.rs", &tests, &[]);
    check("src/io/tun/tests.rs", &line.repeat(1499), &[]);
    check("tests/wire.rs", &line.repeat(1500), &["1501 lines, at most 1500: it is two things"]);

    let function = |lines: usize| format!("fn long() {{\n{}}}\n", "g();\n".repeat(lines - 2));
    let text = "`long` has 81 lines, at most 80";
    check("src/io/tun.rs", &function(80), &[]);
    check("src/io/tun.rs", &function(81), &[text]);
    check("src/io/tun.rs", &format!("impl X {{ {} }}", function(81)), &[text]);
    check("src/io/tun.rs", &format!("trait X {{ {} }}", function(81)), &[text]);
    check("src/io/tun.rs", &format!("#[test]\n{}", function(81)), &[]);
    check("src/io/tun.rs", &format!("#[cfg(test)] mod tests {{ {} }}", function(81)), &[]);
}

#[test]
fn nothing_goes_around_the_tree() {
    check(
        "src/io/mod.rs",
        "#[path = \"../x.rs\"] mod x;",
        &["`#[path]` hides where a module lies"],
    );
    check("tests/x/main.rs", "#[path = \"../x.rs\"] mod x;", &[]);
    check("src/io/mod.rs", "include!(\"x.rs\");", &["`include!` hides code from this check"]);
    check("src/api/mod.rs", "include!(concat!(env!(\"OUT_DIR\"), \"/x.rs\"));", &[]);
}
