//! The documents and pictures that are made of recorded runs, by one command, [`COMMAND`].
//!
//! It records traces, the reports of the guest's status page and what commands print into
//! `docs/recorded`, once, and
//! makes of these all that shows figures of a run: blocks of text in the documents, and the
//! pictures. A picture carries the fingerprint of what it was drawn from, so that a test without a
//! browser can tell when it is stale.

mod image;
mod picture;
mod record;
mod text;
mod translation;
mod vmms;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kickpath::lang::Lang;
use kickpath::trace::Timeline;
use kickpath_abi::status::Status;

pub use picture::{Picture, pictures};
pub use record::record;
pub use text::documents;
pub use vmms::{FEATURES, Seen, record as record_vmms};

/// What makes them all.
pub const COMMAND: &str = "cargo run -p kickpath-tests --bin documents";

/// The traces that are recorded: the name of each, and the command's arguments. The first is that
/// of the pictures; of those after it a machine may be unable to record some.
const TRACES: [(&str, &str); 6] = [
    ("trace", "trace --accel tcg"),
    ("microvm", "trace --accel tcg --machine microvm"),
    ("vcpu", "trace --accel tcg --ioeventfd off"),
    ("kvm", "trace --accel kvm --machine microvm"),
    ("nested", "trace --accel nested"),
    ("linux", "trace --accel tcg --guest linux"),
];

/// The commands whose output is recorded.
const OUTPUTS: [(&str, &str); 4] = [
    ("run", "run --accel tcg"),
    ("compare", "compare --accel tcg"),
    ("bench", "bench"),
    ("packed", "bench --transport modern --layout packed"),
];

/// The runs that the documents and pictures are of.
pub struct Runs {
    /// What `kickpath trace --json` has written.
    pub trace: Timeline,
    /// The same of the other [`TRACES`], by name, and what each of the [`OUTPUTS`] was.
    others: BTreeMap<&'static str, Timeline>,
    outputs: BTreeMap<&'static str, String>,
    /// Reports of the guest under traffic, one a second, as its status page asks for them.
    pub status: Vec<Status>,
    /// The VMMs that the guest was run on.
    pub vmms: Vec<Seen>,
}

impl Runs {
    /// Reads what [`record`] has written.
    ///
    /// # Errors
    /// It is not there, or of another schema.
    pub fn read() -> Result<Self> {
        let read = |name: &str| {
            let path = recorded(name);
            let shown = path.display().to_string();
            std::fs::read_to_string(path).with_context(|| format!("{shown}; made by {COMMAND}"))
        };
        let old = || format!("docs/recorded is of another schema; {COMMAND} records anew");
        let trace = |name: &'static str| {
            let trace = serde_json::from_str(&read(&format!("{name}.json"))?).with_context(old)?;
            Ok::<_, anyhow::Error>((name, trace))
        };
        let outputs = OUTPUTS.map(|(name, _)| Ok((name, read(&format!("{name}.txt"))?)));
        let [(first, _), others @ ..] = TRACES;
        Ok(Self {
            trace: trace(first)?.1,
            others: others
                .into_iter()
                .map(|(name, _)| trace(name))
                .collect::<Result<_>>()?,
            outputs: outputs.into_iter().collect::<Result<_>>()?,
            status: serde_json::from_str(&read(STATUS)?).with_context(old)?,
            vmms: vmms::read()?,
        })
    }

    /// One of the other traces.
    fn of(&self, name: &str) -> Result<&Timeline> {
        self.others.get(name).context("no such trace")
    }

    /// What a command printed.
    fn output(&self, name: &str) -> Result<&str> {
        Ok(self.outputs.get(name).context("no such output")?)
    }

    /// Which run it is, for a reader.
    pub fn told(&self, lang: Lang) -> String {
        let run = &self.trace.run;
        let (version, accelerator) = (env!("CARGO_PKG_VERSION"), run.accelerator.to_uppercase());
        let (qemu, machine, transport) = (&run.qemu, &run.machine, &run.device.transport);
        match lang {
            Lang::En => format!(
                "`{TRACE_COMMAND}` of Kickpath {version} ({accelerator} of QEMU {qemu}, machine {machine}, {transport} virtio-net)"
            ),
            Lang::Zh => format!(
                "`{TRACE_COMMAND}`，Kickpath {version}（QEMU {qemu} 的 {accelerator}，机器 {machine}，{transport} virtio-net）"
            ),
        }
    }
}

/// What a reader types to have a run like the one of the documents.
const TRACE_COMMAND: &str = "cargo run -- trace --accel tcg";
const STATUS: &str = "status.json";

/// The project's top directory.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn recorded(name: &str) -> PathBuf {
    workspace().join("docs/recorded").join(name)
}

/// Where a picture is.
pub fn picture_path(picture: &Picture) -> PathBuf {
    workspace().join("docs").join(picture.file)
}

/// A document as it is.
///
/// # Errors
/// It cannot be read.
pub fn document(name: &str) -> Result<String> {
    let path = workspace().join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Makes every document, and every picture that is stale, of what is recorded; `tell` hears of each.
///
/// # Errors
/// The browser does not start, or a file cannot be written.
pub fn write(browser: &Path, mut tell: impl FnMut(&str)) -> Result<()> {
    let runs = Runs::read()?;
    for (name, text) in documents(&runs)? {
        tell(name);
        std::fs::write(workspace().join(name), text).with_context(|| name.to_owned())?;
    }
    for picture in pictures(&runs)? {
        // One that is of this run and this page stays, to the last byte.
        let old = std::fs::read(picture_path(&picture)).unwrap_or_default();
        if picture.stale(&old).is_none() {
            continue;
        }
        tell(picture.file);
        let drawn = picture.draw(browser, &runs)?;
        std::fs::write(picture_path(&picture), drawn).with_context(|| picture.file.to_owned())?;
    }
    Ok(())
}
