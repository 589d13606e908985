//! The pages of `kickpath lab run --html` and `kickpath soak --html`.

use anyhow::{Result, ensure};
use kickpath::lab::{self, EXPERIMENTS, Evidence, Outcome, Ring};
use kickpath::lang::Lang;
use kickpath::soak::{self, Sample, Tally};
use kickpath_tests::Suite;

use crate::contrast;
use crate::support::{Page, desk, picture_name, views};

pub fn add(suite: &mut Suite) {
    suite.test("reports::a_laboratory_at_every_width", laboratory);
    suite.test("reports::in_chinese", in_chinese);
    suite.test("reports::a_soak_at_every_width", soaked);
}

fn at_every_width(page: &mut Page, name: &str) -> Result<()> {
    for view in views() {
        page.view(view)?;
        page.check()?;
        contrast::check(page)?;
        page.picture(&picture_name(name, view), view, false)?;
    }
    Ok(())
}

/// The page of every experiment.
pub fn laboratory_html() -> String {
    let evidence = |asked| Evidence {
        asked,
        answered: 100,
        said: vec!["virtio-net: the transmit queue does not move: kicked again".into()],
        steps: vec!["Idle: Nothing is left to do: the CPU sleeps until an interrupt.".into(); 3],
        stalled: Some(Ring::default()),
        damage: Some("60 bytes: its packet is cut short".into()),
        records_lost: 1,
        ..Evidence::default()
    };
    let reports: Vec<_> = EXPERIMENTS
        .iter()
        .map(|experiment| lab::Report {
            experiment,
            predicted: Some(Outcome::Works),
            outcome: Outcome::Late,
            right: evidence(1_000_000),
            wrong: evidence(2_000_000),
        })
        .collect();
    lab::page(&reports)
}

fn in_chinese() -> Result<()> {
    for (name, html) in [("lab", laboratory_html()), ("soak", soak_html())] {
        let mut page = Page::open(&Lang::Zh.page(html))?;
        // Deviations are errors, and those are in English.
        page.evaluate("document.querySelector('ul.bad')?.remove()")?;
        page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")?;
        let english = page.english(0)?;
        ensure!(english.is_empty(), "in English: {english:#?}");
        page.check()?;
        let picture = picture_name(&format!("{name}-zh"), desk(false));
        page.picture(&picture, desk(false), true)?;
    }
    Ok(())
}

/// Every experiment, closed as the page comes and opened.
fn laboratory() -> Result<()> {
    let mut page = Page::open(&laboratory_html())?;
    let titles = page.count("section > h2")?;
    ensure!(titles == EXPERIMENTS.len() as u64, "{titles} experiments");
    // What comes of it is not told before it is asked for.
    let shown = page.evaluate("document.querySelector('.outcome').checkVisibility()")?;
    ensure!(shown == false, "the outcome is shown at once");
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")?;
    at_every_width(&mut page, "lab")
}

/// The page of a soak.
pub fn soak_html() -> String {
    let samples = (0..60u32).map(|second| {
        let count = u64::from(second * 900 + second % 7 * 300);
        Sample {
            at_s: f64::from(second),
            heap: 1_000_000 + u64::from(second % 9) * 4_096,
            connections: 2,
            rx: count,
            tx: count,
            kicks: count / 9,
            interrupts: count / 11,
            connection: count * 64,
        }
    });
    let tally = |name: &str| Tally {
        name: name.into(),
        done: 1_234_567,
        failed: 0,
        amount: 1_234_567_890,
    };
    let report = soak::Report {
        machine: "legacy 00:02.0, split rings, tcg".into(),
        asked_s: 60.0,
        elapsed_s: 61.5,
        rounds: 12,
        work: ["UDP echo", "malformed frames", "link down and up"]
            .map(tally)
            .into(),
        deviations: vec!["a reply came twice: <b>".into()],
        deviations_in_all: 1,
        samples: samples.collect(),
        ..soak::Report::default()
    };
    soak::html::page(&report)
}

fn soaked() -> Result<()> {
    let mut page = Page::open(&soak_html())?;
    ensure!(page.count("svg.plot polyline")? == 7, "seven plots");
    at_every_width(&mut page, "soak")
}
