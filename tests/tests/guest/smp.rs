//! Several CPUs: they are started, and the end of any of them is the guest's.

use kickpath::qemu::Kind;
use kickpath_abi::config::SelfTest;
use kickpath_tests::{Spec, Suite};

use crate::faults::{expect_failure, expect_on_console};

/// The end of any CPU is the guest's.
pub fn add_faults(suite: &mut Suite) {
    suite.launch(
        "smp::an_xapic_starts_cpus_too",
        machine(Kind::Pc, 2)
            .edit(|machine| machine.cpu = Some("qemu64,-x2apic".into()))
            .config(|config| config.selftest = SelfTest::PanicOther),
        |lab| expect_failure(lab, &["2 CPUs", "on CPU 1"]),
    );
    let faults: [(&str, SelfTest, &[&str]); 3] = [
        ("a_panic", SelfTest::PanicOther, &["panicked at"]),
        (
            "a_page_fault",
            SelfTest::PageFaultOther,
            &["exception 14 #PF", "no page is mapped", "rip ", "cr2 "],
        ),
        (
            "a_stack_overflow",
            SelfTest::StackOverflowOther,
            &["exception 8 #DF", "guard page of the main stack", "rip "],
        ),
    ];
    for (name, selftest, expected) in faults {
        let name = format!("smp::{name}_on_another_cpu_ends_the_guest_with_a_report");
        let spec = machine(Kind::Pc, 3).config(move |config| config.selftest = selftest);
        suite.launch(&name, spec, move |lab| {
            expect_failure(lab, expected)?;
            expect_on_console(lab, &["3 CPUs", "on CPU 2"])
        });
    }
    suite.launch(
        "smp::a_fault_on_another_cpu_needs_one",
        Spec::pc().config(|config| config.selftest = SelfTest::PanicOther),
        |lab| expect_failure(lab, &["needs a second CPU"]),
    );
}

pub fn add(suite: &mut Suite) {
    let way = suite.way();
    for &kind in way.kinds() {
        for cpus in [2, 4] {
            let name = format!("smp::{cpus}_cpus_on_{kind}");
            suite.guest(&name, machine(kind, cpus), move |lab| {
                expect_on_console(lab, &[&format!("{cpus} CPUs")])?;
                lab.check_services()
            });
        }
    }
}

/// A machine with several CPUs.
pub fn machine(kind: Kind, cpus: u8) -> Spec {
    Spec::new(kind).edit(move |machine| machine.cpus = cpus)
}
