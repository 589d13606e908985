"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const { timeline } = data;
const { steps, run } = timeline;
const $ = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const SVG_NAMES = new Set(["svg", "circle", "path", "line", "text", "title", "g", "polygon", "rect", "defs", "pattern"]);

// A text in the page's language: its scripts are in English, and a page in another one has a catalogue.
const say = globalThis.say ?? (text => text);
// What people read of an element, besides its content; and the elements whose content is no prose.
const READ = new Set(["aria-label", "title"]), CODE = new Set(["code", "pre"]);
const children = list => list.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false);
const spoken = child => typeof child === "string" ? say(child) : child;
// Builds an element; children are text or elements, so nothing is ever parsed.
function el(name, attributes = {}, ...content) {
  const element = SVG_NAMES.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes))
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, READ.has(key) ? say(value) : value);
  element.append(...CODE.has(name) ? children(content) : children(content).map(spoken));
  return element;
}
const fill = (id, ...content) => $(id).replaceChildren(...children(content).map(spoken));

// What ran the guest, where it was not QEMU.
const VMM = run.vmm?.name;
// The lanes, from the guest to the cable.
const LAYERS = [
  { id: "guest", name: "Guest", note: "kernel and driver", fill: "var(--driver-fill)", text: "var(--driver)" },
  { id: "kvm", name: "KVM", note: "the host's kernel", fill: "var(--kvm-fill)", text: "var(--kvm)" },
  { id: VMM ? "vmm-vcpu" : "qemu-vcpu", name: `${VMM ?? "QEMU"} vCPU thread`, note: "runs the guest", fill: "var(--device-fill)", text: "var(--device)" },
  { id: VMM ? "vmm-other" : "qemu-main", name: VMM ? `${VMM}, other threads` : "QEMU main loop", note: "the device's other hand", fill: "var(--device-fill)", text: "var(--device)" },
  { id: "wire", name: "Wire", note: "the cable's far end", fill: "var(--wire-fill)", text: "var(--wire)" },
];
const PHASES = [["attach", "Attach"], ["receive", "Receive"], ["transmit", "Transmit"], ["return", "Return"]];
const layerOf = step => LAYERS.find(layer => layer.id === step.layer);
const nameOf = step => step.function ?? step.event;
const isDoorbell = step => step.event === "DoorbellRing";
// Steps of other chains are shown on demand.
let everything = false;
const visible = step => everything || !step.aside;
const inPhase = id => steps.filter(step => step.phase === id && visible(step));

// The doorbell of the story: the one of the datagram that goes out.
const bell = steps.find(step => isDoorbell(step) && step.phase === "transmit") ?? steps.find(isDoorbell) ?? null;

const whole = n => Math.round(n).toLocaleString("en");
function span(ns) {
  const size = Math.abs(ns);
  if (size < 1e3) return whole(ns) + " ns";
  if (size < 1e6) return (ns / 1e3).toFixed(size < 1e4 ? 2 : 1) + " µs";
  return (ns / 1e6).toFixed(size < 1e7 ? 2 : 1) + " ms";
}
// The time since the step before, where it was measured.
const gap = step => step.delta.kind === "measured" ? step.delta.ns : null;
const since = step => gap(step) !== null ? "+" + span(gap(step)) : step.delta.kind === "first" ? "" : say("by order");
// The time from one step to a later one, where it was measured.
function between(from, to) {
  if (to.delta.since?.step === from.number) return to.delta.since.ns;
  const gaps = steps.slice(from.number + 1, to.number + 1).map(gap);
  return gaps.includes(null) ? null : gaps.reduce((all, ns) => all + ns, 0);
}
// `Type::method` as a path tells it: `method`.
const shortName = step => nameOf(step).split("::").at(-1);

let current = 0;
const listeners = [];
// Goes to a step; everything that shows one is told. One that is hidden is shown with all others.
function go(index, from) {
  const next = Math.max(0, Math.min(steps.length - 1, index));
  current = next;
  if (!visible(steps[next])) { everything = true; drawFilter(); list(); }
  for (const listener of listeners) listener(next, from);
}
// The step that is `by` visible ones further, or the last on that side.
function further(by) {
  const shown = steps.filter(visible).map(step => step.number), here = shown.findLastIndex(number => number <= current);
  return shown[Math.max(0, Math.min(shown.length - 1, here + by))] ?? current;
}
const jump = index => () => go(index);

// Something that was not recorded is said to be so, never left blank.
const orAbsent = (value, words = "not recorded") => value ?? el("span", { class: "causal" }, words);
