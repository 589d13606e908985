//! The matrix of features, transports and queue layouts in `docs/features.md`.
//!
//! `cargo test -p kickpath-tests --test matrix` boots guests for every feature over
//! every transport, prints the column of the table that belongs to this QEMU, and fails
//! where the document promises a `pass` that the run did not see. With
//! `KICKPATH_WRITE_MATRIX=1` it writes the document's column instead.

mod runs;
mod table;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use kickpath::qemu::{Kind, NicTransport};
use kickpath_abi::config::{Irq, Transport};
use kickpath_tests::{Spec, Suite};
use table::{Results, Table};
use virtio_net::net::Features;

/// Environment variable that has the table of the document written, when it is
/// set to something else than nothing or `0`.
const WRITE_VARIABLE: &str = "KICKPATH_WRITE_MATRIX";

/// How the table is made anew.
const REGENERATE: &str =
    "KICKPATH_WRITE_MATRIX=1 cargo test -p kickpath-tests --test matrix (as root, for a tap)";
/// From this version on QEMU's device can work in order.
const IN_ORDER_SINCE: (u16, u16) = (10, 0);

/// A transport with a queue layout.
struct Way {
    title: &'static str,
    packed: bool,
    transport: fn() -> Spec,
    /// With several pairs of queues: no vectors means no interrupt for each.
    irq: Irq,
}

impl Way {
    const fn new(title: &'static str, packed: bool, transport: fn() -> Spec, irq: Irq) -> Self {
        Self {
            title,
            packed,
            transport,
            irq,
        }
    }

    /// Whether its device can have `VERSION_1`, with what goes with it.
    fn is_version_1(&self) -> bool {
        !matches!(self.title, "legacy" | "mmio v1")
    }

    fn spec(&self) -> Spec {
        let spec = (self.transport)();
        if self.packed {
            spec.property("packed", "on")
        } else {
            spec
        }
    }
}

/// Packed rings need `VERSION_1`, which the legacy interfaces cannot have.
const WAYS: [Way; 8] = [
    Way::new("legacy", false, legacy, Irq::Msix),
    Way::new("modern", false, modern, Irq::Msix),
    Way::new("modern packed", true, modern, Irq::Msix),
    Way::new("port notify", false, port_notify, Irq::Msix),
    Way::new("port notify packed", true, port_notify, Irq::Msix),
    Way::new("mmio v1", false, mmio_v1, Irq::Poll),
    Way::new("mmio v2", false, mmio_v2, Irq::Poll),
    Way::new("mmio v2 packed", true, mmio_v2, Irq::Poll),
];

fn legacy() -> Spec {
    Spec::new(Kind::Pc).config(|config| config.transport = Transport::Legacy)
}

fn modern() -> Spec {
    Spec::new(Kind::Q35).nic(|nic| nic.transport = NicTransport::Modern)
}

fn port_notify() -> Spec {
    modern().nic(|nic| nic.pio_notify = true)
}

fn mmio_v1() -> Spec {
    mmio_v2().nic(|nic| nic.mmio_legacy = true)
}

fn mmio_v2() -> Spec {
    Spec::new(Kind::Microvm)
}

fn main() -> ExitCode {
    let write = std::env::var_os(WRITE_VARIABLE).is_some_and(|v| !v.is_empty() && v != "0");
    let columns: Arc<Mutex<Vec<(usize, Results)>>> = Arc::default();
    let mut suite = Suite::default();
    suite.test("matrix::the_table_is_read_as_it_is_written", table::check);
    if !write {
        suite.test("matrix::every_feature_is_in_the_document", every_feature);
    }
    for (number, way) in WAYS.iter().enumerate() {
        let columns = Arc::clone(&columns);
        suite.test(
            &format!("matrix::{}", way.title.replace(' ', "_")),
            move || {
                let column = runs::results(way)?;
                let result = if write {
                    Ok(())
                } else {
                    table::compare(&column, REGENERATE)
                };
                let mut columns = columns.lock().unwrap_or_else(PoisonError::into_inner);
                columns.push((number, column));
                result
            },
        );
    }
    let code = suite.run();
    let mut columns = columns.lock().unwrap_or_else(PoisonError::into_inner);
    if columns.is_empty() {
        return code;
    }
    columns.sort_by_key(|(number, _)| *number);
    let results: Vec<_> = columns.iter().map(|(_, results)| results).collect();
    let Some(mut table) = Table::of(&results) else {
        return code;
    };
    table.retain(is_told);
    println!("\n{table}");
    if write {
        let is_whole = results.len() == WAYS.len();
        let written = match is_whole {
            true => table::write(&results, table, is_told),
            false => Err(anyhow!("only a part of the ways was run")),
        };
        match written {
            Ok(path) => println!("written to {}", path.display()),
            Err(error) => {
                eprintln!("the table was not written: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    code
}

/// Whether a feature has a row even if no QEMU offers it.
fn is_told(feature: &str) -> bool {
    let feature = Features::by_name(feature.trim_matches('`'));
    feature.is_none_or(|feature| Features::IMPLEMENTED.contains(feature))
}

/// Each feature that the driver implements is in the table, each other that it knows
/// by name among those that are left out with a reason, and the rows of the table are
/// features.
fn every_feature() -> Result<()> {
    let document = table::document()?;
    let (table, left_out) = document.split_once(table::END).unwrap_or((&document, ""));
    for name in Features::all().names() {
        let row = format!("\n| `{name}` |");
        let rows = [table, left_out].map(|part| part.matches(&row).count());
        let holds = match is_told(name) {
            true => rows == [1, 0],
            // Whether a QEMU offers it may be told as well.
            false => rows[0] <= 1 && rows[1] == 1,
        };
        ensure!(
            holds,
            "docs/features.md has {rows:?} rows for {name} in the table and among what is left out"
        );
    }
    // The driver's own page has the same list.
    let page = include_str!("../../../kernel/virtio-net/README.md");
    let (_, list) = page.split_once("\n## What is left out").unwrap_or_default();
    let (list, _) = list.split_once("\n## ").unwrap_or_default();
    let items = list.split("\n- ").skip(1);
    let names = items.filter_map(|item| item.split_once(": "));
    let mut named = Features::empty();
    for name in names.flat_map(|(names, _)| names.split('`').skip(1).step_by(2)) {
        let feature = Features::by_name(name);
        named |= feature.with_context(|| format!("the driver's page names {name}"))?;
    }
    let left_out = Features::all() - Features::IMPLEMENTED;
    ensure!(
        named == left_out,
        "the driver's page says that '{named}' are left out; it is '{left_out}'"
    );
    Ok(())
}
