//! The document's table: a row a feature, a column a version of QEMU. A run fills one
//! column, and leaves the others as they are.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Between these is what [`write`] writes.
const BEGIN: &str = "<!-- matrix: begin -->";
pub const END: &str = "<!-- matrix: end -->";

const PASS: &str = "pass";
const NOT_OFFERED: &str = "not offered";
const NOT_DONE: &str = "offered, not done";
const REFUSED: &str = "offered, refused";
const FAILED: &str = "**failed**";
/// Before a version in the table's header.
const QEMU: &str = "QEMU ";

/// Names of ways that often say the same, the largest first.
const SETS: [(&str, &[&str]); 4] = [
    (
        "all 1.0",
        &[
            "modern",
            "modern packed",
            "port notify",
            "port notify packed",
            "mmio v2",
            "mmio v2 packed",
        ],
    ),
    (
        "PCI 1.0",
        &[
            "modern",
            "modern packed",
            "port notify",
            "port notify packed",
        ],
    ),
    ("mmio 1.0", &["mmio v2", "mmio v2 packed"]),
    ("before 1.0", &["legacy", "mmio v1"]),
];

/// What a run says of a feature over a transport with a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// It was negotiated and traffic passed; it was refused and traffic passed.
    Pass,
    /// The device does not offer it here.
    NotOffered,
    /// The device offers it and does not do it, which the driver has found out.
    NotDone,
    /// The device offers it; the driver does not implement it, has not taken it, and
    /// traffic passed.
    Refused,
    /// It is the other layout.
    Other,
    /// This machine cannot try it.
    Skipped(String),
    /// What went wrong.
    Failed(String),
}

impl Cell {
    /// What the table says.
    fn word(&self) -> &'static str {
        match self {
            Self::Pass => PASS,
            Self::NotOffered => NOT_OFFERED,
            Self::NotDone => NOT_DONE,
            Self::Refused => REFUSED,
            Self::Other => "\u{2013}",
            Self::Skipped(_) => "skipped",
            Self::Failed(_) => FAILED,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        match self {
            Self::Skipped(why) | Self::Failed(why) => {
                write!(f, ": {}", why.lines().next().unwrap_or_default())
            }
            _ => Ok(()),
        }
    }
}

/// A transport with a layout: a cell for each feature, in the same order for all ways.
pub struct Results {
    pub way: &'static str,
    /// The version of QEMU that ran.
    pub qemu: String,
    pub cells: Vec<(String, Cell)>,
}

/// The table: versions of QEMU, and for each feature what each of them says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    versions: Vec<String>,
    rows: Vec<(String, Vec<String>)>,
}

impl Table {
    /// The table of what was run.
    pub fn of(results: &[&Results]) -> Option<Self> {
        let first = results.first()?;
        let rows = first
            .cells
            .iter()
            .enumerate()
            .map(|(number, (feature, _))| {
                let cells = results
                    .iter()
                    .filter_map(|results| Some((results.way, &results.cells.get(number)?.1)));
                (feature.clone(), vec![summary(cells)])
            });
        Some(Self {
            versions: vec![first.qemu.clone()],
            rows: rows.collect(),
        })
    }

    /// Leaves out what no version offers, unless it is told all the same.
    pub fn retain(&mut self, is_told: impl Fn(&str) -> bool) {
        let is_offered = |cells: &[String]| cells.iter().any(|cell| cell != NOT_OFFERED);
        self.rows
            .retain(|(feature, cells)| is_offered(cells) || is_told(feature));
    }

    fn parse(text: &str) -> Option<Self> {
        let split = |line: &str| -> Vec<String> {
            let cells = line.trim().trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        };
        let mut lines = text.lines().filter(|line| line.starts_with('|')).map(split);
        let versions = lines.next()?.into_iter().skip(1);
        let versions = versions.map(|title| title.trim_start_matches(QEMU).to_owned());
        let rows = lines.skip(1).filter_map(|mut row| {
            let feature = (!row.is_empty()).then(|| row.remove(0))?;
            Some((feature, row))
        });
        Some(Self {
            versions: versions.collect(),
            rows: rows.collect(),
        })
    }

    /// Takes the one column of `other` instead of that of the same version, or between
    /// those of others.
    fn put(&mut self, other: Self) {
        let Some(version) = other.versions.first() else {
            return;
        };
        let same = self.place(version);
        let at = same.unwrap_or_else(|| {
            let is_older = |known: &&String| release(known) < release(version);
            self.versions.iter().take_while(is_older).count()
        });
        if same.is_none() {
            self.versions.insert(at, String::new());
        }
        self.versions[at].clone_from(version);
        let old = std::mem::take(&mut self.rows);
        // A feature without a row is one that was not offered.
        let mut rows = other.rows;
        for (feature, _) in &old {
            if !rows.iter().any(|(name, _)| name == feature) {
                rows.push((feature.clone(), vec![NOT_OFFERED.to_owned()]));
            }
        }
        let rows = rows.into_iter().map(|(feature, mut cells)| {
            let known = old.iter().find(|(name, _)| *name == feature);
            let mut row = known.map_or(Vec::new(), |(_, cells)| cells.clone());
            if same.is_none() && at <= row.len() {
                row.insert(at, String::new());
            }
            row.resize(self.versions.len(), NOT_OFFERED.to_owned());
            row[at] = cells.remove(0);
            (feature, row)
        });
        self.rows = rows.collect();
    }

    /// Where the versions of this release are.
    fn place(&self, version: &str) -> Option<usize> {
        let same = |known: &String| release(known) == release(version);
        self.versions.iter().position(same)
    }

    /// What it says of a feature over a way with a version, or with the newest one
    /// where that is not there.
    fn promised(&self, feature: &str, version: &str, way: &str) -> Option<&str> {
        let place = self.place(version);
        let place = place.or_else(|| self.versions.len().checked_sub(1))?;
        let (_, row) = self.rows.iter().find(|(name, _)| name == feature)?;
        of_way(row.get(place)?, way)
    }
}

/// Major and minor number of a version.
fn release(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Ways in words: sets that are whole by their names.
fn names(mut ways: Vec<&'static str>) -> String {
    let mut names = Vec::new();
    for (name, set) in SETS {
        if set.iter().all(|way| ways.contains(way)) {
            ways.retain(|way| !set.contains(way));
            names.push(name);
        }
    }
    names.extend(ways);
    names.join(", ")
}

/// Whether [`names`] named this way.
fn is_named(names: &str, way: &str) -> bool {
    names.split(", ").any(|name| {
        let set = SETS.iter().find(|(set, _)| *set == name);
        name == way || set.is_some_and(|(_, set)| set.contains(&way))
    })
}

/// One text for all ways: `pass`, or `pass (all 1.0); not offered (legacy)`.
fn summary<'a>(cells: impl Iterator<Item = (&'static str, &'a Cell)>) -> String {
    let mut groups: Vec<(&str, Vec<&'static str>)> = Vec::new();
    for (way, cell) in cells.filter(|(_, cell)| **cell != Cell::Other) {
        match groups.iter_mut().find(|(word, _)| *word == cell.word()) {
            Some((_, ways)) => ways.push(way),
            None => groups.push((cell.word(), vec![way])),
        }
    }
    if let [(word, _)] = &*groups {
        return (*word).to_owned();
    }
    let texts = groups
        .into_iter()
        .map(|(word, ways)| format!("{word} ({})", names(ways)));
    texts.collect::<Vec<_>>().join("; ")
}

/// What [`summary`] said of a way.
fn of_way<'a>(summary: &'a str, way: &str) -> Option<&'a str> {
    if !summary.contains('(') {
        return Some(summary);
    }
    let groups = summary.split("; ");
    let mut groups = groups.filter_map(|group| group.strip_suffix(')')?.split_once(" ("));
    let group = groups.find(|(_, names)| is_named(names, way));
    group.map(|(word, _)| word)
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| feature |")?;
        for version in &self.versions {
            write!(f, " {QEMU}{version} |")?;
        }
        writeln!(f, "\n|{}", " --- |".repeat(self.versions.len() + 1))?;
        for (feature, cells) in &self.rows {
            writeln!(f, "| {feature} | {} |", cells.join(" | "))?;
        }
        Ok(())
    }
}

/// Puts the column of a whole run into the document; returns the document's path.
pub fn write(results: &[&Results], new: Table, is_told: impl Fn(&str) -> bool) -> Result<PathBuf> {
    for results in results {
        for (feature, cell) in &results.cells {
            let is_known = !matches!(cell, Cell::Skipped(_) | Cell::Failed(_));
            ensure!(is_known, "{}: {feature} {cell}", results.way);
        }
    }
    let document = document()?;
    let (before, old, after) = parts(&document)?;
    let mut table = match Table::parse(old) {
        Some(mut table) => {
            table.put(new);
            table
        }
        None => new,
    };
    table.retain(is_told);
    std::fs::write(path(), format!("{before}{BEGIN}\n{table}{END}{after}"))?;
    Ok(path())
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/features.md")
}

/// The text of the document.
pub fn document() -> Result<String> {
    std::fs::read_to_string(path()).with_context(|| path().display().to_string())
}

/// The document before the table, the table, and the document behind it.
fn parts(document: &str) -> Result<(&str, &str, &str)> {
    let (before, rest) = document.split_once(BEGIN).context(BEGIN)?;
    let (table, after) = rest.split_once(END).context(END)?;
    Ok((before, table, after))
}

/// The document's table promises nothing that the run does not hold.
pub fn compare(results: &Results, regenerate: &str) -> Result<()> {
    let document = document()?;
    let (_, table, _) = parts(&document)?;
    let table = Table::parse(table).context("docs/features.md has no table")?;
    let same_qemu = table.versions.contains(&results.qemu);
    let mut broken = Vec::new();
    for (feature, cell) in &results.cells {
        let promised = table.promised(feature, &results.qemu, results.way);
        let holds = match (promised, cell) {
            (_, Cell::Failed(_)) => false,
            // What nobody offers and the driver does not take has no row.
            (None, Cell::NotOffered | Cell::Refused | Cell::Other) => true,
            (None, _) => false,
            // Another QEMU may offer less.
            (Some(PASS), Cell::NotOffered | Cell::NotDone) => !same_qemu,
            (Some(PASS), Cell::Refused) => false,
            _ => true,
        };
        if !holds {
            let promised = promised.unwrap_or("not in the table");
            broken.push(format!("{feature}: '{promised}' in the document, {cell}"));
        } else if promised.unwrap_or(NOT_OFFERED) != cell.word() && *cell != Cell::Other {
            eprintln!("matrix: {}, {feature}: {cell}", results.way);
        }
    }
    ensure!(
        broken.is_empty(),
        "{}, other than docs/features.md says:\n{}\nTo make its column anew: {regenerate}",
        results.way,
        broken.join("\n")
    );
    Ok(())
}

/// The table can be read as it was written, and takes a column in its place.
pub fn check() -> Result<()> {
    let cell = |text: &str| text.to_owned();
    let row = |feature: &str, cells: &[&str]| {
        let cells = cells.iter().map(|text| cell(text)).collect();
        (cell(feature), cells)
    };
    let mixed = summary(
        [
            ("legacy", &Cell::NotOffered),
            ("modern", &Cell::Pass),
            ("modern packed", &Cell::Other),
            ("mmio v1", &Cell::NotOffered),
        ]
        .into_iter(),
    );
    ensure!(
        mixed == "not offered (before 1.0); pass (modern)",
        "{mixed}"
    );
    let mut table = Table {
        versions: vec![cell("7.2.22"), cell("11.1.3")],
        rows: vec![row("`A`", &["pass", &mixed])],
    };
    let text = table.to_string();
    ensure!(Table::parse(&text).as_ref() == Some(&table), "{text}");
    for (way, expected) in [
        ("legacy", Some(NOT_OFFERED)),
        ("modern", Some(PASS)),
        ("modern packed", None),
    ] {
        let promised = table.promised("`A`", "11.1.9", way);
        ensure!(promised == expected, "{way}: {promised:?}");
    }
    table.put(Table {
        versions: vec![cell("10.0.13")],
        rows: vec![row("`A`", &["pass"]), row("`B`", &["offered, refused"])],
    });
    let expected = Table {
        versions: vec![cell("7.2.22"), cell("10.0.13"), cell("11.1.3")],
        rows: vec![
            row("`A`", &["pass", "pass", &mixed]),
            row("`B`", &[NOT_OFFERED, REFUSED, NOT_OFFERED]),
        ],
    };
    ensure!(table == expected, "{table}");
    table.put(Table {
        versions: vec![cell("7.2.23")],
        rows: vec![row("`A`", &["pass"])],
    });
    table.retain(|_| false);
    ensure!(
        table.versions[0] == "7.2.23" && table.rows == expected.rows,
        "{table}"
    );
    Ok(())
}
