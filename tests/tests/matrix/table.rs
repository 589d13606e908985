//! The table: its cells, as Markdown, and beside the one of the document.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Between these is what [`Table::write`] writes.
const BEGIN: &str = "<!-- matrix: begin -->";
pub const END: &str = "<!-- matrix: end -->";

const PASS: &str = "pass";
const NOT_OFFERED: &str = "not offered by this QEMU";
const NOT_DONE: &str = "offered, but not done by this QEMU";

/// What a run says of a feature over a transport with a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// It was negotiated and traffic passed; it was refused and traffic passed.
    Pass,
    /// The device does not offer it here.
    NotOffered,
    /// The device offers it and does not do it, which the driver has found out.
    NotDone,
    /// It is the other layout.
    Other,
    /// This machine cannot try it.
    Skipped(String),
    /// What went wrong.
    Failed(String),
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_line = |text: &str| text.lines().next().unwrap_or_default().replace('|', "/");
        match self {
            Self::Pass => f.write_str(PASS),
            Self::NotOffered => f.write_str(NOT_OFFERED),
            Self::NotDone => f.write_str(NOT_DONE),
            Self::Other => f.write_str("\u{2013}"),
            Self::Skipped(reason) => write!(f, "skipped: {}", one_line(reason)),
            Self::Failed(error) => write!(f, "**failed**: {}", one_line(error)),
        }
    }
}

/// A transport with a layout: a cell for each feature, in the same order for
/// all columns.
pub struct Column {
    pub title: &'static str,
    /// The version of QEMU that ran.
    pub qemu: String,
    pub cells: Vec<(String, Cell)>,
}

/// All columns.
pub struct Table<'a>(pub Vec<&'a Column>);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.0.first() else {
            return Ok(());
        };
        writeln!(f, "Made with QEMU {}.\n", first.qemu)?;
        write!(f, "| feature |")?;
        for column in &self.0 {
            write!(f, " {} |", column.title)?;
        }
        writeln!(f, "\n|{}", " --- |".repeat(self.0.len() + 1))?;
        for (row, (feature, _)) in first.cells.iter().enumerate() {
            write!(f, "| {feature} |")?;
            for column in &self.0 {
                let cell = column.cells.get(row).map(|(_, cell)| cell);
                write!(f, " {} |", cell.unwrap_or(&Cell::Other))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Table<'_> {
    /// Puts the table into the document; returns the document's path.
    pub fn write(&self, is_whole: bool) -> Result<PathBuf> {
        ensure!(is_whole, "a part of the columns was run only");
        for column in &self.0 {
            let skipped = column.cells.iter().find_map(|(feature, cell)| match cell {
                Cell::Skipped(reason) => Some((feature, reason)),
                _ => None,
            });
            if let Some((feature, reason)) = skipped {
                bail!("{}: {feature} was skipped: {reason}", column.title);
            }
        }
        let document = document()?;
        let (before, rest) = document.split_once(BEGIN).context(BEGIN)?;
        let (_, after) = rest.split_once(END).context(END)?;
        std::fs::write(path(), format!("{before}{BEGIN}\n{self}{END}{after}"))?;
        Ok(path())
    }
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/features.md")
}

/// The text of the document.
pub fn document() -> Result<String> {
    std::fs::read_to_string(path()).with_context(|| path().display().to_string())
}

/// The document's table promises nothing that the column does not hold.
pub fn compare(column: &Column, regenerate: &str) -> Result<()> {
    let document = document()?;
    let (_, rest) = document.split_once(BEGIN).context(BEGIN)?;
    let (table, _) = rest.split_once(END).context(END)?;
    let same_qemu = table.contains(&format!("Made with QEMU {}.", column.qemu));
    let split = |line: &str| -> Vec<String> {
        let cells = line.trim().trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    };
    let mut rows = table.lines().filter(|line| line.starts_with('|'));
    let header = split(rows.next().context("docs/features.md has no table")?);
    let place = header.iter().position(|title| title == column.title);
    let place = place.with_context(|| {
        let title = column.title;
        format!("docs/features.md has no column '{title}'; to make it anew: {regenerate}")
    })?;
    let rows: Vec<_> = rows.map(split).collect();
    let mut broken = Vec::new();
    for (feature, cell) in &column.cells {
        let row = rows.iter().find(|row| row.first() == Some(feature));
        let promised = row.and_then(|row| row.get(place)).map(String::as_str);
        let holds = match (promised, cell) {
            (None, _) => false,
            // Another QEMU may offer less.
            (Some(PASS), Cell::NotOffered | Cell::NotDone) => !same_qemu,
            (Some(PASS), Cell::Failed(_) | Cell::Other) => false,
            _ => true,
        };
        if !holds {
            let promised = promised.unwrap_or("not in the table");
            broken.push(format!("{feature}: '{promised}' in the document, {cell}"));
        } else if promised.is_some_and(|promised| promised != cell.to_string()) {
            eprintln!("matrix: {}, {feature}: {cell}", column.title);
        }
    }
    ensure!(
        broken.is_empty(),
        "{}, other than docs/features.md says:\n{}\nTo make its table anew: {regenerate}",
        column.title,
        broken.join("\n")
    );
    Ok(())
}
