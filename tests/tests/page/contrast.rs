//! Whether text can be told from what is behind it (WCAG 2.2, 1.4.3).

use anyhow::{Result, ensure};

use crate::support::Page;

/// Fails where text has less than 4.5 times the luminance of its background, or the other way
/// round; 3 times is enough for large type. What is switched off or lies on a drawing is left out.
pub fn check(page: &mut Page) -> Result<()> {
    let faint = page.evaluate(
        "(() => {
          const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
          const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour;
            canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
          const light = colour => { const [r, g, b] = colour.map(c => { c /= 255;
            return c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; });
            return .2126 * r + .7152 * g + .0722 * b; };
          const behind = e => { for (; e; e = e.parentElement) {
            const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; }
            return rgba('Canvas'); };
          const found = [];
          for (const e of document.querySelectorAll('body *')) {
            const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
            if (!own || e.closest('svg, script, noscript, [aria-disabled=true], :disabled') || !e.checkVisibility()) continue;
            const style = getComputedStyle(e), size = parseFloat(style.fontSize);
            const is_large = size >= 24 || size >= 18.66 && Number(style.fontWeight) >= 700;
            const [a, b] = [light(rgba(style.color)), light(behind(e))];
            const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
            if (ratio < (is_large ? 3 : 4.5)) found.push([ratio.toFixed(2), e.outerHTML.slice(0, 90)]);
          }
          return found.slice(0, 8);
        })()",
    )?;
    ensure!(faint == serde_json::json!([]), "too faint: {faint}");
    Ok(())
}
