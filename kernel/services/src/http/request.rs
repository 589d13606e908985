//! Reading a request.

use core::mem::MaybeUninit;

use super::status_code::StatusCode;

/// More fields than any client has reason to send.
const MAX_FIELDS: usize = 64;

/// What matters in a request here.
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    /// The target's path: without scheme, authority and query.
    pub(super) path: &'a str,
    /// Whether the connection stays open afterwards.
    pub(super) keep_alive: bool,
}

/// Reads a request, and how many bytes it has; `None` while there is more to come.
/// An error is to be answered with before the connection closes.
pub(super) fn parse(buffer: &[u8]) -> Result<Option<(usize, Request<'_>)>, StatusCode> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(buffer, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(StatusCode::FIELDS_TOO_LARGE),
        Err(httparse::Error::Version) => return Err(StatusCode::VERSION_NOT_SUPPORTED),
        Err(_) => return Err(StatusCode::BAD_REQUEST),
    };
    // All three are there once parsing is complete.
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(StatusCode::BAD_REQUEST);
    };
    // RFC 9112, 3.2: exactly one Host field, from HTTP/1.1 on.
    let hosts = named(parsed.headers, "host").count();
    if hosts > 1 || (hosts == 0 && minor >= 1) {
        return Err(StatusCode::BAD_REQUEST);
    }
    let path = path(target).ok_or(StatusCode::BAD_REQUEST)?;
    // RFC 9112, 9.3: HTTP/1.0 closes unless asked not to.
    let keep_alive = if has_option(parsed.headers, "close") {
        false
    } else {
        minor >= 1 || has_option(parsed.headers, "keep-alive")
    };
    let has_content = named(parsed.headers, "transfer-encoding").next().is_some()
        || named(parsed.headers, "content-length").any(|value| value.trim_ascii() != b"0");
    let request = Request {
        method,
        path,
        keep_alive: keep_alive && !has_content,
    };
    Ok(Some((length, request)))
}

/// The values of the fields with this name.
fn named<'a>(fields: &'a [httparse::Header<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .map(|field| field.value)
}

/// Whether a Connection field lists this option (RFC 9110, 7.6.1).
fn has_option(fields: &[httparse::Header<'_>], option: &str) -> bool {
    named(fields, "connection")
        .flat_map(|value| value.split(|&byte| byte == b','))
        .any(|listed| listed.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
}

/// The path of a target in origin form or absolute form (RFC 9112, 3.2); `*` is
/// returned as it is, no path being like it.
fn path(target: &str) -> Option<&str> {
    let origin = if target.starts_with('/') || target == "*" {
        target
    } else {
        let (scheme, rest) = target.split_once("://")?;
        let is_known = |known: &&str| scheme.eq_ignore_ascii_case(known);
        ["http", "https"].into_iter().find(is_known)?;
        rest.find(['/', '?']).map_or("/", |start| &rest[start..])
    };
    match origin.split_once('?') {
        Some(("", _)) => Some("/"),
        Some((path, _)) => Some(path),
        None => Some(origin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        assert_eq!(path("/a/b?c=/d"), Some("/a/b"));
        assert_eq!(path("http://guest/metrics"), Some("/metrics"));
        assert_eq!(path("HTTP://guest:80"), Some("/"));
        assert_eq!(path("http://guest?x"), Some("/"));
        assert_eq!(path("*"), Some("*"));
        assert_eq!(path("guest:443"), None);
        assert_eq!(path("ftp://guest/"), None);
    }

    #[test]
    fn the_connection_stays_open_when_both_want_it() {
        let cases = [
            ("GET / HTTP/1.1|Host: a||", true),
            ("GET / HTTP/1.1|Host: a|Connection: x, Close||", false),
            ("GET / HTTP/1.0||", false),
            ("GET / HTTP/1.0|Connection: Keep-Alive||", true),
            ("POST / HTTP/1.1|Host: a|Content-Length: 0||", true),
            ("POST / HTTP/1.1|Host: a|Content-Length: 1||", false),
            (
                "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked||",
                false,
            ),
        ];
        // A client may leave CR out (RFC 9112, 2.2).
        for line_end in ["\r\n", "\n"] {
            for (text, keep_alive) in cases {
                let text = text.replace('|', line_end);
                let (length, request) = parse(text.as_bytes()).unwrap().unwrap();
                assert_eq!(
                    (length, request.keep_alive),
                    (text.len(), keep_alive),
                    "{text:?}"
                );
            }
        }
    }
}
