//! The page of `kickpath trace --html`.

use anyhow::{Context, Result, ensure};
use kickpath::lang::Lang;
use kickpath::trace::timeline::{Delta, Part, Phase};
use kickpath::trace::{Timeline, glossary, html};
use kickpath_tests::browser::View;
use kickpath_tests::{Suite, program};

use crate::support::{Page, WIDTHS, desk, picture_name, views};
use crate::{axe, contrast, diff};

pub fn add(suite: &mut Suite) {
    let mut add = |name: &str, body: fn() -> Result<()>| {
        suite.test(&format!("trace::{name}"), body);
    };
    add("every_step_forward_and_back", every_step_forward_and_back);
    add("buttons_slider_and_links", buttons_slider_and_links);
    add(
        "the_keyboard_reaches_everything",
        the_keyboard_reaches_everything,
    );
    add("lanes_are_to_scale", lanes_are_to_scale);
    add(
        "light_and_dark_at_every_width",
        light_and_dark_at_every_width,
    );
    add(
        "recorded_text_is_shown_as_text",
        recorded_text_is_shown_as_text,
    );
    add("words_are_explained", words_are_explained);
    add("a_lecture_fits_one_screen", a_lecture_fits_one_screen);
    add("a_timeline_without_steps", a_timeline_without_steps);
    add("nothing_is_left_in_english", nothing_is_left_in_english);
    add("a_packet_of_this_machine", || {
        a_packet_of_this_machine("run", &[])
    });
    add("a_packet_by_packed_rings", || {
        let packed = ["--transport", "modern", "--layout", "packed"];
        a_packet_of_this_machine("packed", &packed)
    });
}

/// A recorded run by TCG.
pub fn sample() -> Result<Timeline> {
    let text = include_str!("../../../boot/src/trace/sample.json");
    serde_json::from_str(text).context("the sample does not fit the schema")
}

/// A recorded run by KVM.
pub fn on_kvm() -> Result<Timeline> {
    diff::timeline(include_str!("../../../boot/src/trace/fixtures/kvm.json"))
}

/// In Chinese, at every step, all that is no name, code or title of the specification is
/// Chinese.
fn nothing_is_left_in_english() -> Result<()> {
    for (name, timeline) in [("kvm", on_kvm()?), ("linux", diff::linux()?)] {
        let mut page = Page::open(&html(&timeline, Lang::Zh)?)?;
        page.check()?;
        let lang = page.evaluate("document.documentElement.lang")?;
        ensure!(lang == "zh-CN", "{lang}");
        ensure!(page.text("h1")? == "一个数据包怎样离开虚拟机");
        page.evaluate("setFilter(true)")?;
        let left = page.english(timeline.steps.len())?;
        ensure!(left.is_empty(), "{name}: {left:#?}");
        page.picture(&format!("trace-{name}-zh"), desk(false), false)?;
    }
    Ok(())
}

/// Its page.
pub fn html(timeline: &Timeline, lang: Lang) -> Result<String> {
    Ok(lang.page(html::render(timeline, "kickpath trace --html FILE")?))
}

fn open(timeline: &Timeline) -> Result<Page> {
    Page::open(&html(timeline, Lang::En)?)
}

/// What the page shows must be what the timeline has at this step.
fn check_step(page: &mut Page, timeline: &Timeline, index: usize) -> Result<()> {
    let step = &timeline.steps[index];
    let (number, all) = (index + 1, timeline.steps.len());
    let position = page.text("#position")?;
    ensure!(position == format!("{number} / {all}"), "at {position}");
    let title = page.text("#step-title")?;
    ensure!(
        &title == step.function.as_ref().unwrap_or(&step.event),
        "{title}"
    );
    let text = page.text("#step")?;
    ensure!(text.contains(&step.sentence), "step {number} says {text}");
    for word in [&step.linux, &step.section].into_iter().flatten() {
        ensure!(text.contains(word.as_str()), "step {number} lacks {word}");
    }
    if let Some(source) = &step.source {
        let head = page.text("#h-source")?;
        ensure!(head == format!("{}:{}", source.file, source.line), "{head}");
        if source.excerpt.is_some() {
            let first = page.text("#source tr.hot td")?;
            ensure!(first == source.line.to_string(), "line {first} is marked");
        }
    }
    if let Some(snapshot) = &step.snapshot {
        let lit = page.count("#queue td.lit")?;
        ensure!(
            (lit > 0) != snapshot.changed.is_empty(),
            "step {number} changed {:?} and {lit} cells are lit",
            snapshot.changed
        );
        // A descriptor's fields are lit one by one.
        let of_address = |part: &Part| matches!(part, Part::DescriptorAddress(_));
        let address = page.count("#queue .area:first-child tbody td:nth-child(2).lit")?;
        ensure!(
            (address > 0) == snapshot.changed.iter().any(of_address),
            "step {number} changed {:?} and {address} addresses are lit",
            snapshot.changed
        );
    }
    if let Some(instruction) = &step.instruction {
        let shown = page.text("#step .bytes")?;
        ensure!(shown == instruction.bytes, "{shown}");
        // A kernel's address is larger than a browser's numbers are exact.
        let address = format!("{:#x}", instruction.address);
        ensure!(text.contains(&address), "{address} is not in {text}");
    }
    Ok(())
}

fn every_step_forward_and_back() -> Result<()> {
    let timeline = sample()?;
    let mut page = open(&timeline)?;
    only_this_packet(&mut page, &timeline)?;
    page.press("Home")?;
    for index in 0..timeline.steps.len() {
        check_step(&mut page, &timeline, index)?;
        page.check()?;
        page.press("ArrowRight")?;
    }
    // At the end it stays there.
    for index in (0..timeline.steps.len()).rev() {
        check_step(&mut page, &timeline, index)?;
        page.press("ArrowLeft")?;
    }
    check_step(&mut page, &timeline, 0)?;
    page.press("End")?;
    check_step(&mut page, &timeline, timeline.steps.len() - 1)?;
    page.check()
}

fn buttons_slider_and_links() -> Result<()> {
    let timeline = sample()?;
    let bell = timeline
        .steps
        .iter()
        .position(|step| step.instruction.is_some())
        .context("the sample has no doorbell")?;
    let mut page = open(&timeline)?;
    // The page opens where the world stops.
    check_step(&mut page, &timeline, bell)?;
    page.click("#back")?;
    check_step(&mut page, &timeline, bell - 1)?;
    page.click("#next")?;
    page.click("#next")?;
    check_step(&mut page, &timeline, bell + 1)?;
    page.click("#first")?;
    page.click("#back")?;
    check_step(&mut page, &timeline, 0)?;
    page.click("#last")?;
    page.click("#next")?;
    check_step(&mut page, &timeline, timeline.steps.len() - 1)?;
    page.click(".hero .stop button")?;
    check_step(&mut page, &timeline, bell)?;
    page.evaluate("document.getElementById('slider').focus()")?;
    page.press("ArrowRight")?;
    check_step(&mut page, &timeline, bell + 1)?;
    page.click("[data-phase=receive]")?;
    let receive = timeline
        .steps
        .iter()
        .position(|s| s.phase == Phase::Receive);
    check_step(&mut page, &timeline, receive.context("nothing came in")?)?;
    page.click(".hero .chain button")?;
    let shown = page.evaluate("document.querySelector('.hero .chain [aria-current]') !== null")?;
    ensure!(shown == true, "the chain does not show where we are");
    // A link to a step opens there.
    page.reopen("#step-3")?;
    check_step(&mut page, &timeline, 2)?;
    for hash in ["#step-0", "#step-999999", "#step-x", "#h-run"] {
        page.reopen(hash)?;
        check_step(&mut page, &timeline, bell)?;
    }
    page.check()
}

fn the_keyboard_reaches_everything() -> Result<()> {
    let mut page = open(&sample()?)?;
    let nameless = page.evaluate(
        "[...document.querySelectorAll('button, a, input, [tabindex=\"0\"]')].filter(e => \
         !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim() \
         || e.matches('pre'))).map(e => e.outerHTML)",
    )?;
    ensure!(
        nameless == serde_json::json!([]),
        "without a name: {nameless}"
    );
    let expected = page.evaluate(
        "[...document.querySelectorAll('button, a[href], input, summary')].filter(e => e.checkVisibility() && !e.disabled).length",
    )?;
    let expected = expected.as_u64().context("a count")?;
    page.evaluate("document.activeElement.blur(); window.reached = new Set(); true")?;
    for _ in 0..expected + 20 {
        page.press("Tab")?;
        let outline = page.evaluate(
            "(() => { const e = document.activeElement; if (e === document.body) return 'body'; \
             if (e.matches('button, a[href], input, summary')) reached.add(e); \
             return getComputedStyle(e).outlineStyle; })()",
        )?;
        ensure!(outline != "none", "the focus cannot be seen");
    }
    let reached = page.evaluate("reached.size")?;
    ensure!(
        reached == expected,
        "{reached} of {expected} reached by Tab"
    );
    // Enter works where the focus is, and the focus stays.
    page.evaluate("document.getElementById('first').focus()")?;
    page.press("Enter")?;
    page.evaluate("document.getElementById('next').focus()")?;
    page.press("Enter")?;
    ensure!(page.text("#position")?.starts_with("2 /"));
    ensure!(page.evaluate("document.activeElement.id")? == "next");
    page.evaluate("document.querySelector('[data-scale=linear]').focus()")?;
    page.press("Enter")?;
    ensure!(page.evaluate("document.activeElement.dataset.scale")? == "linear");
    page.check()
}

/// Places of the points of the part that is shown.
fn places(page: &mut Page) -> Result<Vec<(usize, f64)>> {
    let places = page.evaluate(
        "[...document.querySelectorAll('#lanes [data-point]')].map(e => { const r = \
         e.getBoundingClientRect(); return [Number(e.dataset.point), r.x + r.width / 2]; })",
    )?;
    Ok(serde_json::from_value(places)?)
}

fn lanes_are_to_scale() -> Result<()> {
    let timeline = sample()?;
    let mut page = open(&timeline)?;
    page.click("[data-filter=everything]")?;
    for phase in ["attach", "receive", "transmit", "return"] {
        page.click(&format!("[data-phase={phase}]"))?;
        for scale in ["log", "linear", "order"] {
            page.click(&format!("[data-scale={scale}]"))?;
            let places = places(&mut page)?;
            let mut measured = Vec::new();
            let mut causal = Vec::new();
            for pair in places.windows(2) {
                let ((_, from), (number, to)) = (pair[0], pair[1]);
                ensure!(to >= from, "{phase} {scale}: step {number} goes back");
                match &timeline.steps[number].delta {
                    Delta::Measured { ns } => measured.push((*ns, to - from)),
                    _ => causal.push(to - from),
                }
            }
            let same = |lengths: &[f64]| lengths.windows(2).all(|w| (w[0] - w[1]).abs() < 0.1);
            ensure!(same(&causal), "{phase} {scale}: {causal:?}");
            match scale {
                "linear" => {
                    let per: Vec<_> = measured.iter().map(|(ns, px)| px / ns * 1000.0).collect();
                    ensure!(same(&per), "{phase}: {per:?} pixels a microsecond");
                }
                "log" => measured.sort_by(|a, b| a.0.total_cmp(&b.0)),
                _ => {
                    let all: Vec<_> = measured.iter().map(|m| m.1).chain(causal.clone()).collect();
                    ensure!(same(&all), "{phase} {scale}: {all:?}");
                }
            }
            if scale == "log" {
                ensure!(measured.windows(2).all(|w| w[0].1 <= w[1].1 + 0.1));
            }
            // What was not measured is marked as such, unless only the order counts.
            if scale != "order" {
                let hatched = page.count("#lanes rect[fill='url(#hatch)']")?;
                ensure!(
                    hatched == causal.len() as u64,
                    "{hatched} of {}",
                    causal.len()
                );
            }
        }
    }
    page.check()
}

fn light_and_dark_at_every_width() -> Result<()> {
    let timeline = sample()?;
    let mut page = open(&timeline)?;
    for view in views() {
        page.view(view)?;
        let wide = page.evaluate(
            "steps.filter(step => { go(step.number); \
             return document.documentElement.scrollWidth > innerWidth; }).map(nameOf)",
        )?;
        ensure!(
            wide == serde_json::json!([]),
            "too wide in {view:?}: {wide}"
        );
        page.reopen("")?;
        page.check()?;
        contrast::check(&mut page)?;
        page.picture(&picture_name("trace", view), view, true)?;
    }
    page.view(desk(false))?;
    page.picture("trace-first-screen", desk(false), false)
}

fn recorded_text_is_shown_as_text() -> Result<()> {
    let mut timeline = sample()?;
    let evil =
        "</script><script>console.error('it ran')</script><img src=x onerror=console.error(1)><!--";
    timeline.run.accelerator_reason = evil.into();
    timeline.run.command_line = evil.into();
    for step in &mut timeline.steps {
        step.sentence = evil.into();
        step.function = Some(evil.into());
        step.stack = vec![evil.into()];
        if let Some(excerpt) = step.source.as_mut().and_then(|s| s.excerpt.as_mut()) {
            excerpt.lines = vec![evil.into(); excerpt.lines.len()];
        }
        for value in &mut step.values {
            value.value = evil.into();
        }
    }
    for absent in &mut timeline.absent {
        absent.reason = evil.into();
    }
    let mut page = open(&timeline)?;
    ensure!(page.text("#step-title")? == evil);
    ensure!(page.count("img")? == 0);
    for width in WIDTHS {
        page.view(View {
            width,
            ..desk(false)
        })?;
        page.check()?;
    }
    Ok(())
}

/// Each word is told of by keyboard and pointer, within the window.
fn words_are_explained() -> Result<()> {
    let mut page = open(&sample()?)?;
    let listed = page.count("#glossary dt")?;
    ensure!(
        listed == glossary::TERMS.len() as u64,
        "{listed} are listed"
    );
    for width in WIDTHS {
        page.view(View {
            width,
            ..desk(false)
        })?;
        let wrong = page.evaluate(
            "(() => { const wrong = []; let met = 0; for (const step of steps) { go(step.number); \
             for (const term of document.querySelectorAll('.term')) { met++; term.focus(); \
             const of = TERMS.get(term.textContent.toLowerCase()), box = tip.getBoundingClientRect(); \
             if (tip.hidden || !tip.textContent.includes(of.sentence) || box.left < 0 || box.top < 0 \
             || box.right > innerWidth || box.bottom > innerHeight) wrong.push(term.textContent); \
             term.blur(); if (!tip.hidden) wrong.push('stays: ' + term.textContent); } } \
             return met > 20 ? wrong : [`${met} words`]; })()",
        )?;
        ensure!(wrong == serde_json::json!([]), "at {width}: {wrong}");
    }
    page.view(desk(false))?;
    page.reopen("")?;
    // By Tab and Escape, as without a mouse.
    let focus = "document.querySelector('#step .term').focus()";
    page.evaluate(focus)?;
    let described = page.evaluate("document.activeElement.getAttribute('aria-describedby')")?;
    ensure!(described == "tip" && page.count("#tip:not([hidden])")? == 1);
    page.picture("trace-word", desk(false), false)?;
    page.press("Escape")?;
    ensure!(page.count("#tip:not([hidden])")? == 0, "Escape closes it");
    // A pointer shows it too, and the next step takes it away.
    page.evaluate(
        "document.querySelector('#queue .term').dispatchEvent(new PointerEvent('pointerenter'))",
    )?;
    ensure!(page.count("#tip:not([hidden])")? == 1);
    page.press("ArrowLeft")?;
    ensure!(page.count("#tip:not([hidden])")? == 0);
    // Who was at a word of the step before goes on from the stepper.
    page.evaluate(focus)?;
    page.press("ArrowRight")?;
    ensure!(page.evaluate("document.activeElement.id")? == "stepper");
    page.check()
}

/// Large type, the step, its ring and its source at once, and a presenter's keys.
fn a_lecture_fits_one_screen() -> Result<()> {
    let timeline = sample()?;
    let mut page = open(&timeline)?;
    let screen = |dark| View {
        width: 1280,
        height: 720,
        ..desk(dark)
    };
    page.view(screen(false))?;
    let small =
        page.evaluate("parseFloat(getComputedStyle(document.querySelector('.lead')).fontSize)")?;
    page.press("l")?;
    ensure!(page.evaluate("$('lecture').getAttribute('aria-pressed')")? == "true");
    let large =
        page.evaluate("parseFloat(getComputedStyle(document.querySelector('.lead')).fontSize)")?;
    ensure!(
        large.as_f64() >= small.as_f64().map(|size| size * 1.3),
        "{large} of {small}"
    );
    page.press("Home")?;
    let cut = page.evaluate(
        "(() => { const cut = []; for (const step of steps.filter(visible)) { go(step.number); \
         if (document.documentElement.scrollHeight > innerHeight) cut.push([step.number, 'the page']); \
         for (const id of ['step', 'queue']) { const box = $(id).closest('section'); \
         if (box.scrollHeight > box.clientHeight + 1 || box.scrollWidth > box.clientWidth + 1) \
         cut.push([step.number, id, box.scrollHeight, box.clientHeight]); } \
         const hot = document.querySelector('#source tr.hot'), source = $('source').closest('section'); \
         if (hot) { const line = hot.getBoundingClientRect(), box = source.getBoundingClientRect(); \
         if (line.top < box.top || line.bottom > box.bottom) cut.push([step.number, 'the line']); } } \
         return cut; })()",
    )?;
    ensure!(cut == serde_json::json!([]), "not seen: {cut}");
    page.press("Home")?;
    page.press("PageDown")?;
    let second = page.evaluate("steps.filter(visible)[1].number === current")?;
    ensure!(second == true, "a presenter's key goes on");
    page.press("PageUp")?;
    ensure!(page.text("#position")?.starts_with("1 /"));
    page.check()?;
    for dark in [false, true] {
        page.view(screen(dark))?;
        page.evaluate("go(bell.number)")?;
        let name = if dark {
            "trace-lecture-dark"
        } else {
            "trace-lecture"
        };
        page.picture(name, screen(dark), false)?;
    }
    axe::check(&mut page)?;
    page.view(screen(false))?;
    // A link from slides opens it so, at that step.
    let own = page.evaluate("location.hash === `#lecture-${bell.number + 1}`")?;
    ensure!(own == true, "the address leads here");
    page.press("l")?;
    page.reopen("#lecture-3")?;
    ensure!(page.evaluate("inLecture()")? == true && page.text("#position")?.starts_with("3 /"));
    page.press("l")?;
    ensure!(page.evaluate("location.hash")? == "#step-3");
    ensure!(page.evaluate("getComputedStyle($('hero')).display")? != "none");
    // On a telephone it is one column, which scrolls.
    page.view(View {
        width: 360,
        ..desk(false)
    })?;
    page.press("l")?;
    page.check()
}

fn a_timeline_without_steps() -> Result<()> {
    let mut timeline = sample()?;
    timeline.steps.clear();
    timeline.frames.clear();
    timeline.joins.clear();
    timeline.absent.clear();
    let mut page = open(&timeline)?;
    page.check()?;
    ensure!(page.count("#hero:empty")? == 0, "the first screen is empty");
    Ok(())
}

/// At first the page walks over what is not of the packet; then over all.
fn only_this_packet(page: &mut Page, timeline: &Timeline) -> Result<()> {
    page.press("Home")?;
    let mut met = Vec::new();
    for _ in 0..timeline.steps.len() + 2 {
        met.push(page.evaluate("current")?);
        page.press("ArrowRight")?;
    }
    met.dedup();
    let own = timeline.steps.iter().filter(|step| !step.aside);
    let own: Vec<serde_json::Value> = own.map(|step| step.number.into()).collect();
    ensure!(met == own, "{met:?} are not {own:?}");
    let aside = timeline.steps.iter().find(|step| step.aside);
    if let Some(aside) = aside {
        // A link to one of the others shows them.
        page.reopen(&format!("#step-{}", aside.number + 1))?;
        check_step(page, timeline, aside.number)?;
        page.click("[data-filter=packet]")?;
        ensure!(page.evaluate("visible(steps[current])")? == true);
        page.click("[data-filter=everything]")?;
    }
    Ok(())
}

/// Words of the other layout: the page may have none of them.
fn foreign_words(timeline: &Timeline) -> &'static [&'static str] {
    let features = &timeline.run.device.features;
    match features.iter().any(|feature| feature == "RING_PACKED") {
        true => &["available ring", "used ring", "used index", "_event"],
        false => &["wrap counter", "AVAIL", "event suppression structure"],
    }
}

/// The command's own page of a run that was just made. Pictures of it are
/// called after `name`.
fn a_packet_of_this_machine(name: &str, options: &[&str]) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name).display().to_string();
    let [json, html, perfetto] = ["trace.json", "trace.html", "perfetto.json"].map(path);
    let files = ["--json", &json, "--html", &html, "--perfetto", &perfetto];
    program::run(&[&["trace"], &files[..], options].concat())?;
    let timeline: Timeline = serde_json::from_str(&std::fs::read_to_string(&json)?)?;
    let mut page = Page::open(&std::fs::read_to_string(&html)?)?;
    only_this_packet(&mut page, &timeline)?;
    page.press("Home")?;
    for index in 0..timeline.steps.len() {
        check_step(&mut page, &timeline, index)?;
        let text = page.text("#step")? + &page.text("#queue")?;
        for word in foreign_words(&timeline) {
            ensure!(!text.contains(word), "step {index} says '{word}': {text}");
        }
        page.press("ArrowRight")?;
    }
    page.check()?;
    // The story is whole: the doorbell has its instruction and its source.
    let bell = timeline
        .steps
        .iter()
        .find(|step| step.phase == Phase::Transmit && step.event == "DoorbellRing");
    let bell = bell.context("no doorbell")?;
    page.reopen(&format!("#step-{}", bell.number + 1))?;
    ensure!(
        page.count("#source tr.hot")? >= 2,
        "the instruction's line is not shown"
    );
    for view in views() {
        page.view(view)?;
        page.check()?;
        page.picture(&picture_name(name, view), view, true)?;
    }
    axe::check(&mut page)?;
    page.view(desk(false))?;
    page.picture(&format!("{name}-first-screen"), desk(false), false)?;
    let trace: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&perfetto)?)?;
    let events = trace["traceEvents"].as_array().context("no events")?;
    let slices = events.iter().filter(|event| event["ph"] == "X").count();
    ensure!(slices == timeline.steps.len(), "{slices} slices");
    Ok(())
}
