//! Every lie of a device, told over each transport and layout: what the driver says, with
//! the queue and the values of the lie, and what becomes of service. The table of it in
//! docs/robustness.md is made here; `KICKPATH_WRITE_DOCS=1` writes it anew.

#[allow(dead_code)] // The driver's own tests use the rest.
#[path = "../../../kernel/virtio-net/tests/driver/support/mod.rs"]
mod support;

mod lies {
    pub mod bench;
    pub mod list;
}

use std::fmt::Write as _;
use std::time::Duration;

use kickpath_abi::status::Outages;
use kickpath_fuzz::document;
use lies::bench::{Bench, TX, Way};
use lies::list::{LIES, Lie, When};

const COMMAND: &str = "KICKPATH_WRITE_DOCS=1 cargo test -p kickpath-fuzz --test lies";

/// What came of a lie.
#[derive(PartialEq, Eq)]
struct Outcome {
    said: String,
    service: String,
}

/// What there is no clock for here: the guest's tests `recovery` hold it to that.
fn reset_in_time() -> String {
    let bound = Duration::from_micros(Outages::RESET_US);
    format!("reset, served again within {} ms", bound.as_millis())
}

/// Tells a lie to a driver that is open and serves.
fn told_in_life(lie: &Lie, way: Way) -> Outcome {
    let mut bench = Bench::new(way, lie.features);
    bench.driver.open().expect("an honest device");
    bench.find_rings();
    bench.assert_service();
    let values = (lie.tell)(&mut bench);
    let (said, service) = match bench.look() {
        Ok(()) => (String::new(), "carried on".to_owned()),
        Err(error) => {
            assert_eq!(
                bench.look(),
                Err(error),
                "said once and for ever: {}",
                lie.what
            );
            let service = if bench.driver.reset_queue(TX).is_ok() {
                bench.ends[TX] = bench.find_ring(TX);
                "the queue was reset alone".to_owned()
            } else {
                bench.make_honest();
                bench.driver.open().expect("an honest device");
                bench.find_rings();
                reset_in_time()
            };
            (error.to_string(), service)
        }
    };
    bench.assert_service();
    check_values(lie, &values, &said);
    Outcome { said, service }
}

/// Tells a lie to a driver that gives a command: frames come and go all the same.
fn told_to_command(lie: &Lie, way: Way) -> Outcome {
    let mut bench = Bench::new(way, lie.features);
    bench.driver.open().expect("an honest device");
    bench.find_rings();
    let values = (lie.tell)(&mut bench);
    let error = bench.driver.command().expect_err(lie.what);
    bench.assert_service();
    bench.make_honest();
    bench.driver.open().expect("an honest device");
    bench.find_rings();
    assert_eq!(bench.driver.command(), Ok(()));
    bench.assert_service();
    let said = error.to_string();
    check_values(lie, &values, &said);
    Outcome {
        said,
        service: "carried on; commands are heard again when it is opened again".to_owned(),
    }
}

/// What the driver says has what the lie was.
fn check_values(lie: &Lie, values: &[String], said: &str) {
    for value in values {
        assert!(
            said.contains(value),
            "{}: no {value:?} in {said:?}",
            lie.what
        );
    }
}

/// Opens a device that lies while it is opened, and then does not any more.
fn told_at_open(lie: &Lie, way: Way) -> Outcome {
    let mut bench = Bench::new(way, lie.features);
    let values = (lie.tell)(&mut bench);
    let error = bench.driver.open().expect_err(lie.what);
    bench.make_honest();
    let said = error.to_string();
    check_values(lie, &values, &said);
    bench.driver.open().expect("an honest device");
    bench.find_rings();
    bench.assert_service();
    Outcome {
        said,
        service: "refused; served when it was honest".to_owned(),
    }
}

/// The rows of a lie: ways of which the same came are one.
fn rows(lie: &Lie) -> String {
    let mut outcomes: Vec<(Outcome, Vec<Way>)> = Vec::new();
    for way in Way::ALL.into_iter().filter(|way| (lie.over)(*way)) {
        println!("{}: {}", way.name(), lie.what);
        let outcome = match lie.when {
            When::InLife => told_in_life(lie, way),
            When::Command => told_to_command(lie, way),
            When::AtOpen => told_at_open(lie, way),
        };
        match outcomes.iter_mut().find(|(other, _)| *other == outcome) {
            Some((_, ways)) => ways.push(way),
            None => outcomes.push((outcome, vec![way])),
        }
    }
    assert!(!outcomes.is_empty(), "{} was not told", lie.what);
    let mut rows = String::new();
    for (Outcome { said, service }, ways) in outcomes {
        let ways: Vec<&str> = ways.into_iter().map(Way::name).collect();
        let ways = match ways.len() == Way::ALL.len() {
            true => "all".to_owned(),
            false => ways.join("; "),
        };
        let said = match said.is_empty() {
            true => "nothing".to_owned(),
            false => format!("`{said}`"),
        };
        writeln!(rows, "| {} | {ways} | {said} | {service} |", lie.what).unwrap();
    }
    rows
}

#[test]
fn the_table_is_what_the_driver_says() {
    let mut table = "\n| What the device does | Over | What the driver says | Service |\n\
                     | --- | --- | --- | --- |\n"
        .to_owned();
    table.extend(LIES.iter().map(rows));
    table.push('\n');
    document::check("robustness.md", COMMAND, |text| {
        document::replace(text, "<!-- lies: begin -->", "<!-- lies: end -->", &table)
    });
}
