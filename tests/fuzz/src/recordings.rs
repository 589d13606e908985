//! Recordings of a run of which something is wrong, and all that is made of them.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::LazyLock;

use kickpath::terminal::Story;
use kickpath::trace::recording::{KvmRecording, Recording};
use kickpath::trace::{Timeline, build, diff, html, perfetto, text};
use kickpath_trace::Event;

use crate::input::Input;

/// Recordings of a run, whole.
static RECORDINGS: LazyLock<[Recording; 5]> = LazyLock::new(|| {
    [
        include_str!("../../../boot/src/trace/fixtures/tcg.json"),
        include_str!("../../../boot/src/trace/fixtures/intx.json"),
        include_str!("../../../boot/src/trace/fixtures/kvm.json"),
        include_str!("../../../boot/src/trace/fixtures/linux.json"),
        include_str!("../../../boot/src/trace/fixtures/firecracker.json"),
    ]
    .map(|text| serde_json::from_str(text).expect("a recording"))
});

/// A recording of which the bytes change what they like: nothing panics, and what can be
/// told of it is.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let which = usize::from(input.u8());
    let mut recording = RECORDINGS[which % RECORDINGS.len()].clone();
    for _ in 0..16 {
        if input.is_at_end() {
            break;
        }
        damage(&mut recording, &mut input);
    }
    tell(&recording, which / RECORDINGS.len());
}

/// One number that is there, or near to one, or any.
fn number(input: &mut Input<'_>, number: u64) -> u64 {
    match input.u8() % 4 {
        0 => number.wrapping_add_signed(i64::from(input.u8() as i8)),
        1 => u64::from(input.u16()),
        2 => u64::from(input.u32()) << 32 | u64::from(input.u32()),
        _ => input.pick(&[0, u64::MAX, 1 << 63, u64::MAX >> 1]),
    }
}

fn damage(recording: &mut Recording, input: &mut Input<'_>) {
    match input.u8() % 9 {
        0 => {
            let place = usize::from(input.u8());
            if let Some(record) = recording.guest.get_mut(place) {
                record.event = input.pick(Event::ALL);
                record.queue = input.pick(&[None, Some(0), Some(1), Some(2), Some(u16::MAX)]);
                record.tsc = number(input, record.tsc);
                record.a = number(input, record.a);
                record.b = number(input, record.b);
            }
        }
        1 => cut(&mut recording.guest, input),
        2 => lines(&mut recording.qemu_log, input),
        3 => {
            let kvm = recording.kvm.get_or_insert_with(KvmRecording::default);
            lines(&mut kvm.text, input);
            kvm.tsc_offset = input.pick(&[kvm.tsc_offset, None, Some(i64::MIN), Some(i64::MAX)]);
        }
        4 => {
            cut(&mut recording.frames, input);
            if let Some(frame) = recording.frames.first_mut() {
                frame.bytes.truncate(usize::from(input.u8()));
                frame.at = number(input, frame.at.cast_unsigned()).cast_signed();
            }
        }
        5 => {
            cut(&mut recording.memory, input);
            if let Some(memory) = recording.memory.first_mut() {
                memory.bytes.truncate(usize::from(input.u8()));
                memory.address = number(input, memory.address);
            }
        }
        6 => {
            if let Some(region) = recording.regions.first_mut() {
                region.address = number(input, region.address);
                region.size = number(input, region.size);
            }
            let clocks = &mut recording.clocks;
            clocks.guest_hz = number(input, clocks.guest_hz);
            if let Some(sample) = clocks.samples.last_mut() {
                sample.calendar = number(input, sample.calendar.cast_unsigned()).cast_signed();
                sample.steady = number(input, sample.steady.cast_unsigned()).cast_signed();
                sample.tsc = Some(number(input, sample.tsc.unwrap_or(0)));
                sample.uncertainty = number(input, 1).cast_signed();
            }
        }
        7 => {
            let window = &mut recording.window;
            window.guest = number(input, window.guest as u64) as usize;
            window.qemu = number(input, window.qemu as u64) as usize;
            recording.ring.lost = number(input, 0);
        }
        _ => {
            recording.probe.bytes = number(input, recording.probe.bytes as u64) as usize;
            recording.doorbell_address = Some(number(input, 0xc010));
        }
    }
}

/// Some of a list are not there, or twice.
fn cut<T: Clone>(list: &mut Vec<T>, input: &mut Input<'_>) {
    let from = usize::from(input.u8()).min(list.len());
    let to = (from + usize::from(input.u8() % 8)).min(list.len());
    match input.u8() % 2 {
        0 => drop(list.drain(from..to)),
        _ => list.extend_from_within(from..to),
    }
}

/// Lines of a text are not there or twice, or one has other words.
fn lines(text: &mut String, input: &mut Input<'_>) {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    cut(&mut lines, input);
    let place = usize::from(input.u8());
    let length = usize::from(input.u8() % 32);
    let words = String::from_utf8_lossy(input.bytes(length));
    let number = u32::from(input.u16());
    let mut changed = String::new();
    if let Some(line) = lines.get_mut(place) {
        let keep = line
            .char_indices()
            .map(|(at, _)| at)
            .nth(usize::from(input.u8()));
        let (kept, _) = line.split_at(keep.unwrap_or(0));
        writeln!(changed, "{kept}{words}{number}").unwrap();
        *line = &changed;
    }
    *text = lines.concat();
}

/// All that is made of a recording, which may not tell of a datagram.
pub fn tell(recording: &Recording, way: usize) {
    if let Ok(timeline) = build::build(recording) {
        show(&timeline, way);
    }
}

/// All that is made of a timeline: what is written can be read, and is the same. All of
/// it takes 20 ms under AddressSanitizer: libFuzzer has one of the ways a run.
pub fn show(timeline: &Timeline, way: usize) {
    let is_taken = |number| !cfg!(feature = "coverage") || way % 5 == number;
    if is_taken(0) {
        text::print(&mut Story::new(Vec::new()), timeline).unwrap();
    }
    if is_taken(1) {
        perfetto::render(timeline);
    }
    if is_taken(2) {
        let written = serde_json::to_vec(timeline).unwrap();
        let again: Timeline = serde_json::from_slice(&written).unwrap();
        assert_eq!(again, *timeline);
    }
    if is_taken(3) {
        html::render(timeline, "kickpath trace").unwrap();
    }
    if is_taken(4) {
        compare(timeline);
    }
}

/// A timeline beside itself has no step alone.
fn compare(timeline: &Timeline) {
    let file = Path::new("trace.json");
    if let Ok(diff) = diff::diff((file, timeline), (file, timeline)) {
        assert!(diff.rows.iter().all(|row| row.a == row.b));
        diff::print(&mut Story::new(Vec::new()), &diff, timeline, timeline).unwrap();
        diff::page(&diff, timeline, timeline, "kickpath trace --diff");
    }
}
