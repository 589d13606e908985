// The virtqueue after a step, as the records tell it. What no record told is
// drawn as "–", and what the step changed is lit up.

// The last snapshot of each queue up to a step, and what that step changed.
function queuesAt(index) {
  const queues = new Map();
  for (const step of steps.slice(0, index + 1))
    if (step.snapshot) queues.set(step.snapshot.queue, { ...step.snapshot, changed: step.number === index ? step.snapshot.changed : [] });
  return queues;
}
// Whether a part is among those that changed: "avail-index", or { descriptor: 3 }.
const isLit = (queue, part, entry) => queue.changed.some(changed => entry === undefined ? changed === part : changed?.[part] === entry);

// The entries worth a row: those that the step changed, then the highest.
function worth(queue, entries, key, part, count) {
  const lit = entry => isLit(queue, part, entry[key]) ? 0 : 1;
  return [...entries].map((entry, i) => [entry, i]).sort(([a, i], [b, j]) => lit(a) - lit(b) || j - i)
    .slice(0, count).map(([entry]) => entry).sort((a, b) => a[key] - b[key]);
}

// Large numbers are text already, so that none is rounded.
const hex = n => typeof n === "string" ? n : "0x" + n.toString(16);
const cell = (lit, value, format = String) => {
  const known = value !== undefined && value !== null;
  return el("td", { class: lit ? "lit" : known ? null : "unknown" }, known ? format(value) : "–");
};
function table(queue, heads, before, entries, key, part, columns, after, count) {
  const wordRow = ([name, value, changed, format]) => {
    const filled = cell(isLit(queue, changed), value, format);
    filled.setAttribute("colspan", columns.length);
    return el("tr", {}, el("th", { scope: "row" }, name), filled);
  };
  const gapRow = () => el("tr", { class: "gap", "aria-hidden": "true" }, el("td", { colspan: columns.length + 1 }, "⋮"));
  const rows = before.map(wordRow);
  let next = 0;
  for (const entry of worth(queue, entries, key, part, count)) {
    if (entry[key] > next) rows.push(gapRow());
    next = entry[key] + 1;
    const lit = isLit(queue, part, entry[key]);
    rows.push(el("tr", lit ? { class: "changed" } : {}, el("th", { scope: "row" }, `[${entry[key]}]`), columns.map(([name, format]) => cell(lit, entry[name], format))));
  }
  if (queue.size === undefined || next < queue.size) rows.push(gapRow());
  rows.push(...after.map(wordRow));
  return el("table", { class: "cells" },
    el("thead", {}, el("tr", {}, heads.map(head => el("th", { scope: "col" }, head)))), el("tbody", {}, rows));
}

// A position on a ring: a turn is 1, from the top clockwise.
const at = (turn, r) => [r * Math.sin(2 * Math.PI * turn), -r * Math.cos(2 * Math.PI * turn)];
function arc(from, length, r, attributes) {
  if (length >= 1) return el("circle", { r, fill: "none", ...attributes });
  const [x1, y1] = at(from, r), [x2, y2] = at(from + length, r);
  return el("path", { d: `M${x1} ${y1}A${r} ${r} 0 ${length > .5 ? 1 : 0} 1 ${x2} ${y2}`, fill: "none", ...attributes });
}

// The ring as the status page draws it: where both indices stand.
function dial(queue) {
  const { idx: avail } = queue.avail, { idx: used } = queue.used;
  const size = Math.max(queue.size ?? 1, 1), place = index => index % size / size;
  const held = queue.outstanding ?? null;
  const told = value => value ?? "not recorded";
  const svg = el("svg", { viewBox: "-118 -118 236 236", role: "img", "aria-label": `${queue.name} queue: available index ${told(avail)}, used index ${told(used)}` },
    el("circle", { r: 84, fill: "none", stroke: "var(--track)", "stroke-width": 22 }));
  if (held && avail !== undefined) svg.append(arc(place(avail - Math.min(held, size) + 65536), Math.min(held, size) / size, 84, { stroke: "var(--device-fill)", "stroke-width": 22 }));
  const ticks = Math.min(size, 64);
  for (let i = 0; i < ticks; i++) {
    const [x1, y1] = at(i / ticks, 72), [x2, y2] = at(i / ticks, 96);
    svg.append(el("line", { x1, y1, x2, y2, stroke: "var(--card)", "stroke-width": ticks > 32 ? 1.2 : 2 }));
  }
  const marker = (turn, tip, r, name) => svg.append(el("polygon", { class: name, points: [at(turn, tip), at(turn - .018, r), at(turn + .018, r)].map(p => p.join()).join(" ") }));
  if (avail !== undefined) marker(place(avail), 98, 114, "avail");
  if (used !== undefined) marker(place(used), 70, 54, "used");
  svg.append(el("text", { y: 16, "font-size": 46, "font-weight": 700, "text-anchor": "middle" }, held === null ? "–" : String(held)));
  const index = value => value === undefined ? el("span", { class: "causal" }, "not recorded yet") : el("b", {}, String(value));
  return el("div", { class: "rings" }, svg, el("ul", {},
    el("li", {}, el("i", { class: "avail" }, "▼"), "avail index ", index(avail), ", the driver's"),
    el("li", {}, el("i", { class: "used" }, "▲"), "used index ", index(used), ", the device's"),
    el("li", {}, el("i", { class: "used" }, "■"), "chains given and not taken back: ", held === null ? index(undefined) : el("b", {}, String(held)))));
}

const area = (who, title, note, table) => el("div", { class: "area", style: `--c-text:var(--${who})` }, el("h3", {}, title), el("p", { class: "who" }, note), table);
const flags = descriptor => [descriptor.next === undefined ? null : `NEXT ${descriptor.next}`, descriptor.device_writes ? "WRITE" : null].filter(Boolean).join(" ") || "0";
function descriptors(queue, count) {
  const told = queue.descriptors.map(entry => ({ ...entry, flags: flags(entry), owner: entry.at_device ? "device" : "driver" }));
  return table(queue, ["", "address", "len", "flags", "owner"], [], told, "number", "descriptor", [["address", hex], ["length"], ["flags"], ["owner"]], [], count);
}
function split(queue) {
  const { avail, used } = queue;
  return [
    area("driver", "Descriptor table", "the driver writes", descriptors(queue, 5)),
    area("driver", "Available ring", "the driver writes", table(queue, ["", "head"], [["flags", avail.flags, "avail-flags"], ["idx", avail.idx, "avail-index"]], avail.entries, "slot", "avail-entry", [["head"]], [["used_event", avail.used_event, "used-event"]], 3)),
    area("device", "Used ring", "the device writes", table(queue, ["", "id", "len"], [["flags", used.flags, "used-flags"], ["idx", used.idx, "used-index"]], used.entries, "slot", "used-entry", [["id"], ["length"]], [["avail_event", used.avail_event, "avail-event"]], 3))];
}
function packed(queue) {
  return [area("driver", "Descriptor ring", "the driver and the device write", descriptors(queue, 8))];
}

let shownQueue = null;
// Shows the queue that the step is about, or the `chosen` one.
function showQueue(index, chosen) {
  const queues = queuesAt(index);
  const own = chosen ?? steps[index].snapshot?.queue ?? steps[index].queue;
  if (queues.has(own)) shownQueue = own;
  if (!queues.size) {
    fill("queue", el("h2", { id: "h-queue" }, "The virtqueue"), el("p", { class: "causal" }, steps.some(step => step.snapshot) ? "No step up to here was about a queue." : "This run's records do not tell enough of a ring to draw it; what each step wrote stands among its values."));
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
    el("div", { class: "vq" }, queue.format === "packed" ? packed(queue) : split(queue)),
    queue.format === "packed" ? null : dial(queue),
    el("p", { class: "note" }, queue.changed.length ? ["Lit ", el("span", { style: "color:var(--lit-edge)" }, "●"), ": what this step changed. "] : "This step changed nothing here. ", "–: not recorded up to this step."));
}
listeners.push(index => showQueue(index));
