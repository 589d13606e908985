//! The matrix of features, transports and queue layouts in `docs/features.md`.
//!
//! `cargo test -p kickpath-tests --test matrix` boots guests for every cell,
//! prints the table, and fails where the document promises a `pass` that the
//! run did not see. With `KICKPATH_WRITE_MATRIX=1` it writes the document's
//! table instead.

mod runs;
mod table;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use kickpath::qemu::{Kind, NicTransport};
use kickpath_abi::config::{Irq, Transport};
use kickpath_tests::{Spec, Suite};
use table::{Column, Table};
use virtio_net::net::Features;

/// Environment variable that has the table of the document written, when it is
/// set to something else than nothing or `0`.
const WRITE_VARIABLE: &str = "KICKPATH_WRITE_MATRIX";

/// How the table is made anew.
const REGENERATE: &str =
    "KICKPATH_WRITE_MATRIX=1 cargo test -p kickpath-tests --test matrix (as root, for a tap)";

/// A transport with a queue layout.
struct Way {
    title: &'static str,
    test: &'static str,
    packed: bool,
    transport: fn() -> Spec,
    /// With several pairs of queues: no vectors means no interrupt for each.
    irq: Irq,
}

impl Way {
    const fn new(
        title: &'static str,
        test: &'static str,
        packed: bool,
        transport: fn() -> Spec,
        irq: Irq,
    ) -> Self {
        Self {
            title,
            test,
            packed,
            transport,
            irq,
        }
    }

    /// Whether its device can have `VERSION_1`, with what goes with it.
    fn is_version_1(&self) -> bool {
        !matches!(self.test, "legacy" | "mmio_v1")
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
    Way::new("legacy PCI, split", "legacy", false, legacy, Irq::Msix),
    Way::new("modern PCI, split", "modern", false, modern, Irq::Msix),
    Way::new(
        "modern PCI, packed",
        "modern_packed",
        true,
        modern,
        Irq::Msix,
    ),
    Way::new(
        "port notify, split",
        "port_notify",
        false,
        port_notify,
        Irq::Msix,
    ),
    Way::new(
        "port notify, packed",
        "port_notify_packed",
        true,
        port_notify,
        Irq::Msix,
    ),
    Way::new("mmio v1, split", "mmio_v1", false, mmio_v1, Irq::Poll),
    Way::new("mmio v2, split", "mmio_v2", false, mmio_v2, Irq::Poll),
    Way::new(
        "mmio v2, packed",
        "mmio_v2_packed",
        true,
        mmio_v2,
        Irq::Poll,
    ),
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
    let columns: Arc<Mutex<Vec<(usize, Column)>>> = Arc::default();
    let mut suite = Suite::default();
    if !write {
        suite.test("matrix::every_feature_is_in_the_document", every_feature);
    }
    for (number, way) in WAYS.iter().enumerate() {
        let columns = Arc::clone(&columns);
        suite.test(&format!("matrix::{}", way.test), move || {
            let column = runs::column(way)?;
            let result = if write {
                Ok(())
            } else {
                table::compare(&column, REGENERATE)
            };
            let mut columns = columns.lock().unwrap_or_else(PoisonError::into_inner);
            columns.push((number, column));
            result
        });
    }
    let code = suite.run();
    let mut columns = columns.lock().unwrap_or_else(PoisonError::into_inner);
    if columns.is_empty() {
        return code;
    }
    columns.sort_by_key(|(number, _)| *number);
    let table = Table(columns.iter().map(|(_, column)| column).collect());
    println!("\n{table}");
    if write {
        let is_whole = table.0.len() == WAYS.len();
        match table.write(is_whole) {
            Ok(path) => println!("written to {}", path.display()),
            Err(error) => {
                eprintln!("the table was not written: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    code
}

/// Each feature that the driver knows by name is in the table, or among those
/// that are left out with a reason.
fn every_feature() -> Result<()> {
    let document = table::document()?;
    for name in Features::all().names() {
        let row = format!("\n| `{name}` |");
        let rows = document.matches(&row).count();
        ensure!(
            rows == 1,
            "docs/features.md has {rows} rows for {name} instead of one"
        );
    }
    let (table, left_out) = document.split_once(table::END).unwrap_or((&document, ""));
    for name in Features::IMPLEMENTED.names() {
        ensure!(
            !left_out.contains(&format!("\n| `{name}` |")),
            "docs/features.md says that {name} is left out; it is implemented"
        );
    }
    for name in (Features::all() - Features::IMPLEMENTED).names() {
        ensure!(
            !table.contains(&format!("\n| `{name}` |")),
            "docs/features.md has {name} in the table; it is not implemented"
        );
    }
    // The driver's own page has the same list.
    let page = include_str!("../../../kernel/virtio-net/src/lib.rs");
    let (_, list) = page.split_once("# What is left out").unwrap_or_default();
    let (list, _) = list.split_once("//! # ").unwrap_or_default();
    let items = list.lines().filter(|line| line.starts_with("//! - "));
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
