//! Writing a response.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use kickpath_abi::status::Status;
use smoltcp::socket::tcp;

use super::metrics;
use super::request::Request;

/// The page: one file, nothing else to load.
const PAGE: &str = include_str!("status.html");

/// A status code and its reason phrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StatusCode(pub(super) u16, &'static str);

const OK: StatusCode = StatusCode(200, "OK");
pub(super) const BAD_REQUEST: StatusCode = StatusCode(400, "Bad Request");
const NOT_FOUND: StatusCode = StatusCode(404, "Not Found");
const METHOD_NOT_ALLOWED: StatusCode = StatusCode(405, "Method Not Allowed");
pub(super) const REQUEST_TIMEOUT: StatusCode = StatusCode(408, "Request Timeout");
pub(super) const FIELDS_TOO_LARGE: StatusCode = StatusCode(431, "Request Header Fields Too Large");
const INTERNAL_ERROR: StatusCode = StatusCode(500, "Internal Server Error");
pub(super) const VERSION_NOT_SUPPORTED: StatusCode = StatusCode(505, "HTTP Version Not Supported");

enum Content {
    Constant(&'static [u8]),
    Made(Vec<u8>),
}

impl Content {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Constant(bytes) => bytes,
            Self::Made(bytes) => bytes,
        }
    }
}

/// A response on its way out.
pub(super) struct Response {
    head: String,
    /// Empty in the response to HEAD.
    content: Content,
    /// Bytes of head and content that the socket has taken.
    sent: usize,
    keep_alive: bool,
}

/// The response to a request; `report` makes the report.
pub(super) fn answer(request: &Request<'_>, report: &dyn Fn() -> Status) -> Response {
    let head_only = request.method == "HEAD";
    let known = matches!(request.path, "/" | "/stats.json" | "/metrics");
    if !known {
        return Response::error(NOT_FOUND, head_only, request.keep_alive);
    }
    if request.method != "GET" && !head_only {
        return Response::error(METHOD_NOT_ALLOWED, false, request.keep_alive);
    }
    let (kind, content) = match request.path {
        "/stats.json" => match serde_json::to_vec(&report()) {
            Ok(json) => ("application/json", Content::Made(json)),
            Err(error) => {
                log::error!("HTTP: the report cannot be written: {error}");
                return Response::error(INTERNAL_ERROR, head_only, false);
            }
        },
        "/metrics" => (
            "text/plain; version=0.0.4; charset=utf-8",
            Content::Made(metrics::write(&report()).into_bytes()),
        ),
        _ => (
            "text/html; charset=utf-8",
            Content::Constant(PAGE.as_bytes()),
        ),
    };
    Response::new(OK, kind, content, head_only, request.keep_alive)
}

impl Response {
    fn new(
        status: StatusCode,
        kind: &str,
        content: Content,
        head_only: bool,
        keep_alive: bool,
    ) -> Self {
        // No Date: we have no clock (RFC 9110, 6.6.1). The policy lets the page
        // use what is in it and fetch from us, and nothing else.
        let head = format!(
            "HTTP/1.1 {} {}\r\n\
             Server: kickpath/{}\r\n\
             Content-Type: {kind}\r\n\
             Content-Length: {}\r\n\
             Cache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n\
             Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; \
             script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'\r\n\
             {}Connection: {}\r\n\r\n",
            status.0,
            status.1,
            env!("CARGO_PKG_VERSION"),
            content.bytes().len(),
            if status == METHOD_NOT_ALLOWED {
                "Allow: GET, HEAD\r\n"
            } else {
                ""
            },
            if keep_alive { "keep-alive" } else { "close" },
        );
        Self {
            head,
            content: if head_only {
                Content::Constant(b"")
            } else {
                content
            },
            sent: 0,
            keep_alive,
        }
    }

    /// A response that says no more than its status.
    pub(super) fn error(status: StatusCode, head_only: bool, keep_alive: bool) -> Self {
        let text = format!("{} {}\n", status.0, status.1).into_bytes();
        let kind = "text/plain; charset=utf-8";
        Self::new(status, kind, Content::Made(text), head_only, keep_alive)
    }

    /// Gives the socket what it takes; returns whether it has taken all.
    pub(super) fn send(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        loop {
            let head = self.head.as_bytes();
            let rest = match head.get(self.sent..) {
                Some(rest) if !rest.is_empty() => rest,
                _ => &self.content.bytes()[self.sent - head.len()..],
            };
            if rest.is_empty() {
                return true;
            }
            match socket.send_slice(rest) {
                Ok(0) => return false,
                Ok(taken) => self.sent += taken,
                // Nobody listens any more; the pool takes the connection back.
                Err(_) => return false,
            }
        }
    }

    pub(super) fn closes(&self) -> bool {
        !self.keep_alive
    }
}
