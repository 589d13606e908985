//! Runs the two threads in every way, one step at a time.

use core::panic::AssertUnwindSafe;
use std::boxed::Box;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use super::memory::{Barrier, Memory, Side, View, take_part};

/// How often a thread is interrupted that could go on.
const SWITCHES: usize = 3;
/// How many loads read something old.
const OLD_VALUES: usize = 2;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The device sleeps, and does not know of what was published.
    LostKick,
    /// The driver sleeps, and does not know of what was used.
    LostInterrupt,
    /// An entry or a length was read that is not the one that was announced.
    Stale,
    /// An interrupt came, and what it announced was not there.
    EarlyInterrupt,
    /// The code of one side panicked.
    Panic,
}

/// A choice that was made: which, of how many.
#[derive(Clone, Copy)]
struct Choice {
    taken: usize,
    of: usize,
}

/// A kick or an interrupt that is on its way, with what it shows.
type Signal = Option<View>;

#[derive(Default)]
struct State {
    memory: Memory,
    /// The choices of this run: the first ones are given, the others the first of
    /// each.
    choices: Vec<Choice>,
    next: usize,
    switches: usize,
    old_values: usize,
    turn: Option<Side>,
    waiting: [bool; 2],
    ended: [bool; 2],
    /// For the driver an interrupt, for the device a kick.
    signals: [Signal; 2],
    /// The heads of the chains that were added.
    added: Vec<u16>,
    /// Chains that were published, used by the device, taken by it.
    published: usize,
    used: usize,
    taken: usize,
    /// Chains that were used when the last interrupt was sent.
    announced: usize,
    /// Whether the driver is about to look if the device wants a kick.
    kicks: bool,
    /// Whether a write of a register was ordered.
    ordered: bool,
    fault: Option<Fault>,
}

/// One run.
pub(super) struct World {
    state: Mutex<State>,
    changed: Condvar,
    without: Option<(Barrier, Fault)>,
}

/// Ends a thread of a run in which a fault was found.
struct Stop;

impl World {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, when it is this side's turn.
    fn turn(&self, side: Side) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while state.turn != Some(side) && state.fault.is_none() {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.fault.is_some() {
            drop(state);
            resume_unwind(Box::new(Stop));
        }
        state
    }

    /// Notes a fault, which ends the run.
    pub(super) fn fail(&self, fault: Fault) -> ! {
        self.lock().fault.get_or_insert(fault);
        self.changed.notify_all();
        resume_unwind(Box::new(Stop))
    }

    fn give_turn(&self, state: &mut State, to: Side) {
        state.turn = Some(to);
        self.changed.notify_all();
    }

    /// Where the other thread may go on instead.
    fn may_switch(&self, side: Side) -> MutexGuard<'_, State> {
        let mut state = self.turn(side);
        let other = side.other();
        let can = |state: &State| !state.waiting[other as usize] && !state.ended[other as usize];
        if state.switches < SWITCHES && can(&state) && state.choose(2) == 1 {
            state.switches += 1;
            self.give_turn(&mut state, other);
            drop(state);
            state = self.turn(side);
        }
        state
    }

    pub(super) fn load(&self, side: Side, address: usize) -> u32 {
        let mut state = self.may_switch(side);
        let values = match state.old_values < OLD_VALUES {
            true => state.memory.values(side, address),
            false => 1,
        };
        let back = state.choose(values);
        state.old_values += usize::from(back > 0);
        state.memory.load(side, address, back)
    }

    pub(super) fn store(&self, side: Side, address: usize, value: u32) {
        self.turn(side).memory.store(side, address, value);
    }

    /// A barrier of the driver's code, unless it was taken out.
    pub(super) fn driver_barrier(&self, side: Side, which: Barrier) {
        let mut state = self.turn(side);
        state.ordered = false;
        // There are two full ones, one before each side's wish is read.
        let is_out = self.without.is_some_and(|(barrier, fault)| {
            barrier == which
                && (which != Barrier::StoreLoad || state.kicks == (fault == Fault::LostKick))
        });
        if is_out {
            return;
        }
        let memory = &mut state.memory;
        match which {
            Barrier::Publish => memory.publish(side),
            Barrier::Consume | Barrier::AfterRegister => memory.consume(side),
            Barrier::StoreLoad => memory.full(side),
            Barrier::BeforeRegister => {
                memory.publish(side);
                state.ordered = true;
            }
        }
    }

    /// The device's own barriers, which are never taken out.
    pub(super) fn device_publishes(&self) {
        self.turn(Side::Device).memory.publish(Side::Device);
    }

    pub(super) fn device_consumes(&self) {
        self.turn(Side::Device).memory.consume(Side::Device);
    }

    pub(super) fn device_full_barrier(&self) {
        self.turn(Side::Device).memory.full(Side::Device);
    }

    /// The driver has just written DRIVER_OK.
    pub(super) fn driver_ok(&self) {
        let mut state = self.turn(Side::Driver);
        let ordered = state.ordered;
        state.memory.set_up(ordered);
        drop(state);
        self.signal(Side::Driver);
    }

    /// The driver has added a chain.
    pub(super) fn note_added(&self, head: u16) {
        self.turn(Side::Driver).added.push(head);
    }

    /// The driver is about to show all that it has added, or has done so.
    pub(super) fn note_publishing(&self, begins: bool) {
        let mut state = self.turn(Side::Driver);
        state.kicks = begins;
        state.published = state.added.len();
    }

    /// The device has found a chain: which it is, counted from 0, and its head.
    /// That there is none is a fault.
    pub(super) fn note_taken(&self) -> (u32, u16) {
        let mut state = self.turn(Side::Device);
        let count = state.taken;
        if count == state.published {
            drop(state);
            self.fail(Fault::Stale);
        }
        state.taken += 1;
        (count as u32, state.added[count])
    }

    pub(super) fn count_used(&self) {
        self.turn(Side::Device).used += 1;
    }

    /// Chains that were used when the last interrupt was sent.
    pub(super) fn announced(&self) -> usize {
        self.turn(Side::Driver).announced
    }

    /// Kicks, or interrupts.
    pub(super) fn signal(&self, from: Side) {
        let mut state = self.turn(from);
        let shown = state.memory.shown(from);
        let to = from.other() as usize;
        if from == Side::Device {
            state.announced = state.used;
        }
        state.signals[to].get_or_insert_default().join(&shown);
        state.waiting[to] = false;
    }

    /// Waits for a kick, or an interrupt; whether one came before the other side's
    /// end.
    pub(super) fn wait(&self, side: Side) -> bool {
        let mut state = self.turn(side);
        let (me, other) = (side as usize, side.other() as usize);
        if state.signals[me].is_none() && !state.ended[other] {
            if state.waiting[other] {
                // Both sleep for ever.
                let fault = match state.taken < state.published {
                    true => Fault::LostKick,
                    false => Fault::LostInterrupt,
                };
                drop(state);
                self.fail(fault);
            }
            state.waiting[me] = true;
            self.give_turn(&mut state, side.other());
            drop(state);
            state = self.turn(side);
            state.waiting[me] = false;
        }
        match state.signals[me].take() {
            Some(shown) => {
                state.memory.told(side, &shown);
                if side == Side::Device {
                    state.memory.consume(side);
                }
                true
            }
            None => false,
        }
    }

    fn end(&self, side: Side) {
        let mut state = self.lock();
        state.ended[side as usize] = true;
        state.waiting[side.other() as usize] = false;
        self.give_turn(&mut state, side.other());
    }
}

impl State {
    /// The next choice of 0 to `of` - 1.
    fn choose(&mut self, of: usize) -> usize {
        if of < 2 {
            return 0;
        }
        if self.next == self.choices.len() {
            self.choices.push(Choice { taken: 0, of });
        }
        let choice = self.choices[self.next];
        assert_eq!(choice.of, of, "a run does not repeat");
        self.next += 1;
        choice.taken
    }
}

/// Explores every run of these two: all of them or, with one barrier taken out,
/// until this fault is found; others are passed over then. Returns the fault, and
/// how many runs there were.
pub(super) fn explore(
    without: Option<(Barrier, Fault)>,
    driver: impl Fn(&World) + Sync,
    device: impl Fn(&World) + Sync,
) -> (Option<Fault>, usize) {
    let mut choices = Vec::new();
    for runs in 1.. {
        let world = Arc::new(World {
            state: Mutex::new(State {
                choices,
                turn: Some(Side::Driver),
                // The device, for DRIVER_OK.
                waiting: [false, true],
                ..State::default()
            }),
            changed: Condvar::new(),
            without,
        });
        let run = |side, body: &(dyn Fn(&World) + Sync)| {
            let result = catch_unwind(AssertUnwindSafe(|| {
                take_part(&world, side, || body(&world));
            }));
            if let Err(panic) = result
                && !panic.is::<Stop>()
            {
                // Not a fault that is looked for; the other thread ends.
                world.lock().fault.get_or_insert(Fault::Panic);
                world.changed.notify_all();
                resume_unwind(panic);
            }
            world.end(side);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| run(Side::Device, &device));
            run(Side::Driver, &driver);
        });
        let state = world.lock();
        let wanted = without.map(|(_, fault)| fault);
        if state.fault.is_some() && (wanted.is_none() || state.fault == wanted) {
            return (state.fault, runs);
        }
        choices = state.choices.clone();
        // The next run: another last choice.
        loop {
            match choices.pop() {
                None => return (None, runs),
                Some(Choice { taken, of }) if taken + 1 < of => {
                    choices.push(Choice {
                        taken: taken + 1,
                        of,
                    });
                    break;
                }
                Some(_) => {}
            }
        }
    }
    unreachable!("the choices end before the numbers do")
}
