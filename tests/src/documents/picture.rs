//! The pictures: which page, what of it, and whether one is still of what is recorded.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use kickpath::lang::Lang;
use kickpath::trace::html;
use kickpath::trace::timeline::{Layer, Phase, Step, Timeline};

use super::image::{self, Frame, Pixels};
use super::{COMMAND, Runs, TRACE_COMMAND};
use crate::browser::{Browser, View};

/// A picture of a page.
pub struct Picture {
    /// Its name in `docs`.
    pub file: &'static str,
    /// What it shows, for a person who looks into the file.
    title: &'static str,
    page: String,
    view: View,
    /// When it may be taken.
    ready: &'static str,
    /// What of the page is to be seen.
    style: &'static str,
    /// The scenes of an animation: what the page is told, and for how long each stands.
    scenes: Vec<(String, u16)>,
}

const DESK: View = View {
    width: 1400,
    height: 900,
    dark: false,
};

/// The keyword of a picture's fingerprint.
const FINGERPRINT: &str = "Source";

/// All pictures of these runs.
///
/// # Errors
/// A page cannot be made.
pub fn pictures(runs: &Runs) -> Result<Vec<Picture>> {
    let trace = html::render(&runs.trace, &format!("{TRACE_COMMAND} --html kick.html"))?;
    Ok(vec![
        Picture {
            file: "kick-trace.png",
            title: "The page of a trace",
            page: trace.clone(),
            view: DESK,
            ready: "true",
            style: "",
            scenes: Vec::new(),
        },
        Picture {
            file: "packet.png",
            title: "The way of one packet, step by step",
            page: trace,
            view: View {
                width: 880,
                height: 708,
                ..DESK
            },
            ready: "true",
            style: FILM,
            scenes: scenes(&runs.trace),
        },
        Picture {
            file: "status-page.png",
            title: "The status page",
            page: status(runs)?,
            view: View {
                width: 1200,
                height: 1500,
                ..DESK
            },
            ready: "turn === reports.length && document.getElementById('state').textContent === 'Live'",
            style: "",
            scenes: Vec::new(),
        },
    ])
}

/// The page of the guest, with a guest in its place that gives the recorded reports.
fn status(runs: &Runs) -> Result<String> {
    let page = include_str!("../../../kernel/services/src/http/status.html");
    let guest = format!(
        "<script>const reports = {}; let turn = 0; const later = window.setTimeout; \
         window.setTimeout = (work, _) => turn < reports.length && later(work, 0); \
         window.fetch = async () => ({{ ok: true, json: async () => reports[turn++] }});\
         </script><script>",
        serde_json::to_string(&runs.status)?.replace('<', "\\u003c")
    );
    Ok(page.replacen("<script>", &guest, 1))
}

/// Of the page of a trace only the lanes, the step and its queue.
const FILM: &str = "
  header, footer, .hero, .stepper, .bar, #scale-note, #queue .segments, #queue .note, main > section:not(.lanes-card, .step, .step + .half),
  .step dl, .step .why, .step-head .number, .stop.small .where, .area .who, .rings { display: none; }
  main { padding: 10px; gap: 10px; }
  section { padding: 10px 14px; }
  .step { grid-column: span 5; grid-row: 2; height: 348px; overflow: hidden; }
  .step + .half { grid-column: span 7; grid-row: 2; height: 348px; overflow: hidden; }
  .stop.small { padding: 10px; margin-bottom: 10px; } .decision code { font-size: 12px; }
  .cells th, .cells td { padding: 1px 7px; } .vq { gap: 10px; }
";

/// The steps of the packet's way out, and its buffer's return.
fn scenes(trace: &Timeline) -> Vec<(String, u16)> {
    let steps = trace.steps.iter().filter(|step| !step.aside);
    let told = steps.filter(|step| {
        let is_out = step.phase == Phase::Transmit
            && (step.layer != Layer::Guest || step.queue.is_none_or(|queue| queue == 1));
        let comes_back = step.phase == Phase::Return || step.phase == Phase::Transmit;
        let is_back = comes_back && step.event == "PopUsed" && step.queue == Some(1);
        const NOISE: [&str; 5] = [
            "Idle",
            "Poll",
            "EnableInterrupts",
            "DisableInterrupts",
            "DoorbellRang",
        ];
        (is_out || is_back) && !NOISE.contains(&step.event.as_str())
    });
    let told: Vec<&Step> = told.collect();
    let last = told.last().map(|step| step.number);
    let long = |step: &Step| step.instruction.is_some() || Some(step.number) == last;
    told.iter()
        .map(|step| {
            let stands = if long(step) { 2200 } else { 850 };
            (format!("go({})", step.number), stands)
        })
        .collect()
}

impl Picture {
    /// Of all that decides what it shows.
    pub fn fingerprint(&self) -> String {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(self.page.as_bytes());
        let rest = (self.view, self.ready, self.style, &self.scenes);
        hasher.update(format!("{rest:?}").as_bytes());
        format!("crc32 {:08x}", hasher.finalize())
    }

    /// Why `png` is not the picture of these runs and this page, if so.
    pub fn stale(&self, png: &[u8]) -> Option<String> {
        let (found, wanted) = (image::about(png, FINGERPRINT), self.fingerprint());
        let file = self.file;
        match found {
            Some(found) if found == wanted => None,
            Some(found) => Some(format!("docs/{file} was drawn from {found}, now {wanted}")),
            None => Some(format!("docs/{file} does not say what it was drawn from")),
        }
    }

    /// Draws it.
    ///
    /// # Errors
    /// The browser does not start, or the page complains.
    pub fn draw(&self, browser: &Path, runs: &Runs) -> Result<Vec<u8>> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("page.html");
        std::fs::write(&file, &self.page)?;
        let mut browser = Browser::launch(browser)?;
        browser.view(self.view)?;
        browser.open(&format!("file://{}", file.display()))?;
        browser.evaluate(&format!(
            "document.head.append(Object.assign(document.createElement('style'), {{ textContent: {} }})); 0",
            serde_json::Value::from(self.style)
        ))?;
        browser.eventually(self.ready)?;
        let once = [(String::from("0"), 0)];
        let scenes = if self.scenes.is_empty() {
            &once[..]
        } else {
            &self.scenes
        };
        let mut frames = Vec::new();
        for (script, milliseconds) in scenes {
            browser.evaluate(script)?;
            // What depends on the size is drawn by the frame after the next.
            browser.view(self.view)?;
            frames.push(Frame {
                pixels: Pixels::decode(&browser.screenshot(false)?)?,
                milliseconds: *milliseconds,
            });
        }
        let problems = browser.problems()?;
        ensure!(problems.is_empty(), "the page complains: {problems:?}");
        let about = [
            ("Title", self.title.to_owned()),
            (
                "Software",
                format!("Kickpath {}", env!("CARGO_PKG_VERSION")),
            ),
            (
                "Comment",
                format!(
                    "Made by {COMMAND}, of docs/recorded: {}",
                    runs.told(Lang::En)
                ),
            ),
            (FINGERPRINT, self.fingerprint()),
        ];
        image::encode(&frames, &about).with_context(|| self.file.to_owned())
    }
}
