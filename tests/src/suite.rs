//! The list of tests, and the report at its end.

use std::any::Any;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::{Lab, Spec, Way};

/// Guests at a time, if the machine has one CPU.
const GUESTS_AT_LEAST: usize = 2;

/// Guests at a time at most: each takes 128 MiB or more of memory.
const GUESTS_AT_MOST: usize = 8;

/// Environment variable that names a file for the time that each test took, in
/// seconds, the longest first.
pub const TIMES_VARIABLE: &str = "KICKPATH_TEST_TIMES";

/// How many of the slowest tests are named at the end.
const SLOWEST: usize = 10;

/// Why a test cannot run on this machine: the error by which its body says so.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

type Skipped = Arc<Mutex<Vec<(String, String)>>>;

/// A list of tests. They run in the order in which they were added, as many at
/// a time as there are CPUs and half as many again (2 to 8) unless
/// `--test-threads` says otherwise.
#[derive(Default)]
pub struct Suite {
    trials: Vec<Trial>,
    skipped: Skipped,
    times: Arc<Mutex<Vec<(Duration, String)>>>,
    missing: Option<String>,
    way: Option<Way>,
}

impl Suite {
    /// Adds tests once for each transport. Their names begin with that of the
    /// [`Way`].
    pub fn over_every_transport(&mut self, add: impl Fn(&mut Self)) {
        for way in Way::ALL {
            self.over(way, &add);
        }
    }

    /// Adds tests over one transport, named as those of
    /// [`Suite::over_every_transport`].
    pub fn over(&mut self, way: Way, add: impl Fn(&mut Self)) {
        let before = self.way.replace(way);
        add(self);
        self.way = before;
    }

    /// The way to the device for the tests that are being added. Those of
    /// [`Suite::guest`] and [`Suite::launch`] take it by themselves.
    pub fn way(&self) -> Way {
        self.way.unwrap_or_default()
    }

    /// Adds tests that can only run when `missing` is `None`; otherwise it is
    /// the reason that is shown for each of them.
    pub fn needs(&mut self, missing: Option<String>, add: impl FnOnce(&mut Self)) {
        let before = std::mem::replace(&mut self.missing, missing);
        add(self);
        self.missing = before;
    }

    /// Adds a test.
    pub fn test(&mut self, name: &str, body: impl FnOnce() -> Result<()> + Send + 'static) {
        let skipped = Arc::clone(&self.skipped);
        let times = Arc::clone(&self.times);
        let missing = self.missing.clone();
        let title = match self.way {
            Some(way) => format!("{}::{name}", way.name()),
            None => name.to_owned(),
        };
        let name = title.clone();
        self.trials.push(Trial::ignorable_test(name, move || {
            if let Some(reason) = missing {
                let mut skipped = skipped.lock().unwrap_or_else(PoisonError::into_inner);
                skipped.push((title, reason.clone()));
                return Ok(Completion::ignored_with(reason));
            }
            let start = Instant::now();
            let result = caught(body);
            if let Some(Skip(reason)) = result.as_ref().err().and_then(|error| error.downcast_ref())
            {
                let mut skipped = skipped.lock().unwrap_or_else(PoisonError::into_inner);
                skipped.push((title, reason.clone()));
                return Ok(Completion::ignored_with(reason.clone()));
            }
            let took = (start.elapsed(), title);
            times
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(took);
            result.map_err(|error| Failed::from(format!("{error:#}")))?;
            Ok(Completion::Completed)
        }));
    }

    /// Adds a test with a guest that is up. When it is over the guest must
    /// still answer, and must not have counted an error of the device.
    pub fn guest(
        &mut self,
        name: &str,
        spec: Spec,
        body: impl FnOnce(&mut Lab) -> Result<()> + Send + 'static,
    ) {
        self.launch(name, spec, |lab| {
            lab.wait_until_up()?;
            body(lab)?;
            lab.check_health()
        });
    }

    /// Adds a test with a guest that has just been started.
    pub fn launch(
        &mut self,
        name: &str,
        spec: Spec,
        body: impl FnOnce(&mut Lab) -> Result<()> + Send + 'static,
    ) {
        let spec = match self.way {
            Some(way) => spec.over(way),
            None => spec,
        };
        self.test(name, move || {
            let mut lab = Lab::launch(spec)?;
            caught(|| body(&mut lab)).map_err(|error| lab.report(&error))
        });
    }

    /// Runs the tests that the command line asks for, and says why others were
    /// skipped.
    pub fn run(self) -> ExitCode {
        let cpus = available_parallelism().map_or(1, NonZero::get);
        // A guest keeps one busy, but often waits for its far end.
        let guests = cpus + cpus / 2;
        self.run_at_a_time(guests.clamp(GUESTS_AT_LEAST, GUESTS_AT_MOST))
    }

    /// As [`Suite::run`], one test at a time.
    pub fn run_alone(self) -> ExitCode {
        self.run_at_a_time(1)
    }

    fn run_at_a_time(self, tests: usize) -> ExitCode {
        let mut arguments = Arguments::from_args();
        arguments.test_threads.get_or_insert(tests);
        let conclusion = libtest_mimic::run(&arguments, self.trials);
        if arguments.list {
            return ExitCode::SUCCESS;
        }
        let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        skipped.sort_by(|a, b| a.1.cmp(&b.1));
        println!(
            "{} passed, {} failed, {} skipped",
            conclusion.num_passed,
            conclusion.num_failed,
            skipped.len()
        );
        for group in skipped.chunk_by(|a, b| a.1 == b.1) {
            let names: Vec<&str> = group.iter().map(|(name, _)| name.as_str()).collect();
            println!(
                "  {} skipped, {}: {}",
                group.len(),
                group[0].1,
                names.join(", ")
            );
        }
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.sort_by(|a, b| b.cmp(a));
        let slowest = times.iter().take(SLOWEST);
        let slowest = slowest.map(|(took, name)| format!("{name} {:.1} s", took.as_secs_f64()));
        println!("slowest: {}", slowest.collect::<Vec<_>>().join(", "));
        if let Some(file) = std::env::var_os(TIMES_VARIABLE) {
            let lines: String = times
                .iter()
                .map(|(took, name)| format!("{:.2} {name}\n", took.as_secs_f64()))
                .collect();
            if let Err(error) = std::fs::write(&file, lines) {
                eprintln!("{}: {error}", file.display());
            }
        }
        conclusion.exit_code()
    }
}

/// A panic as an error, so that the report of a guest can be added to it.
fn caught(body: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(anyhow!(text(&*panic))))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", message.unwrap_or("no message"))
}
