//! One source file, read and parsed.

use anyhow::Context;

use super::Finding;

/// A parsed file.
pub struct Source {
    /// Its path from the workspace's folder, with `/`.
    pub path: String,
    /// Its text.
    pub text: String,
    /// Its syntax tree.
    pub syntax: syn::File,
    /// Whether all of it is test code.
    pub test_file: bool,
}

impl Source {
    /// Parses a file's text.
    pub fn parse(path: &str, text: String) -> anyhow::Result<Self> {
        let syntax = syn::parse_file(&text).with_context(|| format!("parse {path}"))?;
        let test_file =
            path.starts_with("tests/") || path.ends_with("/tests.rs") || path.contains("/tests/");
        Ok(Self { path: path.to_owned(), text, syntax, test_file })
    }

    /// Makes a finding at a line of this file.
    pub fn finding(&self, line: usize, text: String) -> Finding {
        Finding { path: self.path.clone(), line, text }
    }
}

/// Returns whether attributes make an item part of the tests: `#[test]` and its like, `#[cfg(test)]`.
pub fn is_test(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|attr| match &attr.meta {
        syn::Meta::List(list) if list.path.is_ident("cfg") => {
            let words: Vec<String> =
                list.tokens.clone().into_iter().map(|token| token.to_string()).collect();
            words.first().is_some_and(|word| word == "test")
        }
        meta => meta.path().segments.last().is_some_and(|part| part.ident == "test"),
    })
}
