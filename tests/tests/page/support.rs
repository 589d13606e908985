//! The browser made ready, a page in it, and what a picture shows.

use std::io::Cursor;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use kickpath::install::{CHROMIUM, Host};
use kickpath_tests::browser::{Browser, View};
use kickpath_tests::setup;
use tempfile::TempDir;

/// Widths from a small telephone to a desk.
pub const WIDTHS: [u32; 4] = [360, 640, 1000, 1400];

/// Why there is no browser here, if so; it is installed where it may be.
pub fn lacks_browser() -> Option<String> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING
        .get_or_init(|| {
            // Listing tests must not install anything.
            if std::env::args().any(|argument| argument == "--list") {
                return None;
            }
            setup::require(&[CHROMIUM])
                .err()
                .map(|error| format!("no browser: {}", format!("{error:#}").replace('\n', " ")))
        })
        .clone()
}

/// A file in a browser.
pub struct Page {
    browser: Browser,
    pub url: String,
    _directory: Option<TempDir>,
}

impl Page {
    /// Opens `html` from a file, at a desk and by daylight.
    pub fn open(html: &str) -> Result<Self> {
        let directory = TempDir::new()?;
        let path = directory.path().join("page.html");
        std::fs::write(&path, html)?;
        Self::at(format!("file://{}", path.display()), Some(directory))
    }

    /// Opens what a server has at `url`, in the same way.
    pub fn served(url: String) -> Result<Self> {
        Self::at(url, None)
    }

    fn at(url: String, directory: Option<TempDir>) -> Result<Self> {
        let program = Host::detect()
            .find(&CHROMIUM)
            .context("the browser was installed and is not found")?;
        let mut page = Self {
            browser: Browser::launch(&program)?,
            url,
            _directory: directory,
        };
        page.view(desk(false))?;
        page.reopen("")?;
        Ok(page)
    }

    /// Opens the page again, at `fragment` (`#...` or nothing).
    pub fn reopen(&mut self, fragment: &str) -> Result<()> {
        let url = format!("{}{fragment}", self.url);
        self.browser.open(&url)
    }

    /// The text of the element that `selector` names.
    pub fn text(&mut self, selector: &str) -> Result<String> {
        let text = self.evaluate(&format!(
            "document.querySelector({}).textContent",
            serde_json::Value::from(selector)
        ))?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// How many elements `selector` names.
    pub fn count(&mut self, selector: &str) -> Result<u64> {
        let count = self.evaluate(&format!(
            "document.querySelectorAll({}).length",
            serde_json::Value::from(selector)
        ))?;
        count.as_u64().context("a count")
    }

    /// Fails when the page complained, asked for anything but itself, is wider
    /// than its window, or shows the traces of a script's mistake.
    pub fn check(&mut self) -> Result<()> {
        let problems = self.problems()?;
        ensure!(problems.is_empty(), "the page complains: {problems:#?}");
        let url = self.url.clone();
        let requests = self.requests()?;
        ensure!(
            requests.iter().all(|request| request.starts_with(&url)),
            "the page asks for {requests:?}"
        );
        let wide = self.evaluate(
            "(() => { const wide = document.documentElement.scrollWidth - innerWidth; \
             return wide <= 0 ? null : [wide, ...[...document.querySelectorAll('body *')] \
             .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.listing, .hex, .scroll, svg')) \
             .map(e => e.outerHTML.slice(0, 80))].slice(0, 6); })()",
        )?;
        ensure!(wide.is_null(), "the page is wider than its window: {wide}");
        let text = self.evaluate("document.body.innerText")?;
        let text = text.as_str().unwrap_or_default();
        for mistake in ["[object", "undefined", "NaN", "null"] {
            ensure!(!text.contains(mistake), "the page says {mistake}: {text}");
        }
        Ok(())
    }

    /// Texts of three English words in a row that the page shows or has read out, at each of
    /// its `steps` if it has any, outside of code, of what was recorded as it is, and of titles
    /// of the specification.
    pub fn english(&mut self, steps: usize) -> Result<Vec<String>> {
        let left = self.evaluate(&format!(
            r#"(() => {{
                const english = /[A-Za-z]{{2,}},? [A-Za-z]{{2,}},? [a-z]{{2,}}/;
                const known = /\d\.\d[\d.]* [A-Z][\w\- ]*|（[a-z ]+）/g;
                const code = "code, pre, script, style, .listing, .hex, .mono, .headers, .stack, .asm, .section";
                const found = new Set();
                function read(root) {{
                    const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
                    while (texts.nextNode())
                        if (!texts.currentNode.parentElement.closest(code)) found.add(texts.currentNode.data);
                    for (const name of ["title", "aria-label", "aria-valuetext"])
                        for (const element of root.querySelectorAll(`[${{name}}]`)) found.add(element.getAttribute(name));
                }}
                read(document.documentElement);
                for (let step = 0; step < {steps}; step++) {{
                    go(step);
                    for (const part of ["step", "queue", "source", "stepper"]) read(document.getElementById(part));
                }}
                return [...found].filter(text => english.test(text.replace(known, "")));
            }})()"#
        ))?;
        Ok(serde_json::from_value(left)?)
    }

    /// Takes a picture, keeps it for a person who asked, and fails when it is
    /// blank or not as dark or light as `view` asks.
    pub fn picture(&mut self, name: &str, view: View, whole: bool) -> Result<()> {
        let png = self.screenshot(whole)?;
        if let Some(directory) = std::env::var_os("KICKPATH_SCREENSHOTS") {
            let directory = PathBuf::from(directory);
            std::fs::create_dir_all(&directory)?;
            std::fs::write(directory.join(format!("{name}.png")), &png)?;
        }
        let mut reader = png::Decoder::new(Cursor::new(&png)).read_info()?;
        let mut pixels = vec![0; reader.output_buffer_size().context("too big a picture")?];
        let frame = reader.next_frame(&mut pixels)?;
        ensure!(frame.width >= view.width, "the picture is {frame:?}");
        let step = frame.color_type.samples();
        let mut colours = std::collections::HashSet::new();
        let mut light = 0u64;
        // Every 13th pixel is enough to tell.
        let all: Vec<_> = pixels[..frame.buffer_size()]
            .chunks_exact(step)
            .step_by(13)
            .collect();
        for pixel in &all {
            colours.insert([pixel[0], pixel[1], pixel[2]]);
            light += u64::from(pixel[0]) + u64::from(pixel[1]) + u64::from(pixel[2]);
        }
        let light = light as f64 / (all.len() as f64 * 3.0 * 255.0);
        ensure!(colours.len() > 50, "only {} colours", colours.len());
        ensure!(
            if view.dark { light < 0.4 } else { light > 0.6 },
            "a page for {view:?} is {light:.2} light"
        );
        Ok(())
    }
}

impl Deref for Page {
    type Target = Browser;
    fn deref(&self) -> &Browser {
        &self.browser
    }
}
impl DerefMut for Page {
    fn deref_mut(&mut self) -> &mut Browser {
        &mut self.browser
    }
}

/// A usual window.
pub fn desk(dark: bool) -> View {
    View {
        width: 1400,
        height: 900,
        dark,
    }
}

/// Every width, by daylight and in the dark.
pub fn views() -> impl Iterator<Item = View> {
    WIDTHS.into_iter().flat_map(|width| {
        [false, true].map(|dark| View {
            width,
            ..desk(dark)
        })
    })
}

/// What the picture of a page in one of [`views`] is called.
pub fn picture_name(page: &str, view: View) -> String {
    let light = if view.dark { "dark" } else { "light" };
    format!("{page}-{}-{light}", view.width)
}
