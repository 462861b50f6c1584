// ---- live: one's own pictures, and what changes without an attention or without positions ---------------------------

const live = { file: null, token: new URLSearchParams(location.search).get("token"), hidden: null, asked: "{}", asking: false };

async function ask(changes) {
  const headers = live.token ? { Authorization: `Bearer ${live.token}` } : {};
  const response = await fetch(`look?${new URLSearchParams(changes)}`, { method: "POST", body: live.file, headers });
  const answer = await response.json().catch(() => ({ detail: `${response.status} ${response.statusText}` }));
  if (!response.ok) throw new Error(answer.detail);
  return answer;
}

// Runs something that asks the server, and shows why it failed.
async function trying(text, work) {
  $("busy").textContent = text;
  $("drop-text").textContent = text;
  live.asking = true;
  $("trouble").hidden = true;
  try {
    await work();
  } catch (error) {
    $("trouble").textContent = error instanceof TypeError ? "The server does not answer." : error.message;
    $("trouble").hidden = false;
  }
  live.asking = false;
  $("busy").textContent = "";
  $("drop-text").textContent = "Drop another picture here, or click to choose one.";
}

async function openPicture(file) {
  if (!file || live.asking) return;
  await trying(`Looking at ${file.name} …`, async () => {
    if (file.size > page.live.megabytes * 1e6) throw new Error(`The picture has more than ${page.live.megabytes} MB (limits.megabytes).`);
    const before = live.file;
    live.file = file;
    const answer = await ask({}).catch((error) => { live.file = before; throw error; });
    page.pictures = [{ name: file.name, image: answer.image, size: answer.size, pins: [], looks: [answer.look] }];
    page.models.length = 1;
    page.models[0].facts = String(answer.original) === String(answer.size) ? "" : `reduced from ${answer.original.join(" × ")} to ${answer.size.join(" × ")} pixels`;
    Object.assign(live, { hidden: null, asked: "{}" });
    Object.assign(state, { model: 0, point: null, channel: 0 });
    for (const box of $("off").querySelectorAll("input")) box.checked = false;
    await choose(0);
    $("painting").hidden = !grid();
    $("changes").hidden = false;
    document.body.classList.remove("empty");
    showAll();
  });
}

// The module whose positions can be hidden.
const grid = () => looks()[0].position.find(({ name }) => page.live.modules[name]);

function changesAsked() {
  const off = [...$("off").querySelectorAll("input:checked")].map(({ value }) => value), changes = {};
  if (off.length) changes.off = off.join(",");
  if (live.hidden?.includes(1)) {
    const bytes = new Uint8Array(Math.ceil(live.hidden.length / 8));
    live.hidden.forEach((bit, i) => { bytes[i >> 3] |= bit << (7 - (i & 7)); });
    changes.hidden = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")).replaceAll("+", "-").replaceAll("/", "_");
    changes.positions = live.hidden.length;
    if ($("readers").value === "pins") changes.readers = state.pins.map((pin) => cellOf(grid(), pin)).join(",");
  }
  return changes;
}

const described = (changes) => [
  ...(changes.off ? [`without ${changes.off.replaceAll(",", ", ")}`] : []),
  ...(changes.hidden ? [`${live.hidden.reduce((a, b) => a + b)} of ${live.hidden.length} positions hidden${changes.readers ? " for the pins" : ""}`] : []),
].join("; ");

// Shows the changed model beside the trained one, as long as something is asked for that is not shown yet.
async function applyChanges() {
  if (!live.file || live.asking || state.painting === "down") return;
  const changes = changesAsked(), asked = JSON.stringify(changes);
  if ("readers" in changes && !changes.readers) { $("busy").textContent = "Pin a position first."; return; }
  if (asked === live.asked) return;
  live.asked = asked;
  let seen = null;
  await trying("Looking again …", async () => { if (asked !== "{}") seen = await unpackedLook((await ask(changes)).look); });
  if (seen && state.layer === "none") {
    state.layer = "change";
    $("heat-strength").value = 0;
  }
  picture().looks.length = page.models.length = 1;
  if (seen) {
    picture().looks.push(seen);
    page.models.push({ name: "changed", facts: described(changes) });
  }
  state.model = page.models.length - 1;
  await choose(0);
  showAll();
  await applyChanges();
}

function paintAt(event, point) {
  if (!(event.buttons & 1)) return;
  const module = grid(), [h, w] = module.size, cell = cellOf(module, point), reach = Number($("brush").value);
  live.hidden = live.hidden || new Uint8Array(h * w);
  if (state.painting !== "down") live.bit = 1 - live.hidden[cell]; // painting begun on a hidden cell shows again
  state.painting = "down";
  for (let y = Math.max(0, Math.floor(cell / w) - reach); y <= Math.min(h - 1, Math.floor(cell / w) + reach); y++) {
    for (let x = Math.max(0, (cell % w) - reach); x <= Math.min(w - 1, (cell % w) + reach); x++) live.hidden[y * w + x] = live.bit;
  }
  drawPaint();
}

function drawPaint() {
  for (const { paint } of stages) paint.hidden = !live.hidden?.includes(1);
  if (stages[0].paint.hidden) return;
  const [height, width] = picture().size, image = new ImageData(width, height), module = grid();
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (live.hidden[cellOf(module, [y, x])]) image.data.set((x + y) & 4 ? [255, 60, 90, 210] : [40, 0, 10, 210], 4 * i);
    }
  }
  for (const { paint } of stages) put(paint, image);
}

function setPainting(on) {
  state.painting = on;
  $("paint").setAttribute("aria-pressed", String(on));
  document.body.classList.toggle("painting", on);
}

function startLive() {
  $("off").replaceChildren(...Object.keys(page.live.modules).map((name) => element("label", {},
    element("input", { type: "checkbox", value: name, change: applyChanges }), `without ${name}`)));
  $("file").addEventListener("change", () => { openPicture($("file").files[0]); $("file").value = ""; });
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    openPicture(event.dataTransfer.files[0]);
  });
  $("paint").addEventListener("click", () => setPainting(!state.painting));
  addEventListener("pointerup", () => { if (state.painting === "down") { state.painting = true; applyChanges(); } });
  $("readers").addEventListener("change", applyChanges);
  $("clear").addEventListener("click", () => {
    live.hidden = null;
    for (const box of $("off").querySelectorAll("input")) box.checked = false;
    drawPaint();
    applyChanges();
  });
}
