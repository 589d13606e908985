//! What one run of a guest left behind, and what follows from it.

use kickpath_trace::Event;
use serde::Serialize;

use crate::trace::explain;
use crate::trace::qemu;
use crate::trace::records::GuestRecord;

/// The transmit queue of the first pair.
const TX: u16 = 1;

/// Records that are told of.
const STEPS: usize = 16;

/// How an experiment ends, as a student may predict it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As without the fault.
    Works,
    /// Every answer comes; the device is disturbed more often than it has asked for.
    Costs,
    /// Every answer comes, some only because the driver looks now and then by itself.
    Late,
    /// A frame comes that the guest did not write.
    Damaged,
    /// The driver finds what is wrong at once, says so and opens the device again.
    Caught,
    /// Nothing moves; after ten looks the watchdog gives up, and the device is opened again.
    Lost,
}

impl Outcome {
    /// Each.
    pub const ALL: [Self; 6] = [
        Self::Works,
        Self::Costs,
        Self::Late,
        Self::Damaged,
        Self::Caught,
        Self::Lost,
    ];

    /// The word that stands for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Costs => "costs",
            Self::Late => "late",
            Self::Damaged => "damaged",
            Self::Caught => "caught",
            Self::Lost => "lost",
        }
    }

    /// What it means.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Works => "all goes on as before",
            Self::Costs => "every answer comes, but the device is told more often than it asks for",
            Self::Late => {
                "every answer comes, but some wait until the driver looks for what does not move"
            }
            Self::Damaged => "frames come out that the guest did not write",
            Self::Caught => "the driver sees it at once, says so, and opens the device again",
            Self::Lost => {
                "nothing moves any more, until the watchdog gives the queue up and opens the device again"
            }
        }
    }
}

impl std::str::FromStr for Outcome {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|outcome| outcome.word() == word);
        found.ok_or_else(|| format!("expected {}", Self::ALL.map(Self::word).join(", ")))
    }
}

/// The transmit queue in the guest's memory, and as the device sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ring {
    /// Number of descriptors.
    pub size: u16,
    /// The index of the available ring, which the driver moves.
    pub avail_idx: u16,
    /// The next entry of it that the device takes.
    pub last_avail_idx: u16,
    /// The index of the used ring, which the device moves.
    pub used_idx: u16,
    /// The index at which the device wants to be told.
    pub avail_event: u16,
    /// Bytes that the last descriptor has, header included.
    pub last_length: u32,
}

/// What a run left behind. Numbers are of the whole run, boot included; those that come from
/// the guest's records, of the last that there was room for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Evidence {
    /// Datagrams that were sent to the guest's echo service, one sent again not counted.
    pub asked: u64,
    /// Those that came back intact.
    pub answered: u64,
    /// Those that were sent again after the device was opened again.
    pub asked_again: u64,
    /// Frames that came out of the guest.
    pub frames: u64,
    /// Those that the guest did not write so.
    pub damaged: u64,
    /// What was wrong with the first of them.
    pub damage: Option<String>,
    /// Records of the guest, and those that there was no room for; the next five are
    /// counted in the former.
    pub records: u64,
    /// See `records`.
    pub records_lost: u64,
    /// Times that frames were published in the transmit queue.
    pub published: u64,
    /// Times that the device had asked to be told of them.
    pub wanted: u64,
    /// Times that the driver decided to tell it although it had not asked.
    pub needless: u64,
    /// Doorbells for the transmit queue.
    pub kicks: u64,
    /// Used buffers that the driver took back from the transmit queue.
    pub taken_back: u64,
    /// Times that QEMU was told to look into the receive queue; once at each start it tells
    /// itself.
    pub heard_receive: u64,
    /// The same for the transmit queue.
    pub heard_transmit: u64,
    /// Times that received frames were found of which an interrupt should have told.
    pub interrupts_missed: u64,
    /// Times that the watchdog had the device told again.
    pub prods: u64,
    /// Times that the device was reset and opened again.
    pub reopened: u64,
    /// The queue while an answer was waited for that did not come.
    pub stalled: Option<Ring>,
    /// The queue at the end.
    pub end: Option<Ring>,
    /// What the guest's log warned of.
    pub said: Vec<String>,
    /// Records of the guest, in words: of the queue that the experiment is about, the last up to
    /// where the watchdog steps in or a kick is made that nobody asked for, or else the first
    /// behind the first datagram. None where the records end before anything happens.
    pub steps: Vec<String>,
}

impl Evidence {
    /// How it ended.
    pub fn outcome(&self) -> Outcome {
        if self.damaged > 0 {
            Outcome::Damaged
        } else if self.interrupts_missed > 1
            && self.asked <= self.answered.saturating_add(self.reopened)
        {
            // One may have come while the driver looked by itself. After four in a row the
            // driver opens the device again; the datagram that is under way then may stay
            // without an answer.
            Outcome::Late
        } else if self.reopened > 0 && self.prods == 0 {
            Outcome::Caught
        } else if self.answered < self.asked || self.reopened > 0 {
            Outcome::Lost
        } else if self.prods > 0 {
            Outcome::Late
        } else if self.needless > 0 {
            Outcome::Costs
        } else {
            Outcome::Works
        }
    }

    /// Counts the guest's records; of those of `queue` from number `window` on some are told
    /// of.
    pub(super) fn take_records(&mut self, records: &[GuestRecord], queue: u16, window: usize) {
        let mut interrupts = Interrupts::default();
        let mut decided = false;
        let (mut prods, mut end) = (0, None);
        for (number, record) in records.iter().enumerate() {
            let is_tx = record.queue == Some(TX);
            match record.event {
                Event::Publish if is_tx => self.published += 1,
                // Nobody but the watchdog notifies without that decision.
                Event::Notify if is_tx && !std::mem::take(&mut decided) => {
                    prods += 1;
                    end.get_or_insert(number);
                }
                Event::KickPrepare if is_tx => {
                    decided = record.b == 1;
                    let asked = has_asked(record);
                    self.wanted += u64::from(asked);
                    if !asked && record.b == 1 {
                        self.needless += 1;
                        end.get_or_insert(number + 1);
                    }
                }
                Event::DoorbellRing if is_tx => self.kicks += 1,
                Event::PopUsed if is_tx => self.taken_back += 1,
                _ => {}
            }
            interrupts.look(record);
        }
        self.interrupts_missed = interrupts.missed;
        // Its line on the console may have come after the last frame.
        self.prods = self.prods.max(prods);
        let is_told = |record: &&GuestRecord| match record.event {
            Event::Idle | Event::InterruptVector => queue == 0,
            _ => record.queue == Some(queue),
        };
        let told: Vec<&GuestRecord> = match end {
            Some(end) => {
                let before = records.iter().take(end + 1).rev().filter(is_told);
                let before: Vec<_> = before.take(STEPS).collect();
                before.into_iter().rev().collect()
            }
            None if self.records_lost > 0 => Vec::new(),
            None => {
                let window = records.iter().skip(window);
                window.filter(is_told).take(STEPS).collect()
            }
        };
        self.steps = told.into_iter().map(sentence).collect();
    }

    /// Counts what QEMU heard.
    pub(super) fn take_log(&mut self, log: &str) {
        for record in qemu::parse(log).records {
            if record.event == "virtio_queue_notify" {
                match record.number("n") {
                    Some(0) => self.heard_receive += 1,
                    Some(1) => self.heard_transmit += 1,
                    _ => {}
                }
            }
        }
    }

    /// Takes a line of the guest's log.
    pub(super) fn take_line(&mut self, line: &str) {
        self.prods += u64::from(line.contains("do not move; notified again"));
        let reopened = line.contains("the device was reset and opened again");
        self.reopened += u64::from(reopened);
        let warns = ["warning: ", "error: "]
            .iter()
            .any(|word| line.contains(word));
        if warns || reopened || line.contains("lab: ") {
            self.said.push(line.to_owned());
        }
    }
}

/// Whether the device wanted to be told, by what the driver read (specification 2.7.10
/// and 2.7.7), whatever the driver decided.
fn has_asked(record: &GuestRecord) -> bool {
    let [new, old, wish] = [0, 16, 32].map(|shift| (record.a >> shift) as u16);
    match record.a >> 48 & 1 {
        1 => new.wrapping_sub(wish).wrapping_sub(1) < new.wrapping_sub(old),
        _ => wish & 1 == 0,
    }
}

/// Finds frames of which no interrupt has told.
#[derive(Default)]
struct Interrupts {
    /// The index at which one was asked for, while the driver relies on it.
    asked_at: Option<u16>,
    missed: u64,
}

impl Interrupts {
    fn look(&mut self, record: &GuestRecord) {
        match record.event {
            Event::EnableInterrupts if record.queue == Some(0) => {
                self.asked_at = (record.b == 0).then_some(record.a as u16);
            }
            Event::InterruptVector | Event::VringInterrupt | Event::IntxInterrupt => {
                self.asked_at = None;
            }
            Event::PopUsed if record.queue == Some(0) => {
                if let Some(event) = self.asked_at.take() {
                    let behind = (record.b as u16).wrapping_sub(event).wrapping_sub(1);
                    self.missed += u64::from(behind < 0x8000);
                }
            }
            _ => {}
        }
    }
}

/// A record in words.
fn sentence(record: &GuestRecord) -> String {
    let context = explain::Context {
        control: Some(2),
        ..explain::Context::default()
    };
    let mut text = explain::guest(record, context).sentence;
    if record.event == Event::KickPrepare && has_asked(record) != (record.b == 1) {
        let decided = match record.b {
            1 => "needed",
            _ => "not needed",
        };
        let wish = (record.a >> 32) as u16;
        text = format!(
            "The device asked to be told at index {wish}; the driver finds a kick {decided}."
        );
    }
    format!("{}: {text}", record.event.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: Event, queue: u16, a: u64, b: u64) -> GuestRecord {
        GuestRecord {
            tsc: 0,
            event,
            queue: Some(queue),
            cpu: 0,
            a,
            b,
            file: String::new(),
            line: 1,
            module: String::new(),
            linux: None,
        }
    }

    fn decision(event: u64, old: u64, new: u64, kick: u64) -> GuestRecord {
        record(
            Event::KickPrepare,
            TX,
            new | old << 16 | event << 32 | 1 << 48,
            kick,
        )
    }

    #[test]
    fn what_the_device_asked_for_is_told_from_what_the_driver_decided() {
        let mut evidence = Evidence::default();
        evidence.take_records(
            &[
                decision(5, 5, 6, 1),
                decision(5, 6, 7, 1),
                decision(0xffff, 0xffff, 0, 0),
                record(Event::Notify, TX, 0, 0),
                decision(9, 6, 7, 0),
                record(Event::Notify, TX, 0, 0),
                decision(9, 6, 7, 0),
            ],
            TX,
            0,
        );
        assert_eq!((evidence.wanted, evidence.needless), (2, 1));
        // The first Notify is without a decision for it, too.
        assert_eq!((evidence.prods, evidence.steps.len()), (2, 3));
    }

    #[test]
    fn a_frame_without_its_interrupt_is_found() {
        let enable = |event: u64| record(Event::EnableInterrupts, 0, event | 1 << 48, 0);
        let pop = |used| record(Event::PopUsed, 0, 0, used);
        let interrupt = record(Event::VringInterrupt, 0, 0, 0);
        let count = |records: &[GuestRecord]| {
            let mut evidence = Evidence::default();
            evidence.take_records(records, 0, 0);
            evidence.interrupts_missed
        };
        assert_eq!(count(&[enable(7), pop(8), pop(9), enable(9), pop(10)]), 2);
        assert_eq!(count(&[enable(7), interrupt, pop(8)]), 0);
        // Not due yet: it was looked at before.
        assert_eq!(count(&[enable(0xffff), pop(0xffff)]), 0);
        assert_eq!(count(&[enable(0xffff), pop(0)]), 1);
    }

    #[test]
    fn the_outcome_follows_from_the_evidence() {
        let all = Evidence {
            asked: 3,
            answered: 3,
            ..Evidence::default()
        };
        let outcome = |change: fn(&mut Evidence)| {
            let mut evidence = all.clone();
            change(&mut evidence);
            evidence.outcome()
        };
        assert_eq!(all.outcome(), Outcome::Works);
        assert_eq!(outcome(|e| e.needless = 1), Outcome::Costs);
        assert_eq!(outcome(|e| e.prods = 1), Outcome::Late);
        assert_eq!(outcome(|e| e.interrupts_missed = 2), Outcome::Late);
        let late = |e: &mut Evidence| (e.interrupts_missed, e.reopened, e.answered) = (9, 1, 2);
        assert_eq!(outcome(late), Outcome::Late);
        assert_eq!(
            outcome(|e| (e.interrupts_missed, e.answered) = (9, 2)),
            Outcome::Lost
        );
        assert_eq!(outcome(|e| e.damaged = 1), Outcome::Damaged);
        assert_eq!(outcome(|e| e.reopened = 1), Outcome::Caught);
        assert_eq!(outcome(|e| (e.reopened, e.prods) = (1, 1)), Outcome::Lost);
        assert_eq!(outcome(|e| e.answered = 2), Outcome::Lost);
        for outcome in Outcome::ALL {
            assert_eq!(outcome.word().parse(), Ok(outcome));
        }
    }
}
