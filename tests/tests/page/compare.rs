//! The page of `kickpath compare --html`.

use anyhow::{Result, ensure};
use kickpath::compare::html::page;
use kickpath::compare::{Handler, Report, Row, Way};
use kickpath::lang::Lang;
use kickpath_tests::Suite;
use kickpath_tests::browser::View;

use crate::contrast;
use crate::support::{Page, desk, picture_name, views};

pub fn add(suite: &mut Suite) {
    suite.test("compare::every_figure_at_every_width", every_figure);
    suite.test("compare::a_report_without_rows", without_rows);
    suite.test("compare::in_chinese", in_chinese);
}

/// A report with every way and condition, and figures of the usual sizes.
pub fn report() -> Report {
    let mut rows = Vec::new();
    for way in Way::ALL {
        for (place, (ioeventfd, event_idx, burst)) in
            [(true, true, 1), (false, true, 32)].into_iter().enumerate()
        {
            rows.push(Row {
                way,
                access: "movw 1 -> 0xffffa000febfb004".into(),
                ioeventfd,
                event_idx,
                burst,
                instructions_per_kick: 87.0,
                instructions_per_packet: 255.25,
                accesses_per_kick: 1.0,
                kicks_per_packet: 1.0 / f64::from(burst),
                interrupts_per_packet: 0.0,
                userspace_exits_per_kick: (place == 1).then_some(1.0),
                handler: (place == 1).then_some(Handler::VcpuThread),
            });
        }
    }
    Report {
        accelerator: "TCG: <b>a reason</b>".into(),
        rows,
        absent: vec!["exits: </script><script>console.error(1)</script>".into()],
        command_lines: vec!["qemu-system-x86_64 -machine pc".into()],
    }
}

fn every_figure() -> Result<()> {
    let mut page = Page::open(&page(&report())?)?;
    let buttons = page.count("button")?;
    ensure!(buttons >= 5, "{buttons} buttons");
    // It opens on what repeats exactly, and knows no time of one run.
    let title = page.text("#chart-title")?;
    ensure!(title == "Instructions a kick", "it opens on {title}");
    for view in views() {
        page.view(view)?;
        for button in 0..buttons {
            page.evaluate(&format!(
                "document.querySelectorAll('button')[{button}].click()"
            ))?;
            page.check()?;
        }
        contrast::check(&mut page)?;
        page.picture(&picture_name("compare", view), view, false)?;
    }
    Ok(())
}

fn in_chinese() -> Result<()> {
    let report = Report {
        accelerator: "TCG: there is no /dev/kvm, so QEMU translates the guest's code".into(),
        absent: Vec::new(),
        ..report()
    };
    let mut page = Page::open(&Lang::Zh.page(page(&report)?))?;
    for button in 0..page.count("button")? {
        page.evaluate(&format!(
            "document.querySelectorAll('button')[{button}].click()"
        ))?;
        let english = page.english(0)?;
        ensure!(english.is_empty(), "in English: {english:#?}");
    }
    for view in [
        desk(false),
        View {
            width: 360,
            ..desk(true)
        },
    ] {
        page.view(view)?;
        page.check()?;
        page.picture(&picture_name("compare-zh", view), view, true)?;
    }
    Ok(())
}

fn without_rows() -> Result<()> {
    let mut page = Page::open(&page(&Report::default())?)?;
    page.view(desk(true))?;
    page.check()
}
