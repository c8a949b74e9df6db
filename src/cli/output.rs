//! Tables and JSON on stdout, and how ids, sizes and times are written in tables.

use std::{
    collections::BTreeMap,
    fmt::Display,
    io::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use serde::Serialize;

use super::{Failure, Format};
use crate::{
    api::{parse_id, proto},
    types::Id,
};

/// Rows under headers, each column as wide as its widest cell.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Starts a table.
    pub fn new(headers: &[&str]) -> Self {
        Self { rows: vec![headers.iter().map(ToString::to_string).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Writes the table as text.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}   "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Prints text. A reader that went away (`| head`) is no failure.
pub fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Prints one JSON value.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|error| Failure::new("write JSON", error.to_string()))?;
    print(&format!("{text}\n"));
    Ok(())
}

/// Prints what a command answers: as JSON, or as the text that people read.
pub fn show<T: Display>(
    format: Format,
    value: &impl Serialize,
    text: impl FnOnce() -> T,
) -> Result<(), Failure> {
    match format {
        Format::Json => print_json(value),
        Format::Table => {
            print(&text().to_string());
            Ok(())
        }
    }
}

/// What was removed, in JSON.
#[derive(Debug, Serialize)]
pub struct Removed {
    /// Its whole id.
    pub id: String,
    /// What it was called.
    pub name: String,
}

/// Removes one after the other, up to the first that is refused, and prints what was.
pub async fn remove_each(
    format: Format,
    references: Vec<String>,
    remove: impl AsyncFn(String) -> Result<Removed, Failure>,
) -> Result<(), Failure> {
    let (mut all, mut failure) = (Vec::new(), None);
    for reference in references {
        match remove(reference).await {
            Ok(removed) => {
                if format == Format::Table {
                    print(&format!("{}\n", removed.name));
                }
                all.push(removed);
            }
            Err(refused) => {
                failure = Some(refused);
                break;
            }
        }
    }
    if format == Format::Json {
        print_json(&all)?;
    }
    failure.map_or(Ok(()), Err)
}

/// Prints one JSON value on one line, as streams do.
pub fn print_json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value);
    let text = text.map_err(|error| Failure::new("write JSON", error.to_string()))?;
    print(&format!("{text}\n"));
    Ok(())
}

/// Reads an id of an answer.
pub fn id(bytes: &[u8]) -> Result<String, Failure> {
    let id: Id<()> = parse_id("id", bytes).map_err(|_| Failure::bent("read an id"))?;
    Ok(id.to_string())
}

/// An instant as all our JSON has it, of the time since 1970.
pub fn instant(since: Duration) -> Result<String, Failure> {
    let at = UNIX_EPOCH.checked_add(since).filter(|_| since < YEAR_10000);
    let at = at.ok_or_else(|| Failure::bent("read a time"))?;
    Ok(humantime::format_rfc3339_millis(at).to_string())
}

/// The first moment that RFC 3339 has no year for.
const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);

/// The start of an id, as tables show it.
pub fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// Several values in one cell.
pub fn joined<T: Display>(values: &[T]) -> String {
    let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
    texts.join(",")
}

/// Packets and bytes in JSON.
#[derive(Debug, Default, Serialize)]
pub struct Counters {
    /// Packets, after super-packets were split.
    pub packets: u64,
    /// Bytes of the inner packets.
    pub bytes: u64,
}

impl From<Option<proto::Counters>> for Counters {
    fn from(counters: Option<proto::Counters>) -> Self {
        let counters = counters.unwrap_or_default();
        Self { packets: counters.packets, bytes: counters.bytes }
    }
}

impl Counters {
    /// Bytes as tables show them.
    pub fn human(&self) -> String {
        bytes(self.bytes)
    }
}

/// The sum of drops.
pub fn total(drops: &BTreeMap<String, u64>) -> u64 {
    drops.values().sum()
}

/// Bytes with the unit that leaves one to three digits.
pub fn bytes(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in ["kB", "MB", "GB", "TB", "PB", "EB"] {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// Returns what a role is called.
pub fn role_name(role: proto::Role) -> Option<&'static str> {
    match role {
        proto::Role::Manager => Some("manager"),
        proto::Role::Worker => Some("worker"),
        proto::Role::Unspecified => None,
    }
}

#[cfg(test)]
pub fn golden(name: &str, value: &impl Serialize) {
    let path = format!("{}/tests/golden/cli/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = format!("{}\n", serde_json::to_string_pretty(value).unwrap());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, golden, "{path} says otherwise; scripts rely on it");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_text() {
        let mut table = Table::new(&["ID", "NAME", "LAST"]);
        table.row(vec!["1".into(), "a long name".into(), String::new()]);
        table.row(vec!["23".into(), "b".into(), "x".into()]);
        assert_eq!(
            table.text(),
            "ID   NAME          LAST\n1    a long name\n23   b             x\n"
        );
    }

    #[test]
    fn sizes_are_short() {
        let check = |value, text: &str| assert_eq!(bytes(value), text);
        check(0, "0 B");
        check(999, "999 B");
        check(1000, "1.0 kB");
        check(1_536_000, "1.5 MB");
        check(u64::MAX, "18.4 EB");
    }
}
