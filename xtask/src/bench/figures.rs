//! What was measured beside what, the table that people read, and the file that machines do.

use std::{fs, path::Path};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::machine;

/// Which way a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is.
    Higher,
    /// Less is.
    Lower,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured, with its unit.
    pub name: String,
    /// Ours, once a round.
    pub ours: Vec<f64>,
    /// The peer's, once a round; none if the figure stands alone.
    pub peer: Vec<f64>,
    /// Which way it is better.
    pub better: Better,
    /// What must be reached; none if nothing is asked.
    pub first: Option<f64>,
    /// What we want.
    pub goal: Option<f64>,
}

impl Row {
    /// A row of figures taken in turns.
    pub fn new(name: impl Into<String>, better: Better, ours: Vec<f64>, peer: Vec<f64>) -> Self {
        Self { name: name.into(), ours, peer, better, first: None, goal: None }
    }

    /// The row with what its ratio, or its figure if it stands alone, must reach, and what we want.
    pub fn asked(self, first: f64, goal: f64) -> Self {
        Self { first: Some(first), goal: Some(goal), ..self }
    }

    /// Ours by the peer's, or ours alone: the median, the lowest and the highest of the rounds.
    fn compared(&self) -> [f64; 3] {
        let mut rounds = self.ours.clone();
        if !self.peer.is_empty() {
            rounds = rounds.iter().zip(&self.peer).map(|(ours, peer)| ours / peer).collect();
        }
        rounds.sort_by(f64::total_cmp);
        [rounds[rounds.len() / 2], rounds[0], rounds[rounds.len() - 1]]
    }

    fn meets(&self, bar: f64) -> bool {
        let [median, ..] = self.compared();
        match self.better {
            Better::Higher => median >= bar,
            Better::Lower => median <= bar,
        }
    }

    fn verdict(&self) -> &'static str {
        match (self.first, self.goal) {
            (_, Some(goal)) if self.meets(goal) => "goal",
            (Some(first), _) if self.meets(first) => "met",
            (Some(_), _) => "MISSED",
            (None, _) => "",
        }
    }

    fn cells(&self, before: Option<&[Row]>) -> Vec<String> {
        let [median, low, high] = self.compared();
        let stands_alone = self.peer.is_empty();
        let sign = match self.better {
            Better::Higher => ">=",
            Better::Lower => "<=",
        };
        let asked = |bar: Option<f64>| bar.map_or(String::new(), |bar| format!("{sign} {bar}"));
        let mut cells = vec![
            self.name.clone(),
            shown(median_of(&self.ours)),
            if stands_alone { String::new() } else { shown(median_of(&self.peer)) },
            if stands_alone { String::new() } else { format!("{median:.2}") },
            if low == high { String::new() } else { format!("{}..{}", shown(low), shown(high)) },
            asked(self.first),
            asked(self.goal),
            self.verdict().to_owned(),
        ];
        if let Some(before) = before {
            let earlier = before.iter().find(|row| row.name == self.name);
            cells.push(earlier.map_or(String::new(), |row| {
                let [earlier, ..] = row.compared();
                let change = (median / earlier - 1.0) * 100.0;
                let change =
                    if change.is_finite() { format!(" ({change:+.0} %)") } else { String::new() };
                format!("{}{change}", shown(earlier))
            }));
        }
        cells
    }
}

/// Lays the rows out as a Markdown table; `before` is what they are compared with.
pub fn table(rows: &[Row], before: Option<&[Row]>) -> String {
    let mut head: Vec<String> =
        ["", "ours", "peer", "ratio", "range", "bar", "goal", ""].map(str::to_owned).into();
    if before.is_some() {
        head.push("before".to_owned());
    }
    let body: Vec<Vec<String>> = rows.iter().map(|row| row.cells(before)).collect();
    let width = |column: usize| {
        body.iter().chain([&head]).map(|cells| cells[column].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule = widths.iter().enumerate().map(|(column, width)| {
        if column == 0 { "-".repeat(*width) } else { format!("{}:", "-".repeat(width.max(&1) - 1)) }
    });
    let rule = line(&rule.collect::<Vec<_>>());
    let lines = body.iter().map(|cells| line(cells));
    [line(&head), rule].into_iter().chain(lines).collect()
}

#[derive(Deserialize)]
struct Earlier {
    rows: Vec<Row>,
}

/// Writes rows with commit and machine.
pub fn write(path: &Path, rows: &[Row]) -> anyhow::Result<()> {
    let rows = serde_json::to_string_pretty(rows).context("write the rows")?;
    let text =
        format!("{{\n{},\n  \"rows\": {}\n}}\n", machine::json()?, rows.replace('\n', "\n  "));
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// Reads the rows of an earlier run.
pub fn read(path: &Path) -> anyhow::Result<Vec<Row>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let earlier: Earlier = serde_json::from_str(&text)
        .with_context(|| format!("{} is no file of 'bench --json'", path.display()))?;
    Ok(earlier.rows)
}

fn median_of(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Three digits that say something.
fn shown(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(better: Better, ours: [f64; 3], peer: [f64; 3], first: f64, goal: f64) -> Row {
        Row::new("TCP, Gbit/s", better, ours.into(), peer.into()).asked(first, goal)
    }

    #[test]
    fn rounds_are_compared_with_each_other() {
        let row = row(Better::Higher, [4.0, 5.0, 3.0], [4.0, 10.0, 2.0], 0.9, 1.2);
        assert_eq!(row.compared(), [1.0, 0.5, 1.5]);
        assert_eq!(row.verdict(), "met");
        let shown = table(&[row], None);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 3, "{shown}");
        assert_eq!(
            lines[0],
            "|             | ours | peer | ratio |      range |    bar |   goal |     |"
        );
        assert_eq!(
            lines[2],
            "| TCP, Gbit/s | 4.00 | 4.00 |  1.00 | 0.50..1.50 | >= 0.9 | >= 1.2 | met |"
        );
    }

    #[test]
    fn what_is_missed_says_so_both_ways() {
        assert_eq!(row(Better::Higher, [0.8; 3], [1.0; 3], 0.9, 1.2).verdict(), "MISSED");
        assert_eq!(row(Better::Lower, [0.8; 3], [1.0; 3], 0.7, 0.5).verdict(), "MISSED");
        assert_eq!(row(Better::Lower, [0.4; 3], [1.0; 3], 0.7, 0.5).verdict(), "goal");
        let alone = Row::new("memory, MB", Better::Lower, vec![70.0], Vec::new());
        assert_eq!(alone.verdict(), "", "nothing is asked");
        assert_eq!(alone.asked(64.0, 32.0).verdict(), "MISSED");
    }

    #[test]
    fn a_file_is_compared_with_a_later_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("figures.json");
        let earlier = row(Better::Higher, [2.0; 3], [4.0; 3], 0.9, 1.2);
        write(&path, std::slice::from_ref(&earlier)).unwrap();
        let read = read(&path).unwrap();
        assert_eq!(read, [earlier]);
        let now = row(Better::Higher, [3.0; 3], [4.0; 3], 0.9, 1.2);
        assert!(table(&[now], Some(&read)).contains("| 0.50 (+50 %) |"));
        let none = Row::new("TCP, Gbit/s", Better::Lower, vec![0.0], Vec::new());
        let still = table(std::slice::from_ref(&none), Some(std::slice::from_ref(&none)));
        assert!(still.lines().last().unwrap().ends_with("   0.00 |"), "{still}");
        fs::write(&path, "{}").unwrap();
        let error = super::read(&path).unwrap_err().to_string();
        assert!(error.ends_with("is no file of 'bench --json'"), "{error}");
    }
}
