//! Faults at the n-th step.
//!
//! Everything that can fail while queues are found is a step, and steps are
//! counted. A test runs once for every step (or pair of steps) and lets just
//! that one fail.

use std::cell::RefCell;

/// What a step asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `Hal::dma_alloc`.
    Memory,
    /// `InterruptController::attach_msi`.
    AttachMsi,
    /// `InterruptController::attach_intx`.
    AttachIntx,
    /// A reset, which then does not finish.
    Reset,
    /// CONFIG_VECTOR, which then reads NO_VECTOR.
    ConfigVector,
    /// QUEUE_VECTOR of this queue, which then reads NO_VECTOR.
    QueueVector(u16),
    /// QUEUE_NUM of this queue, which then reads 0.
    QueueSize(u16),
    /// QUEUE_PFN of this queue, which then does not keep what was written.
    QueuePfn(u16),
    /// FEATURES_OK, which then does not stay.
    FeaturesOk,
    /// QUEUE_ENABLE (or QUEUE_READY) of this queue, which then stays 0.
    QueueEnable(u16),
}

/// A step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    /// The step.
    pub step: Step,
    /// Pages that the driver held then.
    pub pages: usize,
}

#[derive(Default)]
struct Plan {
    count: usize,
    fail: Vec<usize>,
    fail_every: Option<Step>,
    struck: Vec<Strike>,
}

thread_local! {
    static PLAN: RefCell<Plan> = RefCell::default();
}

/// Counts steps from 0 and lets those with these numbers fail.
pub fn plan(fail: &[usize]) {
    PLAN.set(Plan {
        fail: fail.to_vec(),
        ..Plan::default()
    });
}

/// Lets every step of this kind fail.
pub fn plan_every(step: Step) {
    PLAN.set(Plan {
        fail_every: Some(step),
        ..Plan::default()
    });
}

/// Ends the plan: nothing fails any more. Returns what failed, in order.
pub fn take_strikes() -> Vec<Strike> {
    PLAN.take().struck
}

/// Counts a step and returns whether it is to fail.
pub fn strikes(step: Step) -> bool {
    let fails = PLAN.with_borrow_mut(|plan| {
        let number = plan.count;
        plan.count += 1;
        plan.fail.contains(&number) || plan.fail_every == Some(step)
    });
    if fails {
        let pages = super::memory::pages_in_use();
        PLAN.with_borrow_mut(|plan| plan.struck.push(Strike { step, pages }));
    }
    fails
}

/// Runs a test with no fault, then with one at every step, and with one at every
/// two steps. It plans the faults that it is given, and returns how many of
/// them happened. Returns how many steps there are.
#[allow(dead_code)] // The tests in the crate use it.
pub fn at_every_step(mut run: impl FnMut(&[usize]) -> usize) -> usize {
    assert_eq!(run(&[]), 0);
    let mut first = 0;
    while run(&[first]) == 1 {
        let mut second = first + 1;
        while run(&[first, second]) == 2 {
            second += 1;
        }
        first += 1;
    }
    first
}
