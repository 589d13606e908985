//! A headless Chromium, driven by its DevTools protocol over a pair of pipes:
//! no port is opened, and the browser ends with the pipe.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use command_fds::{CommandFdExt, FdMapping};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long any answer of the browser may take: the machine may be busy.
const BOUND: Duration = Duration::from_secs(60);

/// A window's size in CSS pixels and the reader's wish.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
    /// Whether the reader prefers dark colours.
    pub dark: bool,
}

/// A browser with one page.
pub struct Browser {
    child: Child,
    pipe: File,
    messages: Receiver<Value>,
    session: Option<String>,
    last_id: u64,
    problems: Vec<String>,
    requests: Vec<String>,
    // The browser's own files; removed last.
    _profile: TempDir,
}

impl Browser {
    /// Starts `program` with a new profile and one empty page.
    ///
    /// # Errors
    /// It does not start, or does not answer in time.
    pub fn launch(program: &Path) -> Result<Self> {
        let profile = tempfile::Builder::new()
            .prefix("kickpath-browser-")
            .tempdir()?;
        // The browser reads commands from descriptor 3 and answers on 4.
        let (commands_end, pipe) = std::io::pipe()?;
        let (answers, answers_end) = std::io::pipe()?;
        let map = |fd: OwnedFd, child_fd| FdMapping {
            parent_fd: fd,
            child_fd,
        };
        let mut command = Command::new(program);
        command
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-default-apps",
                "--disable-extensions",
                "--disable-sync",
                "--hide-scrollbars",
                "--metrics-recording-only",
                "--mute-audio",
                "--no-default-browser-check",
                "--no-first-run",
                "--password-store=basic",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .fd_mappings(vec![
                map(commands_end.into(), 3),
                map(answers_end.into(), 4),
            ])?;
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        // With it go our copies of the browser's ends.
        drop(command);
        let mut browser = Self {
            child,
            pipe: File::from(OwnedFd::from(pipe)),
            messages: read_messages(File::from(OwnedFd::from(answers))),
            session: None,
            last_id: 0,
            problems: Vec::new(),
            requests: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attached = browser.call(
            "Target.attachToTarget",
            json!({ "targetId": target["targetId"], "flatten": true }),
        )?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Sets the window's size and the reader's wish.
    ///
    /// # Errors
    /// The browser refuses.
    pub fn view(&mut self, view: View) -> Result<()> {
        self.call(
            "Emulation.setDeviceMetricsOverride",
            json!({
                "width": view.width, "height": view.height, "deviceScaleFactor": 1,
                "mobile": false,
            }),
        )?;
        let scheme = if view.dark { "dark" } else { "light" };
        self.call(
            "Emulation.setEmulatedMedia",
            json!({ "features": [
                { "name": "prefers-color-scheme", "value": scheme },
                { "name": "prefers-reduced-motion", "value": "reduce" },
            ] }),
        )?;
        // What depends on the size is drawn by the frame after the next.
        self.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))",
        )?;
        Ok(())
    }

    /// Opens `url` and waits until it is loaded. What was noted of an earlier
    /// page is forgotten.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub fn open(&mut self, url: &str) -> Result<()> {
        // A page that differs in its fragment only would not be loaded anew.
        self.navigate("about:blank")?;
        self.problems.clear();
        self.requests.clear();
        self.navigate(url)
    }

    fn navigate(&mut self, url: &str) -> Result<()> {
        let answer = self.call("Page.navigate", json!({ "url": url }))?;
        if let Some(error) = answer["errorText"].as_str() {
            bail!("cannot open {url}: {error}");
        }
        self.eventually(&format!(
            "document.readyState === 'complete' && location.href.startsWith({})",
            json!(url)
        ))
    }

    /// What JavaScript's `expression` gives; a promise is waited for.
    ///
    /// # Errors
    /// It throws.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let answer = self.call(
            "Runtime.evaluate",
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true }),
        )?;
        if let Some(thrown) = answer.get("exceptionDetails") {
            bail!("{expression} throws {thrown}");
        }
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until `expression` is true.
    ///
    /// # Errors
    /// It throws, or is not true in time.
    pub fn eventually(&mut self, expression: &str) -> Result<()> {
        let start = Instant::now();
        while self.evaluate(expression)? != true {
            ensure!(start.elapsed() < BOUND, "never true: {expression}");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Presses and releases a key, such as `ArrowRight` or `Tab`.
    ///
    /// # Errors
    /// The browser refuses.
    pub fn press(&mut self, key: &str) -> Result<()> {
        let (code, text) = match key {
            "ArrowLeft" => (37, None),
            "ArrowRight" => (39, None),
            "Home" => (36, None),
            "End" => (35, None),
            "PageUp" => (33, None),
            "PageDown" => (34, None),
            "Escape" => (27, None),
            "l" => (76, Some("l")),
            "Tab" => (9, None),
            "Enter" => (13, Some("\r")),
            " " => (32, Some(" ")),
            _ => bail!("this driver does not know the key {key}"),
        };
        let code_name = if key == " " { "Space" } else { key };
        let mut event = json!({
            "type": if text.is_some() { "keyDown" } else { "rawKeyDown" },
            "key": key, "code": code_name, "windowsVirtualKeyCode": code,
        });
        if let Some(text) = text {
            event["text"] = text.into();
        }
        self.call("Input.dispatchKeyEvent", event.clone())?;
        event["type"] = "keyUp".into();
        self.call("Input.dispatchKeyEvent", event)?;
        Ok(())
    }

    /// Clicks at the middle of the first element that `selector` names.
    ///
    /// # Errors
    /// There is none that can be seen.
    pub fn click(&mut self, selector: &str) -> Result<()> {
        let place = self.evaluate(&format!(
            "(() => {{ const e = document.querySelector({}); if (!e) return null; \
             e.scrollIntoView({{ block: 'center' }}); const r = e.getBoundingClientRect(); \
             return [r.x + r.width / 2, r.y + r.height / 2, r.width]; }})()",
            json!(selector)
        ))?;
        ensure!(
            place[2].as_f64().is_some_and(|width| width > 0.0),
            "nothing to click at {selector}"
        );
        for kind in ["mousePressed", "mouseReleased"] {
            self.call(
                "Input.dispatchMouseEvent",
                json!({
                    "type": kind, "x": place[0], "y": place[1], "button": "left",
                    "clickCount": 1,
                }),
            )?;
        }
        Ok(())
    }

    /// A picture of the window (`whole`: of the whole page), as PNG.
    ///
    /// # Errors
    /// The browser makes none.
    pub fn screenshot(&mut self, whole: bool) -> Result<Vec<u8>> {
        let answer = self.call(
            "Page.captureScreenshot",
            json!({ "format": "png", "captureBeyondViewport": whole }),
        )?;
        let data = answer["data"].as_str().context("no picture")?;
        Ok(STANDARD.decode(data)?)
    }

    /// Errors and warnings of the console, exceptions and violations of the
    /// page's policy since it was opened.
    ///
    /// # Errors
    /// The browser is gone.
    pub fn problems(&mut self) -> Result<Vec<String>> {
        // An answer comes after all events before it.
        self.evaluate("0")?;
        Ok(self.problems.clone())
    }

    /// Addresses that the page asked for since it was opened, but `data:`.
    ///
    /// # Errors
    /// The browser is gone.
    pub fn requests(&mut self) -> Result<Vec<String>> {
        self.evaluate("0")?;
        Ok(self.requests.clone())
    }

    fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut text = serde_json::to_vec(&message)?;
        text.push(0);
        self.pipe
            .write_all(&text)
            .with_context(|| format!("the browser is gone before {method}"))?;
        let deadline = Instant::now() + BOUND;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut message = self
                .messages
                .recv_timeout(left)
                .map_err(|error| match error {
                    RecvTimeoutError::Timeout => anyhow!("no answer to {method} in {BOUND:?}"),
                    RecvTimeoutError::Disconnected => anyhow!("the browser ended during {method}"),
                })?;
            if message["id"] != id {
                self.note(&message);
                continue;
            }
            if let Some(error) = message.get("error") {
                bail!("{method}: {error}");
            }
            return Ok(message["result"].take());
        }
    }

    /// Keeps what an event says of the page's faults and wishes.
    fn note(&mut self, message: &Value) {
        let params = &message["params"];
        match message["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => self.problems.push(params.to_string()),
            "Runtime.consoleAPICalled"
                if matches!(
                    params["type"].as_str(),
                    Some("error" | "warning" | "assert")
                ) =>
            {
                self.problems.push(params["args"].to_string());
            }
            "Log.entryAdded" if params["entry"]["level"] != "verbose" => {
                self.problems.push(params["entry"].to_string());
            }
            "Network.requestWillBeSent" => {
                let url = params["request"]["url"].as_str().unwrap_or_default();
                if !url.starts_with("data:") && url != "about:blank" {
                    self.requests.push(url.to_owned());
                }
            }
            _ => {}
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.session = None;
        // It may be gone already.
        let _ = self.call("Browser.close", json!({}));
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Messages end with a zero byte. The thread ends with the pipe.
fn read_messages(answers: File) -> Receiver<Value> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for message in BufReader::new(answers).split(0) {
            let Ok(message) = message else { return };
            let Ok(message) = serde_json::from_slice(&message) else {
                continue;
            };
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    receiver
}
