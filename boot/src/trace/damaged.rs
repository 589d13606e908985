//! Recordings with any damage: what the guest, QEMU and the host's kernel wrote
//! is not to be relied on, so nothing of it may make the trace panic or hang.

use std::sync::LazyLock;

use kickpath_trace::{Event, MAGIC, Record, layout};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::image::tests::{image, site_bytes};
use super::recording::{KvmRecording, Recording};
use super::{build, html, kvm, perfetto, qemu, records, text};
use crate::terminal::Story;

/// One thing that went wrong. Places are by [`Index`]: they scale with what
/// there is.
#[derive(Clone, Debug)]
enum Damage {
    /// The guest's records.
    Guest(ListDamage),
    /// One of them has another event, time, queue or arguments.
    Record(Index, Index, Number, Option<u16>, [Number; 2]),
    /// QEMU's log.
    Log(TextDamage),
    /// KVM's events.
    Kvm(TextDamage),
    /// Frames on the cable.
    Frames(ListDamage),
    /// One of them is shorter.
    Frame(Index, Index, Number),
    /// What was read of the guest's memory.
    Memory(ListDamage),
    /// A piece of it.
    Piece(Index, Index, Number),
    /// The device's address ranges.
    Regions(ListDamage),
    /// One of them.
    Region(Index, Number, Number),
    /// Readings of the clocks.
    Samples(ListDamage),
    /// One of them.
    Sample(Index, [Number; 4]),
    /// Where the window begins.
    Window(Number, Number),
    /// Numbers that stand alone: the probe's length, the guest's frequency,
    /// what was lost.
    Numbers([Number; 3]),
    /// The offset between the time stamp counters.
    Offset(Option<i64>, bool),
    /// Where the doorbell is.
    Doorbell(Option<u64>),
    /// QEMU's threads.
    Threads(u32, Vec<u32>),
}

/// A number that replaces another, or what is added to it.
#[derive(Clone, Copy, Debug)]
enum Number {
    Is(u64),
    Plus(i8),
}

impl Number {
    fn change(self, number: &mut u64) {
        *number = match self {
            Self::Is(other) => other,
            Self::Plus(more) => number.wrapping_add_signed(more.into()),
        };
    }

    fn change_size(self, number: &mut usize) {
        let mut wide = *number as u64;
        self.change(&mut wide);
        *number = wide as usize;
    }

    fn change_signed(self, number: &mut i64) {
        let mut bits = number.cast_unsigned();
        self.change(&mut bits);
        *number = bits.cast_signed();
    }
}

/// What becomes of a list.
#[derive(Clone, Debug)]
enum ListDamage {
    Remove(Index, Index),
    Double(Index, Index),
    Swap(Index, Index),
    Cut(Index),
}

impl ListDamage {
    fn apply<T: Clone>(&self, list: &mut Vec<T>) {
        if list.is_empty() {
            return;
        }
        let length = list.len();
        let range = |a: &Index, b: &Index| {
            let (a, b) = (a.index(length), b.index(length));
            a.min(b)..a.max(b) + 1
        };
        match self {
            Self::Remove(a, b) => drop(list.drain(range(a, b))),
            Self::Double(a, b) => {
                let some = list[range(a, b)].to_vec();
                let place = a.index(length);
                list.splice(place..place, some);
            }
            Self::Swap(a, b) => list.swap(a.index(length), b.index(length)),
            Self::Cut(end) => list.truncate(end.index(length)),
        }
    }
}

/// What becomes of a text: of its lines, or of its bytes.
#[derive(Clone, Debug)]
enum TextDamage {
    Lines(ListDamage),
    Bytes(Index, Vec<u8>),
    Word(Index, String),
    Cut(Index),
}

impl TextDamage {
    fn apply(&self, text: &mut String) {
        match self {
            Self::Lines(damage) => {
                let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
                damage.apply(&mut lines);
                *text = lines.concat();
            }
            Self::Bytes(place, new) => {
                let mut bytes = std::mem::take(text).into_bytes();
                let start = place.index(bytes.len() + 1);
                let end = (start + new.len()).min(bytes.len());
                bytes.splice(start..end, new.iter().copied());
                *text = String::from_utf8_lossy(&bytes).into_owned();
            }
            Self::Word(place, new) => {
                let mut words: Vec<&str> = text.split_inclusive(' ').collect();
                if !words.is_empty() {
                    let place = place.index(words.len());
                    words[place] = new;
                }
                *text = words.concat();
            }
            Self::Cut(end) => {
                let bytes = &text.as_bytes()[..end.index(text.len() + 1)];
                *text = String::from_utf8_lossy(bytes).into_owned();
            }
        }
    }
}

impl Damage {
    fn apply(&self, recording: &mut Recording) {
        /// The element at this place, if there is any.
        fn at<'a, T>(list: &'a mut [T], place: &Index) -> Option<&'a mut T> {
            let place = (!list.is_empty()).then(|| place.index(list.len()))?;
            list.get_mut(place)
        }
        match self {
            Self::Guest(damage) => damage.apply(&mut recording.guest),
            Self::Record(place, event, tsc, queue, [a, b]) => {
                if let Some(record) = at(&mut recording.guest, place) {
                    record.event = Event::ALL[event.index(Event::ALL.len())];
                    record.queue = *queue;
                    tsc.change(&mut record.tsc);
                    a.change(&mut record.a);
                    b.change(&mut record.b);
                }
            }
            Self::Log(damage) => damage.apply(&mut recording.qemu_log),
            Self::Kvm(damage) => {
                let kvm = recording.kvm.get_or_insert_default();
                damage.apply(&mut kvm.text);
            }
            Self::Frames(damage) => damage.apply(&mut recording.frames),
            Self::Frame(place, end, at_time) => {
                if let Some(frame) = at(&mut recording.frames, place) {
                    frame.bytes.truncate(end.index(frame.bytes.len() + 1));
                    at_time.change_signed(&mut frame.at);
                }
            }
            Self::Memory(damage) => damage.apply(&mut recording.memory),
            Self::Piece(place, end, address) => {
                if let Some(memory) = at(&mut recording.memory, place) {
                    memory.bytes.truncate(end.index(memory.bytes.len() + 1));
                    address.change(&mut memory.address);
                }
            }
            Self::Regions(damage) => damage.apply(&mut recording.regions),
            Self::Region(place, address, size) => {
                if let Some(region) = at(&mut recording.regions, place) {
                    address.change(&mut region.address);
                    size.change(&mut region.size);
                }
            }
            Self::Samples(damage) => damage.apply(&mut recording.clocks.samples),
            Self::Sample(place, [calendar, steady, tsc, uncertainty]) => {
                if let Some(sample) = at(&mut recording.clocks.samples, place) {
                    calendar.change_signed(&mut sample.calendar);
                    steady.change_signed(&mut sample.steady);
                    uncertainty.change_signed(&mut sample.uncertainty);
                    tsc.change(sample.tsc.get_or_insert_default());
                }
            }
            Self::Window(guest, qemu) => {
                guest.change_size(&mut recording.window.guest);
                qemu.change_size(&mut recording.window.qemu);
            }
            Self::Numbers([bytes, hz, lost]) => {
                bytes.change_size(&mut recording.probe.bytes);
                hz.change(&mut recording.clocks.guest_hz);
                lost.change(&mut recording.ring.lost);
            }
            Self::Offset(offset, tsc_clock) => {
                let kvm = recording.kvm.get_or_insert_default();
                kvm.tsc_offset = *offset;
                kvm.tsc_clock = *tsc_clock;
            }
            Self::Doorbell(address) => recording.doorbell_address = *address,
            Self::Threads(main, vcpus) => {
                recording.threads.main = *main;
                recording.threads.vcpus.clone_from(vcpus);
            }
        }
    }
}

fn number() -> impl Strategy<Value = Number> {
    prop_oneof![
        2 => any::<i8>().prop_map(Number::Plus),
        1 => any::<u64>().prop_map(Number::Is),
        1 => (0u64..70_000).prop_map(Number::Is),
        1 => Just(Number::Is(u64::MAX)),
        1 => Just(Number::Is(1 << 63)),
    ]
}

fn list() -> impl Strategy<Value = ListDamage> {
    let two = || any::<(Index, Index)>();
    prop_oneof![
        two().prop_map(|(a, b)| ListDamage::Remove(a, b)),
        // Mostly little, so that something is left.
        any::<Index>().prop_map(|a| ListDamage::Remove(a, a)),
        two().prop_map(|(a, b)| ListDamage::Double(a, b)),
        two().prop_map(|(a, b)| ListDamage::Swap(a, b)),
        any::<Index>().prop_map(ListDamage::Cut),
    ]
}

fn text_damage() -> impl Strategy<Value = TextDamage> {
    prop_oneof![
        4 => list().prop_map(TextDamage::Lines),
        2 => (any::<Index>(), vec(any::<u8>(), 0..20)).prop_map(|(a, b)| TextDamage::Bytes(a, b)),
        // What a parser may trip over.
        2 => (any::<Index>(), "(0x)?[0-9a-f:.@+-]{0,22}( |\n|\t)?")
            .prop_map(|(a, b)| TextDamage::Word(a, b)),
        1 => any::<Index>().prop_map(TextDamage::Cut),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = any::<Index>;
    prop_oneof![
        3 => list().prop_map(Damage::Guest),
        6 => (place(), place(), number(), prop::option::of(0u16..5), [number(), number()])
            .prop_map(|(a, b, c, d, e)| Damage::Record(a, b, c, d, e)),
        3 => text_damage().prop_map(Damage::Log),
        3 => text_damage().prop_map(Damage::Kvm),
        1 => list().prop_map(Damage::Frames),
        1 => (place(), place(), number()).prop_map(|(a, b, c)| Damage::Frame(a, b, c)),
        1 => list().prop_map(Damage::Memory),
        1 => (place(), place(), number()).prop_map(|(a, b, c)| Damage::Piece(a, b, c)),
        1 => list().prop_map(Damage::Regions),
        1 => (place(), number(), number()).prop_map(|(a, b, c)| Damage::Region(a, b, c)),
        1 => list().prop_map(Damage::Samples),
        1 => (place(), [number(), number(), number(), number()])
            .prop_map(|(a, b)| Damage::Sample(a, b)),
        2 => (number(), number()).prop_map(|(a, b)| Damage::Window(a, b)),
        1 => [number(), number(), number()].prop_map(Damage::Numbers),
        1 => (any::<Option<i64>>(), any::<bool>()).prop_map(|(a, b)| Damage::Offset(a, b)),
        1 => any::<Option<u64>>().prop_map(Damage::Doorbell),
        1 => (any::<u32>(), vec(any::<u32>(), 0..3)).prop_map(|(a, b)| Damage::Threads(a, b)),
    ]
}

/// All that is made of a recording.
fn use_all(recording: &Recording) {
    let Ok(timeline) = build::build(recording) else {
        return;
    };
    let mut story = Story::new(Vec::new());
    text::print(&mut story, &timeline).unwrap();
    html::render(&timeline, "kickpath trace").unwrap();
    perfetto::render(&timeline);
    serde_json::to_string(&timeline).unwrap();
}

static FIXTURES: LazyLock<[Recording; 5]> = LazyLock::new(|| {
    [
        include_str!("fixtures/tcg.json"),
        include_str!("fixtures/intx.json"),
        include_str!("fixtures/kvm.json"),
        include_str!("fixtures/linux.json"),
        include_str!("fixtures/firecracker.json"),
    ]
    .map(|text| serde_json::from_str(text).unwrap())
});

/// What is used of a ring of records is found by addresses that it holds.
const BASE: u64 = 0xffff_ffff_8010_0000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_damaged_recording_is_told_or_refused(
        which in 0usize..4,
        damages in vec(damage(), 1..8),
    ) {
        let mut recording = FIXTURES[which].clone();
        for damage in &damages {
            damage.apply(&mut recording);
        }
        use_all(&recording);
    }

    #[test]
    fn any_ring_is_read_or_refused(
        capacity in prop_oneof![0u64..20, any::<u64>()],
        count in prop_oneof![0u64..20, any::<u64>()],
        words in vec(prop_oneof![any::<u64>(), BASE..BASE + 100], 0..60),
        magic in prop_oneof![4 => Just(MAGIC), 1 => any::<u64>()],
        cut in any::<Index>(),
    ) {
        let image = image(BASE, site_bytes(BASE, 17, 3, "k.rs", "k"), &[]);
        let mut bytes = vec![0; layout::RECORDS];
        for (offset, word) in [
            (layout::MAGIC, magic),
            (layout::CAPACITY, capacity),
            (layout::COUNT, count),
        ] {
            bytes[offset..offset + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        let room = (words.len() * 8 / size_of::<Record>()) as u64;
        if let Ok(ring) = records::parse(&bytes, &image) {
            prop_assert!(ring.records.len() as u64 + ring.unresolved <= room);
        }
        let _ = records::parse(&bytes[..cut.index(bytes.len())], &image);
    }

    #[test]
    fn any_text_is_parsed(text in "(\\PC|\n| |:|=|\\[|\\]|0x|@){0,200}") {
        qemu::parse(&text);
        kvm::parse::parse(&text);
    }
}

/// What the tests above damage is whole.
#[test]
fn the_recordings_are_told_when_whole() {
    for recording in FIXTURES.iter() {
        assert!(build::build(recording).is_ok());
        use_all(recording);
    }
    use_all(&Recording {
        kvm: Some(KvmRecording::default()),
        ..Recording::default()
    });
}
