//! The timeline as one page of HTML: swim lanes, a stepper with the source and
//! the virtqueue, and the verdicts. It is whole in itself: no server, no other
//! file, no network.
//!
//! The page's parts lie in `page/`; they take the [`Timeline`]'s JSON as it is,
//! and draw nothing that is not in it.

use serde::Serialize;
use serde_json::Value;

use super::glossary::{self, Term};
use super::timeline::{Delta, Timeline};

const PAGE: &str = include_str!("page/page.html");
pub(crate) const STYLE: &str = include_str!("page/page.css");
/// What draws words and rings, in the order in which they need each other; for any page.
pub(crate) const DRAWING: [&str; 3] = [
    include_str!("page/base.js"),
    include_str!("page/glossary.js"),
    include_str!("page/queue.js"),
];
/// What draws a trace, behind those.
const TRACE: [&str; 3] = [
    include_str!("page/lanes.js"),
    include_str!("page/story.js"),
    include_str!("page/steps.js"),
];

/// What the page's scripts are given.
#[derive(Serialize)]
struct Data<'a> {
    timeline: Value,
    /// Every check of the timeline passed.
    sound: bool,
    /// What was checked, and what came of it.
    conclusion: String,
    /// What the hatched gaps of the lanes mean.
    clock_note: String,
    /// What the words of the page mean.
    glossary: &'static [Term],
    /// The command that made the page.
    command: &'a str,
    version: &'static str,
}

/// The page that shows `timeline`. `command` is what a reader would type to
/// make one like it.
///
/// # Errors
/// The timeline has a number that JSON cannot say.
pub fn render(timeline: &Timeline, command: &str) -> serde_json::Result<String> {
    let mut exact = serde_json::to_value(timeline)?;
    keep_exact(&mut exact);
    let data = Data {
        timeline: exact,
        sound: timeline.is_sound(),
        conclusion: timeline.conclusion(),
        clock_note: clock_note(timeline),
        glossary: glossary::TERMS,
        command,
        version: env!("CARGO_PKG_VERSION"),
    };
    let data = serde_json::to_string(&data)?;
    let script = [DRAWING, TRACE].concat().join("\n");
    Ok(assemble(PAGE, STYLE, &data, &script))
}

/// Puts style, data (as JSON) and script into the places that a page has for them.
pub(crate) fn assemble(template: &str, style: &str, data: &str, script: &str) -> String {
    // Inside of a script element only `<` can end it or begin a comment.
    let data = data.replace('<', "\\u003c");
    let length = template.len() + style.len() + data.len() + script.len();
    let mut page = String::with_capacity(length);
    let mut rest = template;
    for (place, content) in [
        ("/*{{style}}*/", style),
        ("{{data}}", data.as_str()),
        ("/*{{script}}*/", script),
    ] {
        if let Some((before, after)) = rest.split_once(place) {
            page.push_str(before);
            page.push_str(content);
            rest = after;
        }
    }
    page.push_str(rest);
    page
}

/// Writes integers that a browser's numbers would round, such as addresses of
/// the kernel, as hexadecimal text.
fn keep_exact(value: &mut Value) {
    /// JavaScript's `Number.MAX_SAFE_INTEGER`.
    const EXACT: u64 = (1 << 53) - 1;
    match value {
        Value::Number(number) => {
            if let Some(large) = number.as_u64().filter(|number| *number > EXACT) {
                *value = format!("{large:#x}").into();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(keep_exact),
        Value::Object(fields) => fields.values_mut().for_each(keep_exact),
        _ => {}
    }
}

/// Why some gaps have no length.
fn clock_note(timeline: &Timeline) -> String {
    let causal = timeline
        .steps
        .iter()
        .filter(|step| matches!(step.delta, Delta::Causal { .. }))
        .count();
    format!(
        "Hatched: not measured, because the two clocks cannot be compared; only the order is \
         known ({causal} of {} steps).",
        timeline.steps.len()
    )
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    /// The JSON that a browser would read.
    fn data_of(page: &str) -> serde_json::Value {
        let (_, rest) = page.split_once(r#"id="data">"#).unwrap();
        let (json, _) = rest.split_once("</script>").unwrap();
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_page_carries_the_timeline_and_every_part() {
        let timeline = sample::timeline();
        let page = render(&timeline, "kickpath trace --html FILE").unwrap();
        assert!(!page.contains("{{"), "a place was not filled");
        let data = data_of(&page);
        let steps = data["timeline"]["steps"].as_array().unwrap();
        assert_eq!(steps.len(), timeline.steps.len());
        for (shown, step) in steps.iter().zip(&timeline.steps) {
            assert_eq!(shown["sentence"], step.sentence);
            if let Some(instruction) = &step.instruction {
                // A number of this size would be rounded by the browser.
                let address = format!("{:#x}", instruction.address);
                assert_eq!(shown["instruction"]["address"], address);
            }
        }
        assert_eq!(data["sound"], true);
        assert!(page.contains(":root {") && page.contains("function drawLanes"));
    }

    #[test]
    fn the_page_asks_for_nothing_from_outside() {
        let page = render(&sample::timeline(), "kickpath trace").unwrap();
        for wish in ["http://", "https://", "src=", "@import", "url(", "fetch("] {
            for (at, _) in page.match_indices(wish) {
                let around = &page[at.saturating_sub(40)..(at + 40).min(page.len())];
                let harmless = around.contains("www.w3.org/2000/svg") || around.contains("url(#");
                assert!(harmless, "{wish} in {around:?}");
            }
        }
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn a_recorded_text_cannot_leave_its_element() {
        let mut timeline = sample::timeline();
        let evil = "</script><script>alert(1)</script><!-- {{data}} /*{{script}}*/ \u{2028}";
        timeline.steps[0].sentence = evil.into();
        timeline.run.device.doorbell = evil.into();
        let page = render(&timeline, evil).unwrap();
        let clean = render(&sample::timeline(), "").unwrap();
        assert_eq!(
            page.matches("</script>").count(),
            clean.matches("</script>").count()
        );
        assert_eq!(page.matches("<!--").count(), clean.matches("<!--").count());
        assert_eq!(data_of(&page)["timeline"]["steps"][0]["sentence"], evil);
    }
}
