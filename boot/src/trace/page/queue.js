// The virtqueue's memory after a step, as the records of both sides tell it.
// What no record told is drawn as "–"; what the step changed is filled, what it
// wrote as it was has an edge, what it only read a dashed one.

// The last snapshot of each queue up to a step, and what that step touched.
function queuesAt(index) {
  const queues = new Map();
  for (const step of steps.slice(0, index + 1)) {
    if (!step.snapshot) continue;
    const shown = step.number === index ? step.snapshot : { ...step.snapshot, changed: [], written: [], read: [] };
    // Between attaching and the followed packet others went by unrecorded: of that time only the size is still known.
    const old = step.phase === "attach" && steps[index].phase !== "attach";
    queues.set(shown.queue, old ? { ...shown, avail: { entries: [] }, used: { entries: [] }, descriptors: [], driver_event: {}, device_event: {}, next_avail: undefined, next_used: undefined, outstanding: undefined } : shown);
  }
  return queues;
}
// How the step touched a part, "avail-index" or { descriptor: 3 }: the class of its cell.
function touch(queue, part, entry) {
  const has = list => (list ?? []).some(touched => entry === undefined ? touched === part : touched?.[part] === entry);
  return has(queue.changed) ? "lit" : has(queue.written) ? "wrote" : has(queue.read) ? "looked" : null;
}

// The entries worth a row: those that the step touched, then the highest.
function worth(queue, entries, key, parts, count) {
  const lit = entry => parts.some(part => touch(queue, part, entry[key])) ? 0 : 1;
  return [...entries].map((entry, i) => [entry, i]).sort(([a, i], [b, j]) => lit(a) - lit(b) || j - i)
    .slice(0, count).map(([entry]) => entry).sort((a, b) => a[key] - b[key]);
}

// Large numbers are text already, so that none is rounded.
const hex = n => typeof n === "string" ? n : "0x" + n.toString(16);
const cell = (touched, value, format = String) => {
  const known = value !== undefined && value !== null;
  return el("td", { class: [touched, known ? null : "unknown"].filter(Boolean).join(" ") || null }, known ? format(value) : "–");
};
// Columns: the field, how it is written, and which part of the ring it is, if it is one.
function table(queue, heads, before, entries, key, columns, after, count) {
  const parts = columns.map(([, , part]) => part).filter(Boolean);
  const wordRow = ([name, value, touched, format]) => {
    const filled = cell(touch(queue, touched), value, format);
    filled.setAttribute("colspan", Math.max(1, columns.length));
    return el("tr", {}, el("th", { scope: "row" }, name), filled);
  };
  const gapRow = () => el("tr", { class: "gap", "aria-hidden": "true" }, el("td", { colspan: columns.length + 1 }, "⋮"));
  const rows = before.map(wordRow);
  let next = 0;
  if (columns.length) {
    for (const entry of worth(queue, entries, key, parts, count)) {
      if (entry[key] > next) rows.push(gapRow());
      next = entry[key] + 1;
      const touched = part => part ? touch(queue, part, entry[key]) : null;
      rows.push(el("tr", parts.some(part => touched(part) === "lit") ? { class: "changed" } : {}, el("th", { scope: "row" }, `[${entry[key]}]`), columns.map(([name, format, part]) => cell(touched(part), entry[name], format))));
    }
    if (queue.size === undefined || next < queue.size) rows.push(gapRow());
  }
  rows.push(...after.map(wordRow));
  return el("table", { class: "cells" },
    el("thead", {}, el("tr", {}, heads.map(head => head ? el("th", { scope: "col" }, head) : el("td")))), el("tbody", {}, rows));
}

// A position on a ring: a turn is 1, from the top clockwise.
const at = (turn, r) => [r * Math.sin(2 * Math.PI * turn), -r * Math.cos(2 * Math.PI * turn)];
function arc(from, length, r, attributes) {
  if (length >= 1) return el("circle", { r, fill: "none", ...attributes });
  const [x1, y1] = at(from, r), [x2, y2] = at(from + length, r);
  return el("path", { d: `M${x1} ${y1}A${r} ${r} 0 ${length > .5 ? 1 : 0} 1 ${x2} ${y2}`, fill: "none", ...attributes });
}

const tick = (size, inner, outer, ticks) => Array.from({ length: ticks }, (_, i) => {
  const [x1, y1] = at(i / ticks, inner), [x2, y2] = at(i / ticks, outer);
  return el("line", { x1, y1, x2, y2, stroke: "var(--card)", "stroke-width": ticks > 32 ? 1.2 : 2 });
});
// The ring as the status page draws it: where both sides stand, and what the device holds.
function dial(queue) {
  const packed = queue.format === "packed", size = Math.max(queue.size ?? 1, 1), place = index => index % size / size;
  const avail = packed ? queue.next_avail?.index : queue.avail.idx, used = packed ? queue.next_used?.index : queue.used.idx;
  const held = queue.outstanding ?? null;
  const told = value => value ?? "not recorded";
  const [first, second] = packed ? ["next available descriptor", "next used descriptor"] : ["available index", "used index"];
  const svg = el("svg", { viewBox: "-118 -118 236 236", role: "img", "aria-label": `Ring of the ${queue.name} queue: ${first}: ${told(avail)}, ${second}: ${told(used)}` },
    el("circle", { r: 84, fill: "none", stroke: "var(--track)", "stroke-width": 22 }));
  if (held && avail !== undefined) svg.append(arc(place(avail - Math.min(held, size) + 65536 * size), Math.min(held, size) / size, 84, { stroke: "var(--device-fill)", "stroke-width": 22 }));
  svg.append(...tick(size, 72, 96, Math.min(size, 64)));
  const marker = (turn, tip, r, name) => svg.append(el("polygon", { class: name, points: [at(turn, tip), at(turn - .018, r), at(turn + .018, r)].map(p => p.join()).join(" ") }));
  if (avail !== undefined) marker(place(avail), 98, 114, "avail");
  if (used !== undefined) marker(place(used), 70, 54, "used");
  svg.append(el("text", { y: 16, "font-size": 46, "font-weight": 700, "text-anchor": "middle" }, held === null ? "–" : String(held)));
  const index = (value, wrap) => value === undefined ? el("span", { class: "causal" }, "not recorded yet") : [el("b", {}, String(value)), wrap === undefined ? "" : `, wrap counter ${Number(wrap)}`];
  return el("div", { class: "rings" }, svg, el("ul", {},
    el("li", {}, el("i", { class: "avail" }, "▼"), packed ? "next available, the driver's: " : "avail index, the driver's: ", index(avail, queue.next_avail?.wrap)),
    el("li", {}, el("i", { class: "used" }, "▲"), packed ? "next used, the device's: " : "used index, the device's: ", index(used, queue.next_used?.wrap)),
    el("li", {}, el("i", { class: "used" }, "■"), "chains given and not taken back: ", held === null ? index(undefined) : el("b", {}, String(held)))));
}

const area = (who, title, note, table) => el("div", { class: "area", style: `--c-text:var(--${who})` }, el("h3", {}, explained(title)), el("p", { class: "who" }, explained(note)), table);
const PROGRESS = { added: "written", available: "available", taken: "device has it", used: "given back", reclaimed: "driver's again" };
const told = entry => ({ ...entry, flags: entry.device_writes === undefined ? undefined : [entry.next === undefined || entry.next === false ? null : entry.next === true ? "NEXT" : `NEXT ${entry.next}`, entry.device_writes ? "WRITE" : null, entry.indirect ? "INDIRECT" : null].filter(Boolean).join(" ") || "0", state: PROGRESS[entry.progress] });
function split(queue) {
  const { avail, used } = queue;
  return [
    area("driver", "Descriptor table", "the driver writes", table(queue, ["", "address", "len", "flags", "chain"], [], queue.descriptors.map(told), "number", [["address", hex, "descriptor-address"], ["length", String, "descriptor-length"], ["flags", String, "descriptor-flags"], ["state"]], [], queue.rows ?? 5)),
    area("driver", "Available ring", "the driver writes", table(queue, ["", "head"], [["flags", avail.flags, "avail-flags"], ["idx", avail.idx, "avail-index"]], avail.entries, "slot", [["head", String, "avail-entry"]], [["used_event", avail.used_event, "used-event"]], queue.rows ?? 3)),
    area("device", "Used ring", "the device writes", table(queue, ["", "id", "len"], [["flags", used.flags, "used-flags"], ["idx", used.idx, "used-index"]], used.entries, "slot", [["id", String, "used-entry"], ["length", String, "used-entry"]], [["avail_event", used.avail_event, "avail-event"]], queue.rows ?? 3))];
}
const EVENT_FLAGS = ["0, always", "1, never", "2, at the descriptor"];
const where = place => `${place.index}, wrap counter ${Number(place.wrap)}`;
function packed(queue) {
  const bit = flag => String(Number(flag));
  const suppression = (event, part) => table(queue, ["", ""], [["desc", event.place, part, where], ["flags", event.flags === undefined ? undefined : EVENT_FLAGS[event.flags] ?? String(event.flags), part]], [], "", [], [], 0);
  return [
    area("text", "Descriptor ring", "the driver writes, the device overwrites", table(queue, ["", "address", "len", "id", "AVAIL", "USED", "flags", "chain"], [], queue.descriptors.map(told), "place", [["address", hex, "descriptor-address"], ["length", String, "descriptor-length"], ["id", String, "descriptor-id"], ["avail", bit, "descriptor-flags"], ["used", bit, "descriptor-flags"], ["flags", String, "descriptor-flags"], ["state"]], [], 8)),
    area("driver", "Driver's event suppression", "the driver writes: when to interrupt it", suppression(queue.driver_event, "driver-event")),
    area("device", "Device's event suppression", "the device writes: when to kick it", suppression(queue.device_event, "device-event")),
    area("text", "Wrap counters", "in neither's memory: each side counts", table(queue, ["", ""], [["driver", queue.next_avail, "next-avail", where], ["device", queue.next_used, "next-used", where]], [], "", [], [], 0))];
}

let shownQueue = null;
// Shows the queue that the step is about, or the `chosen` one.
function showQueue(index, chosen) {
  const queues = queuesAt(index);
  const own = chosen ?? steps[index].snapshot?.queue ?? steps[index].queue;
  if (queues.has(own)) shownQueue = own;
  if (!queues.size) {
    fill("queue", el("h2", { id: "h-queue" }, "The virtqueue"), el("p", { class: "causal" }, run.guest ? `What the rings of ${run.guest} hold was not recorded.` : "No step up to here was about a queue."));
    return;
  }
  if (!queues.has(shownQueue)) shownQueue = queues.keys().next().value;
  const queue = queues.get(shownQueue);
  fill("queue",
    el("div", { class: "queue-head" },
      el("h2", { id: "h-queue" }, `Virtqueue ${queue.queue}: ${queue.name}`, el("small", {}, queue.size === undefined ? "" : ` ${queue.format}, ${queue.size} descriptors`)),
      queues.size > 1 && el("div", { class: "segments", role: "group", "aria-label": "Queue" }, [...queues.values()].sort((a, b) => a.queue - b.queue).map(other =>
        el("button", { type: "button", "aria-pressed": String(other.queue === shownQueue), onclick: () => {
          showQueue(index, other.queue);
          $("queue").querySelector("[aria-pressed=true]").focus();
        } }, other.name)))),
    el("div", { class: "vq" + (queue.format === "packed" ? " packed" : "") }, queue.format === "packed" ? packed(queue) : split(queue)),
    dial(queue),
    el("p", { class: "note" }, queue.changed.length || queue.written?.length || queue.read?.length
      ? ["This step ", [["lit", "changed", queue.changed], ["wrote", "wrote as it was", queue.written], ["looked", "read", queue.read]].filter(([, , list]) => list?.length).map(([name, word], i) => [i ? ", " : "", el("span", { class: "key " + name }, word)]), ". "]
      : "This step does not touch the ring. ",
      "Reconstructed from the records of driver and device; the device leaves none when it writes ", queue.format === "packed" ? "its event suppression" : "its flags and avail_event", ": shown as the driver read it last. –: not recorded up to this step."),
    el("p", { class: "note" }, "To work such a ring by hand: ", el("code", {}, "cargo run -- lab ring --html ring.html")));
}
listeners.push(index => showQueue(index));
