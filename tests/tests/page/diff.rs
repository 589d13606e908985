//! The pages of `kickpath trace --diff --html`, and of a trace of Linux.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use kickpath::trace::diff::{Diff, diff, page};
use kickpath::trace::recording::Recording;
use kickpath::trace::{Timeline, build, html};
use kickpath_tests::Suite;

use crate::contrast;
use crate::support::{Page, desk, picture_name, views};

const COMMAND: &str = "kickpath trace --diff ours.json linux.json";

pub fn add(suite: &mut Suite) {
    suite.test("diff::ours_and_linux_at_every_width", ours_and_linux);
    suite.test("diff::only_what_differs", only_what_differs);
    suite.test("diff::a_trace_and_one_without_steps", without_steps);
    suite.test("diff::linux_step_by_step", linux_step_by_step);
}

fn ours() -> Result<Timeline> {
    timeline(include_str!("../../../boot/src/trace/fixtures/tcg.json"))
}

pub fn linux() -> Result<Timeline> {
    timeline(include_str!("../../../boot/src/trace/fixtures/linux.json"))
}

/// The timeline of a fixture.
pub fn timeline(recording: &str) -> Result<Timeline> {
    let recording: Recording = serde_json::from_str(recording)?;
    Ok(build::build(&recording)?)
}

fn compared(a: &Timeline, b: &Timeline) -> Result<(Diff, Page)> {
    let compared = diff((Path::new("ours.json"), a), (Path::new("linux.json"), b))?;
    let html = page(&compared, a, b, COMMAND);
    Ok((compared, Page::open(&html)?))
}

/// The page of ours and Linux's.
pub fn html() -> Result<String> {
    let (a, b) = (ours()?, linux()?);
    let compared = diff((Path::new("ours.json"), &a), (Path::new("linux.json"), &b))?;
    Ok(page(&compared, &a, &b, COMMAND))
}

fn ours_and_linux() -> Result<()> {
    let (a, b) = (ours()?, linux()?);
    let (diff, mut page) = compared(&a, &b)?;
    let rows = page.count(".pairs tr[data-event]")?;
    ensure!(rows == diff.rows.len() as u64, "{rows} rows");
    let kick = ".pairs tr[data-event=DoorbellRing]";
    let (left, right) = (
        page.text(&format!("{kick} td:nth-of-type(1)"))?,
        page.text(&format!("{kick} td:nth-of-type(2)"))?,
    );
    ensure!(
        left.contains("Doorbell::ring") && left.contains("66 ef"),
        "{left}"
    );
    ensure!(
        right.contains("vp_notify") && right.contains("66 89 3e"),
        "{right}"
    );
    // What only ours records is said to be absent in the other.
    let publish = page.text(".pairs tr[data-event=Publish] td.none")?;
    ensure!(publish.contains("no Publish here"), "{publish}");
    for view in views() {
        page.view(view)?;
        page.check()?;
        contrast::check(&mut page)?;
        page.picture(&picture_name("diff", view), view, false)?;
    }
    page.view(desk(false))?;
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")?;
    page.check()?;
    page.picture("diff-whole", desk(false), true)
}

fn only_what_differs() -> Result<()> {
    let a = ours()?;
    let mut b = a.clone();
    let changed = b.steps.iter().position(|step| step.event == "KickPrepare");
    b.steps[changed.context("a decision")?].sentence = "It was otherwise.".to_owned();
    let (_, mut page) = compared(&a, &b)?;
    let shown = "[...document.querySelectorAll('.pairs tr[data-event]')].filter(row => row.offsetHeight > 0).length";
    let all = page.evaluate(shown)?;
    ensure!(all.as_u64() > Some(20), "{all}");
    page.evaluate("document.getElementById('only').click()")?;
    let left = page.evaluate(shown)?;
    ensure!(left == 1, "{left} rows are left");
    let text = page.text(".pairs tr.differs")?;
    ensure!(text.contains("It was otherwise."), "{text}");
    page.check()
}

fn without_steps() -> Result<()> {
    let mut empty = ours()?;
    empty.steps.clear();
    empty.frames.clear();
    empty.kicks = None;
    let (diff, mut page) = compared(&empty, &linux()?)?;
    ensure!(diff.rows.iter().all(|row| row.a.is_none()));
    page.view(desk(true))?;
    page.check()
}

/// The page of a trace has nothing of our guest where the guest is a Linux.
fn linux_step_by_step() -> Result<()> {
    let timeline = linux()?;
    let mut page = Page::open(&html::render(&timeline, "kickpath trace --guest linux")?)?;
    ensure!(page.text("#subtitle")?.contains("Linux 6.1"));
    for view in views() {
        page.view(view)?;
        page.check()?;
        contrast::check(&mut page)?;
        page.picture(&picture_name("linux", view), view, true)?;
    }
    page.view(desk(false))?;
    page.press("Home")?;
    let mut steps = timeline.steps.iter().filter(|step| !step.aside).peekable();
    while let Some(step) = steps.next() {
        let title = page.text("#step-title")?;
        ensure!(
            &title == step.function.as_ref().unwrap_or(&step.event),
            "{title}"
        );
        ensure!(page.text("#queue")?.contains("hold was not recorded"));
        let source = page.text("#source")?;
        ensure!(source.contains("No source of ours"), "{source}");
        if step.event == "Notify" {
            ensure!(source.contains("The guest kernel's call chain"), "{source}");
            ensure!(source.contains("dev_hard_start_xmit"), "{source}");
        }
        if steps.peek().is_some() {
            page.press("ArrowRight")?;
        }
    }
    page.check()?;
    page.picture("linux-whole", desk(false), true)
}
