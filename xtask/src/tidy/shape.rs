//! What holds for each file by itself: a `//!` on top, its length, the length of its functions,
//! where `unsafe` may be, and no way around the tree (`#[path]`, `include!`).

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::{spanned::Spanned, visit::Visit};

use super::{
    Finding,
    source::{Source, is_test},
};

/// Lines of a file, its tests left out.
const FILE_LINES: usize = 800;
/// Lines of a file that is all tests.
const TEST_FILE_LINES: usize = 1_500;
/// Lines of a function.
const FUNCTION_LINES: usize = 80;

/// Lists what is wrong with a file's shape.
pub fn check(source: &Source) -> Vec<Finding> {
    let mut shape =
        Shape { source, tests: usize::from(source.test_file), test_lines: 0, findings: Vec::new() };
    let first = source.text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if !first.starts_with("//!") {
        shape.report(1, "the file does not open with `//!`: say what it guarantees".into());
    }
    shape.visit_file(&source.syntax);
    let lines = source.text.lines().count() - shape.test_lines;
    let limit = if source.test_file { TEST_FILE_LINES } else { FILE_LINES };
    if lines > limit {
        shape.report(1, format!("{lines} lines, at most {limit}: it is two things"));
    }
    shape.findings
}

struct Shape<'a> {
    source: &'a Source,
    tests: usize,
    test_lines: usize,
    findings: Vec<Finding>,
}

impl Shape<'_> {
    fn report(&mut self, line: usize, text: String) {
        self.findings.push(self.source.finding(line, text));
    }

    fn unsafe_at(&mut self, span: Span) {
        let path = &self.source.path;
        if path.starts_with("src/") && !path.starts_with("src/sys/") {
            self.report(span.start().line, "`unsafe` outside of `src/sys`".into());
        }
    }

    fn function(&mut self, attrs: &[syn::Attribute], signature: &syn::Signature, end: Span) {
        if let Some(word) = &signature.unsafety {
            self.unsafe_at(word.span());
        }
        let lines = lines(signature.span(), end);
        if self.tests == 0 && !is_test(attrs) && lines > FUNCTION_LINES {
            let name = &signature.ident;
            let text = format!("`{name}` has {lines} lines, at most {FUNCTION_LINES}");
            self.report(signature.span().start().line, text);
        }
    }

    fn tokens(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Ident(word) if word == "unsafe" || word == "unsafe_code" => {
                    self.unsafe_at(word.span());
                }
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Shape<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let test = is_test(&item.attrs);
        if test && self.tests == 0 && item.content.is_some() {
            self.test_lines += lines(item.span(), item.span());
        }
        self.tests += usize::from(test);
        syn::visit::visit_item_mod(self, item);
        self.tests -= usize::from(test);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.attrs, &item.sig, item.block.span());
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.attrs, &item.sig, item.block.span());
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        let end = item.default.as_ref().map_or(item.sig.span(), Spanned::span);
        self.function(&item.attrs, &item.sig, end);
        syn::visit::visit_trait_item_fn(self, item);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.unsafe_at(block.unsafe_token.span());
        syn::visit::visit_expr_unsafe(self, block);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if let Some(word) = &item.unsafety {
            self.unsafe_at(word.span());
        }
        syn::visit::visit_item_impl(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        if let Some(word) = &item.unsafety {
            self.unsafe_at(word.span());
        }
        syn::visit::visit_item_trait(self, item);
    }

    fn visit_item_foreign_mod(&mut self, item: &'ast syn::ItemForeignMod) {
        self.unsafe_at(item.span());
        syn::visit::visit_item_foreign_mod(self, item);
    }

    fn visit_attribute(&mut self, attr: &'ast syn::Attribute) {
        // A test program has no other way to share a file with one of another package.
        if attr.path().is_ident("path") && !self.source.path.starts_with("tests/") {
            self.report(attr.span().start().line, "`#[path]` hides where a module lies".into());
        }
        if let syn::Meta::List(list) = &attr.meta {
            self.tokens(list.tokens.clone());
        }
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        if call.path.segments.last().is_some_and(|part| part.ident == "include")
            && !self.generated(call)
        {
            self.report(call.span().start().line, "`include!` hides code from this check".into());
        }
        self.tokens(call.tokens.clone());
    }
}

impl Shape<'_> {
    /// What a build script generated lies in `OUT_DIR` and nowhere in the tree.
    fn generated(&self, call: &syn::Macro) -> bool {
        call.tokens.to_string().contains("OUT_DIR")
    }
}

fn lines(start: Span, end: Span) -> usize {
    end.end().line - start.start().line + 1
}
