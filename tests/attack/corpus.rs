//! The corpus of the fuzz targets, fed through the same functions without a fuzzer.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

#[path = "../fuzz/bodies.rs"]
mod bodies;

/// What a target does with its input.
type Body = fn(&[u8]);

/// Each target with the function that it runs.
const TARGETS: [(&str, Body); 5] = [
    ("control", bodies::control),
    ("envelope", bodies::envelope),
    ("handshake", bodies::handshake),
    ("inner", bodies::inner),
    ("managers", bodies::managers),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

/// Reads the corpus of a target, by name.
fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = folder().join("corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let files = entries.map(|entry| {
        let entry = entry.expect("an entry");
        let bytes = fs::read(entry.path()).expect("a file of the corpus");
        (entry.file_name().into_string().expect("a plain name"), bytes)
    });
    files.collect()
}

/// No input of the corpus makes a target panic, and every target has a corpus.
pub fn corpus_is_replayed() {
    let mut targets: Vec<String> = fs::read_dir(folder().join("fuzz_targets"))
        .expect("the targets")
        .map(|entry| {
            entry.expect("an entry").path().file_stem().expect("a name").display().to_string()
        })
        .collect();
    targets.sort();
    assert_eq!(targets, TARGETS.map(|(name, _)| name), "every target is replayed");
    for (target, body) in TARGETS {
        let inputs = corpus(target);
        assert!(!inputs.is_empty(), "{target} has a corpus");
        for (name, bytes) in &inputs {
            println!("{target}/{name}");
            body(bytes);
        }
    }
}
