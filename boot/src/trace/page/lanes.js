// The swim lanes: one part of the journey, time from left to right.

const SCALES = [["log", "Log", "A gap is as long as its logarithm, so that short steps stay visible."],
  ["linear", "Linear", "A gap is as long as its time."],
  ["order", "Order", "All gaps are equally long: only the order means something."]];
let scale = "log", phase = null;

// Horizontal places of steps in `width` pixels, and the bands of the gaps that
// were not measured: those have a fixed, hatched width.
function layout(shown, width) {
  const gaps = shown.slice(1).map((step, i) => between(shown[i], step));
  const unmeasured = gaps.filter(ns => ns === null).length, measured = gaps.length - unmeasured;
  const weigh = ns => scale === "linear" ? ns : Math.log2(1 + ns) + .4;
  const sum = gaps.reduce((all, ns) => ns === null ? all : all + weigh(ns), 0);
  const band = sum > 0 ? Math.min(34, width * .5 / Math.max(1, unmeasured)) : width / Math.max(1, gaps.length);
  const perWeight = sum > 0 ? (width - band * unmeasured) / sum : 0;
  const places = [0], bands = [];
  for (const ns of gaps) {
    const from = places.at(-1);
    const length = scale === "order" ? width / gaps.length : ns === null ? band : weigh(ns) * perWeight;
    if (ns === null) bands.push([from, length]);
    places.push(from + length);
  }
  return { places, bands, gaps, perNs: scale === "linear" && measured ? perWeight : 0 };
}

// A round time that is about `pixels` long.
function roundTime(perNs, pixels) {
  let best = 1;
  for (let size = 1; size < 1e12; size *= 10) for (const factor of [1, 2, 5]) if (size * factor * perNs <= pixels) best = size * factor;
  return best;
}

function drawLanes() {
  const shown = inPhase(phase), box = $("lanes"), full = Math.max(260, box.clientWidth), narrow = full < 720;
  const gutter = narrow ? 4 : 176, height = narrow ? 60 : 50, top = 28;
  const { places, bands, gaps, perNs } = layout(shown, full - gutter - 32);
  const x = i => gutter + 14 + places[i];
  const y = i => top + i * height + (narrow ? height * .66 : height / 2);
  const row = step => y(LAYERS.indexOf(layerOf(step)));
  const bottom = top + LAYERS.length * height;
  const svg = el("svg", { viewBox: `0 0 ${full} ${bottom + 30}`, height: bottom + 30, role: "group", "aria-label": `Swim lanes of ${shown.length} steps; the list of all steps has them as text` },
    el("defs", {}, el("pattern", { id: "hatch", width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      el("rect", { width: 3, height: 7, fill: "var(--track)" }))));

  for (const [from, length] of bands)
    svg.append(el("rect", { x: gutter + 14 + from + 2, y: top, width: Math.max(1, length - 4), height: bottom - top, fill: "url(#hatch)" }, el("title", {}, "not measured: only the order is known")));
  LAYERS.forEach((layer, i) => {
    const line = top + (i + 1) * height, taken = shown.some(step => step.layer === layer.id), ever = taken || steps.some(step => step.layer === layer.id);
    svg.append(el("line", { x1: 0, x2: full, y1: line, y2: line, stroke: "var(--line)" }),
      el("text", { x: 0, y: narrow ? top + i * height + 17 : y(i) - 2, class: "strong", style: `fill:${ever ? layer.text : "var(--quiet)"}` }, layer.name),
      el("text", { x: narrow ? full : 0, y: narrow ? top + i * height + 17 : y(i) + 14, "text-anchor": narrow ? "end" : "start", class: "quiet" }, ever ? layer.note : "not recorded"));
    svg.append(el("line", { x1: gutter + 4, x2: full - 8, y1: y(i), y2: y(i), stroke: ever ? layer.fill : "var(--track)", "stroke-opacity": ever ? .25 : 1, "stroke-width": 3, "stroke-linecap": "round", "stroke-dasharray": ever ? null : "1 9" }));
  });

  // What stands between the doorbell's two records.
  shown.forEach((step, i) => {
    if (!isDoorbell(step)) return;
    const back = shown.findIndex((other, j) => j > i && other.layer === "guest");
    const from = x(i), to = back > 0 ? x(back) : from;
    if (to > from) svg.append(el("rect", { x: from, y: row(step) - 6, width: to - from, height: 12, rx: 6, fill: "var(--stop)" }, el("title", {}, "Between the doorbell's two records")));
    svg.append(el("line", { x1: from, x2: from, y1: 19, y2: bottom, stroke: "var(--device-fill)", "stroke-width": 2 }),
      el("text", { x: Math.max(68, Math.min(full - 68, from)), y: 13, "text-anchor": "middle", class: "strong", style: "fill:var(--device)" }, "the world stops here"));
  });
  for (let i = 1; i < shown.length; i++) {
    const [x1, y1, x2, y2] = [x(i - 1), row(shown[i - 1]), x(i), row(shown[i])];
    const known = gaps[i - 1] !== null;
    if (y1 === y2) {
      if (!isDoorbell(shown[i - 1])) svg.append(el("line", { x1, y1, x2, y2, stroke: layerOf(shown[i]).fill, "stroke-width": 3, "stroke-dasharray": known ? null : "2 5" }));
      const label = known && scale !== "order" ? span(gaps[i - 1]) : "";
      if (label && x2 - x1 > label.length * 6.8 + 16) svg.append(el("text", { x: (x1 + x2) / 2, y: y1 - 10, "text-anchor": "middle", class: "quiet" }, label));
    } else {
      const bend = Math.max(8, (x2 - x1) / 2);
      svg.append(el("path", { d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`, fill: "none", stroke: "var(--quiet)", "stroke-width": 1.6, "stroke-dasharray": known ? null : "4 4" }));
    }
  }
  // Names below the points, as long as there is room for them.
  const free = LAYERS.map(() => gutter);
  if (!narrow) shown.forEach((step, i) => {
    const lane = LAYERS.indexOf(layerOf(step)), text = shortName(step), half = text.length * 3.15;
    const next = shown.findIndex((other, j) => j > i && other.layer === step.layer);
    const middle = Math.min(x(i), full - half), end = next < 0 ? full : x(next) + 12;
    if (middle - half < free[lane] + 6 || middle + half > end + half) return;
    free[lane] = middle + half;
    svg.append(el("text", { x: middle, y: row(step) + 19, "text-anchor": "middle", class: "quiet name" }, text));
  });
  shown.forEach((step, i) => {
    const now = step.number === current, fill = layerOf(step).fill, cx = x(i), cy = row(step);
    svg.append(el("g", { class: "point", "data-point": step.number, onclick: jump(step.number) },
      el("title", {}, `${step.number + 1}. ${nameOf(step)} ${since(step)}`),
      el("circle", { cx, cy, r: 11, fill: "transparent" }),
      isDoorbell(step)
        ? el("rect", { x: cx - 7, y: cy - 7, width: 14, height: 14, rx: 3, fill: "var(--device-fill)", stroke: now ? "var(--text)" : "var(--card)", "stroke-width": now ? 2.5 : 2, transform: `rotate(45 ${cx} ${cy})` })
        : el("circle", { class: "dot", cx, cy, r: now ? 7 : 4.5, fill, stroke: now ? "var(--text)" : "var(--card)", "stroke-width": now ? 2.5 : 1.5 })));
  });
  const here = shown.findIndex(step => step.number === current);
  if (here >= 0) {
    const text = `${current + 1}. ${nameOf(shown[here])}`, half = text.length * 3.9, cx = x(here);
    svg.append(el("polygon", { points: `${cx - 5},${bottom + 10} ${cx + 5},${bottom + 10} ${cx},${bottom + 3}`, fill: "var(--text)" }),
      el("text", { x: Math.max(half, Math.min(full - half, cx)), y: bottom + 24, "text-anchor": "middle", class: "strong" }, text));
  }
  box.replaceChildren(svg);

  const ruler = perNs > 0 ? roundTime(perNs, 120) : 0;
  fill("scale-note", SCALES.find(([id]) => id === scale)[2],
    ruler ? [" ", el("span", { class: "ruler", style: `width:${(ruler * perNs).toFixed(1)}px` }), span(ruler)] : null,
    bands.length ? [" ", el("span", { class: "swatch" }), data.clock_note] : null);
}

// Which steps there are to see: those of the packet, or all.
function setFilter(all) {
  everything = all;
  if (!visible(steps[current])) current = further(0);
  drawFilter(); list();
  for (const listener of listeners) listener(current, "filter");
}
function drawFilter() {
  const aside = steps.filter(step => step.aside).length;
  fill("filter", aside ? [["packet", "Only this packet", false], ["everything", `Everything (${aside} more)`, true]].map(([id, title, all]) =>
    el("button", { type: "button", "data-filter": id, "aria-pressed": String(all === everything), title: "Refills of the receive queue, other chains, other exits", onclick: () => { setFilter(all); $("filter").querySelector(`[data-filter=${id}]`)?.focus(); } }, title)) : null);
}
function drawPhases() {
  fill("phases", PHASES.map(([id, title]) => {
    const first = steps.findIndex(step => step.phase === id);
    return el("button", { type: "button", "data-phase": id, "aria-pressed": String(id === phase), disabled: first < 0, onclick: jump(first) }, title);
  }));
}
function drawScales() {
  fill("scales", SCALES.map(([id, title]) => el("button", { type: "button", "data-scale": id, "aria-pressed": String(id === scale), onclick: () => {
    scale = id; drawScales(); drawLanes(); $("scales").querySelector(`[data-scale=${id}]`).focus();
  } }, title)));
}
listeners.push(index => {
  if (phase !== steps[index].phase) {
    const focused = $("phases").contains(document.activeElement);
    phase = steps[index].phase;
    drawPhases();
    if (focused) $("phases").querySelector("[aria-pressed=true]").focus();
  }
  drawLanes();
});
let drawnWidth = 0;
new ResizeObserver(([box]) => {
  if (phase === null || box.contentRect.width === drawnWidth) return;
  drawnWidth = box.contentRect.width;
  drawLanes();
}).observe($("lanes"));
