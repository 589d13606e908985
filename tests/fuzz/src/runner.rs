//! What the runner reads: QEMU's log, the host kernel's trace, answers of the guest's
//! web server, and a recording of all that.

use kickpath::trace::qemu::threads::{self, ThreadLog, ThreadLogs};
use kickpath::trace::recording::Recording;
use kickpath::trace::{Timeline, kvm, linux, qemu, records};
use kickpath::wire::http;
use kickpath_abi::status::Status;

use crate::input::Input;
use crate::recordings::{show, tell};

/// Nothing panics; what is understood is kept, and can be told.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    match input.u8() % 5 {
        0 => logs(input.0),
        1 => kernel_trace(input.0),
        2 => answer(input.0),
        3 => json(input.0),
        _ => {
            if let Ok(header) = records::Header::parse(input.0) {
                assert!(header.recorded() <= header.ring_use().capacity);
            }
        }
    }
}

/// Logs of several threads, one behind the other. Their lines become one log, in which
/// none is lost and each event is read.
fn logs(data: &[u8]) {
    let mut logs = ThreadLogs::new();
    for (thread, data) in (1..).zip(data.split(|byte| *byte == 0)) {
        let window = usize::from(data.first().copied().unwrap_or(0));
        let text = String::from_utf8_lossy(data).into_owned();
        logs.insert(thread, ThreadLog { text, window });
    }
    let (merged, window) = threads::merge(&logs);
    assert!(merged.is_char_boundary(window), "{window} of {merged:?}");
    // What has no end of its line is still being written.
    let lines = |text: &str| {
        text[..text.rfind('\n').map_or(0, |end| end + 1)]
            .lines()
            .count()
    };
    let written: usize = logs.values().map(|log| lines(&log.text)).sum();
    assert_eq!(lines(&merged), written, "{merged:?}");
    let parsed = qemu::parse(&merged);
    let blank = merged.lines().filter(|line| line.trim().is_empty());
    assert_eq!(
        parsed.records.len() + parsed.unread.len() + blank.count(),
        written
    );
    for record in &parsed.records {
        for (name, _) in &record.fields {
            record.number(name);
        }
    }
}

/// The host kernel's trace.
fn kernel_trace(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let records = kvm::parse::parse(&text);
    assert!(records.len() <= text.lines().count());
    for record in &records {
        record.vector();
        if let Some((address, _)) = record.write() {
            // The text of one may have the other's word too.
            let is_port = record.event == "kvm_pio";
            let word = if is_port { "at" } else { "gpa" };
            assert_eq!(record.number(word), Some(address), "{record:?}");
        }
    }
    linux_trace(data, &text);
}

/// The same of a Linux guest, and the page that it comes in.
fn linux_trace(data: &[u8], text: &str) {
    for ports in [None, Some(0xc000)] {
        let records = linux::records::read(text, ports);
        // A line is two records at most: a queue's rings and its doorbell.
        assert!(records.len() <= 2 * text.lines().count());
        if let Some(place) = linux::records::woken_for(&records, 64) {
            assert!(place < records.len());
        }
    }
    if let Ok(page) = linux::page::parse(text) {
        assert!(page.hz > 0 && text.ends_with(page.trace));
    }
    let _ = linux::page::unpack(data);
}

/// An answer of the guest's web server: what is complete stays it when no more comes.
fn answer(data: &[u8]) {
    let ended = http::parse(data, true);
    if let Ok(Some(response)) = http::parse(data, false) {
        let again = ended.unwrap().unwrap();
        assert_eq!(
            (again.status, &again.body),
            (response.status, &response.body)
        );
        // The status report is read so.
        drop(serde_json::from_slice::<Status>(&response.body));
    }
}

/// A recording, or a timeline, from a file.
fn json(data: &[u8]) {
    if let Ok(recording) = serde_json::from_slice::<Recording>(data) {
        let written = serde_json::to_vec(&recording).unwrap();
        let again: Recording = serde_json::from_slice(&written).unwrap();
        assert_eq!(again, recording);
        tell(&recording, data.len());
    }
    if let Ok(timeline) = serde_json::from_slice::<Timeline>(data) {
        show(&timeline, data.len());
    }
}
