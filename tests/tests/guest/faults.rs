//! How the guest and the runner report what goes wrong.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kickpath::guest::{Cause, Exit};
use kickpath_abi::config::SelfTest;
use kickpath_tests::{Lab, Spec, Suite};

/// What the guest writes to isa-debug-exit when it fails.
pub const FAILURE: u8 = 0x11;

pub fn add(suite: &mut Suite) {
    let registers = ["rax ", "r15 ", "rip ", "rsp ", "cr2 ", "cr3 ", "rflags "];
    let faults: [(&str, SelfTest, &[&str], bool); 14] = [
        (
            "a_panic",
            SelfTest::Panic,
            &["panicked at", "kernel/src/selftest.rs:"],
            false,
        ),
        (
            "a_page_fault",
            SelfTest::PageFault,
            &[
                "exception 14 #PF page fault, error code 0x0",
                "read at",
                "no page is mapped",
            ],
            true,
        ),
        (
            "a_stack_overflow",
            SelfTest::StackOverflow,
            &[
                "exception 8 #DF double fault",
                "stack overflow",
                "guard page",
            ],
            true,
        ),
        (
            "a_write_to_code",
            SelfTest::WriteCode,
            &[
                "exception 14 #PF",
                "write at",
                "kernel's code",
                "protection",
            ],
            true,
        ),
        (
            "a_write_to_code_by_its_other_address",
            SelfTest::WriteCodeAlias,
            &["exception 14 #PF", "write at 0xffff8", "no page is mapped"],
            true,
        ),
        (
            "a_write_to_a_constant",
            SelfTest::WriteConstant,
            &[
                "exception 14 #PF",
                "write at",
                "kernel's constants",
                "protection",
            ],
            true,
        ),
        (
            "an_execution_of_data",
            SelfTest::ExecuteData,
            &["exception 14 #PF", "execution at", "protection"],
            true,
        ),
        (
            "an_execution_of_the_heap",
            SelfTest::ExecuteHeap,
            &[
                "exception 14 #PF",
                "execution at 0xffff8",
                "outside the kernel's image",
                "protection",
            ],
            true,
        ),
        (
            "an_execution_of_the_stack",
            SelfTest::ExecuteStack,
            &[
                "exception 14 #PF",
                "execution at",
                "kernel's data",
                "protection",
            ],
            true,
        ),
        (
            "an_invalid_opcode",
            SelfTest::InvalidOpcode,
            &["exception 6 #UD invalid opcode"],
            true,
        ),
        (
            // The error code is the selector.
            "a_segment_that_is_none",
            SelfTest::GeneralProtection,
            &["exception 13 #GP general protection, error code 0xf8"],
            true,
        ),
        (
            "a_division_by_zero",
            SelfTest::DivideError,
            &["exception 0 #DE divide error, error code 0x0"],
            true,
        ),
        (
            "an_overflow_of_the_nmi_stack",
            SelfTest::NmiStackOverflow,
            &["exception 8 #DF", "guard page of the NMI stack"],
            true,
        ),
        (
            "an_overflow_of_the_double_fault_stack",
            SelfTest::DoubleFaultStackOverflow,
            &["exception 8 #DF", "guard page of the double-fault stack"],
            true,
        ),
    ];
    for (name, selftest, expected, has_registers) in faults {
        let name = format!("faults::{name}_is_reported_and_ends_the_guest");
        let spec = Spec::pc().config(move |config| config.selftest = selftest);
        suite.launch(&name, spec, move |lab| {
            expect_failure(lab, expected)?;
            if has_registers {
                expect_on_console(lab, &registers)?;
            }
            Ok(())
        });
    }
    let hang = Spec::pc().config(|config| config.selftest = SelfTest::Hang);
    suite.launch(
        "faults::a_guest_that_hangs_is_given_up_and_reaped",
        hang,
        |lab| {
            lab.guest.wait_for_console("self-test: hang", lab.soon())?;
            let bound = Duration::from_millis(300);
            match lab.guest.wait_for_console(kickpath_tests::UP, bound) {
                Err(failure) => match failure.cause {
                    Cause::Timeout { .. } => {}
                    other => bail!("the wait ended by: {other}"),
                },
                Ok(line) => bail!("a guest that hangs is up: {}", line.text),
            }
            ensure!(lab.guest.exit().is_none(), "QEMU has ended by itself");
            let process = PathBuf::from(format!("/proc/{}", lab.guest.pid()));
            ensure!(process.exists(), "{} does not exist", process.display());
            lab.guest.kill();
            ensure!(!process.exists(), "{} still exists", process.display());
            Ok(())
        },
    );
}

/// Waits for the guest's end, which must be its own failure, with all of these
/// texts on the console.
pub fn expect_failure(lab: &Lab, texts: &[&str]) -> Result<()> {
    let exit = lab.guest.wait_for_exit(lab.left())?;
    ensure!(
        exit == Exit::Guest(FAILURE),
        "the guest should fail: {exit}"
    );
    expect_on_console(lab, texts)
}

/// Every one of these texts must be on the console.
pub fn expect_on_console(lab: &Lab, texts: &[&str]) -> Result<()> {
    let console = lab.guest.console_since(0);
    for text in texts {
        console
            .iter()
            .find(|line| line.text.contains(text))
            .with_context(|| format!("'{text}' is not on the console"))?;
    }
    Ok(())
}
