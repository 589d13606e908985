// Both ends of one ring, worked by hand. What is drawn is the memory that the driver's code has
// written, and the device's; what is said is computed from the same words.
{
  const SIZE = 8, FRAME = 60, NEAR = 65534, SHOWN = 40;
  const EVENT_NAMES = ["always", "never", "at a descriptor"];
  const binary = Uint8Array.from(atob(data.module), letter => letter.charCodeAt(0));
  const module = WebAssembly.compile(binary);
  const setting = { packed: false, events: true };
  // The module, the ring as it was before the last step, whether a kick is owed, what was done.
  let wasm = null, before = null, owed = false, done = [];

  const wrapped = number => number & 0xffff;
  const COUNTS = ["added", "shown", "back", "next", "taken", "used", "awake", "kicks", "suppressed", "interrupts"];
  const now = () => Object.fromEntries(COUNTS.map((name, number) => [name, wasm.told(number)]));
  const frames = count => count === 1 ? "1 frame" : `${count} frames`;

  // The ring as it lies in memory, in the form in which a trace's page draws it.
  function look() {
    const memory = new DataView(wasm.memory.buffer), u16 = at => memory.getUint16(at, true), u32 = at => memory.getUint32(at, true);
    const [table, driver, device] = [0, 1, 2].map(wasm.area), count = now(), slots = [...Array(SIZE).keys()];
    const ahead = number => wrapped(number - count.back);
    const progress = slot => {
      const place = slot - count.back & SIZE - 1;
      return place < ahead(count.used) ? "used" : place < ahead(count.taken) ? "taken" : place < ahead(count.shown) ? "available" : place < ahead(count.added) ? "added" : "reclaimed";
    };
    const descriptor = (number, key) => {
      const at = table + 16 * number, flags = u16(at + (setting.packed ? 14 : 12));
      return { [key]: number, address: u32(at), length: u32(at + 8), device_writes: Boolean(flags & 2), next: Boolean(flags & 1), progress: progress(number), flags, id: u16(at + 12) };
    };
    const queue = { queue: 1, name: "transmit", size: SIZE, rows: SIZE, outstanding: ahead(count.shown), changed: [], written: [], read: [], count };
    const place = word => ({ index: word & 0x7fff, wrap: word >> 15 });
    if (setting.packed) {
      const event = at => ({ place: place(u16(at)), flags: u16(at + 2) & 3 });
      const lap = number => place(number % SIZE | (Math.floor(number / SIZE) % 2 ? 0 : 0x8000));
      return { ...queue, format: "packed", descriptors: slots.map(slot => descriptor(slot, "place")).map(d => ({ ...d, avail: Boolean(d.flags & 0x80), used: Boolean(d.flags & 0x8000) })),
        driver_event: event(driver), device_event: event(device), next_avail: place(count.next), next_used: lap(count.used) };
    }
    const events = at => setting.events ? u16(at) : undefined;
    return { ...queue, format: "split", descriptors: slots.map(slot => descriptor(slot, "number")),
      avail: { flags: u16(driver), idx: u16(driver + 2), entries: slots.map(slot => ({ slot, head: u16(driver + 4 + 2 * slot) })), used_event: events(driver + 4 + 2 * SIZE) },
      used: { flags: u16(device), idx: u16(device + 2), entries: slots.map(slot => ({ slot, id: u32(device + 4 + 8 * slot), length: u32(device + 8 + 8 * slot) })), avail_event: events(device + 4 + 8 * SIZE) } };
  }
  // The parts of a ring with their values, as text: what differs was changed.
  function parts(queue) {
    const word = value => JSON.stringify(value) ?? "";
    const fields = (entries, key, names) => entries.flatMap(entry => names.map(([field, part]) => [{ [part]: entry[key] }, word(entry[field])]));
    if (queue.format === "packed") return [
      ...fields(queue.descriptors, "place", [["address", "descriptor-address"], ["length", "descriptor-length"], ["id", "descriptor-id"], ["flags", "descriptor-flags"]]),
      ["driver-event", word(queue.driver_event)], ["device-event", word(queue.device_event)], ["next-avail", word(queue.next_avail)], ["next-used", word(queue.next_used)]];
    const { avail, used } = queue;
    return [
      ...fields(queue.descriptors, "number", [["address", "descriptor-address"], ["length", "descriptor-length"], ["flags", "descriptor-flags"]]),
      ["avail-flags", word(avail.flags)], ["avail-index", word(avail.idx)], ["used-event", word(avail.used_event)], ...fields(avail.entries, "slot", [["head", "avail-entry"]]),
      ["used-flags", word(used.flags)], ["used-index", word(used.idx)], ["avail-event", word(used.avail_event)], ...fields(used.entries, "slot", [["id", "used-entry"]])];
  }
  const changes = (queue, old) => {
    const values = parts(old);
    return parts(queue).filter(([, value], i) => value !== values[i][1]).map(([part]) => part);
  };

  // Whether `event` lies in `old .. new`, the way the specification counts it.
  const need = (event, fresh, old) => [wrapped(fresh - event - 1), wrapped(fresh - old)];
  const formula = (name, event, fresh, old) => {
    const [left, right] = need(event, fresh, old);
    return el("code", {}, `${name} = ${event}: (${fresh} − ${event} − 1) mod 65536 = ${left} ${left < right ? "<" : "≥"} (${fresh} − ${old}) mod 65536 = ${right}`);
  };
  const position = ({ index, wrap }) => `descriptor ${index}, wrap counter ${wrap}`;

  // Why the device is to be kicked or not, from what it has said.
  function whyKick(queue, old) {
    if (setting.packed) {
      const event = queue.device_event;
      return event.flags === 2 ? [`The device asked to be told at ${position(event.place)}; the driver went from descriptor ${old.shown % SIZE} up to ${position(queue.next_avail)}.`]
        : [`The device’s event suppression flags are ${event.flags}: ${EVENT_NAMES[event.flags]}.`];
    }
    return setting.events ? [formula("avail_event", queue.used.avail_event, queue.count.shown, old.shown)] : [`The used ring’s flags are ${queue.used.flags}: ${queue.used.flags & 1 ? "no kicks, please" : "kicks are welcome"}.`];
  }
  // Why the device has interrupted or not.
  function whyInterrupt(queue, old) {
    if (setting.packed) {
      const event = queue.driver_event;
      return event.flags === 2 ? [`The driver asked for an interrupt at ${position(event.place)}; the device used ${frames(wrapped(queue.count.used - old.used))} from descriptor ${old.used % SIZE} on.`]
        : [`The driver’s event suppression flags are ${event.flags}: ${EVENT_NAMES[event.flags]}.`];
    }
    return setting.events ? [formula("used_event", queue.avail.used_event, queue.count.used, old.used)] : [`The available ring’s flags are ${queue.avail.flags}: ${queue.avail.flags & 1 ? "no interrupts, please" : "interrupts are welcome"}.`];
  }

  const told = (title, section, text, why = [], read = []) => ({ title, section, text, why, read });
  const either = (split, packed) => setting.packed ? packed : split;
  const device = () => either("used", "device");

  // Every step: who takes it, its name, and what it does and says.
  const STEPS = {
    add: ["driver", "Add a frame", old => {
      const slot = old.added % SIZE;
      if (!wasm.add(FRAME)) return told("The ring is full", either("2.7.13.1 Placing Buffers Into The Descriptor Table", "2.8.21.1 Placing Available Buffers Into The Descriptor Ring"), "Every descriptor is the device’s, or used and not taken back. The driver takes used frames back before it adds another.");
      const first = old.added === old.shown;
      return told(`Frame added in descriptor ${slot}`, either("2.7.13.1 Placing Buffers Into The Descriptor Table", "2.8.21.1 Placing Available Buffers Into The Descriptor Ring"),
        either("The driver wrote the frame’s length. Address and available entry have stood there since the ring was made: slot, descriptor and entry are one number in this driver.",
          first ? "The driver wrote address and length, and leaves the flags for last: this is the first since it published, and makes all behind it available at once." : "The driver wrote the whole descriptor with its flags. The device goes in order and does not come to it before the first of them is available."),
        "The device cannot see it yet.");
    }],
    publish: ["driver", "Publish", old => {
      const answer = wasm.publish();
      const section = either("2.7.13.3 Updating idx", "2.8.21.1.1 Driver Requirements: Updating flags");
      if (!answer) return told("Nothing to publish", section, "No frame was added since the last time.");
      owed = answer === 2;
      const queue = look(), count = wrapped(queue.count.shown - old.shown);
      return told(owed ? `${frames(count)} published: a kick is needed` : `${frames(count)} published: no kick is needed`, section,
        either(`The driver stored idx ${queue.count.shown}, after the entries, and then read what the device wants to hear of, with a full barrier between.`,
          `The driver stored the flags of descriptor ${old.shown % SIZE}, after everything else, and then read what the device wants to hear of, with a full barrier between.`),
        whyKick(queue, old), [setting.packed ? "device-event" : setting.events ? "avail-event" : "used-flags"]);
    }],
    kick: ["driver", "Kick", old => {
      wasm.kick();
      const was = owed;
      owed = false;
      const why = was ? "The device had asked for it." : old.awake ? "The device is awake anyway and had not asked: this exit was not needed." : old.shown === old.taken ? "There is nothing new for the device: this exit was not needed." : "The device had not asked: this exit was not needed, though it wakes the device.";
      return told("The doorbell was rung", either("2.7.13.4 Notifying The Device", "2.8.21.2 Sending Available Buffer Notifications"), "One write of the queue’s number to the notify register: the one instruction that leaves the virtual machine.", why);
    }],
    one: ["device", "Use one frame", old => ran(old, 1)],
    all: ["device", "Use all, then sleep", old => ran(old, SIZE)],
    later: ["device", "Ask for a kick at the third frame", () => {
      wasm.ask_after(2);
      const queue = look();
      return told(setting.events ? "The device asks for a later kick" : "The device asks for kicks", either("2.7.10 Available Buffer Notification Suppression", "2.8.10 Driver and Device Event Suppression"),
        !setting.events ? "Without EVENT_IDX it can only say yes or no: at the next frame." : either(`It wrote avail_event ${queue.used?.avail_event}: the first two frames from now need no kick.`, `It named ${setting.packed ? position(queue.device_event.place) : ""}: the first two frames from now need no kick.`));
    }],
    take: ["driver", "Take used frames back", old => {
      const count = wasm.take_back(SIZE), section = either("2.7.14 Receiving Used Buffers From The Device", "2.8.22 Receiving Used Buffers From The Device");
      if (count > SIZE) return told("The ring is broken", section, "The device used what it was not given.");
      if (!count) return told("No used frame", section, "The device has given nothing back that the driver has not taken.");
      return told(`${frames(count)} taken back`, section, either(`The driver read the used ring’s idx, and then each element: descriptors ${old.back % SIZE} and on are its own again.`, `The driver found both marks of descriptor ${old.back % SIZE} equal to its wrap counter, and so on: these descriptors are its own again.`), [], either(["used-index"], []));
    }],
    mask: ["driver", "Disable interrupts", () => {
      wasm.disable_interrupts();
      return told("No interrupts, please", either("2.7.7 Used Buffer Notification Suppression", "2.8.10 Driver and Device Event Suppression"),
        either(setting.events ? "With EVENT_IDX there is no flag to ask by: used_event goes where the device has just been, and will not come again for 65535 frames." : "The driver set its flag: a device may still interrupt, this one does not.", "The driver’s event suppression says never."));
    }],
    enable: ["driver", "Enable interrupts", old => enabled(old, 0)],
    delayed: ["driver", "Enable, after three frames", old => enabled(old, 2)],
    jump: ["both", "Go to the 16-bit wrap", old => {
      const count = wrapped(NEAR - old.added);
      wasm.jump(NEAR);
      owed = false;
      return told("Just before the wrap", either("2.7.13.3 Updating idx", "2.8.1 Driver and Device Ring Wrap Counters"), `${whole(count)} frames went through the ring, all taken back and none counted. The index is ${NEAR}: add and publish three frames and watch it go to 65535, 0 and 1.`,
        either("The index is never reduced to the ring’s size, only its place in the ring is.", "A packed ring has no such index: its wrap counter turns over every eight descriptors, and here after two."));
    }],
    fresh: ["both", "New ring", () => null],
  };

  function ran(old, most) {
    const answer = wasm.run(most), queue = look(), section = either("2.7.13.4 Notifying The Device", "2.8.21.2 Sending Available Buffer Notifications");
    if (!answer) {
      const waiting = wrapped(old.shown - old.taken);
      return told("The device sleeps", section, "Nobody has told it anything since it went to sleep, so it does not look.",
        !waiting ? "Nothing waits for it either." : owed ? `${frames(waiting)} will wait until somebody kicks: this is a lost kick.` : `${frames(waiting)} will wait until the driver gets to where the device wants to be told.`);
    }
    const count = answer >> 8, interrupted = Boolean(answer & 2), asleep = Boolean(answer & 4);
    if (count) owed = owed && !asleep;
    const slept = asleep ? either(setting.events ? `It found no more, wrote avail_event ${queue.used?.avail_event}, looked again and went to sleep.` : "It found no more, cleared its flag, looked again and went to sleep.", "It found no more, asked in its event suppression for the next, looked again and went to sleep.") : "It is awake and will look for more.";
    if (!count) return told("The device found nothing more", section, slept);
    const title = interrupted ? `${frames(count)} used, and an interrupt` : `${frames(count)} used, no interrupt`;
    return told(title, either("2.7.8 The Virtqueue Used Ring", "2.8.1 Driver and Device Ring Wrap Counters"),
      [either(`The device wrote ${count === 1 ? "an element" : `${count} elements`} into the used ring and then idx ${queue.count.used}.`, "The device overwrote the descriptors that it had read, with both marks set to its wrap counter."), " ", slept], whyInterrupt(queue, old),
      [setting.packed ? "driver-event" : setting.events ? "used-event" : "avail-flags"]);
  }
  function enabled(old, more) {
    const there = wasm.enable_interrupts(more), queue = look();
    const wish = setting.events ? either(`It wrote used_event ${queue.avail?.used_event} and looked again.`, `It named ${setting.packed ? position(queue.driver_event.place) : ""} and looked again.`) : "It cleared its flag and looked again.";
    const room = more && wrapped(old.shown - old.back) <= more ? "The device has fewer than three, so it is the last of those." : [];
    return told(there ? "Frames are used already" : "An interrupt will come", either("2.7.7 Used Buffer Notification Suppression", "2.8.10 Driver and Device Event Suppression"), [wish, " ", room],
      there ? "They were used before the device could know of the wish: no interrupt comes for them. A driver that slept now would sleep on; it takes them back first." : setting.events ? [] : "Without EVENT_IDX it comes with the next used frame, whatever was asked.", [setting.packed ? [] : "used-index"].flat());
  }

  function act(name) {
    if (!wasm) return;
    if (name === "fresh") { start(); return; }
    const old = now();
    before = look();
    const report = STEPS[name][2](old);
    done.unshift([name, report.title]);
    draw(report);
  }

  function draw(report) {
    const queue = look(), { count } = queue;
    queue.changed = before ? changes(queue, before) : [];
    queue.read = report.read.filter(part => !queue.changed.includes(part));
    $("happened").dataset.done = done.length;
    fill("happened", el("h3", {}, report.title), el("p", {}, report.text), el("p", {}, report.why), el("p", { class: "quiet" }, `Specification 1.2: ${report.section}.`));
    fill("counts", [["kicks", count.kicks], ["kicks not needed", count.suppressed], ["interrupts", count.interrupts], ["the device", count.awake ? "awake" : "asleep"]].map(([name, value]) => [el("dt", {}, name), el("dd", {}, typeof value === "number" ? whole(value) : value)]));
    fill("queue", el("div", { class: "queue-head" }, el("h2", { id: "h-queue" }, "The ring, as it lies in memory"), el("small", {}, `${queue.format}, ${SIZE} descriptors`)),
      el("div", { class: "vq" + (setting.packed ? " packed" : "") }, setting.packed ? packed(queue) : split(queue)), dial(queue),
      el("p", { class: "note" }, el("span", { class: "key lit" }, "changed"), " by this step, ", el("span", { class: "key looked" }, "read"), " by it."));
    fill("log", done.slice(0, SHOWN).map(([name, title]) => el("li", {}, el("b", {}, STEPS[name][1]), ": ", title)));
    for (const button of document.querySelectorAll("[data-step]")) button.classList.toggle("wanted", owed && button.dataset.step === "kick");
  }

  const by = (who, title, names, fill) => el("div", { class: "by", style: `--c:var(--${fill});--c-text:var(--${who})` }, el("h3", {}, title), el("div", {}, names.map(name => el("button", { type: "button", "data-step": name, onclick: () => act(name) }, STEPS[name][1]))));
  const choose = (id, key, choices) => fill(id, choices.map(([value, name]) => el("button", { type: "button", "aria-pressed": String(setting[key] === value), onclick: () => {
    setting[key] = value;
    start();
    $(id).querySelector("[aria-pressed=true]").focus();
  } }, name)));
  const of = who => Object.keys(STEPS).filter(name => STEPS[name][0] === who);

  // A new ring in a new module: its memory is all its own.
  async function start() {
    choose("layouts", "packed", [[false, "split"], [true, "packed"]]);
    choose("modes", "events", [[true, "EVENT_IDX"], [false, "flags"]]);
    wasm = null;
    wasm = (await WebAssembly.instantiate(await module)).exports;
    if (!wasm.open(SIZE, setting.packed, setting.events)) throw new Error("no ring");
    before = null, owed = false, done = [];
    draw(told("A new ring", either("2.7 Split Virtqueues", "2.8 Packed Virtqueues"), "Driver and device have agreed on where it lies. The device sleeps and wants to be told of the first frame; the driver wants an interrupt for it. Add a frame, publish it, kick."));
  }

  fill("buttons", el("div", { class: "sides" }, by("driver", "The driver", of("driver"), "driver-fill"), by("device", "The device", of("device"), "device-fill")), by("quiet", "Both", of("both"), "track"));
  fill("try", [
    "Add, publish, and let the device use all, without a kick. Then kick.",
    "Add three frames, publish once, kick once: how many exits is that a frame?",
    "Kick, let the device use one frame, and add and publish another while it is awake: is a kick needed?",
    "Disable interrupts, send two frames, and enable interrupts again: what does the driver learn?",
    "Go to the wrap and send three frames. Would a plain comparison of the numbers have kicked each time?",
    "The same with flags instead of EVENT_IDX, and in the other layout: which exits come on top?",
  ].map(text => el("li", {}, explained(text))));
  fill("footer", el("p", {}, "The driver’s queue is kernel/virtio-net, compiled to WebAssembly; the device’s end is boot/ring-lab. Made by ", el("code", {}, data.command), ` (Kickpath ${data.version}).`));
  // For a browser's console: the ring as it lies in memory.
  globalThis.ring = look;
  start();
}
