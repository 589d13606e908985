//! What a packet may cost, in figures that do not depend on this machine: with
//! `-icount shift=0` one instruction is one cycle of the guest's TSC.

use std::time::Duration;

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kickpath::bench::profile::{Profile, Profiler};
use kickpath::install::Policy;
use kickpath::qemu::Boot;
use kickpath::wire::peer::Flood;
use kickpath_abi::status::Status;
use kickpath_tests::setup::setup;
use kickpath_tests::{Lab, Spec, Suite};

const ECHOES: u64 = 20_000;
const PROFILED: u64 = 5_000;

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
        // Fetching a report costs something as well: the same each time.
        let report = work(&before, &idle);
        let instructions = (work(&idle, &after) - report) as f64 / ECHOES as f64;
        let kicks = (after.counters.kicks - idle.counters.kicks) as f64 / ECHOES as f64;
        let allocations = |a: &Status, b: &Status| b.cpu.heap_allocations - a.cpu.heap_allocations;
        let allocated = allocations(&idle, &after).saturating_sub(allocations(&before, &idle));
        eprintln!("budget: {instructions:.0} instructions and {kicks:.3} kicks an echo");
        ensure!(
            instructions <= 2400.0,
            "{instructions:.0} instructions an echo"
        );
        ensure!(kicks <= 0.15, "{kicks:.3} kicks an echo");
        ensure!(
            allocated < 10,
            "{allocated} heap allocations for {ECHOES} echoes"
        );
        Ok(())
    });
    suite.test("budget::the_profile_is_complete", the_profile_is_complete);
}

/// The plugin's counts are those of the guest's own clock, and have names.
fn the_profile_is_complete() -> Result<()> {
    let setup = setup()?;
    let profiler = Profiler::new(Policy::default(), &setup.qemu, &mut |_| ())?;
    let profiler = Arc::new(profiler);
    let plugin = Arc::clone(&profiler);
    let spec = Spec::pc()
        .edit(|machine| machine.icount = Some(0))
        .edit(move |machine| plugin.attach(machine))
        .bound(Duration::from_secs(180));
    let lab = Lab::launch(spec)?;
    flood(&lab, 500)?;
    let (first, second) = (lab.status()?, lab.status()?);
    let counts = profiler.read()?;
    flood(&lab, PROFILED)?;
    let counts = profiler.read()?.since(&counts);
    let third = lab.status()?;
    let counted = work(&second, &third) - work(&first, &second);
    let profile = Profile::of(&counts, &Boot::Kernel(setup.kernel.clone()), PROFILED)?;
    let sum: f64 = profile.layers.iter().map(|share| share.instructions).sum();
    let ratio = sum * PROFILED as f64 / counted as f64;
    ensure!((0.95..1.05).contains(&ratio), "{ratio}: {profile:?}");
    for layer in ["driver", "smoltcp", "services", "kernel"] {
        let found = profile.layers.iter().find(|share| share.layer == layer);
        let share = found.map_or(0.0, |share| share.instructions);
        ensure!(share > 20.0, "{layer}: {share} in {profile:?}");
    }
    Ok(())
}

/// Cycles between two reports in which the guest did not sleep.
fn work(before: &Status, after: &Status) -> u64 {
    let (a, b) = (&before.cpu, &after.cpu);
    (b.cycles - a.cycles) - (b.idle_cycles - a.idle_cycles)
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
