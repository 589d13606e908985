//! Two traces of recorded runs.

use super::*;
use crate::terminal::{Story, WIDTH};
use crate::trace::build;
use crate::trace::recording::Recording;

fn trace(name: &str) -> Timeline {
    let text = match name {
        "tcg" => include_str!("../fixtures/tcg.json"),
        "intx" => include_str!("../fixtures/intx.json"),
        "kvm" => include_str!("../fixtures/kvm.json"),
        "linux" => include_str!("../fixtures/linux.json"),
        _ => unreachable!(),
    };
    let recording: Recording = serde_json::from_str(text).unwrap();
    build::build(&recording).unwrap()
}

const NAMES: [&str; 4] = ["tcg", "intx", "kvm", "linux"];

fn of(a: &Timeline, b: &Timeline) -> Diff {
    diff((Path::new("a.json"), a), (Path::new("b.json"), b)).unwrap()
}

fn row<'a>(diff: &'a Diff, event: &str, queue: Option<u16>) -> &'a Row {
    let mut rows = diff.rows.iter();
    let found = rows.rfind(|row| row.event == event && row.queue == queue);
    found.unwrap_or_else(|| panic!("no {event} of {queue:?}: {:#?}", diff.rows))
}

fn measure(diff: &Diff, layer: Layer, what: &str) -> (Option<f64>, Option<f64>) {
    let mut measures = diff.measures.iter();
    let found = measures.find(|m| m.layer == Some(layer) && m.what == what);
    found.map_or((None, None), |m| (m.a, m.b))
}

#[test]
fn every_step_of_the_packet_is_there_once_and_in_order() {
    for a in NAMES {
        for b in NAMES {
            let (first, second) = (trace(a), trace(b));
            let diff = of(&first, &second);
            let told_of_a: Vec<usize> = diff.rows.iter().filter_map(|row| row.a).collect();
            let told_of_b: Vec<usize> = diff.rows.iter().filter_map(|row| row.b).collect();
            for (timeline, told) in [(&first, told_of_a), (&second, told_of_b)] {
                let steps = timeline.steps.iter().filter(|step| !step.aside);
                let all: Vec<usize> = steps.map(|step| step.number).collect();
                assert_eq!(told, all, "{a} and {b}");
            }
            // What stands side by side is of one kind.
            for row in &diff.rows {
                if let (Some(left), Some(right)) = (row.a, row.b) {
                    let (left, right) = (&first.steps[left], &second.steps[right]);
                    assert_eq!(kind(left), kind(right));
                }
            }
            let [both, only_a, only_b, same] = counts(&diff);
            assert_eq!(both + only_a + only_b, diff.rows.len());
            if a == b {
                assert_eq!((only_a, only_b, same), (0, 0, both));
                assert!(diff.setup.is_empty());
                assert!(diff.measures.iter().all(|measure| measure.a == measure.b));
            }
        }
    }
}

#[test]
fn our_kick_stands_beside_linuxs() {
    let (ours, linux) = (trace("tcg"), trace("linux"));
    let diff = of(&ours, &linux);
    let tx = Some(1);
    for (event, queue, function) in [
        ("SocketSend", None, "udp_sendmsg"),
        ("StartXmit", tx, "start_xmit"),
        ("Add", tx, "virtqueue_add_outbuf"),
        ("KickPrepare", tx, "virtqueue_kick_prepare"),
        ("Notify", tx, "virtqueue_notify"),
        ("DoorbellRing", tx, "vp_notify"),
    ] {
        let row = row(&diff, event, queue);
        assert!(row.a.is_some(), "{row:?}");
        let step = &linux.steps[row.b.unwrap()];
        assert_eq!(step.function.as_deref(), Some(function));
        assert!(!row.same, "{row:?}");
    }
    // Linux has no record of its own for the index, and takes an interrupt for what it sent.
    let publish = row(&diff, "Publish", tx);
    assert_eq!((publish.a.is_some(), publish.b), (true, None));
    // The one for what came in both have.
    let mut rows = diff.rows.iter().filter(|row| row.event == "VringInterrupt");
    let [first, second] = [rows.next().unwrap(), rows.next().unwrap()];
    assert!(first.a.is_some() && first.b.is_some());
    assert_eq!((second.a, second.b.is_some()), (None, true));
    assert!(diff.setup.iter().any(|setting| setting.name == "Guest"
        && setting.a == "Kickpath"
        && setting.b.starts_with("Linux ")));
    let (ours, linux) = measure(&diff, Layer::QemuMain, "interrupts raised");
    assert_eq!((ours, linux), (Some(1.0), Some(2.0)));
}

#[test]
fn the_same_step_in_another_thread_is_of_one_kind() {
    let diff = of(&trace("tcg"), &trace("intx"));
    let notify = row(&diff, "virtio_queue_notify", Some(1));
    assert!(notify.a.is_some() && notify.b.is_some() && !notify.same);
    let (main, vcpu) = measure(&diff, Layer::QemuVcpu, "steps");
    assert!(main.is_none() && vcpu.is_some());
}

#[test]
fn the_text_is_at_most_100_columns_wide() {
    for (a, b) in [("tcg", "linux"), ("intx", "kvm"), ("linux", "linux")] {
        let (first, second) = (trace(a), trace(b));
        let mut bytes = Vec::new();
        print(
            &mut Story::new(&mut bytes),
            &of(&first, &second),
            &first,
            &second,
        )
        .unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let text = anstream::adapter::strip_str(&text).to_string();
        for line in text.lines() {
            assert!(
                line.chars().count() <= WIDTH,
                "{}: {line}",
                line.chars().count()
            );
        }
        assert!(
            text.contains("steps are of one kind in both traces"),
            "{text}"
        );
    }
}

#[test]
fn a_recorded_text_stays_text_and_nothing_is_loaded() {
    let (mut first, second) = (trace("tcg"), trace("linux"));
    let clean = page(&of(&first, &second), &first, &second, "kickpath");
    assert!(!clean.contains("{{"), "a place was not filled");
    assert!(!clean.contains("<script"));
    for wish in ["http://", "https://", "src=", "@import", "url("] {
        for (at, _) in clean.match_indices(wish) {
            let around = &clean[at.saturating_sub(40)..at];
            assert!(around.contains("xmlns='"), "{wish} behind {around:?}");
        }
    }
    let evil = "</td><script>alert(1)</script>{{steps}}\"";
    first.steps[0].sentence = evil.to_owned();
    first.steps[0].function = Some(evil.to_owned());
    first.run.device.doorbell = evil.to_owned();
    let page = page(&of(&first, &second), &first, &second, evil);
    assert!(!page.contains("<script"));
    assert_eq!(
        page.matches("</td>").count(),
        clean.matches("</td>").count()
    );
}
