//! Two traces as a page: it is whole in itself, has no script, and loads nothing.

use std::fmt::Write;

use super::text::number;
use super::{Diff, Row, conclusion, kind, layer_title, name};
use crate::html::escape;
use crate::trace::text::duration;
use crate::trace::timeline::{Delta, Layer, Phase, Step, Timeline};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("../page/page.css");

/// The page of two traces. `command` is what a reader would type to make one like it.
pub fn page(diff: &Diff, a: &Timeline, b: &Timeline, command: &str) -> String {
    let title = format!("{} ↔ {}", diff.a.file, diff.b.file);
    let parts = [
        ("{{title}}", escape(&title)),
        ("{{style}}", STYLE.to_owned()),
        ("{{conclusion}}", escape(&conclusion(diff))),
        ("{{sides}}", sides(diff)),
        ("{{setup}}", setup(diff)),
        ("{{numbers}}", numbers(diff)),
        ("{{steps}}", steps(diff, a, b)),
        ("{{command}}", escape(command)),
        ("{{version}}", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    let mut page = String::new();
    let mut rest = PAGE;
    for (place, content) in parts {
        if let Some((before, after)) = rest.split_once(place) {
            page += before;
            page += &content;
            rest = after;
        }
    }
    page + rest
}

fn sides(diff: &Diff) -> String {
    let mut html = "<div class=\"sides\">".to_owned();
    for (label, side) in [("A", &diff.a), ("B", &diff.b)] {
        let asides = match side.asides {
            0 => String::new(),
            // Apart, or the name of the file before it would be taken for its number.
            n => format!(" <span>{n} steps about other packets are left out.</span>"),
        };
        let verdict = match side.sound {
            true => "<span class=\"good\">What was checked of it holds.</span>",
            false => "<span class=\"bad\">A check of it failed.</span>",
        };
        // Writing to a string does not fail.
        let _ = write!(
            html,
            "<div><h3>{label}: {}</h3><p>{}.{asides} {verdict}</p></div>",
            escape(&side.machine),
            escape(&side.file),
        );
    }
    html + "</div>"
}

fn setup(diff: &Diff) -> String {
    if diff.setup.is_empty() {
        return "<p class=\"quiet\">In nothing that a trace knows of its machine.</p>".to_owned();
    }
    let mut html = "<table class=\"plain-table\"><thead><tr><th scope=\"col\">What</th>\
                    <th scope=\"col\">A</th><th scope=\"col\">B</th></tr></thead><tbody>"
        .to_owned();
    for setting in &diff.setup {
        let cell = |text: &str| match text {
            "" => "<td class=\"causal\">none</td>".to_owned(),
            text => format!("<td>{}</td>", escape(text)),
        };
        let (a, b) = (cell(&setting.a), cell(&setting.b));
        let _ = write!(
            html,
            "<tr><th scope=\"row\">{}</th>{a}{b}</tr>",
            setting.name
        );
    }
    html + "</tbody></table>"
}

fn numbers(diff: &Diff) -> String {
    let mut html = "<table class=\"plain-table\"><thead><tr>\
                    <th scope=\"col\" class=\"layer-cell\">Layer</th><th scope=\"col\">What</th>\
                    <th scope=\"col\" class=\"right\">A</th><th scope=\"col\" class=\"right\">B</th>\
                    </tr></thead><tbody>"
        .to_owned();
    for measure in &diff.measures {
        let [a, b] = [measure.a, measure.b].map(|value| number(value, measure.unit));
        let _ = write!(
            html,
            "<tr><td class=\"layer-cell\">{}</td><th scope=\"row\">{}</th>\
             <td class=\"right\">{a}</td><td class=\"right\">{b}</td></tr>",
            layer_title(measure.layer),
            measure.what
        );
    }
    html + "</tbody></table><p class=\"note\">-: not recorded. Times are by one clock each. Of TCG, or \
            of a Linux whose functions are watched, they are not those of a machine that is left \
            alone: counts compare, times only roughly.</p>"
}

fn steps(diff: &Diff, a: &Timeline, b: &Timeline) -> String {
    let mut html = "<table class=\"pairs\"><thead><tr><th class=\"mark\"><span class=\"skip\">\
                    How they compare</span></th><th scope=\"col\">A</th><th scope=\"col\">B</th>\
                    </tr></thead><tbody>"
        .to_owned();
    let mut phase = None;
    for row in &diff.rows {
        let left = row.a.and_then(|number| a.steps.get(number));
        let right = row.b.and_then(|number| b.steps.get(number));
        let Some(told) = left.or(right) else {
            continue;
        };
        // Where one trace has the next part begun, both are told of it once.
        if phase.is_none_or(|phase: Phase| phase < told.phase) {
            phase = Some(told.phase);
            let _ = write!(
                html,
                "<tr class=\"phase\"><th colspan=\"3\" scope=\"colgroup\">{}</th></tr>",
                told.phase.title()
            );
        }
        let (class, mark) = mark(row);
        let cells = cell("A", left, right) + &cell("B", right, left);
        let _ = write!(
            html,
            "<tr class=\"{class}\" data-event=\"{}\"><th class=\"mark\">{mark}</th>{cells}</tr>",
            escape(&row.event)
        );
    }
    html + "</tbody></table>"
}

fn mark(row: &Row) -> (&'static str, &'static str) {
    match (row.a, row.b) {
        (Some(_), Some(_)) if row.same => ("same", "="),
        (Some(_), Some(_)) => ("differs", "~"),
        (Some(_), None) => ("only only-a", "&lt;"),
        _ => ("only only-b", "&gt;"),
    }
}

/// A step, beside the other one.
fn cell(label: &str, step: Option<&Step>, other: Option<&Step>) -> String {
    let Some(step) = step else {
        let event = other.map_or("", |other| kind(other).0);
        let event = escape(event);
        return format!(
            "<td class=\"none\"><span class=\"label\">{label}: </span>no <code>{event}</code> here</td>"
        );
    };
    let (fill, text) = colours(step.layer);
    let since = match &step.delta {
        Delta::First => String::new(),
        Delta::Measured { ns } => format!("+{}", duration(*ns)),
        Delta::Causal { .. } => "by order".to_owned(),
    };
    let mut html = format!(
        "<td style=\"--c:var({fill})\"><p class=\"head\"><span class=\"label\">{label}</span>\
         <span class=\"number\">{}</span><span class=\"layer\" style=\"--c-text:var({text})\">{}</span>\
         <span class=\"name\">{}</span><span class=\"since\">{since}</span></p>\
         <p class=\"sentence\">{}</p>",
        step.number + 1,
        step.layer.title(),
        escape(name(step)),
        escape(&step.sentence)
    );
    if let Some(instruction) = &step.instruction {
        let _ = write!(
            html,
            "<p class=\"extra\"><code>{}</code>: bytes <code>{}</code>, <code>{}</code> in <code>{}</code></p>",
            escape(&instruction.meaning),
            escape(&instruction.bytes),
            escape(&instruction.text),
            escape(&instruction.symbol)
        );
    }
    if !step.stack.is_empty() {
        let _ = write!(
            html,
            "<details><summary>Call chain</summary><code>{}</code></details>",
            escape(&step.stack.join(" <- "))
        );
    }
    if !step.values.is_empty() {
        html += "<details><summary>Values</summary><dl>";
        for value in &step.values {
            let same = other.is_none_or(|other| other.values.contains(value));
            let class = if same { "" } else { " class=\"other\"" };
            let _ = write!(
                html,
                "<dt>{}</dt><dd{class}>{}</dd>",
                escape(&value.name),
                escape(&value.value)
            );
        }
        html += "</dl></details>";
    }
    html + "</td>"
}

/// A layer's colours of the style: filled, and as text.
const fn colours(layer: Layer) -> (&'static str, &'static str) {
    match layer {
        Layer::Guest => ("--driver-fill", "--driver"),
        Layer::Kvm => ("--kvm-fill", "--kvm"),
        Layer::QemuVcpu | Layer::QemuMain | Layer::VmmVcpu | Layer::VmmOther => {
            ("--device-fill", "--device")
        }
        Layer::Wire => ("--wire-fill", "--wire"),
    }
}
