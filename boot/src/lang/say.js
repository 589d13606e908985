"use strict";
// A text in the page's language: as `Lang::say` of lang.rs looks it up.
globalThis.say = (() => {
  const entries = Object.entries(JSON.parse(document.getElementById("catalogue").textContent));
  const exact = new Map(entries), said = new Map();
  const CHINESE = /[\u4e00-\u9fff]/, LATIN = /[A-Za-z0-9]/;
  const size = parts => parts.join("").length;
  const patterns = entries.filter(([key]) => key.includes("{0}")).map(([key, text]) => [key.split(/\{\d+\}/), text]).sort(([a], [b]) => size(b) - size(a));
  const end = text => /^(.*?[.?]) ([A-Z].*)$/s.exec(text);
  function holes(literals, text) {
    const first = literals[0], last = literals.at(-1), found = [];
    if (text.length < first.length + last.length || !text.startsWith(first) || !text.endsWith(last)) return null;
    let rest = text.slice(first.length, text.length - last.length);
    for (const literal of literals.slice(1, -1)) {
      const at = rest.indexOf(literal);
      if (at < 0) return null;
      found.push(rest.slice(0, at));
      rest = rest.slice(at + literal.length);
    }
    found.push(rest);
    return found.some(end) ? null : found;
  }
  function list(text, comma, wide) {
    const parts = text.includes(comma) ? text.split(comma).map(find) : [undefined];
    return parts.includes(undefined) ? undefined : parts.join(wide);
  }
  function known(text) {
    if (exact.has(text)) return exact.get(text);
    for (const [literals, translation] of patterns) {
      const found = holes(literals, text);
      if (found) return translation.replace(/\{(\d+)\}/g, (place, hole, at) => {
        const filled = say(found[hole]);
        const space = (one, other) => (CHINESE.test(one) && LATIN.test(other)) || (LATIN.test(one) && CHINESE.test(other)) ? " " : "";
        return space(translation[at - 1] ?? "", filled[0] ?? "") + filled + space(filled.at(-1) ?? "", translation[at + place.length] ?? "");
      });
    }
  }
  function find(text) {
    if (!text) return undefined;
    const whole = known(text) ?? known(text[0].toLowerCase() + text.slice(1));
    if (whole !== undefined) return whole;
    const [, one, rest] = end(text) ?? [], first = one && find(one);
    if (first) return first + say(rest);
    return list(text, "; ", "；") ?? list(text, ", ", "、");
  }
  const WIDE = "。，：；、（）";
  function say(text) {
    const bare = text.trim();
    if (!bare) return text;
    if (!said.has(bare)) said.set(bare, exact.get(bare) ?? (/[A-Za-z]/.test(bare) ? find(bare) : undefined));
    const found = said.get(bare);
    if (found === undefined) return text;
    const [before, behind] = [text.slice(0, text.indexOf(bare)), text.slice(text.indexOf(bare) + bare.length)];
    return (WIDE.includes(found[0]) ? "" : before) + found + (WIDE.includes(found.at(-1)) ? "" : behind);
  }
  return say;
})();
