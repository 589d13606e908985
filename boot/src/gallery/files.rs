//! The files of a gallery. A page is in it in every language, and each leads to the first page
//! of its language and to itself in the other.

use super::GalleryError;
use super::site::Site;
use crate::lang::Lang;

/// What is written into a site, in this order.
pub(super) struct Files<'a> {
    site: &'a Site,
    /// Their names.
    pub(super) names: Vec<String>,
}

impl<'a> Files<'a> {
    pub(super) fn new(site: &'a Site) -> Self {
        let names = Vec::new();
        Self { site, names }
    }

    /// Writes a file as it is.
    pub(super) fn write(&mut self, name: String, text: &str) -> Result<(), GalleryError> {
        self.site.write(&name, text)?;
        self.names.push(name);
        Ok(())
    }

    /// Writes a page in every language.
    pub(super) fn page(&mut self, name: &str, page: &str) -> Result<(), GalleryError> {
        for lang in Lang::ALL {
            let page = lang.page(with_links(page, name, lang));
            self.write(file_of(name, lang), &page)?;
        }
        Ok(())
    }
}

/// The file of a page.
pub(super) fn file_of(name: &str, lang: Lang) -> String {
    match lang {
        Lang::En => format!("{name}.html"),
        Lang::Zh => format!("{name}.zh.html"),
    }
}

/// A link to the page in the other language.
pub(super) fn to_other(name: &str, lang: Lang) -> String {
    let (other, title) = match lang {
        Lang::En => (Lang::Zh, "中文"),
        Lang::Zh => (Lang::En, "English"),
    };
    let (file, tag) = (file_of(name, other), other.tag());
    format!("<a href=\"{file}\" hreflang=\"{tag}\" lang=\"{tag}\">{title}</a>")
}

/// A page with links at its top.
fn with_links(page: &str, name: &str, lang: Lang) -> String {
    const STYLE: &str = "<style>nav.gallery{max-width:1240px;margin:0 auto;padding:12px 16px 0;font-size:14px;\
                         display:flex;justify-content:space-between}\
                         nav.gallery a{color:inherit}main nav.gallery{padding:0 0 12px}\
                         .lecture nav.gallery{display:none}@media print{nav.gallery{display:none}}</style>";
    let (index, other) = (file_of("index", lang), to_other(name, lang));
    let links = format!(
        "<nav class=\"gallery\" aria-label=\"Gallery\"><a href=\"{index}\">\u{2190} All ways to kick</a>{other}</nav>"
    );
    let (before, after) = match page.split_once("<body>") {
        Some((before, after)) => (format!("{before}<body>"), after),
        None => {
            let at = page.find("<h1").unwrap_or(0);
            (page[..at].to_owned(), &page[at..])
        }
    };
    format!("{before}\n{STYLE}{links}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_leads_back_and_to_the_other_language() {
        for page in ["<html><body><h1>x</h1>", "<html><h1>x</h1>"] {
            for (lang, index, other) in [
                (Lang::En, "\"index.html\"", "\"a.zh.html\""),
                (Lang::Zh, "\"index.zh.html\"", "\"a.html\""),
            ] {
                let page = with_links(page, "a", lang);
                let title = page.find("<h1>");
                for link in [index, other] {
                    let place = page.find(link);
                    assert!(place.is_some() && place < title, "{page}");
                }
            }
        }
    }
}
