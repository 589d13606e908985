//! The site of `kickpath gallery`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use kickpath_tests::{Suite, program};
use tempfile::TempDir;

use crate::support::{Page, picture_name, views};
use crate::{axe, contrast};

pub fn add(suite: &mut Suite) {
    suite.test("gallery::every_link_leads_to_a_page", every_link);
}

/// Names of files that the page links to: nothing else may be linked.
fn links(page: &mut Page, directory: &Path) -> Result<BTreeSet<String>> {
    let links = page.evaluate(
        "[...document.querySelectorAll('a[href], link[href], [src]')]\
         .map(e => e.getAttribute('href') ?? e.getAttribute('src'))",
    )?;
    let links: Vec<String> = serde_json::from_value(links)?;
    let mut files = BTreeSet::new();
    for link in links.iter().filter(|link| !link.starts_with("data:")) {
        let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
        if file.is_empty() {
            let there = page.count(&format!("[id='{fragment}']"))?;
            ensure!(there == 1, "{there} elements for {link}");
            continue;
        }
        let is_name = file
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-.".contains(c));
        ensure!(is_name, "not a file beside the page: {link}");
        ensure!(directory.join(file).is_file(), "there is no {link}");
        files.insert(file.to_owned());
    }
    Ok(files)
}

/// The command writes a site of two ways. Its index fits every width; every link of every page
/// leads to a file of it, every file is linked, and every page shows itself without complaint.
fn every_link() -> Result<()> {
    let place = TempDir::new()?;
    let directory = place.path().join("site");
    let name = directory.to_str().context("a path that is no text")?;
    let told = program::run(&[
        "gallery",
        name,
        "--only",
        "legacy-port,vcpu-thread",
        "--json",
    ])?;
    let report: serde_json::Value = serde_json::from_str(&told)?;
    ensure!(report["ok"] == true, "{told}");
    let mut unlinked: BTreeSet<String> = serde_json::from_value(report["files"].clone())?;
    ensure!(unlinked.len() == 10, "{unlinked:?}");
    let beside = std::fs::read_dir(place.path())?.count();
    ensure!(beside == 1, "{beside} entries beside the site");

    let url = |file: &str| format!("file://{}", directory.join(file).display());
    let mut page = Page::served(url("index.html"))?;
    ensure!(
        page.count(".ways article h3 a")? == 2,
        "two ways are linked"
    );
    let kick = page.text(".ways .kick b")?;
    ensure!(kick == "66 ef", "the first kick is {kick}");
    for view in views() {
        page.view(view)?;
        page.check()?;
        contrast::check(&mut page)?;
        page.picture(&picture_name("gallery", view), view, true)?;
    }
    axe::check(&mut page)?;
    // Whose machine it was, and what lies where on it.
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let home = std::env::var("HOME").unwrap_or_default();
    let mut private = vec![format!("{}/", top.context("no project")?.display())];
    private.push(format!("{}/kickpath.", std::env::temp_dir().display()));
    if home.len() > 1 {
        private.push(format!("{home}/"));
    }
    let mut open = BTreeSet::from(["index.html".to_owned()]);
    while let Some(file) = open.pop_first() {
        unlinked.remove(&file);
        let content = std::fs::read_to_string(directory.join(&file))?;
        for private in &private {
            ensure!(!content.contains(private), "{file} tells of {private}");
        }
        if !file.ends_with(".html") {
            continue;
        }
        page.url = url(&file);
        page.reopen("")?;
        page.check()?;
        contrast::check(&mut page)?;
        let linked = links(&mut page, &directory)?;
        ensure!(
            file == "index.html"
                || linked.contains("index.html")
                || linked.contains("index.zh.html"),
            "no way back from {file}"
        );
        if file.ends_with(".zh.html") {
            let english = page.english(0)?;
            ensure!(english.is_empty(), "in English on {file}: {english:#?}");
            // Whoever reads Chinese stays there.
            let left: Vec<_> = { linked.iter() }
                .filter(|link| link.ends_with(".html") && !link.ends_with(".zh.html"))
                .collect();
            ensure!(
                left.len() == 1,
                "links of {file} to English pages: {left:?}"
            );
        }
        open.extend(linked.into_iter().filter(|file| unlinked.contains(file)));
    }
    ensure!(unlinked.is_empty(), "nothing leads to {unlinked:?}");
    Ok(())
}
