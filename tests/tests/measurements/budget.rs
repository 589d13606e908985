//! What a packet may cost, in figures that do not depend on this machine: with
//! `-icount shift=0` one instruction is one cycle of the guest's TSC.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kickpath::wire::peer::Flood;
use kickpath_tests::{Lab, Spec, Suite};

const ECHOES: u64 = 20_000;

pub fn add(suite: &mut Suite) {
    let spec = Spec::pc()
        .edit(|machine| machine.icount = Some(0))
        .bound(Duration::from_secs(180));
    suite.guest("budget::an_echo_of_64_bytes", spec, |lab| {
        // Buffers, tables and caches are filled by the first ones.
        flood(lab, 2000)?;
        let before = lab.status()?;
        let idle = lab.status()?;
        flood(lab, ECHOES)?;
        let after = lab.status()?;
        let work = |a: &kickpath_abi::status::Status, b: &kickpath_abi::status::Status| {
            let (a, b) = (&a.cpu, &b.cpu);
            (b.cycles - a.cycles) - (b.idle_cycles - a.idle_cycles)
        };
        // Fetching a report costs something as well: the same each time.
        let report = work(&before, &idle);
        let instructions = (work(&idle, &after) - report) as f64 / ECHOES as f64;
        let kicks = (after.counters.kicks - idle.counters.kicks) as f64 / ECHOES as f64;
        let allocations = |a: &kickpath_abi::status::Status, b: &kickpath_abi::status::Status| {
            b.cpu.heap_allocations - a.cpu.heap_allocations
        };
        let allocated = allocations(&idle, &after).saturating_sub(allocations(&before, &idle));
        eprintln!("budget: {instructions:.0} instructions and {kicks:.3} kicks an echo");
        ensure!(
            instructions <= 2000.0,
            "{instructions:.0} instructions an echo"
        );
        ensure!(kicks <= 0.15, "{kicks:.3} kicks an echo");
        ensure!(
            allocated < 10,
            "{allocated} heap allocations for {ECHOES} echoes"
        );
        Ok(())
    });
}

fn flood(lab: &Lab, count: u64) -> Result<()> {
    let flood = Flood {
        count,
        size: 64,
        outstanding: 32,
        patience: Duration::from_secs(20),
        bound: lab.left(),
    };
    let report = lab
        .peer
        .udp_echo_flood(lab.ipv4(), flood)
        .context("echoes")?;
    ensure!(report.received == count, "{report:?}");
    Ok(())
}
