//! Status codes (RFC 9110, 15).

/// A status code and its reason phrase, as in a status line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StatusCode(pub(super) &'static str);

impl StatusCode {
    pub(super) const OK: Self = Self("200 OK");
    pub(super) const BAD_REQUEST: Self = Self("400 Bad Request");
    pub(super) const NOT_FOUND: Self = Self("404 Not Found");
    pub(super) const METHOD_NOT_ALLOWED: Self = Self("405 Method Not Allowed");
    pub(super) const REQUEST_TIMEOUT: Self = Self("408 Request Timeout");
    pub(super) const FIELDS_TOO_LARGE: Self = Self("431 Request Header Fields Too Large");
    pub(super) const INTERNAL_ERROR: Self = Self("500 Internal Server Error");
    pub(super) const VERSION_NOT_SUPPORTED: Self = Self("505 HTTP Version Not Supported");
}
