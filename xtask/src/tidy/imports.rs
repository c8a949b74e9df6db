//! Who names whom. Every path of a file is looked at, also those written inline and inside macro
//! calls; each is made absolute with the `use` items, child modules, `self` and `super` of its
//! module, and then held against the table of [`super::layers`].
//!
//! Known limits: a re-export is judged where it is written, not where it is used, and `use` items
//! inside a function count for its whole module.

use std::collections::BTreeMap;

use proc_macro2::{TokenStream, TokenTree};
use syn::{spanned::Spanned, visit::Visit};

use super::{Finding, layers, source::Source, source::is_test};

/// A name in scope and the absolute path that it stands for; `crate` comes first in our own.
type Names = BTreeMap<String, Vec<String>>;

/// Lists what a file of `src` names but must not.
pub fn check(source: &Source) -> Vec<Finding> {
    let Some(home) = home(&source.path) else {
        return Vec::new();
    };
    let mut visitor = Imports {
        names: names(&source.syntax.items, &home.module),
        home,
        tests: usize::from(source.test_file),
        findings: Vec::new(),
        source,
    };
    visitor.visit_file(&source.syntax);
    visitor.findings
}

/// Where a file stands: its crate's root and its module, both as absolute paths.
struct Home {
    root: Vec<String>,
    module: Vec<String>,
}

fn home(path: &str) -> Option<Home> {
    let inner = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let mut module: Vec<String> = vec!["crate".into()];
    module.extend(inner.split('/').map(str::to_owned));
    if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
        module.pop();
    }
    let root_len = if module.get(1).is_some_and(|top| top == "bin") { 3 } else { 1 };
    let root = module.iter().take(root_len).cloned().collect();
    Some(Home { root, module })
}

struct Imports<'a> {
    source: &'a Source,
    home: Home,
    names: Names,
    tests: usize,
    findings: Vec<Finding>,
}

impl Imports<'_> {
    /// Makes a path absolute.
    fn resolve(&self, path: &[String]) -> Vec<String> {
        let mut path = path.to_vec();
        // Each round replaces the first name; a chain of aliases is short, a circle of them ends.
        for _ in 0..8 {
            let Some(first) = path.first().map(String::as_str) else { break };
            let front = match first {
                "crate" => {
                    path.splice(..1, self.home.root.iter().cloned());
                    break;
                }
                "overlay" => vec!["crate".to_owned()],
                "self" => self.home.module.clone(),
                "super" => {
                    let ups = path.iter().take_while(|name| *name == "super").count();
                    let keep = self.home.module.len().saturating_sub(ups).max(1);
                    path.splice(..ups, self.home.module[..keep].iter().cloned());
                    break;
                }
                name => match self.names.get(name) {
                    Some(full) if full.first().is_none_or(|start| start != name) => full.clone(),
                    Some(full) => {
                        path.splice(..1, full.iter().cloned());
                        break;
                    }
                    None => break,
                },
            };
            let absolute = front.first().is_some_and(|start| start == "crate");
            path.splice(..1, front);
            if absolute {
                break;
            }
        }
        path
    }

    /// Judges one use of a path.
    fn used(&mut self, path: &[String], glob: bool, line: usize) {
        if path.first().is_none_or(|first| first == "Self") {
            return;
        }
        let path = self.resolve(path);
        let Some(own) = self.home.module.get(1) else { return };
        let Some(layer) = layers::layer(own) else {
            self.report(1, format!("the module `{own}` has no row in the import table"));
            return;
        };
        let shown = path.join("::");
        if path[0] == "crate" {
            match path.get(1) {
                Some(target) if target == own || layer.may.contains(&target.as_str()) => {}
                Some(target) if layers::layer(target).is_none() => {
                    self.report(
                        line,
                        format!("`{shown}`: `{target}` is no module of the import table"),
                    );
                }
                Some(target) => {
                    self.report(line, format!("`{own}` must not import `{target}`: {shown}"))
                }
                None if glob => {
                    self.report(line, format!("`{own}` must not import everything: {shown}::*"))
                }
                None => {}
            }
        } else if self.tests == 0
            && let Some(outside) = layer.never.iter().find(|outside| outside.holds(&path, glob))
        {
            self.report(line, format!("`{own}` must not use {}: {shown}", outside.what));
        }
    }

    fn report(&mut self, line: usize, text: String) {
        let finding = self.source.finding(line, text);
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// Takes the paths out of tokens that no parser looked into: the arguments of macros.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut line = 0;
        let mut colons = 0;
        for token in tokens {
            match &token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.flush(&mut path, line);
                    }
                    line = ident.span().start().line;
                    path.push(ident.to_string());
                    colons = 0;
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.flush(&mut path, line);
                    self.tokens(group.stream());
                    colons = 0;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.flush(&mut path, line);
                    colons = 0;
                }
            }
        }
        self.flush(&mut path, line);
    }

    fn flush(&mut self, path: &mut Vec<String>, line: usize) {
        if path.len() > 1 || path.first().is_some_and(|word| word == "async") {
            self.used(path, false, line);
        }
        path.clear();
    }

    fn within(&mut self, attrs: &[syn::Attribute], visit: impl FnOnce(&mut Self)) {
        let test = usize::from(is_test(attrs));
        self.tests += test;
        visit(self);
        self.tests -= test;
    }
}

impl<'ast> Visit<'ast> for Imports<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let Some((_, items)) = &item.content else { return };
        self.within(&item.attrs, |this| {
            this.home.module.push(item.ident.to_string());
            let inner = names(items, &this.home.module);
            let outer = std::mem::replace(&mut this.names, inner);
            for item in items {
                this.visit_item(item);
            }
            this.names = outer;
            this.home.module.pop();
        });
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.within(&item.attrs, |this| syn::visit::visit_item_fn(this, item));
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.within(&item.attrs, |this| syn::visit::visit_item_impl(this, item));
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.within(&item.attrs, |this| {
            for leaf in leaves(&item.tree) {
                this.used(&leaf.path, leaf.glob, leaf.line);
            }
        });
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let words: Vec<String> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        // A single word that nothing brought into scope is a local one.
        if words.len() > 1 || self.names.contains_key(&words[0]) {
            self.used(&words, false, path.span().start().line);
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let words: Vec<String> =
            call.path.segments.iter().map(|part| part.ident.to_string()).collect();
        self.used(&words, false, call.path.span().start().line);
        self.tokens(call.tokens.clone());
        syn::visit::visit_macro(self, call);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        if call.args.is_empty() && call.method == "elapsed" {
            let path = ["std::time::Instant".to_owned(), "elapsed".to_owned()];
            self.used(&path, false, call.method.span().start().line);
        }
        syn::visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_async(&mut self, block: &'ast syn::ExprAsync) {
        self.used(&["async".to_owned()], false, block.span().start().line);
        syn::visit::visit_expr_async(self, block);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        if let Some(word) = &signature.asyncness {
            self.used(&["async".to_owned()], false, word.span().start().line);
        }
        syn::visit::visit_signature(self, signature);
    }
}

/// One name that a `use` item brings.
struct Leaf {
    path: Vec<String>,
    name: Option<String>,
    glob: bool,
    line: usize,
}

fn leaves(tree: &syn::UseTree) -> Vec<Leaf> {
    let line = tree.span().start().line;
    let leaf = |path, name, glob| vec![Leaf { path, name, glob, line }];
    match tree {
        syn::UseTree::Path(part) => {
            let mut inner = leaves(&part.tree);
            for leaf in &mut inner {
                leaf.path.insert(0, part.ident.to_string());
                // `use a::b::{self}` names `a::b`.
                if leaf.path.len() == 2 && leaf.path[1] == "self" {
                    leaf.path.pop();
                    if leaf.name.as_deref() == Some("self") {
                        leaf.name = Some(part.ident.to_string());
                    }
                }
            }
            inner
        }
        syn::UseTree::Name(name) => {
            let name = name.ident.to_string();
            leaf(vec![name.clone()], Some(name), false)
        }
        syn::UseTree::Rename(rename) => {
            leaf(vec![rename.ident.to_string()], Some(rename.rename.to_string()), false)
        }
        syn::UseTree::Glob(_) => leaf(Vec::new(), None, true),
        syn::UseTree::Group(group) => group.items.iter().flat_map(leaves).collect(),
    }
}

/// Collects what the `use` items and child modules of one module bring into scope.
fn names(items: &[syn::Item], module: &[String]) -> Names {
    struct Collect<'a> {
        names: Names,
        module: &'a [String],
    }
    impl<'ast> Visit<'ast> for Collect<'_> {
        fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
            let mut path = self.module.to_vec();
            path.push(item.ident.to_string());
            self.names.insert(item.ident.to_string(), path);
        }
        fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
            for leaf in leaves(&item.tree) {
                if let Some(name) = leaf.name {
                    self.names.insert(name, leaf.path);
                }
            }
        }
        fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
            if let Some((_, name)) = &item.rename {
                self.names.insert(name.to_string(), vec![item.ident.to_string()]);
            }
        }
    }
    let mut collect = Collect { names: Names::new(), module };
    for item in items {
        collect.visit_item(item);
    }
    collect.names
}
