// The words of the page: where a text meets one, pointing at it, focusing it or
// touching it shows what it is. All of them stand in a list at the end.

const TERMS = new Map(data.glossary.flatMap(term => term.words.flatMap(word => [word, say(word)]).map(word => [word.toLowerCase(), term])));
const WORDS = new RegExp(`(^|[^\\w-])(${[...TERMS.keys()].sort((a, b) => b.length - a.length).map(word => word.replace(/[^\w ]/g, "\\$&")).join("|")})(?![\\w-])`, "gi");
const sections = term => term.sections.length ? `Specification 1.2: ${term.sections.join(", ")}.` : "The specification does not speak of it.";

const title = ({ name }) => say(name) === name ? name : `${say(name)}（${name}）`;

// A text, each of its words once as something to point at.
function explained(text) {
  text = say(text);
  const parts = [], met = new Set();
  let from = 0;
  for (const found of text.matchAll(WORDS)) {
    const term = TERMS.get(found[2].toLowerCase()), start = found.index + found[1].length;
    if (met.has(term)) continue;
    met.add(term);
    parts.push(text.slice(from, start), word(found[2], term));
    from = start + found[2].length;
  }
  return [...parts, text.slice(from)];
}
const word = (text, term) => el("button", { type: "button", class: "term",
  onpointerenter: event => showTip(event.currentTarget, term), onpointerleave: leaveTip,
  onfocus: event => showTip(event.currentTarget, term), onblur: hideTip, onclick: event => showTip(event.currentTarget, term) }, text);

const tip = el("div", { id: "tip", role: "tooltip", hidden: true, onpointerenter: () => clearTimeout(leaving), onpointerleave: leaveTip });
let pointed = null, leaving = null;
function showTip(button, term) {
  hideTip();
  pointed = button;
  tip.replaceChildren(el("b", {}, title(term)), el("p", {}, term.sentence), el("p", {}, sections(term)), el("p", {}, "In Linux: ", el("code", {}, say(term.linux)), "."));
  tip.hidden = false;
  button.setAttribute("aria-describedby", "tip");
  placeTip();
}
// Below the word, above it where there is no room, and never out of the window.
function placeTip() {
  if (!pointed) return;
  const box = pointed.getBoundingClientRect(), below = box.bottom + 6, above = box.top - 6 - tip.offsetHeight;
  const top = below + tip.offsetHeight > innerHeight && above > 0 ? above : below;
  tip.style.left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(8, Math.min(top, innerHeight - tip.offsetHeight - 8)) + "px";
}
function hideTip() {
  clearTimeout(leaving);
  tip.hidden = true;
  pointed?.removeAttribute("aria-describedby");
  pointed = null;
}
// The pointer may go over to what is shown, to read or copy it.
function leaveTip() {
  clearTimeout(leaving);
  leaving = setTimeout(() => { if (document.activeElement !== pointed) hideTip(); }, 200);
}
addEventListener("keydown", event => {
  if (event.key === "Escape" && pointed) { hideTip(); event.preventDefault(); }
});
addEventListener("scroll", placeTip, { passive: true, capture: true });
listeners.push(hideTip);
document.body.append(tip);

fill("glossary", data.glossary.map(term => [el("dt", {}, title(term)), el("dd", {}, term.sentence, " ", el("span", { class: "quiet" }, sections(term), " In Linux: ", el("code", {}, say(term.linux)), "."))]));
