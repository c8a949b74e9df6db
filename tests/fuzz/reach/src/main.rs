//! Whether the corpus reaches every branch of the parsers in `src/wire`: `replay` runs the parsers,
//! which the compiler has instrumented, on every file; `report` lists the regions of code that no
//! file reached and the conditions that were only ever true, or only ever false.
//!
//! `cargo xtask fuzz --coverage` runs both.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use llvm_profparser::{
    Counter, CounterMappingRegion, CounterType, CoverageMapping, ExprKind, Expression, RegionKind,
};

use self::wire::{
    control::{self, Control},
    envelope::{DataHeader, Kind, PREFIX_LEN, Prefix},
    fragment::FragmentHeader,
    handshake::{CookieReply, Initiation, Payload, Response},
    inner::Inner,
    vnet,
};

#[allow(dead_code, unused_imports, reason = "only the parsers' vocabulary is needed")]
#[path = "../../../../src/types/mod.rs"]
mod types;

#[allow(dead_code, reason = "only what parses is measured")]
mod wire;

/// The files that are measured.
const MEASURED: [&str; 5] = [
    "wire/control.rs",
    "wire/envelope.rs",
    "wire/fragment.rs",
    "wire/handshake.rs",
    "wire/inner.rs",
];

/// Lines with a region that no input can reach, each with the reason.
const UNREACHABLE: [(&str, &str); 3] = [
    // An array of at least 60 bytes has a first chunk of 16.
    ("wire/handshake.rs", "datagram.first_chunk().ok_or(Malformed)?"),
    // Both families' parsers have made sure that the transport header starts inside the packet.
    ("wire/inner.rs", "packet.get(usize::from(self.transport)..).ok_or(InnerError::Length)?"),
    // Both addresses come from one header.
    ("wire/inner.rs", "(IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) =>"),
];

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["replay", corpus] => replay(Path::new(corpus)).map(|()| ExitCode::SUCCESS),
        ["report", profile] => report(Path::new(profile)),
        _ => bail!("say 'replay CORPUS' or 'report PROFILE'"),
    }
}

fn replay(corpus: &Path) -> anyhow::Result<()> {
    for (target, parse) in [
        ("control", parse_control as fn(&[u8])),
        ("envelope", parse_envelope),
        ("handshake", parse_handshake),
        ("inner", parse_inner),
    ] {
        let folder = corpus.join(target);
        let entries =
            fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
        for entry in entries {
            parse(&fs::read(entry?.path())?);
        }
    }
    Ok(())
}

fn parse_control(data: &[u8]) {
    if let Ok(message) = Control::parse(data) {
        message.emit(&mut [0; control::MAX_LEN]);
    }
}

fn parse_envelope(data: &[u8]) {
    let _ = Kind::of(data).map(Kind::first_byte);
    let _ = DataHeader::parse(data).map(|header| (header.emit(), header.nonce()));
    if let Some(bytes) = data.first_chunk::<PREFIX_LEN>() {
        let _ = Prefix::parse(*bytes).map(Prefix::emit);
    }
    let _ = FragmentHeader::parse(data).map(|(header, _)| header.emit());
}

fn parse_handshake(data: &[u8]) {
    let _ = Initiation::parse(data).map(|message| message.emit());
    let _ = Response::parse(data).map(|message| message.emit());
    let _ = CookieReply::parse(data).map(|message| message.emit());
    let _ = Payload::parse(data).map(|payload| payload.emit());
}

fn parse_inner(data: &[u8]) {
    let Some((_, packet)) = data.split_first_chunk::<{ vnet::LEN }>() else { return };
    if let Ok(inner) = Inner::parse(packet) {
        let _ = (inner.flow_hash(), inner.checksum_offset(), inner.is_ipv4());
    }
}

/// A place in a file, as (file, line, column, line, column).
type Place = (PathBuf, usize, usize, usize, usize);

fn report(profile: &Path) -> anyhow::Result<ExitCode> {
    let profile = llvm_profparser::parse(profile)?;
    let program = [std::env::current_exe()?];
    let mapping = CoverageMapping::new(&program, &profile, false)?;
    // A generic function has one record a use: a place counts if any use reached it.
    let (mut regions, mut branches) = (BTreeMap::<Place, bool>::new(), BTreeMap::new());
    for info in mapping.mapping_info_iter() {
        let info = info?;
        for function in &info.cov_fun {
            let record = profile.find_record_by_hash(function.header.name_hash);
            let counts = record.map_or(&[][..], |found| &found.record.counts);
            let count = |counter| value(counter, counts, &function.expressions) != 0;
            let files = info.get_files_from_id(function.header.filenames_ref);
            for region in &function.regions {
                let Some(place) = place(&files, region) else { continue };
                match region.kind {
                    RegionKind::Code => *regions.entry(place).or_default() |= count(region.count),
                    RegionKind::Branch => {
                        let sides: &mut (bool, bool) = branches.entry(place).or_default();
                        sides.0 |= count(region.count);
                        sides.1 |= count(region.false_count);
                    }
                    _ => {}
                }
            }
        }
    }
    let measured: BTreeSet<&PathBuf> = regions.keys().map(|place| &place.0).collect();
    if measured.len() != MEASURED.len() || branches.is_empty() {
        bail!("the parsers are not instrumented; run this by `cargo xtask fuzz --coverage`");
    }
    let missed = regions.iter().filter(|(_, reached)| !**reached).map(|(place, _)| place);
    let one_sided = branches.iter().filter(|(_, sides)| **sides != (true, true));
    let mut unreached = 0;
    for place in missed.chain(one_sided.map(|(place, _)| place)) {
        let (file, line, column, ..) = place;
        let file = fs::canonicalize(file)?;
        let text = fs::read_to_string(&file)?;
        let text = text.lines().nth(line - 1).unwrap_or_default().trim();
        let known = UNREACHABLE.iter().any(|(of, part)| file.ends_with(of) && text.contains(part));
        let verdict = if known { "cannot be reached" } else { "NOT REACHED" };
        println!("{verdict}: {}:{line}:{column}: {text}", file.display());
        unreached += usize::from(!known);
    }
    println!("{} regions, {} conditions, {unreached} not reached", regions.len(), branches.len());
    Ok(if unreached == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn place(files: &[PathBuf], region: &CounterMappingRegion) -> Option<Place> {
    let file = files.get(region.file_id)?;
    let at = &region.loc;
    let measured = MEASURED.iter().any(|name| file.ends_with(name));
    measured.then(|| (file.clone(), at.line_start, at.column_start, at.line_end, at.column_end))
}

/// Evaluates a counter, which may be a sum or difference of others.
fn value(counter: Counter, counts: &[u64], expressions: &[Expression]) -> i64 {
    match counter.kind {
        CounterType::Zero => 0,
        CounterType::ProfileInstrumentation => {
            counts.get(counter.id as usize).map_or(0, |count| *count as i64)
        }
        CounterType::Expression(kind) => {
            let Expression { lhs, rhs, .. } = expressions[counter.id as usize];
            let [lhs, rhs] = [lhs, rhs].map(|side| value(side, counts, expressions));
            match kind {
                ExprKind::Subtract => lhs - rhs,
                ExprKind::Add => lhs + rhs,
            }
        }
    }
}
