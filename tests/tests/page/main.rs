//! The pages that the command writes and the guest serves, as a reader's browser shows them.
//!
//! `KICKPATH_SCREENSHOTS=DIRECTORY cargo test -p kickpath-tests --test page`
//! leaves the pictures that were taken, for a person to look at.

mod axe;
mod compare;
mod contrast;
mod diff;
mod gallery;
mod reports;
mod ring;
mod status;
mod support;
mod trace;

use std::process::ExitCode;

use kickpath_tests::Suite;

fn main() -> ExitCode {
    let mut suite = Suite::default();
    suite.needs(support::lacks_browser(), |suite| {
        trace::add(suite);
        compare::add(suite);
        diff::add(suite);
        ring::add(suite);
        status::add(suite);
        gallery::add(suite);
        reports::add(suite);
        axe::add(suite);
    });
    suite.run()
}
