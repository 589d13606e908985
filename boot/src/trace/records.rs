//! The guest's ring of records, read out of the guest's memory.

use kickpath_trace::{Event, MAGIC, NO_QUEUE, Record, layout};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::image::Image;
use super::timeline::{NamedValue, RingUse};

/// What is read first: magic, capacity and count.
pub const HEADER_LENGTH: usize = layout::RECORDS;

/// More records than any ring of ours has.
const MAX_RECORDS: u64 = 1 << 20;

/// Why the ring cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Too few bytes.
    #[error("the guest's memory ends within the ring of records")]
    Short,
    /// No ring there.
    #[error("there is no ring of records where the executable says: {0:#018x} is not its magic")]
    Magic(u64),
    /// A ring of impossible size.
    #[error("the ring of records says that it holds {0} records")]
    Capacity(u64),
}

/// The ring's first words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    capacity: u64,
    count: u64,
}

impl Header {
    /// Reads the ring's first [`HEADER_LENGTH`] bytes.
    ///
    /// # Errors
    /// There is no ring.
    pub fn parse(bytes: &[u8]) -> Result<Self, RingError> {
        let word = |offset: usize| {
            let word = bytes.get(offset..).and_then(<[u8]>::first_chunk);
            word.map(|word| u64::from_le_bytes(*word))
                .ok_or(RingError::Short)
        };
        let magic = word(layout::MAGIC)?;
        if magic != MAGIC {
            return Err(RingError::Magic(magic));
        }
        let capacity = word(layout::CAPACITY)?;
        if capacity == 0 || capacity > MAX_RECORDS {
            return Err(RingError::Capacity(capacity));
        }
        let count = word(layout::COUNT)?;
        Ok(Self { capacity, count })
    }

    /// Records in the ring.
    pub fn recorded(self) -> u64 {
        self.count.min(self.capacity)
    }

    /// Length in bytes of the ring up to its last record.
    pub fn length(self) -> usize {
        layout::RECORDS + self.recorded() as usize * size_of::<Record>()
    }

    /// How full the ring is.
    pub fn ring_use(self) -> RingUse {
        RingUse {
            capacity: self.capacity,
            recorded: self.recorded(),
            lost: self.count - self.recorded(),
        }
    }
}

/// A record of the guest, its site resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRecord {
    /// Time stamp counter.
    pub tsc: u64,
    /// What happened.
    #[serde(serialize_with = "by_name", deserialize_with = "from_name")]
    pub event: Event,
    /// The queue's index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<u16>,
    /// The CPU's number: 0 is the one that booted.
    #[serde(default, skip_serializing_if = "is_first")]
    pub cpu: u8,
    /// First argument; see [`Event`].
    #[serde(default)]
    pub a: u64,
    /// Second argument.
    #[serde(default)]
    pub b: u64,
    /// The file, from the workspace's top.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// The module.
    pub module: String,
    /// What a Linux guest recorded: then there is no file, line or module, and the arguments
    /// have less than those of [`Event`] (see `trace::linux`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linux: Option<LinuxRecord>,
}

/// A record of a Linux guest, as its ftrace has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxRecord {
    /// The function, or the trace event.
    pub function: String,
    /// Its values.
    #[serde(default)]
    pub values: Vec<NamedValue>,
    /// The call chain, innermost function first, if it was recorded.
    #[serde(default)]
    pub stack: Vec<String>,
}

fn is_first(cpu: &u8) -> bool {
    *cpu == 0
}

fn by_name<S: Serializer>(event: &Event, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(event.name())
}

fn from_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Event, D::Error> {
    let name = String::deserialize(deserializer)?;
    let event = Event::ALL.iter().find(|event| event.name() == name);
    event
        .copied()
        .ok_or_else(|| de::Error::custom(format!("no event {name}")))
}

/// The ring, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// The records whose site is known, oldest first.
    pub records: Vec<GuestRecord>,
    /// How full it is.
    pub ring_use: RingUse,
    /// Records whose site the executable does not have: it is not the one
    /// that runs.
    pub unresolved: u64,
}

/// Reads a ring from its first byte on.
///
/// # Errors
/// There is no ring, or it is cut short.
pub fn parse(bytes: &[u8], image: &Image) -> Result<Ring, RingError> {
    let header = Header::parse(bytes)?;
    let records = bytes
        .get(layout::RECORDS..header.length())
        .ok_or(RingError::Short)?;
    let mut ring = Ring {
        records: Vec::new(),
        ring_use: header.ring_use(),
        unresolved: 0,
    };
    let (records, _) = records.as_chunks::<{ size_of::<Record>() }>();
    for bytes in records {
        let (words, _) = bytes.as_chunks();
        let [tsc, place, a, b] = [0, 1, 2, 3].map(|word| u64::from_le_bytes(words[word]));
        let record = Record { tsc, place, a, b };
        let Some(site) = image.site(record.site_address()) else {
            ring.unresolved += 1;
            continue;
        };
        ring.records.push(GuestRecord {
            tsc,
            event: site.event,
            queue: Some(record.queue()).filter(|queue| *queue != NO_QUEUE),
            cpu: record.cpu(),
            a,
            b,
            file: site.file,
            line: site.line,
            module: site.module,
            linux: None,
        });
    }
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use super::super::image::tests::{image, site_bytes};
    use super::*;

    const BASE: u64 = 0xffff_ffff_8010_0000;

    fn ring(capacity: u64, count: u64, records: &[[u64; 4]]) -> Vec<u8> {
        let mut bytes = vec![0; layout::RECORDS];
        for (offset, word) in [
            (layout::MAGIC, MAGIC),
            (layout::CAPACITY, capacity),
            (layout::COUNT, count),
        ] {
            bytes[offset..offset + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes.extend(records.iter().flatten().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    fn test_image() -> Image {
        image(BASE, site_bytes(BASE, 17, 3, "k.rs", "k"), &[])
    }

    #[test]
    fn records_are_resolved_and_losses_counted() {
        let site = BASE & 0xffff_ffff_ffff;
        let bytes = ring(
            3,
            5,
            &[
                [10, site | 1 << 48, 7, 8],
                [20, site | 0x3ff << 48 | 3 << 58, 0, 0],
                [30, 0x1234, 0, 0],
            ],
        );
        let ring = parse(&bytes, &test_image()).unwrap();
        assert_eq!(
            ring.ring_use,
            RingUse {
                capacity: 3,
                recorded: 3,
                lost: 2
            }
        );
        assert_eq!(ring.unresolved, 1);
        let [first, second] = ring.records.as_slice() else {
            panic!("{:?}", ring.records);
        };
        assert_eq!(
            (first.tsc, first.event, first.queue),
            (10, Event::Notify, Some(1))
        );
        assert_eq!((first.a, first.b, first.line), (7, 8, 3));
        assert_eq!((first.cpu, second.cpu), (0, 3));
        assert_eq!(second.queue, None);

        let json = serde_json::to_string(first).unwrap();
        assert!(json.contains("\"Notify\""), "{json}");
        assert_eq!(serde_json::from_str::<GuestRecord>(&json).unwrap(), *first);
        assert!(serde_json::from_str::<GuestRecord>(&json.replace("Notify", "Nothing")).is_err());
    }

    #[test]
    fn what_is_no_ring_is_refused() {
        let image = test_image();
        let good = ring(4, 1, &[[1, 2, 3, 4]]);
        for length in 0..good.len() {
            assert_eq!(parse(&good[..length], &image), Err(RingError::Short));
        }
        let mut bad = good.clone();
        bad[layout::MAGIC] ^= 1;
        assert!(matches!(parse(&bad, &image), Err(RingError::Magic(_))));
        for capacity in [0, MAX_RECORDS + 1, u64::MAX] {
            let bytes = ring(capacity, u64::MAX, &[]);
            assert_eq!(parse(&bytes, &image), Err(RingError::Capacity(capacity)));
        }
    }
}
