// What does not change from step to step: the first screen, and the verdicts.

const link = (index, ...content) => el("button", { type: "button", class: "link", onclick: jump(index) }, content);

// One line of a chain of calls: leads to its step.
function chain(list) {
  return el("ol", { class: "chain" }, list.map(step => el("li", {}, el("button", { type: "button", "data-step": step.number, style: `--c:${layerOf(step).fill}`, onclick: jump(step.number), title: `Step ${step.number + 1}: ${step.sentence}` },
    el("span", { class: "dot" }), el("span", { class: "name" }, nameOf(step)), el("span", { class: "since" }, since(step))))));
}

function instruction(step) {
  const { bytes, text, meaning, symbol, address } = step.instruction ?? {};
  return [
    el("p", { class: "over" }, "The world stops here"),
    el("p", { class: "bytes" + (bytes && bytes.length > 12 ? " long" : "") }, bytes ?? run.device.doorbell),
    el("p", { class: "asm" }, text ?? "the instruction was not recorded"),
    meaning ? el("p", { class: "what" }, el("code", {}, meaning)) : null,
    ...stop(step),
    symbol ? el("p", { class: "where" }, el("code", {}, symbol), " at ", el("code", {}, hex(address))) : null,
    run.real_exits ? null : el("p", { class: "where" }, "On TCG no CPU exits: QEMU's translated code calls the device itself. That call stands for the exit.")];
}

// What stands between the records before and behind the followed doorbell's instruction.
function stop(step) {
  const { kicks } = timeline;
  if (!kicks || step !== bell) return [];
  const { ns, interrupts, counted, interrupted, spread_ns: spread } = kicks;
  return [el("p", { class: "what" }, "Between its two records: ", el("b", {}, span(ns))),
    el("p", { class: "where" }, "That is the exit and whatever else the host ran meanwhile. In the guest an interrupt of a device, of its timer or of another CPU would have left a record."),
    interrupts?.length ? el("p", { class: "where" }, `An interrupt was taken in between (${interrupts.join(", ")}): this is not the exit alone.`) : null,
    spread && counted > 1 ? el("p", { class: "where" }, `${counted} kicks of this run${interrupted ? `, ${interrupted} with an interrupt left out` : ""}: ${spread.map(span).join(" / ")} (min / median / max)`) : null];
}

// The steps that a chain shows: each function once, noise left out.
const NOISE = new Set(["Idle", "Poll", "EnableInterrupts", "DisableInterrupts", "DoorbellRang", "Descriptor"]);
function worthTelling(list, most) {
  const told = list.filter((step, i) => !NOISE.has(step.event) && !(i && nameOf(list[i - 1]) === nameOf(step)));
  return told.length > most ? [...told.slice(0, most - 1), told.at(-1)] : told;
}
const measured = list => list.slice(1).every(step => gap(step) !== null) ? list.slice(1).reduce((all, step) => all + gap(step), 0) : null;

function hero() {
  const out = inPhase("transmit"), stop = bell ? out.indexOf(bell) : out.length;
  const before = out.slice(0, stop).filter(step => step.layer === "guest"), after = out.slice(stop + 1).filter(step => step.layer !== "guest");
  const time = measured(out.slice(0, stop + 1));
  const frame = timeline.frames?.find(frame => frame.direction === "out");
  const side = (name, title, note, list, result) => el("div", { class: "side " + name }, el("h2", {}, title, el("small", {}, note)),
    list.length ? chain(list) : el("p", { class: "causal" }, "Nothing of this was recorded in this run."), result ? el("p", { class: "result" }, result) : null);
  // What the driver sees of the buffer's return, wherever it stands.
  const RETURN = new Set(["InterruptVector", "VringInterrupt", "IntxInterrupt", "PopUsed"]);
  const seen = out.slice(stop + 1).filter(step => RETURN.has(step.event) && (step.queue === undefined || step.queue === bell?.queue));
  const back = [...inPhase("return"), ...seen];
  const threads = new Set(after.map(step => layerOf(step).name));
  fill("hero",
    side("guest", "In the guest", time === null ? "" : `${span(time)} to the doorbell`, worthTelling(before, 9), bell?.decision),
    el("div", { class: "stop" }, bell ? [instruction(bell), el("button", { type: "button", onclick: () => { go(bell.number); $("stepper").scrollIntoView(); } }, `Look closer: step ${bell.number + 1}`)]
      : [el("p", { class: "over" }, "No doorbell"), el("p", { class: "what" }, "No kick was recorded in this run.")]),
    side("host", "On the host", [...threads].filter(name => name !== "Wire").map(say).join(", "), worthTelling(after, 9), frame ? comparison(frame) : null),
    back.length ? el("div", { class: "return" }, el("b", {}, "And back"), chain(worthTelling(back, 6))) : null);
}

function comparison({ wire, comparison }) {
  const size = wire.length / 2;
  if (comparison.kind === "equal") return [el("b", { class: "good" }, "✓ "), `${size} bytes on the wire, each the same as in the guest's memory`];
  if (comparison.kind === "differs") return [el("b", { class: "bad" }, "✗ "), `${size} bytes on the wire differ from the guest's at byte ${comparison.at}: ${comparison.how}`];
  return `${size} bytes on the wire, not compared with the guest's: ${comparison.reason}`;
}

const TAKEN = { 0: "MSI-X, a vector a queue", 1: "MSI-X, one shared vector", 2: "INTx", 3: "polling" };
function hook() {
  const attach = inPhase("attach");
  const tried = attach.filter(step => step.event === "FindVqsTry" || step.event === "FindVqsResult");
  const bells = attach.filter(step => step.event === "AttachDoorbell");
  const told = run.guest ? el("p", {}, el("code", {}, "vp_find_vqs"), " tries the interrupt ladder from the top. On each rung ", el("code", {}, "setup_vq"), " makes the rings and keeps ", el("code", {}, "vp_notify"), " as ", el("code", {}, "vq->notify"), " and the register's address as ", el("code", {}, "vq->priv"), ".") : null;
  fill("hook",
    told ?? el("p", {}, el("code", {}, "find_vqs"), " tries the interrupt ladder from the top. On each rung ", el("code", {}, "setup_queue"), " makes the rings and attaches every queue's doorbell: what ", el("code", {}, `vq->notify = ${run.device.transport === "mmio" ? "vm_notify" : "vp_notify"}`), " is in Linux's ", el("code", {}, run.device.transport === "mmio" ? "vm_setup_vq" : "setup_vq"), "."),
    tried.length ? el("ol", { class: "ladder" }, tried.map(step => el("li", step.event === "FindVqsResult" ? { class: "result" } : {}, link(step.number, step.sentence)))) : el("p", { class: "causal" }, "The set-up was not recorded in this run."),
    bells.length ? [el("h3", {}, "The doorbell that each queue got"), el("ul", { class: "plain" }, bells.map(step => el("li", {}, link(step.number, step.sentence))))] : null);
}

const VERDICTS = { matched: ["✓", "good", "matched"], coalesced: ["✓", "good", "coalesced"], failed: ["✗", "bad", "failed"] };
function join() {
  const { joins, ring } = timeline;
  $("verdict").textContent = say(data.sound ? timeline.quiet ? "What was checked holds" : "What could be checked holds" : "A check failed");
  $("verdict").title = say(data.conclusion);
  $("verdict").classList.add(data.sound ? "good" : "bad");
  fill("join", joins.length ? el("ul", { class: "plain" }, joins.map(({ what, method, left, right, verdict, detail }) => {
    const [mark, kind, word] = VERDICTS[verdict];
    return el("li", {}, el("b", { class: kind }, mark + " "), el("b", {}, what), `: ${left} to ${right}, ${word}`, el("br"), el("span", { class: "quiet" }, detail, detail && method ? " " : "", method));
  })) : el("p", { class: "causal" }, "Only one layer was recorded: there is nothing to join."),
  el("p", {}, el("b", { class: data.sound ? "good" : "bad" }, data.conclusion)),
  el("p", { class: "note" }, `The guest's ring took ${whole(ring.recorded)} ${ring.capacity ? `of ${whole(ring.capacity)} ` : ""}records; `, ring.lost ? el("b", { class: "bad" }, `${whole(ring.lost)} were lost.`) : "none was lost."));
}

// The kick in the words of the sources that a reader may come from.
function calls() {
  const rows = timeline.calls ?? [];
  if (!rows.length) { $("calls").closest("section").hidden = true; return; }
  fill("calls", el("p", {}, `For a reader who comes from Linux's source: its calls from the socket to the doorbell, then the host's. A link leads to the step that recorded a call${run.guest ? "" : ", or to our own that does the same"}; what has none was not recorded here and is told from the source.`),
    el("ol", { class: "calls" }, rows.map(({ layer, words, step }) => {
      const { name, text } = LAYERS.find(({ id }) => id === layer);
      return el("li", {}, el("span", { class: "layer", style: `--c-text:${text}` }, name), " ", el("code", {}, say(words)), step === undefined ? null : [" ", link(step, `step ${step + 1}`)]);
    })));
}

// Which header a byte of an Ethernet frame belongs to: 0 Ethernet, 1 IPv4, 2 UDP.
function header(bytes, i) {
  if (i < 14) return 0;
  if (bytes[12] !== 8 || bytes[13] !== 0) return 3;
  const end = 14 + 4 * (bytes[14] & 15);
  return i < end ? 1 : i < end + 8 && bytes[23] === 17 ? 2 : 3;
}
const bytesOf = text => (text.match(/[0-9a-f]{2}/gi) ?? []).map(pair => parseInt(pair, 16));
function dump(bytes, other) {
  const lines = el("div", { class: "hex", tabindex: "0", role: "group", "aria-label": "Bytes of the frame" });
  for (let row = 0; row < bytes.length; row += 16) {
    lines.append(el("span", { class: "quiet" }, row.toString(16).padStart(4, "0"), "  "));
    let text = "";
    for (let i = row; i < row + 16; i++) {
      if (i >= bytes.length) { lines.append("   "); continue; }
      lines.append(el("span", { class: `h${header(bytes, i)}${other && other[i] !== bytes[i] ? " differs" : ""}` }, bytes[i].toString(16).padStart(2, "0")), i === row + 7 ? "  " : " ");
      text += bytes[i] > 32 && bytes[i] < 127 ? String.fromCharCode(bytes[i]) : "·";
    }
    lines.append(" ", text, "\n");
  }
  return lines;
}
function wire() {
  const frames = timeline.frames ?? [];
  if (!frames.length) { fill("wire", el("p", { class: "causal" }, "No frame was recorded on the wire.")); return; }
  fill("wire", [...frames].sort((a, b) => (a.direction < b.direction) - (a.direction > b.direction)).map(frame => {
    const bytes = bytesOf(frame.wire), guest = frame.guest === undefined ? null : bytesOf(frame.guest), differs = frame.comparison.kind === "differs";
    return [el("h3", {}, frame.direction === "out" ? "Out of the guest" : "Into the guest", frame.wire_step === undefined ? "" : [": ", link(frame.wire_step, `step ${frame.wire_step + 1}`)]),
      el("p", {}, comparison(frame)), el("ul", { class: "headers" }, frame.headers.map(line => el("li", {}, line))),
      dump(bytes, differs ? guest : null), differs && guest ? [el("p", { class: "quiet" }, "In the guest's memory:"), dump(guest, bytes)] : null];
  }), el("p", { class: "note" }, ["Ethernet", "IPv4", "UDP", "the rest"].map((name, i) => el("span", { class: "h" + i }, `■ ${say(name)} `))));
}

const CLOCKS = { "guest-tsc": "The guest's time stamp counter", "host-tsc": "The host's time stamp counter", "qemu-log": "QEMU's log", monotonic: "This program's clock" };
function rest() {
  const { device } = run;
  const linux = run.guest ? ` in ${run.guest}` : "";
  document.title = say(`One packet${linux} on ${run.accelerator.toUpperCase()}, ${run.machine}, ${device.transport} – Kickpath`);
  $("subtitle").textContent = say(`One datagram out of the guest and one into it, recorded${linux} on ${run.accelerator.toUpperCase()}, machine ${run.machine}, ${device.transport} virtio-net`);
  const row = (term, value, mono) => value ? [el("dt", {}, term), el("dd", mono ? { class: "mono" } : {}, value)] : [];
  fill("run", row("Accelerator", `${run.accelerator.toUpperCase()}: ${say(run.accelerator_reason)}`), row("Guest", run.guest), row("Machine", VMM ? `${VMM} ${run.vmm.version}` : `${run.machine}, QEMU ${run.qemu}`), row("Host kernel", run.host_kernel),
    row("Device", `${device.location}, ${device.transport}`), row("A kick is", device.doorbell, true), row("Interrupts", device.interrupts), row("ioeventfd", device.ioeventfd === undefined ? null : device.ioeventfd ? "on" : "off"), row("Features", device.features.join(" "), true));
  $("command-line").textContent = run.command_line;
  if (VMM) {
    $("h-command-line").textContent = say(`${VMM}'s command line`);
    $("h-calls").textContent = say("The same way in Linux's own words");
  }
  fill("clocks", el("ul", { class: "plain" }, timeline.clocks.map(clock => el("li", {}, el("b", {}, CLOCKS[clock.clock] ?? clock.clock), ` (to ${clock.resolution_ns < 10 ? clock.resolution_ns.toFixed(1) + " ns" : span(clock.resolution_ns)}): `, clock.how))));
  const absent = timeline.absent ?? [];
  fill("absent", absent.length ? el("ul", { class: "plain" }, absent.map(({ what, reason, enable }) =>
    el("li", {}, el("b", {}, what), ": ", reason, enable ? el("code", { class: "command" }, enable) : null))) : el("p", {}, "Nothing: every layer was recorded."));
  fill("footer", "Every value here was recorded in one run or is said to be absent. Made by ", el("code", {}, data.command), `, version ${data.version}.`);
}
