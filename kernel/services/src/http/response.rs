//! Writing a response.

use alloc::borrow::Cow;
use alloc::string::String;

use kickpath_abi::status::Status;
use smoltcp::socket::tcp;

use super::metrics;
use super::request::Request;
use super::status_code::StatusCode;

/// The page: one file, nothing else to load.
const PAGE: &str = include_str!("status.html");

/// The fields of every response, but for those whose value is not the same. No Date:
/// we have no clock (RFC 9110, 6.6.1). The policy lets the page use what is in it and
/// fetch from us, and nothing else.
const SAME: &str = concat!(
    "\r\nServer: kickpath/",
    env!("CARGO_PKG_VERSION"),
    "\r\nCache-Control: no-store\r\n\
     X-Content-Type-Options: nosniff\r\n\
     Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; \
     script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'\r\n\
     Content-Type: "
);

/// A number in ten digits, with blanks before it.
fn decimal(mut number: usize) -> [u8; 10] {
    let mut digits = [b' '; 10];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    digits
}

/// A response on its way out.
pub(super) struct Response {
    head: String,
    /// Empty in the response to HEAD.
    content: Cow<'static, [u8]>,
    /// Bytes of head and content that the socket has taken.
    sent: usize,
    pub(super) keep_alive: bool,
}

pub(super) enum Answer {
    Response(Response),
    Unreported(Unreported),
}

/// The response to a request, but for the report that it is made of.
pub(super) struct Unreported {
    as_metrics: bool,
    head_only: bool,
    keep_alive: bool,
}

pub(super) fn answer(request: &Request<'_>) -> Answer {
    let head_only = request.method == "HEAD";
    let keep_alive = request.keep_alive;
    let known = matches!(request.path, "/" | "/stats.json" | "/metrics");
    Answer::Response(if !known {
        Response::error(StatusCode::NOT_FOUND, head_only, keep_alive)
    } else if request.method != "GET" && !head_only {
        Response::error(StatusCode::METHOD_NOT_ALLOWED, false, keep_alive)
    } else if request.path == "/" {
        let kind = "text/html; charset=utf-8";
        let content = PAGE.as_bytes().into();
        Response::new(StatusCode::OK, kind, content, head_only, keep_alive)
    } else {
        return Answer::Unreported(Unreported {
            as_metrics: request.path == "/metrics",
            head_only,
            keep_alive,
        });
    })
}

impl Unreported {
    /// The response made of this report.
    pub(super) fn answer(&self, status: &Status) -> Response {
        let (kind, content) = if self.as_metrics {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            (kind, metrics::write(status).into_bytes())
        } else {
            match serde_json::to_vec(status) {
                Ok(json) => ("application/json", json),
                Err(error) => {
                    log::error!("HTTP: the report cannot be written: {error}");
                    return Response::error(StatusCode::INTERNAL_ERROR, self.head_only, false);
                }
            }
        };
        let (head_only, keep_alive) = (self.head_only, self.keep_alive);
        Response::new(StatusCode::OK, kind, content.into(), head_only, keep_alive)
    }
}

impl Response {
    fn new(
        status: StatusCode,
        kind: &str,
        content: Cow<'static, [u8]>,
        head_only: bool,
        keep_alive: bool,
    ) -> Self {
        let length = decimal(content.len());
        let lines: [&str; 10] = [
            "HTTP/1.1 ",
            status.0,
            SAME,
            kind,
            "\r\nContent-Length: ",
            core::str::from_utf8(length.trim_ascii_start()).unwrap_or("0"),
            if status == StatusCode::METHOD_NOT_ALLOWED {
                "\r\nAllow: GET, HEAD"
            } else {
                ""
            },
            "\r\nConnection: ",
            if keep_alive { "keep-alive" } else { "close" },
            "\r\n\r\n",
        ];
        let mut head = String::with_capacity(512);
        lines.into_iter().for_each(|line| head.push_str(line));
        Self {
            head,
            content: if head_only { Cow::default() } else { content },
            sent: 0,
            keep_alive,
        }
    }

    /// A response that says no more than its status.
    pub(super) fn error(status: StatusCode, head_only: bool, keep_alive: bool) -> Self {
        let text = [status.0.as_bytes(), b"\n"].concat();
        let kind = "text/plain; charset=utf-8";
        Self::new(status, kind, text.into(), head_only, keep_alive)
    }

    /// Gives the socket what it takes; returns whether it has taken all.
    pub(super) fn send(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        loop {
            let head = self.head.as_bytes();
            let rest = match head.get(self.sent..) {
                Some(rest) if !rest.is_empty() => rest,
                _ => &self.content[self.sent - head.len()..],
            };
            if rest.is_empty() {
                return true;
            }
            match socket.send_slice(rest) {
                // Nobody listens any more; the pool takes the connection back.
                Ok(0) | Err(_) => return false,
                Ok(taken) => self.sent += taken,
            }
        }
    }
}
