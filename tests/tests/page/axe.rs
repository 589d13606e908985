//! What axe-core says of every kind of page: the rules by which others judge a page's
//! accessibility (<https://github.com/dequelabs/axe-core>).
//!
//! The variable `KICKPATH_AXE` names its `axe.min.js`; without it, npm brings the version below
//! where something may be installed. Where there is none, these tests are skipped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kickpath::command;
use kickpath::install::Policy;
use kickpath::lang::Lang;
use kickpath_tests::browser::View;
use kickpath_tests::{Suite, setup};
use serde_json::json;

use crate::support::{Page, desk, lacks_browser};
use crate::{compare, diff, reports, ring, status, trace};

/// Environment variable that names the script.
const VARIABLE: &str = "KICKPATH_AXE";

/// The version that npm is asked for.
const VERSION: &str = "4.14.1";

/// How long npm may take.
const BOUND: Duration = Duration::from_secs(120);

pub fn add(suite: &mut Suite) {
    let missing = || Some(format!("no axe-core: {}", script().as_ref().err()?));
    suite.needs(lacks_browser().or_else(missing), |suite| {
        let mut add = |name: &str, html: fn() -> Result<String>| {
            suite.test(&format!("axe::{name}"), move || {
                let mut page = Page::open(&html()?)?;
                check(&mut page)?;
                // What is folded away counts as well.
                page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")?;
                look(&mut page, desk(false))
            });
        };
        add("a_trace", || trace::html(&trace::sample()?, Lang::En));
        add("a_trace_in_chinese", || {
            trace::html(&trace::sample()?, Lang::Zh)
        });
        add("a_trace_on_kvm", || {
            trace::html(&trace::on_kvm()?, Lang::En)
        });
        add("a_trace_of_linux", || {
            trace::html(&diff::linux()?, Lang::En)
        });
        add("two_traces_side_by_side", diff::html);
        add("a_comparison", || {
            Ok(kickpath::compare::html::page(&compare::report())?)
        });
        add("a_laboratory", || Ok(reports::laboratory_html()));
        add("a_soak", || Ok(reports::soak_html()));
        add("a_ring_by_hand", ring::html);
        add("a_status_page", status::html);
    });
}

/// Fails where axe finds something serious on a page, in any colours and on a telephone. Where
/// there is no axe nothing is looked at: the tests above are skipped then, and tell.
pub fn check(page: &mut Page) -> Result<()> {
    if script().is_err() {
        return Ok(());
    }
    let telephone = View {
        width: 360,
        ..desk(false)
    };
    for view in [desk(false), desk(true), telephone] {
        page.view(view)?;
        look(page, view)?;
    }
    Ok(())
}

fn look(page: &mut Page, view: View) -> Result<()> {
    let script = script().as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
    // It stays with the page.
    if page.evaluate("typeof axe")? == "undefined" {
        page.evaluate(script)?;
    }
    let found = page.evaluate(
        "(async () => { const { violations, passes } = await axe.run({ resultTypes: ['violations'] }); \
         return [passes.length, violations.map(({ id, impact, help, nodes }) => [impact, id, help, \
         ...nodes.slice(0, 5).map(n => n.html.slice(0, 160))])]; })()",
    )?;
    // Rules that it could apply: a page that it cannot read would have none.
    ensure!(found[0].as_u64() > Some(15), "axe looked at {found}");
    ensure!(found[1] == json!([]), "in {view:?}: {:#}", found[1]);
    Ok(())
}

/// The script, or why there is none.
fn script() -> &'static std::result::Result<String, String> {
    static SCRIPT: OnceLock<std::result::Result<String, String>> = OnceLock::new();
    SCRIPT.get_or_init(|| {
        // Listing tests must not install anything.
        if std::env::args().any(|argument| argument == "--list") {
            return Ok(String::new());
        }
        let file = match std::env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
            Some(named) => Ok(PathBuf::from(named)),
            None => bring(Path::new(env!("CARGO_TARGET_TMPDIR"))),
        };
        let read = |file: PathBuf| {
            std::fs::read_to_string(&file).with_context(|| file.display().to_string())
        };
        file.and_then(read)
            .map_err(|error| format!("{error:#}").replace('\n', " "))
    })
}

/// Has npm put it below `place`, where it stays for the next time.
fn bring(place: &Path) -> Result<PathBuf> {
    const FILE: &str = "node_modules/axe-core/axe.min.js";
    let directory = place.join(format!("axe-core-{VERSION}"));
    if !directory.join(FILE).is_file() {
        ensure!(
            setup::policy() == Policy::Install,
            "{VARIABLE} names none, and nothing may be installed"
        );
        let making = tempfile::tempdir_in(place)?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund"])
            .arg("--prefix")
            .arg(making.path())
            .arg(format!("axe-core@{VERSION}"));
        command::output(&mut npm, BOUND).with_context(|| format!("{VARIABLE} names none"))?;
        // Another process may have been faster.
        let _ = std::fs::rename(making.path(), &directory);
    }
    Ok(directory.join(FILE))
}
