//! What a soak found, and its verdict.

use std::io::Write;
use std::time::Duration;

use kickpath_abi::status::Status;
use serde::Serialize;

use super::TOLD;
use super::sample::Sample;
use super::work::{Done, Soaked};
use crate::session::SessionError;
use crate::terminal::{Story, thousands};

/// Heap that a guest may have in use beside what it had at its start, in bytes: a stack keeps up
/// to 64 packets until it has heard who sent them (`waiting` of `kernel/services`).
const KEPT: u64 = 64 * (1514 + 64);

/// Descriptors that are on their way whenever a report is made: it is asked for and sent by them.
const ON_THEIR_WAY: u16 = 4;
/// Receive buffers that may wait beside them: they go back when there are 16 (`RxQueue::kick`).
const TO_GO_BACK: u16 = 15;

/// What a soak found, as `--json` prints it.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Whether nothing deviated.
    pub ok: bool,
    /// The device, its rings, the accelerator.
    pub machine: String,
    /// How long it was to last, in seconds.
    pub asked_s: f64,
    /// How long it lasted, in seconds.
    pub elapsed_s: f64,
    /// Rounds of all kinds of work.
    pub rounds: usize,
    /// Each kind of work.
    pub work: Vec<Tally>,
    /// What was not as it should be, the first of it word by word.
    pub deviations: Vec<String>,
    /// All that was not as it should be.
    pub deviations_in_all: u64,
    /// What the guest counted on the way.
    pub samples: Vec<Sample>,
    /// Its report before, when it had settled.
    pub start: Option<Status>,
    /// Its report after, when it had settled.
    pub end: Option<Status>,
}

/// A kind of work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Its name.
    pub name: String,
    /// Times that all was as it should be.
    pub done: u64,
    /// Times that it was not.
    pub failed: u64,
    /// Bytes, frames or times in all.
    pub amount: u64,
}

impl Report {
    pub(super) fn new(machine: String, length: Duration) -> Self {
        Self {
            machine,
            asked_s: length.as_secs_f64(),
            ..Self::default()
        }
    }

    /// Takes note of what is not as it should be.
    pub(super) fn deviation(&mut self, text: &str) {
        self.deviations_in_all += 1;
        if self.deviations.len() < TOLD {
            self.deviations.push(text.to_owned());
        }
    }

    /// A guest that fails at everything needs no hour to show it.
    pub(super) fn is_worth_going_on(&self) -> bool {
        self.deviations_in_all < 100
    }

    pub(super) fn add(&mut self, name: &str, outcome: anyhow::Result<Done>) {
        if let Err(error) = &outcome {
            self.deviation(&format!("{name}: {error:#}"));
        }
        let tally = match self.work.iter_mut().find(|tally| tally.name == name) {
            Some(tally) => tally,
            None => {
                self.work.push(Tally {
                    name: name.to_owned(),
                    ..Tally::default()
                });
                let last = self.work.len() - 1;
                &mut self.work[last]
            }
        };
        match outcome {
            Ok(Done::Amount(amount)) => {
                tally.done += 1;
                tally.amount += amount;
            }
            Ok(Done::Nothing) => {}
            Err(_) => tally.failed += 1,
        }
    }

    /// The line of the display.
    pub(super) fn line(&self, at: Duration) -> String {
        let last = self.samples.last().copied().unwrap_or_default();
        let (minutes, seconds) = (at.as_secs() / 60, at.as_secs() % 60);
        format!(
            "{minutes}:{seconds:02} of {:.0} min, heap {}, frames {} in {} out, deviations {}",
            self.asked_s / 60.0,
            thousands(last.heap),
            thousands(last.rx),
            thousands(last.tx),
            self.deviations_in_all
        )
    }

    /// What must be as it was at the start, or as often as it was brought about.
    pub(super) fn compare(&mut self, end: &Status, soaked: &Soaked<'_>) {
        let Some(start) = self.start.take() else {
            self.end = Some(end.clone());
            return;
        };
        let mut same = |what: &str, start: u64, end: u64| {
            if start != end {
                self.deviation(&format!("{what}: {start} at the start, {end} at the end"));
            }
        };
        same("queues", start.queues.len() as u64, end.queues.len() as u64);
        let (before, after) = (&start.counters, &end.counters);
        let sockets = [&start, end].map(|status| status.network.tcp_connections);
        same("TCP connections", sockets[0], sockets[1]);
        same("frames sent in vain", before.tx_errors, after.tx_errors);
        same("queues given up", before.stuck, after.stuck);
        for (before, after) in start.queues.iter().zip(&end.queues) {
            let most = match before.name.as_str() {
                "receive" => ON_THEIR_WAY + TO_GO_BACK,
                _ => ON_THEIR_WAY,
            };
            if before.free.abs_diff(after.free) > most {
                self.deviation(&format!(
                    "free descriptors of queue {}: {} at the start, {} at the end",
                    before.index, before.free, after.free
                ));
            }
        }
        if end.cpu.heap_used > start.cpu.heap_used + KEPT {
            let heap = [start.cpu.heap_used, end.cpu.heap_used];
            self.deviation(&format!(
                "bytes of heap in use: {} at the start, {} at the end, which is more than {KEPT} more",
                heap[0], heap[1]
            ));
        }
        let lost = after.kicks_lost - before.kicks_lost;
        // A QEMU that waits for a CPU for seconds is taken for one that did not hear.
        if lost > soaked.kicks_hidden + self.rounds as u64 / 4 {
            let hidden = soaked.kicks_hidden;
            self.deviation(&format!("{lost} kicks lost, {hidden} were hidden"));
        }
        // A ring that lies is found once, or again when the lie was too late to be found.
        let (errors, lies) = (after.rx_errors, soaked.lies);
        if errors - before.rx_errors > 2 * lies {
            self.deviation(&format!("{errors} errors of {lies} lies"));
        }
        // The same goes for how often the device was opened again.
        let recovered = end.outages.recovered - start.outages.recovered;
        if !(lies..=2 * lies).contains(&recovered) {
            self.deviation(&format!("opened again {recovered} times after {lies} lies"));
        }
        (self.start, self.end) = (Some(start), Some(end.clone()));
    }

    pub(super) fn conclude(&mut self) {
        if self.rounds == 0 {
            self.deviation("there was no time for one round");
        }
        self.ok = self.deviations_in_all == 0;
    }

    /// Tells the verdict.
    pub(super) fn tell<W: Write>(&self, story: &mut Story<W>) -> Result<(), SessionError> {
        story.section("Work")?;
        for tally in &self.work {
            let text = format!(
                "{} times, {} in all{}",
                thousands(tally.done),
                thousands(tally.amount),
                match tally.failed {
                    0 => String::new(),
                    failed => format!(", {failed} times not as it should be"),
                }
            );
            story.verdict(&tally.name, tally.failed == 0, &text)?;
        }
        if let (Some(start), Some(end)) = (&self.start, &self.end) {
            story.section("Guest")?;
            let heap = [start, end].map(|status| thousands(status.cpu.heap_used));
            let text = format!(
                "{} bytes in use at the start, {} at the end",
                heap[0], heap[1]
            );
            story.row("Heap", &text)?;
            let connections = [start, end].map(|status| status.network.tcp_connections);
            let text = format!(
                "{} at the start, {} at the end, that of the question included",
                connections[0], connections[1]
            );
            story.row("TCP connections", &text)?;
            let counters = &end.counters;
            let text = format!(
                "{} in, {} out; {} kicks, {} interrupts",
                thousands(counters.rx_packets),
                thousands(counters.tx_packets),
                thousands(counters.kicks),
                thousands(counters.interrupts)
            );
            story.row("Frames", &text)?;
            let outages = &end.outages;
            let text = format!(
                "{} times, {} us in all, {} frames lost",
                thousands(outages.recovered),
                thousands(outages.total_us),
                thousands(outages.frames_lost)
            );
            story.row("Opened again", &text)?;
        }
        if !self.deviations.is_empty() {
            story.section("Not as it should be")?;
            for deviation in &self.deviations {
                story.line(&format!("  {deviation}"))?;
            }
        }
        let minutes = self.elapsed_s / 60.0;
        let text = match self.deviations_in_all {
            0 => format!(
                "{minutes:.1} minutes, {} rounds, nothing deviated.",
                self.rounds
            ),
            n => format!(
                "{minutes:.1} minutes, {} rounds, {n} deviations.",
                self.rounds
            ),
        };
        story.conclusion(self.ok, &text)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deviation_is_kept_counted_and_decides() {
        let mut report = Report::new("a machine".into(), Duration::from_secs(60));
        report.rounds = 1;
        report.add("ping", Ok(Done::Amount(10)));
        report.add("ping", Ok(Done::Nothing));
        report.conclude();
        assert!(report.ok);
        for number in 0..30 {
            report.add("ping", Err(anyhow::anyhow!("lost {number}")));
        }
        report.conclude();
        assert!(!report.ok && report.is_worth_going_on());
        assert_eq!(report.deviations_in_all, 30);
        assert_eq!(report.deviations.len(), TOLD);
        assert_eq!(report.deviations[0], "ping: lost 0");
        let tally = &report.work[0];
        assert_eq!((tally.done, tally.failed, tally.amount), (1, 30, 10));
        let mut text = Vec::new();
        report.tell(&mut Story::new(&mut text)).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("30 deviations"), "{text}");
    }
}
