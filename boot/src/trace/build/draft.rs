//! Steps on their way to a timeline.

use kickpath_trace::Event;

use super::super::timeline::{Clock, Layer, Step};

/// A step whose place is not final.
#[derive(Clone, Debug)]
pub struct Draft {
    pub step: Step,
    pub clock: Clock,
    pub raw: u64,
    /// What puts it where it is, if it is not the clock.
    pub rule: &'static str,
    /// The draft of another layer that made it happen.
    pub cause: Option<usize>,
    /// The record of the guest or of QEMU that it is.
    pub origin: Option<Origin>,
}

/// A record by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the guest's records.
    Guest(usize),
    /// In QEMU's log.
    Log(usize),
}

impl Draft {
    pub fn new(step: Step, clock: Clock, raw: u64) -> Self {
        Self {
            step,
            clock,
            raw,
            rule: "",
            cause: None,
            origin: None,
        }
    }

    pub fn rule(mut self, rule: &'static str) -> Self {
        self.rule = rule;
        self
    }

    pub fn of(mut self, origin: Origin) -> Self {
        self.origin = Some(origin);
        self
    }

    pub fn caused_by(mut self, cause: Option<usize>) -> Self {
        self.cause = cause;
        self
    }
}

/// The steps in the order of cause and effect.
#[derive(Clone, Debug, Default)]
pub struct Drafts(pub Vec<Draft>);

impl Drafts {
    /// Adds a step and returns its number.
    pub fn push(&mut self, draft: Draft) -> usize {
        self.0.push(draft);
        self.0.len() - 1
    }

    /// The number of the last step.
    pub fn last(&self) -> Option<usize> {
        self.0.len().checked_sub(1)
    }

    /// Says that `raised` made the guest wake: at the interrupt that leads to
    /// the device's handler, or, without interrupts, at the poll.
    pub fn link_interrupt(&mut self, raised: Option<usize>) {
        let Some(raised) = raised else {
            return;
        };
        let names = |events: &[Event], draft: &Draft| {
            draft.step.layer == Layer::Guest
                && events.iter().any(|event| draft.step.event == event.name())
        };
        let after = self.0.iter().enumerate().skip(raised + 1);
        let handler = after
            .clone()
            .find(|(_, draft)| names(&[Event::VringInterrupt, Event::IntxInterrupt], draft));
        let wake = match handler {
            Some((number, _)) => match self.0.get(number - 1) {
                Some(before) if names(&[Event::InterruptVector], before) => Some(number - 1),
                _ => Some(number),
            },
            None => after
                .clone()
                .find(|(_, draft)| names(&[Event::Poll, Event::PopUsed], draft))
                .map(|(number, _)| number),
        };
        if let Some(wake) = wake {
            self.0[wake].cause = Some(raised);
        }
    }
}
