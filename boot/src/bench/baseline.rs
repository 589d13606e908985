//! What one build costs, kept in a file, and another build beside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Report, table};
use crate::session::{Layout, SessionError, Settings};
use crate::terminal::Story;

/// Longest file that is read, in bytes.
const MOST: u64 = 1 << 20;
/// What stands at the beginning of a file, behind what is counted.
const ABOUT: &str = "a frame, datagram, echo, KiB or request. Made anew by: \
                     cargo run -- bench --save THIS-FILE";

/// Why there is nothing to compare with.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// There is no such file.
    #[error(transparent)]
    File(#[from] Box<SessionError>),
    /// It cannot be read.
    #[error("--baseline {}: {source}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too long to be one.
    #[error("--baseline {}: longer than {MOST} bytes", file.display())]
    TooLong {
        /// Which.
        file: PathBuf,
    },
    /// It is not what `--save` writes.
    #[error("--baseline {}: not written by bench --save: {source}", file.display())]
    Json {
        /// Which.
        file: PathBuf,
        /// Where it is something else.
        source: serde_json::Error,
    },
    /// A count that no program has.
    #[error("--baseline {}: '{row}' costs {instructions} instructions", file.display())]
    Count {
        /// Which file.
        file: PathBuf,
        /// Which row.
        row: String,
        /// What it says.
        instructions: f64,
    },
    /// It was made on another machine.
    #[error("--baseline {}: made on '{made_on}', this is '{this}'", file.display())]
    Machine {
        /// Which file.
        file: PathBuf,
        /// Its machine.
        made_on: String,
        /// The one that is asked for.
        this: String,
    },
}

/// The counts of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// For who finds the file.
    about: String,
    /// Machine, interface and rings.
    pub machine: String,
    /// Version of the compiler that built the guest, if it was built here.
    pub compiler: Option<String>,
    /// Those that are the same in each run of a build.
    pub exact: BTreeMap<String, f64>,
    /// Those that vary with the host's scheduling.
    #[serde(default)]
    pub varying: BTreeMap<String, f64>,
}

/// What is counted.
pub struct Count {
    /// A row's name.
    pub(super) name: String,
    /// Whether it is the same in each run of a build.
    pub(super) is_exact: bool,
    /// How much.
    pub(super) count: f64,
}

/// A report of which counts can be kept.
pub trait Counted: Serialize {
    /// What is counted.
    const WHAT: &'static str;
    /// In the order of the tables.
    fn counts(&self) -> Vec<Count>;
    /// Whether every limit is kept.
    fn is_ok(&self) -> bool;
    /// Takes in how it compares with another build.
    fn put_beside(&mut self, comparison: Comparison);
}

/// A build beside another.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// By how much an exact count may be above the baseline's, in per cent.
    pub tolerance: f64,
    /// Whether the baseline has exact counts; without them the comparison decides nothing.
    pub has_exact: bool,
    /// What both have.
    pub rows: Vec<Compared>,
    /// What the baseline alone has.
    pub not_measured: Vec<String>,
    /// What it has not.
    pub new: Vec<String>,
}

/// One row of both.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// What is counted.
    pub name: String,
    /// Whether it is the same in each run of a build.
    pub exact: bool,
    /// Instructions by the baseline.
    pub before: f64,
    /// Instructions in this run.
    pub now: f64,
    /// The difference in per cent of the baseline.
    pub change: f64,
}

/// The machine that is asked for, as a [`Baseline`] names it.
pub fn machine(settings: &Settings) -> String {
    let on = match settings.asks_for_kvm() {
        true => format!("{} on KVM, ", settings.vmm),
        false => String::new(),
    };
    let layout = match settings.layout {
        Layout::Split => "split",
        Layout::Packed => "packed",
    };
    let transport = settings.transport.word();
    format!("{on}{} {transport} {layout}", settings.kind)
}

impl Counted for Report {
    const WHAT: &'static str = "Guest instructions";

    fn is_ok(&self) -> bool {
        self.ok
    }

    fn put_beside(&mut self, comparison: Comparison) {
        self.ok &= comparison.missed().is_empty();
        self.baseline = Some(comparison);
    }

    fn counts(&self) -> Vec<Count> {
        let mut counts = Vec::new();
        let mut count = |name: String, is_exact, count| {
            counts.push(Count {
                name,
                is_exact,
                count,
            });
        };
        for (work, per_packet) in self.driver_tx.ways() {
            let name = format!("driver alone, a frame {work}");
            count(name, true, per_packet.instructions);
        }
        if let Some(peer) = &self.peer {
            for (work, sums) in [("sent", peer.sent), ("received", peer.received)] {
                count(format!("VirtIONetRaw, a frame {work}"), true, sums.each());
            }
        }
        for udp in &self.udp_tx {
            let name = format!("datagram of {} bytes", udp.size);
            count(name, true, udp.per_packet.instructions);
        }
        for (state, each) in ["off", "on"].into_iter().zip(self.tracepoint.each()) {
            count(format!("tracepoint, {state}"), true, each);
        }
        let echo = &self.udp_echo;
        let name = format!(
            "echo of {} bytes, {} outstanding",
            echo.size, echo.outstanding
        );
        count(name, false, echo.per_packet.instructions);
        for row in &self.tap {
            let name = format!("tap, {}: {}", row.transport, row.what.name());
            count(name, false, row.per_unit.instructions);
        }
        counts
    }
}

impl Baseline {
    /// The counts of a run on this [`machine`], by a guest of this compiler if it is known.
    pub fn of<R: Counted>(report: &R, machine: String, compiler: Option<String>) -> Self {
        Self::new(R::WHAT, report.counts(), machine, compiler)
    }

    fn new(what: &str, mut counts: Vec<Count>, machine: String, compiler: Option<String>) -> Self {
        // Of what did not happen nothing is a per cent.
        counts.retain(|count| count.count > 0.0);
        let (exact, varying): (Vec<_>, _) = counts.into_iter().partition(|count| count.is_exact);
        // A tenth of a per cent is enough of any of them.
        let rounded = |value: f64| (value * 100.0).round() / 100.0;
        let map = |counts: Vec<Count>| {
            let rows = counts.into_iter();
            rows.map(|count| (count.name, rounded(count.count)))
                .collect()
        };
        Self {
            about: format!("{what} {ABOUT}"),
            machine,
            compiler,
            exact: map(exact),
            varying: map(varying),
        }
    }

    /// As it stands in a file.
    ///
    /// # Errors
    /// None that is known: all names are text, all counts finite.
    pub fn to_json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Reads a file for a run on this [`machine`].
    ///
    /// # Errors
    /// It is not there, not what [`Baseline::to_json`] makes, or of another machine.
    pub fn read(file: &Path, machine: &str) -> Result<Self, BaselineError> {
        SessionError::check_file("--baseline", file).map_err(Box::new)?;
        let named = || file.to_owned();
        let read = || {
            let mut text = Vec::new();
            File::open(file)?.take(MOST + 1).read_to_end(&mut text)?;
            Ok(text)
        };
        let text: Vec<u8> = read().map_err(|source| BaselineError::Read {
            file: named(),
            source,
        })?;
        if text.len() as u64 > MOST {
            return Err(BaselineError::TooLong { file: named() });
        }
        let baseline: Self =
            serde_json::from_slice(&text).map_err(|source| BaselineError::Json {
                file: named(),
                source,
            })?;
        let mut counts = baseline.exact.iter().chain(&baseline.varying);
        if let Some((row, &instructions)) = counts.find(|(_, count)| **count <= 0.0) {
            return Err(BaselineError::Count {
                file: named(),
                row: row.clone(),
                instructions,
            });
        }
        if baseline.machine != machine {
            return Err(BaselineError::Machine {
                file: named(),
                made_on: baseline.machine,
                this: machine.to_owned(),
            });
        }
        Ok(baseline)
    }

    /// This run beside it. An exact count may be `tolerance` per cent higher.
    pub fn compare(&self, report: &impl Counted, tolerance: f64) -> Comparison {
        self.beside(report.counts(), tolerance)
    }

    fn beside(&self, counts: Vec<Count>, tolerance: f64) -> Comparison {
        let (mut rows, mut new) = (Vec::new(), Vec::new());
        let mut not_measured: Vec<_> = self.exact.keys().chain(self.varying.keys()).collect();
        for count in counts {
            not_measured.retain(|name| **name != count.name);
            let of = if count.is_exact {
                &self.exact
            } else {
                &self.varying
            };
            match of.get(&count.name) {
                Some(&before) => rows.push(Compared {
                    exact: count.is_exact,
                    before,
                    now: count.count,
                    change: (count.count - before) / before * 100.0,
                    name: count.name,
                }),
                None => new.push(count.name),
            }
        }
        Comparison {
            tolerance,
            has_exact: !self.exact.is_empty(),
            rows,
            not_measured: not_measured.into_iter().cloned().collect(),
            new,
        }
    }
}

impl Comparison {
    /// What costs more than it may, or that nothing was there to compare.
    pub fn missed(&self) -> Vec<String> {
        if self.rows.is_empty() || self.has_exact && self.rows.iter().all(|row| !row.exact) {
            return vec!["no exact count is in both".to_owned()];
        }
        let above = self.rows.iter().filter(|row| self.is_above(row));
        above
            .map(|row| {
                format!(
                    "{}: {:+.1} %, at most {} more",
                    row.name, row.change, self.tolerance
                )
            })
            .collect()
    }

    fn is_above(&self, row: &Compared) -> bool {
        row.exact && row.change > self.tolerance
    }

    /// Tells it.
    ///
    /// # Errors
    /// The output is closed.
    pub fn tell<W: Write>(&self, what: &str, story: &mut Story<W>) -> io::Result<()> {
        story.section(&format!("Beside the baseline: {what}"))?;
        let heads = ["", "before", "now", "change"];
        let [name, before, now, change] = heads;
        story.line(&format!("  {name:61}{before:>10}{now:>11}{change:>10}"))?;
        for row in &self.rows {
            let mark = if row.exact { ' ' } else { '~' };
            let verdict = match row.change {
                _ if self.is_above(row) => "  MORE",
                change if row.exact && change < -self.tolerance => "  less",
                _ => "",
            };
            let (before, now) = (table::number(row.before), table::number(row.now));
            story.line(&format!(
                "{mark} {:61}{before:>10}{now:>11}{:>+8.1} %{verdict}",
                row.name, row.change
            ))?;
        }
        for (names, why) in [(&self.not_measured, "not measured"), (&self.new, "new")] {
            for name in names {
                story.line(&format!("  {name:61}  {why}"))?;
            }
        }
        story.faint("~ varies with the host's scheduling, and decides nothing")?;
        let missed = self.missed();
        if missed.is_empty() {
            let tolerance = self.tolerance;
            let text = match self.has_exact {
                true => format!("No exact count is more than {tolerance} % above the baseline."),
                false => "None of these counts is exact; see what has changed.".to_owned(),
            };
            return story.conclusion(true, &text);
        }
        story.conclusion(false, "This build costs more than the baseline.")?;
        missed
            .iter()
            .try_for_each(|line| story.line(&format!("  {line}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "pc auto split";

    fn counts(counts: &[(&str, bool, f64)]) -> Vec<Count> {
        let each = counts.iter().map(|&(name, is_exact, count)| Count {
            name: name.to_owned(),
            is_exact,
            count,
        });
        each.collect()
    }

    fn baseline() -> Baseline {
        let rows = [
            ("sent", true, 20.004),
            ("gone", true, 5.0),
            ("echo", false, 2000.0),
        ];
        Baseline::new("Instructions", counts(&rows), MACHINE.to_owned(), None)
    }

    fn read(text: &[u8]) -> Result<Baseline, BaselineError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        Baseline::read(file.path(), MACHINE)
    }

    #[test]
    fn what_is_saved_is_read() {
        let text = baseline().to_json().unwrap();
        assert_eq!(read(text.as_bytes()).unwrap(), baseline());
    }

    #[test]
    fn a_bad_file_is_named_with_what_is_wrong() {
        let text = baseline().to_json().unwrap();
        let long = vec![b' '; MOST as usize + 1];
        for (bad, why) in [
            (b"".to_vec(), "not written by bench --save: EOF"),
            (
                b"[]".to_vec(),
                "not written by bench --save: invalid length",
            ),
            (
                b"\xff".to_vec(),
                "not written by bench --save: expected value",
            ),
            (
                text.replace("5.0", "0.0").into(),
                "'gone' costs 0 instructions",
            ),
            (
                text.replace("2000.0", "-1").into(),
                "'echo' costs -1 instructions",
            ),
            (
                text.replace("20.0", "1e999").into(),
                "not written by bench --save: number out of",
            ),
            (
                text.replace("exact", "exakt").into(),
                "unknown field `exakt`",
            ),
            (
                text.replace("pc auto", "q35 auto").into(),
                "made on 'q35 auto split', this is 'pc",
            ),
            (long, "longer than 1048576 bytes"),
        ] {
            let error = read(&bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        for (file, why) in [
            ("/", "it is a directory"),
            ("/dev/zero", "no regular file"),
            ("/no/x", "no such file"),
        ] {
            let error = Baseline::read(Path::new(file), MACHINE)
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with("--baseline ") && error.contains(why),
                "{error}"
            );
        }
    }

    #[test]
    fn an_exact_count_above_the_tolerance_is_named() {
        // Varying counts decide nothing, and lower ones are welcome.
        let rows = [
            ("sent", true, 20.5),
            ("echo", false, 4000.0),
            ("more", true, 9.0),
        ];
        let comparison = baseline().beside(counts(&rows), 3.0);
        assert_eq!(comparison.missed(), [""; 0]);
        assert_eq!(comparison.not_measured, ["gone"]);
        assert_eq!(comparison.new, ["more"]);
        let comparison = baseline().beside(counts(&[("sent", true, 20.7)]), 3.0);
        assert_eq!(comparison.missed(), ["sent: +3.5 %, at most 3 more"]);
        let comparison = baseline().beside(counts(&[("sent", true, 10.0)]), 3.0);
        assert_eq!(comparison.missed(), [""; 0]);
        let comparison = baseline().beside(counts(&rows[1..]), 3.0);
        assert_eq!(comparison.missed(), ["no exact count is in both"]);
        // Where nothing is exact, there must be something in both all the same.
        let rows = [
            ("echo: kicks", false, 1.0),
            ("echo: interrupts", false, 0.0),
        ];
        let varying = Baseline::new("Kicks", counts(&rows), MACHINE.to_owned(), None);
        assert_eq!(varying.varying.len(), 1);
        assert_eq!(varying.beside(counts(&rows), 3.0).missed(), [""; 0]);
        let comparison = varying.beside(counts(&[("other", false, 1.0)]), 3.0);
        assert_eq!(comparison.missed(), ["no exact count is in both"]);
    }

    #[test]
    fn the_table_fits_into_the_width() {
        let rows = [
            ("sent", true, 20.7),
            ("echo", false, 4000.0),
            (
                "tap, modern: echo, in-place, 32 outstanding from 1024 senders",
                false,
                1e6,
            ),
        ];
        let comparison = baseline().beside(counts(&rows), 3.0);
        let mut bytes = Vec::new();
        comparison
            .tell("Instructions", &mut Story::new(&mut bytes))
            .unwrap();
        let text = anstream::adapter::strip_str(&String::from_utf8(bytes).unwrap()).to_string();
        for line in text.lines() {
            assert!(line.chars().count() <= crate::terminal::WIDTH, "{line}");
        }
        let row = text
            .lines()
            .find(|line| line.starts_with("  sent"))
            .unwrap();
        let words: Vec<_> = row.split_whitespace().collect();
        assert_eq!(words, ["sent", "20", "20.7", "+3.5", "%", "MORE"], "{text}");
    }
}
