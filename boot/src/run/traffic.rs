//! What is asked of the guest, and whether it comes back intact.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use super::{HttpResult, Report, UdpResult, report};
use crate::session::SessionError;
use crate::terminal::Story;
use crate::wire::http::Response;
use crate::wire::{FarEnd, WireError};

/// Pings of a run.
const PINGS: u32 = 10;

/// Content bytes of a ping, as of Linux's `ping`.
const PING_SIZE: usize = 56;

/// Content bytes of the UDP echoes: the smallest, a usual one, one in the
/// middle, and the largest that fits into an Ethernet frame.
const UDP_SIZES: [usize; 4] = [1, 64, 512, 1472];

/// The far end's requests; report and story, where there is one, hear of each.
pub(super) struct Traffic<'a, W: Write> {
    pub(super) far: &'a dyn FarEnd,
    /// The guest.
    pub(super) ip: IpAddr,
    /// How long a reply may take.
    pub(super) bound: Duration,
    pub(super) report: &'a mut Report,
    pub(super) story: Option<&'a mut Story<W>>,
}

impl<W: Write> Traffic<'_, W> {
    /// How long a reply may take now: once something is missing the outcome is
    /// decided, and haste is kind.
    pub(super) fn patience(&self) -> Duration {
        match self.report.failures.is_empty() {
            true => self.bound,
            false => self.bound / 10,
        }
    }

    pub(super) fn ping(&mut self) -> Result<(), SessionError> {
        let bound = self.patience() / 5;
        let result = self.far.ping(self.ip, PINGS, PING_SIZE, bound);
        let (good, text) = match &result {
            Ok(ping) => {
                let good = ping.received == ping.sent && ping.corrupted == 0;
                (good, report::ping(ping))
            }
            // Not a failure: nobody promised it.
            Err(WireError::NotPossible(why)) => (true, format!("left out: {why}")),
            Err(error) => (false, error.to_string()),
        };
        self.tell("Ping", good, &text)?;
        if !good {
            self.report.failures.push(format!("ping: {text}"));
        }
        self.report.ping = result.ok();
        Ok(())
    }

    pub(super) fn udp(&mut self) -> Result<(), SessionError> {
        let bound = self.patience();
        for bytes in UDP_SIZES {
            let result = self.far.udp_echo(self.ip, bytes, bound);
            let error = result.as_ref().err().map(ToString::to_string);
            self.report.failures.extend(error.clone());
            self.report.udp.push(UdpResult {
                bytes,
                echo: result.ok(),
                error,
            });
        }
        let udp = &self.report.udp;
        let good = udp.iter().all(|result| result.error.is_none());
        let text = report::udp(udp);
        self.tell("UDP echo", good, &text)
    }

    pub(super) fn http(&mut self) -> Result<(), SessionError> {
        let (good, text) = match self.far.http_get(self.ip, "/", self.patience()) {
            Ok(page) => {
                let content_type = page.field("content-type").unwrap_or("no type").to_owned();
                let bytes = page.body.len();
                let mut text = report::http(self.ip, page.status, bytes, &content_type);
                let problem = problem_of_page(&page);
                if let Some(problem) = problem {
                    text = format!("{text}: {problem}");
                }
                self.report.http = Some(HttpResult {
                    status: page.status,
                    bytes,
                    content_type,
                });
                (problem.is_none(), text)
            }
            Err(error) => (false, error.to_string()),
        };
        self.tell("HTTP", good, &text)?;
        if !good {
            self.report.failures.push(text);
        }
        Ok(())
    }

    fn tell(&mut self, what: &str, good: bool, text: &str) -> Result<(), SessionError> {
        if let Some(story) = &mut self.story {
            story.verdict(what, good, text)?;
        }
        Ok(())
    }
}

/// What is wrong with the guest's status page, if anything. That it is as long
/// as its header says has been seen already.
fn problem_of_page(page: &Response) -> Option<&'static str> {
    let text = String::from_utf8_lossy(&page.body);
    let media_type = page.field("content-type").unwrap_or_default();
    if page.status != 200 {
        Some("the status should be 200")
    } else if page.field("content-length").is_none() {
        Some("it does not say its length")
    } else if !media_type.starts_with("text/html") {
        Some("it should be HTML")
    } else if !text.starts_with("<!doctype html>") || !text.trim_end().ends_with("</html>") {
        Some("its beginning or its end is missing")
    } else if !text.contains("<title>Kickpath</title>") || !text.contains("/stats.json") {
        Some("it is not the status page")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../../kernel/services/src/http/status.html");

    fn page(status: u16, media_type: &str, body: &str) -> Response {
        Response {
            status,
            fields: vec![
                ("Content-Type".into(), media_type.into()),
                ("Content-Length".into(), body.len().to_string()),
            ],
            body: body.into(),
        }
    }

    #[test]
    fn only_the_whole_status_page_is_intact() {
        let html = "text/html; charset=utf-8";
        assert_eq!(problem_of_page(&page(200, html, PAGE)), None);
        let half = &PAGE[..PAGE.len() / 2];
        let tail = &PAGE[100..];
        let other = "<!doctype html><title>It works!</title></html>";
        for page in [
            page(500, html, PAGE),
            page(200, "text/plain", PAGE),
            page(200, html, ""),
            page(200, html, half),
            page(200, html, tail),
            page(200, html, other),
            Response {
                fields: vec![("content-type".into(), html.into())],
                ..page(200, html, PAGE)
            },
        ] {
            assert!(problem_of_page(&page).is_some(), "{}", page.status);
        }
    }
}
