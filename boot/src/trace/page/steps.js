// The stepper: one step at a time, with the source that recorded it.

const KEYWORDS = /^(as|async|await|break|const|continue|crate|dyn|else|enum|extern|false|fn|for|if|impl|in|let|loop|match|mod|move|mut|pub|ref|return|self|Self|static|struct|super|trait|true|type|unsafe|use|where|while)$/;
const TOKENS = /(\/\/.*$)|("(?:[^"\\]|\\.)*"?)|(\b\d[\w.]*)|([A-Za-z_]\w*!(?!=))|([A-Za-z_]\w*)|([^A-Za-z_\d"/]+|\/)/g;
// Colours one line of Rust.
function tokens(line) {
  const parts = [];
  for (const [text, comment, string, number, macro, word] of line.matchAll(TOKENS)) {
    const name = comment ? "c" : string ? "s" : number ? "n" : macro ? "m" : word && KEYWORDS.test(word) ? "k" : null;
    const code = document.createTextNode(text);
    parts.push(name ? el("span", { class: name }, code) : code);
  }
  return parts;
}

// The last line of the statement that begins at `line`: its brackets are closed there.
function statementEnd({ first, lines }, line) {
  let depth = 0;
  for (let i = line - first; i >= 0 && i < lines.length; i++) {
    for (const [mark] of lines[i].replace(/\/\/.*$|"(?:[^"\\]|\\.)*"/g, "").matchAll(/[()[\]{}]/g)) depth += "([{".includes(mark) ? 1 : -1;
    if (depth <= 0) return first + i;
  }
  return line;
}

function listing({ file, line, excerpt }) {
  if (!excerpt) return el("p", { class: "quiet" }, "The lines are not shown: the file is not the one that this guest was built from.");
  const end = statementEnd(excerpt, line);
  return el("div", { class: "listing", tabindex: "0", role: "group", "aria-label": `Lines of ${file}` }, el("table", { role: "presentation" }, el("tbody", {}, excerpt.lines.map((text, i) => {
    const number = excerpt.first + i;
    return el("tr", number >= line && number <= end ? { class: "hot" } : {}, el("td", {}, String(number)), el("td", {}, tokens(text)));
  }))));
}

function callChainOf(layer) {
  if (layer.startsWith("qemu")) return "QEMU's call chain, innermost first, taken by a debugger at the next kick of this queue";
  return `The ${layer === "guest" ? "guest" : "host"} kernel's call chain at this very event, innermost first`;
}

function showSource({ layer, source, stack, instruction }) {
  const written = instruction?.source;
  fill("source",
    el("div", { class: "source-head" }, el("h2", { id: "h-source" }, source ? `${source.file}:${source.line}` : "Source"), el("span", { class: "quiet" }, source ? source.module : "")),
    source ? listing(source) : el("p", { class: "quiet" }, `No source of ours: this is ${layer === "guest" ? "a function or trace event of the guest's Linux" : layer.startsWith("vmm") ? `a system call of ${VMM}` : "a trace event of the host"}.`),
    written ? [el("h3", {}, `The instruction itself, ${written.file}:${written.line}`), listing(written)] : null,
    stack?.length ? [el("h3", {}, callChainOf(layer)), el("ol", { class: "stack" }, stack.map(frame => el("li", {}, frame)))] : null);
  bringLine();
}

// For a lecture: the step, its ring and its source fill the screen, in large type. A link to
// `#lecture-7` opens so, at step 7.
const inLecture = () => document.body.classList.contains("lecture");
function lecture() {
  $("lecture").setAttribute("aria-pressed", String(document.body.classList.toggle("lecture")));
  go(current);
  if (!inLecture()) $("stepper").scrollIntoView();
}
const openLecture = () => { if (location.hash.startsWith("#lecture") && !inLecture()) lecture(); };
// Its card of the source scrolls by itself: to the line that is told of.
function bringLine() {
  const line = document.querySelector("#source tr.hot"), card = $("source").closest("section");
  card.scrollTop = line && inLecture() ? card.scrollTop + line.getBoundingClientRect().top - card.getBoundingClientRect().top - card.clientHeight / 3 : 0;
}

function timing(step) {
  const { delta, time } = step;
  if (delta.kind === "first") return "the first step";
  // The one before may be another chain's, and hidden.
  if (delta.kind === "measured") return [`${span(delta.ns)} after `, link(step.number - 1, `step ${step.number}`)];
  return el("span", {}, el("span", { class: "causal" }, "placed by cause and effect, not measured: ", delta.rule),
    delta.since ? [`; ${span(delta.since.ns)} after `, link(delta.since.step, `step ${delta.since.step + 1}`), ", the last one of the same clock"] : "");
}

// How the driver decides whether to kick, with the numbers of this run.
function decision(step) {
  if (step.event !== "KickPrepare") return null;
  const told = Object.fromEntries((step.values ?? []).map(({ name, value }) => [name, Number(value)]));
  const { "new index": next, "old index": old, avail_event: event } = told;
  if ([next, old, event].some(number => !Number.isInteger(number))) return null;
  const left = (next - event - 1) & 0xffff, right = (next - old) & 0xffff, kick = left < right;
  return el("div", { class: "decision" }, el("code", {}, "vring_need_event(event, new, old)"),
    el("code", {}, `(new − event − 1) mod 2¹⁶ = ${left} ${kick ? "<" : "≥"} ${right} = (new − old) mod 2¹⁶`),
    el("b", { class: kick ? "yes" : "no" }, kick ? "→ kick" : "→ no kick"), kick ? ": the index passed the event" : ": the device will look by itself");
}

function showStep(index) {
  const step = steps[index], layer = layerOf(step), held = $("step").contains(document.activeElement);
  const row = (term, value, mono) => value === null || value === undefined ? [] : [el("dt", {}, term), el("dd", mono ? { class: "mono" } : {}, value)];
  fill("step",
    el("p", { class: "step-head" }, el("span", { class: "layer", style: `--c-text:${layer.text}` }, layer.name), el("span", { class: "number" }, `step ${index + 1} of ${steps.length}`), step.cpu === undefined ? null : el("span", { class: "number" }, `CPU ${step.cpu}`), step.thread === undefined ? null : el("span", { class: "number" }, `thread ${step.thread}`)),
    el("h2", { id: "step-title" }, nameOf(step)),
    isDoorbell(step) ? el("div", { class: "stop small" }, instruction(step)) : null,
    el("p", { class: "lead" }, explained(step.sentence)),
    decision(step),
    why(step) || step.section ? el("p", { class: "why" }, why(step) ? [explained(why(step)), " "] : null, step.section ? el("span", { class: "section" }, "Specification: ", step.section, ".") : null) : null,
    el("dl", {},
      row("Linux", step.linux, true), row("Record", step.event, true),
      row("Time", timing(step)),
      row("Caused by", step.caused_by === undefined ? null : link(step.caused_by, `step ${step.caused_by + 1}, ${nameOf(steps[step.caused_by])}`)),
      (step.values ?? []).map(({ name, value }) => row(name, value, true))));
  // What had the focus is gone: Tab goes on from the steps.
  if (held) $("stepper").focus({ preventScroll: true });
}

// Why a step is as it is: what the sentence has no room for. Of two texts the first is for split rings.
const WHY = {
  FindVqsTry: "A device may have too few vectors, and a host may refuse one: so each rung is tried from a reset device, and one that fails leaves nothing behind.",
  AttachDoorbell: "From here on a kick is one precomputed store. This is the answer to “who set vq->notify”.",
  SetupQueue: "A legacy device dictates the size; the ring's address goes to the device once, and both sides work in that memory from then on.",
  TxTokenConsume: "The frame is written straight into the buffer that the device will read: nothing is copied later.",
  StartXmit: "The frame goes behind a virtio-net header. Nothing is told to the device yet, because more frames may be coming.",
  Add: ["The device does not look at this entry before the index says so.", "The device does not take this descriptor before the flags of the first one say so."],
  Publish: ["The entries must be visible before the index that announces them: a release store.", "All else of the descriptors must be visible before the flags of the first: a release store."],
  KickPrepare: "A full barrier stands between publishing and this look at the device's wish. Without it the device could go to sleep between the two, and nobody would tell it.",
  Notify: "Here Linux calls vq->notify. Up to here all was memory; the next instruction is not.",
  DoorbellRing: "Here the CPU, or its emulator, hands control to the host: it is the only instruction of the way out for which that is so. The guest goes on behind it, unless an interrupt came meanwhile: that it takes first.",
  DoorbellRang: "The guest runs again. What lies between depends on who took the kick: an ioeventfd only signals another thread, otherwise the device's code runs before the guest goes on.",
  virtio_queue_notify: "The device learns which queue has something. It is told nothing else: the rest it reads from memory.",
  virtqueue_pop: ["The device reads the available ring and the descriptors, from the guest's memory.", "The device reads the descriptors, from the guest's memory: one is available when AVAIL is as its wrap counter and USED is not."],
  virtqueue_fill: ["The device writes an element of the used ring: the chain's head and how many bytes it wrote.", "A used descriptor says the buffer's id and how many bytes the device wrote."],
  virtqueue_flush: ["Only now does the used index move, and the driver can see it.", "Only now are AVAIL and USED both as the device's wrap counter, and the driver can see it."],
  virtio_notify: "The device looks at the driver's wish before it interrupts, as the driver looked at the device's before it kicked.",
  virtio_notify_irqfd: "The interrupt goes through an eventfd into KVM, without a system call on the vCPU's thread.",
  kvm_pio: "KVM decodes the port access and looks for a device of its own at that port. An ioeventfd is such a device.",
  kvm_fast_mmio: "An ioeventfd without data match: KVM need not even decode the instruction.",
  kvm_userspace_exit: "Nobody in the kernel took the access: the ioctl returns, and the VMM's vCPU thread must handle it while the guest waits.",
  "read(eventfd)": "An eventfd says only that something came: what, the VMM reads from the guest's memory.",
  "write(eventfd)": "KVM was told before which interrupt of the guest this eventfd stands for.",
  PopUsed: "Ids and lengths are checked against what was posted: the device is not trusted.",
  EnableInterrupts: "After asking for an interrupt the driver looks once more: what came in between would go unannounced.",
  DisableInterrupts: "While the driver polls, an interrupt would tell it nothing new.",
};

// What is so in our driver, and not in Linux's.
const OURS = new Set(["FindVqsTry", "TxTokenConsume", "PopUsed"]);

function why({ event, layer }) {
  if (run.guest && layer === "guest" && OURS.has(event)) return null;
  const packed = run.device.features.includes("RING_PACKED");
  return Array.isArray(WHY[event]) ? WHY[event][Number(packed)] : WHY[event];
}

let playing = null;
function play(on) {
  clearInterval(playing);
  playing = on ? setInterval(() => further(1) !== current ? go(further(1), "play") : play(false), 1800) : null;
  $("play").setAttribute("aria-pressed", String(on));
  $("play").textContent = say(on ? "Pause" : "Play");
}

listeners.push((index, from) => {
  if (from !== "play") play(false);
  showStep(index);
  showSource(steps[index]);
  $("position").textContent = `${index + 1} / ${steps.length}`;
  $("slider").value = index + 1;
  $("slider").setAttribute("aria-valuetext", say(`Step ${index + 1} / ${steps.length}: ${nameOf(steps[index])}`));
  // aria-disabled, because a disabled button would lose the focus.
  for (const id of ["first", "back"]) $(id).setAttribute("aria-disabled", String(further(-1) === index));
  for (const id of ["last", "next"]) $(id).setAttribute("aria-disabled", String(further(1) === index));
  for (const marked of document.querySelectorAll("[data-step]"))
    if (Number(marked.dataset.step) === index) marked.setAttribute("aria-current", "step"); else marked.removeAttribute("aria-current");
  if (from !== "start") try { history.replaceState(null, "", `#${inLecture() ? "lecture" : "step"}-${index + 1}`); } catch { /* a page without a history */ }
});

function list() {
  fill("list", el("thead", {}, el("tr", {}, ["#", "Layer", "Step", "Since the one before", "Linux", "Source"].map(head => el("th", { scope: "col" }, head)))),
    el("tbody", {}, steps.filter(visible).map(step => el("tr", { "data-step": step.number }, el("td", { class: "right" }, String(step.number + 1)), el("td", { style: `color:${layerOf(step).text}` }, layerOf(step).name),
      el("td", {}, link(step.number, nameOf(step))), el("td", { class: "right" }, since(step)), el("td", { class: "mono" }, step.linux ?? ""), el("td", { class: "mono" }, step.source ? `${step.source.file}:${step.source.line}` : "")))));
}

const fromHash = () => { const found = /^#(?:step|lecture)-(\d+)$/.exec(location.hash); return found && steps[found[1] - 1] ? found[1] - 1 : null; };
function start() {
  rest(); join(); hook(); wire(); calls();
  if (!steps.length) {
    fill("hero", el("p", { class: "causal" }, "No step was recorded in this run: below is what is missing, and why."));
    for (const part of ["lanes", "step", "queue", "source", "all"]) $(part).closest("section").hidden = true;
    $("stepper").hidden = true;
    return;
  }
  hero(); list(); drawScales(); drawFilter();
  $("slider").max = steps.length;
  $("slider").addEventListener("input", event => {
    const wanted = event.target.value - 1, back = wanted < current;
    // Over those that are hidden, on in the same direction.
    const shown = steps.filter(visible).map(step => step.number);
    go((back ? shown.findLast(number => number <= wanted) : shown.find(number => number >= wanted)) ?? current);
  });
  const buttons = { first: () => go(further(-steps.length)), back: () => go(further(-1)), next: () => go(further(1)), last: () => go(further(steps.length)), play: () => play(!playing) };
  for (const [id, action] of Object.entries(buttons)) $(id).addEventListener("click", action);
  $("lecture").addEventListener("click", lecture);
  const keys = { ArrowRight: buttons.next, ArrowLeft: buttons.back, Home: buttons.first, End: buttons.last };
  const presenter = { PageDown: buttons.next, PageUp: buttons.back };
  addEventListener("keydown", event => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.defaultPrevented) return;
    // The slider has these keys itself, and a box that scrolls needs them.
    if (event.target.closest?.("input, .listing, .hex, .scroll")) return;
    const action = keys[event.key] ?? (inLecture() ? presenter[event.key] : null) ?? (event.key.toLowerCase() === "l" ? lecture : null) ?? (event.key === " " && event.target === document.body ? buttons.play : null);
    if (action) { action(); event.preventDefault(); }
  });
  addEventListener("hashchange", () => { const step = fromHash(); if (step !== null && step !== current) go(step); openLecture(); });
  go(fromHash() ?? bell?.number ?? 0, "start");
  openLecture();
}
start();
