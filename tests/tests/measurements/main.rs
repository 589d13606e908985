//! What a packet costs, within its limits. A guest that shares the CPUs with
//! another is scheduled otherwise, and kicks more often: so these run alone.

mod budget;
mod command;

use std::process::ExitCode;

use kickpath_tests::Suite;

fn main() -> ExitCode {
    let mut suite = Suite::default();
    budget::add(&mut suite);
    command::add(&mut suite);
    suite.run_alone()
}
