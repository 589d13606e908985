//! The little of HTTP/1.1 (RFC 9112) that a status page needs: one GET a
//! connection, the answer read until it is complete.

use std::net::IpAddr;

use super::WireError;

/// Longest answer that is read, in bytes.
pub const MAX_RESPONSE: usize = 16 << 20;

/// Most header fields of an answer.
const MAX_FIELDS: usize = 64;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code, such as 200.
    pub status: u16,
    /// Names and values of the header fields, as they came.
    pub fields: Vec<(String, String)>,
    /// The content.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of the first field with this name, in any case of letters.
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self
            .fields
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// Why bytes are not an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Not the syntax of an answer.
    #[error("the answer is not HTTP: {0}")]
    Syntax(httparse::Error),
    /// `Content-Length` is no number, or comes twice with different values.
    #[error("the answer has the content length '{0}'")]
    Length(String),
    /// A transfer coding that we do not read.
    #[error("the answer has the transfer coding '{0}', which is not supported here")]
    Coding(String),
    /// The connection ended too early.
    #[error("the answer ends after {got} bytes{}", .expected.map(|n| format!(" of {n}")).unwrap_or_default())]
    Cut {
        /// Bytes that came, of the content when its length is known.
        got: usize,
        /// Length of the content, if it was said.
        expected: Option<usize>,
    },
    /// More than [`MAX_RESPONSE`].
    #[error("the answer is longer than {MAX_RESPONSE} bytes")]
    TooLong,
}

/// The request for a path.
pub fn request(host: IpAddr, path: &str) -> Vec<u8> {
    let host = match host {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAccept: */*\r\n\r\n")
        .into_bytes()
}

/// Reads the answer to the request for a path. `read` is given room for bytes
/// that have come; it returns how many it put there, 0 at the end.
///
/// # Errors
/// [`WireError::Http`], or what `read` says.
pub fn receive(
    host: IpAddr,
    path: &str,
    mut read: impl FnMut(&mut [u8]) -> Result<usize, WireError>,
) -> Result<Response, WireError> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let more = read(&mut buffer)?;
        bytes.extend_from_slice(&buffer[..more]);
        match parse(&bytes, more == 0) {
            Ok(Some(response)) => return Ok(response),
            Ok(None) => {}
            Err(source) => {
                return Err(WireError::Http {
                    host,
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
}

/// Looks whether `bytes` are a complete answer; `ended` says that the other
/// side will send no more. `None` means that more is to come.
///
/// # Errors
/// What came can never become an answer.
pub fn parse(bytes: &[u8], ended: bool) -> Result<Option<Response>, HttpError> {
    if bytes.len() > MAX_RESPONSE {
        return Err(HttpError::TooLong);
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut headers);
    let body_start = match head.parse(bytes).map_err(HttpError::Syntax)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial if ended => {
            return Err(HttpError::Cut {
                got: bytes.len(),
                expected: None,
            });
        }
        httparse::Status::Partial => return Ok(None),
    };
    let status = head.code.unwrap_or_default();
    let fields: Vec<(String, String)> = head
        .headers
        .iter()
        .map(|h| {
            let value = String::from_utf8_lossy(h.value).trim().to_owned();
            (h.name.to_owned(), value)
        })
        .collect();
    let mut response = Response {
        status,
        fields,
        body: Vec::new(),
    };
    if let Some(coding) = response.field("transfer-encoding") {
        return Err(HttpError::Coding(coding.to_owned()));
    }
    let body = bytes.get(body_start..).unwrap_or_default();
    let length = content_length(&response)?;
    let complete = match length {
        Some(length) if body.len() >= length => length,
        Some(length) if ended => {
            return Err(HttpError::Cut {
                got: body.len(),
                expected: Some(length),
            });
        }
        Some(length) if length > MAX_RESPONSE => return Err(HttpError::TooLong),
        None if ended => body.len(),
        Some(_) | None => return Ok(None),
    };
    response.body = body[..complete].to_vec();
    Ok(Some(response))
}

fn content_length(response: &Response) -> Result<Option<usize>, HttpError> {
    let mut length = None;
    for (name, value) in &response.fields {
        if !name.eq_ignore_ascii_case("content-length") {
            continue;
        }
        let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
        let number = value.parse().ok().filter(|_| digits);
        match (number, length) {
            (Some(number), None) => length = Some(number),
            (Some(number), Some(before)) if number == before => {}
            _ => return Err(HttpError::Length(value.clone())),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_by_its_length() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Y: z\r\n\r\nhello";
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut], false), Ok(None), "{cut}");
            assert!(parse(&bytes[..cut], true).is_err(), "{cut}");
        }
        let response = parse(bytes, false).unwrap().unwrap();
        assert_eq!((response.status, &response.body[..]), (200, &b"hello"[..]));
        assert_eq!(response.field("x-y"), Some("z"));
        assert_eq!(response.field("none"), None);
    }

    #[test]
    fn an_answer_without_length_ends_with_the_connection() {
        let bytes = b"HTTP/1.1 404 Not Found\r\n\r\ngone";
        assert_eq!(parse(bytes, false), Ok(None));
        let response = parse(bytes, true).unwrap().unwrap();
        assert_eq!((response.status, &response.body[..]), (404, &b"gone"[..]));
    }

    #[test]
    fn what_is_not_an_answer_is_refused() {
        for (bytes, error) in [
            ("SMTP 1\r\n\r\n", "not HTTP"),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "'-1'"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
                "'999",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
                "'2'",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\nx",
                "longer",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                "chunked",
            ),
        ] {
            let got = parse(bytes.as_bytes(), false).unwrap_err().to_string();
            assert!(got.contains(error), "{got}");
        }
    }

    #[test]
    fn the_request_names_its_host() {
        let text = String::from_utf8(request("fd00::1".parse().unwrap(), "/x")).unwrap();
        assert!(text.starts_with("GET /x HTTP/1.1\r\nHost: [fd00::1]\r\n"));
        assert!(text.ends_with("\r\n\r\n"));
    }
}
