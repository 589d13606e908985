//! The last arrangement: by measured time where all clocks can be compared,
//! else by cause and effect; and how far apart the steps are.

use super::super::clock::{Clocks, Moment};
use super::super::recording::Recording;
use super::super::timeline::{Clock, Delta, Layer, Phase, Since, Step, Time};
use super::draft::{Draft, Drafts, Origin};

/// Distance at which a step is drawn whose own is not known, in nanoseconds.
const UNKNOWN: f64 = 500.0;

/// Numbers, measures and places the steps. `offset` is from the host's time
/// stamp counter to the guest's, if that is known; `first` is the record of the
/// guest with which the window's part of its steps begins.
pub fn finish(
    recording: &Recording,
    offset: Option<i64>,
    drafts: Drafts,
    first: usize,
) -> (Vec<Step>, Vec<Option<Origin>>, Clocks) {
    let guest_zero = recording.guest.get(first).map_or(0, |record| record.tsc);
    let mut window = drafts.0.iter().filter(|d| d.step.phase != Phase::Attach);
    let host_zero = window
        .find(|draft| draft.clock == Clock::Monotonic)
        .map_or(0, |draft| draft.raw.cast_signed());
    let clocks = Clocks::new(recording, offset, guest_zero, host_zero);
    let mut placed: Vec<(usize, Draft, Option<Moment>)> = drafts
        .0
        .into_iter()
        .enumerate()
        .map(|(number, draft)| {
            let moment = clocks.moment(draft.clock, draft.raw);
            (number, draft, moment)
        })
        .collect();
    sort(&mut placed);
    phases(&mut placed);
    let mut numbers = vec![0; placed.len()];
    for (number, (old, _, _)) in placed.iter().enumerate() {
        numbers[*old] = number;
    }
    let tolerance = clocks.tolerance();
    let mut steps: Vec<Step> = Vec::with_capacity(placed.len());
    let mut moments: Vec<Option<Moment>> = Vec::with_capacity(placed.len());
    let mut origins = Vec::with_capacity(placed.len());
    for (number, (_, draft, moment)) in placed.into_iter().enumerate() {
        let mut step = draft.step;
        origins.push(draft.origin);
        step.number = number;
        step.caused_by = draft.cause.map(|cause| numbers[cause]);
        step.time = moment.map(|moment| Time {
            clock: draft.clock,
            raw: draft.raw,
            ns: moment.ns,
        });
        let axis_start = steps
            .iter()
            .position(|s| (s.phase == Phase::Attach) == (step.phase == Phase::Attach));
        step.delta = delta(
            &moments,
            axis_start.unwrap_or(number)..number,
            moment,
            draft.rule,
            tolerance,
        );
        step.drawn_at_ns = match (&step.delta, steps.last()) {
            (Delta::First, _) | (_, None) => 0.0,
            (Delta::Measured { ns }, Some(before)) => before.drawn_at_ns + ns,
            (Delta::Causal { since, .. }, Some(before)) => {
                let own = since.map(|since| steps[since.step].drawn_at_ns + since.ns);
                let next = before.drawn_at_ns + UNKNOWN;
                own.map_or(next, |own| own.max(next))
            }
        };
        steps.push(step);
        moments.push(moment);
    }
    (steps, origins, clocks)
}

/// Sorts by time every run of steps whose clocks can be compared: the whole
/// window, where all can. Attaching comes first, and keeps its order.
fn sort(placed: &mut [(usize, Draft, Option<Moment>)]) {
    let start = placed
        .iter()
        .position(|(_, draft, _)| draft.step.phase != Phase::Attach)
        .unwrap_or(placed.len());
    let comparable = |a: &(usize, Draft, Option<Moment>), b: &(usize, Draft, Option<Moment>)| matches!((a.2, b.2), (Some(a), Some(b)) if a.axis == b.axis);
    for run in placed[start..].chunk_by_mut(comparable) {
        let ns = |moment: &Option<Moment>| moment.map_or(0.0, |moment| moment.ns);
        run.sort_by(|(_, _, a), (_, _, b)| ns(a).total_cmp(&ns(b)));
        // A clock of microseconds can put an effect before its cause.
        let mut place = 0;
        while place < run.len() {
            let cause = run[place].1.cause;
            let behind = cause.and_then(|cause| {
                let mut later = run[place + 1..].iter();
                later.position(|(number, _, _)| *number == cause)
            });
            match behind {
                Some(distance) => run[place..=place + 1 + distance].rotate_left(1),
                None => place += 1,
            }
        }
    }
}

/// Where time decides the order, a step of the host belongs to the part of the
/// journey that the guest is in.
fn phases(placed: &mut [(usize, Draft, Option<Moment>)]) {
    let last_of = |phase: Phase| {
        let mut steps = placed.iter();
        steps.rposition(|(_, draft, _)| {
            draft.step.layer == Layer::Guest && draft.step.phase == phase
        })
    };
    let received = last_of(Phase::Receive);
    let first_back = placed
        .iter()
        .position(|(_, draft, _)| draft.step.phase == Phase::Return);
    for (place, (_, draft, _)) in placed.iter_mut().enumerate() {
        if draft.step.layer == Layer::Guest || draft.step.phase == Phase::Attach {
            continue;
        }
        draft.step.phase = match (received, first_back) {
            (Some(received), _) if place <= received => Phase::Receive,
            (_, Some(back)) if place > back => Phase::Return,
            _ => Phase::Transmit,
        };
    }
}

/// How a step at `moment` follows those in `before`, which share its axis of
/// drawing.
fn delta(
    moments: &[Option<Moment>],
    before: std::ops::Range<usize>,
    moment: Option<Moment>,
    rule: &str,
    tolerance: f64,
) -> Delta {
    let Some(last) = before.clone().last() else {
        return Delta::First;
    };
    let since = moment.and_then(|moment| {
        let same_axis = |place: &usize| moments[*place].is_some_and(|m| m.axis == moment.axis);
        let step = before.rev().find(same_axis)?;
        let ns = moment.ns - moments[step]?.ns;
        // Less than the clocks can tell.
        let ns = if ns < 0.0 && ns > -tolerance { 0.0 } else { ns };
        Some(Since { step, ns })
    });
    match since {
        Some(Since { step, ns }) if step == last && ns >= 0.0 => Delta::Measured { ns },
        since => Delta::Causal {
            rule: rule.to_owned(),
            since: since.filter(|since| since.ns >= 0.0),
        },
    }
}
