//! What the pages of reports have in common.

/// Their look, that of the other pages.
pub(crate) const STYLE: &str = include_str!("report.css");

/// Text as the content of an element or the value of an attribute in double quotes.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

/// The text that [`escape`] made content or a value of.
pub(crate) fn unescape(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&amp;", "&")
}
