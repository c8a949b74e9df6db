//! The import table: which top-level module of `src` may name which, and what of the outside it
//! must not name. Moving a wall means changing this table, the tree and the map in `src/lib.rs`.

/// Things of the outside that belong together.
pub struct Outside {
    /// What they are called in a finding.
    pub what: &'static str,
    /// Paths; each stands for itself and everything below it. `*::x` is any path that ends in `x`.
    pub paths: &'static [&'static str],
}

/// One row of the table.
pub struct Layer {
    /// The top-level module.
    pub module: &'static str,
    /// The other top-level modules that it may name.
    pub may: &'static [&'static str],
    /// What of the outside it must not name, outside of tests.
    pub never: &'static [&'static Outside],
}

const fn row(
    module: &'static str,
    may: &'static [&'static str],
    never: &'static [&'static Outside],
) -> Layer {
    Layer { module, may, never }
}

/// The table.
#[rustfmt::skip]
pub const LAYERS: &[Layer] = &[
    //  module     may import                                             never
    row("types",   &[],                                                   PURE),
    row("wire",    &["types", "plant"],                                   PURE),
    row("engine",  &["types", "wire", "plant"],                           PURE),
    row("sys",     &[],                                                   &[]),
    row("io",      &["types", "sys"],                                     &[]),
    row("executor", &["types", "sys", "io"],                              &[]),
    row("api",     &["types"],                                            &[]),
    row("agent",   &["engine", "wire", "io", "executor", "api", "types", "plant"], &[]),
    row("manager", &["engine", "io", "api", "types", "plant"],            &[]),
    row("cli",     &["api", "types", "sys"],                              &[]),
    row("plant",   &[],                                                   &[]),
    row("config",  &["types"],                                            &[]),
    row("bin",     &["agent", "manager", "executor", "cli", "config"],    &[]),
];

/// What decides gets from its caller instead of asking for it.
const PURE: &[&Outside] = &[&RUNTIME, &CLOCKS, &SOCKETS, &FILES, &THREADS, &RANDOM, &LOGGING];

const RUNTIME: Outside = Outside {
    what: "async code",
    paths: &[
        "async",
        "tokio",
        "futures_util",
        "futures",
        "tonic",
        "tower",
        "hyper_util",
        "bollard",
    ],
};

const CLOCKS: Outside = Outside { what: "a clock", paths: &["*::now", "*::elapsed"] };

const SOCKETS: Outside = Outside {
    what: "sockets",
    paths: &[
        "std::net::TcpStream",
        "std::net::TcpListener",
        "std::net::UdpSocket",
        "std::net::ToSocketAddrs",
        "std::os",
        "rustix",
        "libc",
        "rtnetlink",
        "tun_tap",
    ],
};

const FILES: Outside = Outside {
    what: "files, processes or the environment",
    paths: &[
        "std::fs",
        "std::io::stdin",
        "std::io::stdout",
        "std::io::stderr",
        "std::process",
        "std::env",
    ],
};

const THREADS: Outside = Outside { what: "threads", paths: &["std::thread", "std::sync::mpsc"] };

const RANDOM: Outside = Outside {
    what: "a random source",
    paths: &[
        "rand",
        "rand_core",
        "getrandom",
        "aws_lc_rs::rand",
        "std::hash::RandomState",
        "std::collections::hash_map::RandomState",
        "*::generate",
    ],
};

const LOGGING: Outside = Outside {
    what: "logging",
    paths: &["tracing", "log", "println", "eprintln", "print", "eprint", "dbg"],
};

/// Returns the row of a module.
pub fn layer(module: &str) -> Option<&'static Layer> {
    LAYERS.iter().find(|layer| layer.module == module)
}

impl Outside {
    /// Returns whether using `path` means using one of these; a glob also uses what is below it.
    pub fn holds(&self, path: &[String], glob: bool) -> bool {
        let joined = path.join("::");
        self.paths.iter().any(|entry| match entry.strip_prefix("*::") {
            Some(last) => path.len() > 1 && path.last().is_some_and(|name| name == last),
            None => below(&joined, entry) || (glob && below(entry, &joined)),
        })
    }
}

fn below(path: &str, entry: &str) -> bool {
    path.strip_prefix(entry).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}
