//! The rows as a page: a bar chart that shows one figure at a time, and the
//! whole table. It needs no server and loads nothing.

use super::Report;

const PAGE: &str = include_str!("page.html");

/// Where the page takes the report.
const PLACE: &str = "REPORT</script>";

/// The page of a report.
///
/// # Errors
/// The report is not JSON (a number in it is not finite).
pub fn page(report: &Report) -> serde_json::Result<String> {
    // In a script element only `<` can end what is data.
    let json = serde_json::to_string(report)?.replace('<', "\\u003c");
    Ok(PAGE.replacen(PLACE, &format!("{json}</script>"), 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_stays_data() {
        let report = Report {
            absent: vec!["</script><b>".to_owned()],
            ..Report::default()
        };
        let page = page(&report).unwrap();
        assert!(page.contains(r"\u003c/script>\u003cb>"));
        assert!(!page.contains(PLACE));
        assert!(!page.contains("http://") && !page.contains("https://"));
    }
}
