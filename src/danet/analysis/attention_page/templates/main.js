// ---- state, events, permalink ----------------------------------------------------------------------------------------

const page = JSON.parse($("data").textContent);
const scales = { inferno: colorScale("inferno"), viridis: colorScale("viridis") };
const state = { picture: 0, model: 0, point: null, pins: [], direction: "row", layer: "none", module: "", channel: 0, scale: "0.5" };
const MOST_PINS = PIN_COLORS.length;
let stages = []; // the elements of each model's picture

const picture = () => page.pictures[state.picture];
const looks = () => picture().looks;
const look = () => looks()[state.model]; // of the model that the numbers are about
const modelName = (index) => page.models[index].name;
const moduleOf = (of) => of.position.find(({ name }) => name === state.module) || of.position[0];
const anyModule = () => moduleOf(look()) || looks().map(moduleOf).find(Boolean);
const inside = (point) => point.length === 2 && point.every((at, axis) => Number.isInteger(at) && at >= 0 && at < picture().size[axis]);

function weightsAt(module, point) {
  const key = `${state.direction} ${cellOf(module, point)}`;
  if (module.last?.key !== key) module.last = { key, weights: (state.direction === "row" ? row : column)(module, cellOf(module, point)) };
  return module.last.weights;
}

function remember() {
  const parts = { p: state.point, pins: state.pins.map((pin) => pin.join(",")).join(";"), v: state.direction, l: state.layer };
  Object.assign(parts, { b: $("blend").value, s: state.scale, m: state.module, c: state.channel, i: state.picture, a: state.model });
  const hash = Object.entries(parts).filter(([, value]) => value !== null && value !== "").map(([key, value]) => `${key}=${encodeURIComponent(value)}`);
  history.replaceState(null, "", `#${hash.join("&").replaceAll("%2C", ",").replaceAll("%3B", ";")}`);
}

async function recall() {
  const parts = new URLSearchParams(location.hash.slice(1)), point = (text) => text.split(",").map(Number);
  const among = (key, allowed, otherwise) => (allowed.includes(parts.get(key)) ? parts.get(key) : otherwise);
  const index = (key, count) => Math.max(0, [...Array(count).keys()].findIndex((at) => String(at) === parts.get(key)));
  await choose(index("i", page.pictures.length));
  state.model = index("a", looks().length);
  if (parts.has("pins")) state.pins = picture().pins = parts.get("pins").split(";").map(point).filter(inside).slice(0, MOST_PINS);
  if (parts.has("p") && inside(point(parts.get("p")))) state.point = point(parts.get("p"));
  state.direction = among("v", ["row", "column"], "row");
  state.layer = among("l", layersThere(), "none");
  state.scale = among("s", ["0.5", "1", "0.25"], "0.5");
  state.module = parts.get("m") || "";
  const channel = Number(parts.get("c"));
  if (Number.isInteger(channel) && channel >= 0) state.channel = channel;
  const blend = Number(parts.get("b") || 60);
  if (blend >= 0 && blend <= 100) $("blend").value = blend;
  showAll();
}

// ---- show ------------------------------------------------------------------------------------------------------------

// Makes a picture the one shown. What models saw in it is unpacked when it is first needed.
async function choose(index) {
  const chosen = page.pictures[index];
  chosen.looks = await Promise.all(chosen.looks.map(async (packed) => (packed.ready ? packed : unpackedLook(packed))));
  state.picture = index;
  state.pins = chosen.pins;
  state.model = Math.min(state.model, chosen.looks.length - 1);
  if (!state.point || !inside(state.point)) state.point = chosen.pins.length ? null : looks()[0].start;
  buildStages();
  await Promise.all(stages.map((stage) => stage.photo.decode()));
}

async function unpackedLook(packed) {
  const of = await unpacked(packed);
  for (const module of of.position) Object.assign(module, { pixels: of.size, align: of.align_corners });
  return { ...of, ready: true };
}

function buildStages() {
  const [height, width] = picture().size;
  document.documentElement.style.setProperty("--ratio", width / height);
  stages = looks().map((_, index) => {
    const photo = element("img", { class: "photo", src: picture().image, alt: picture().name });
    const [layer, heat, paint] = ["layer", "heat", "paint"].map((name) => element("canvas", { class: name, "aria-hidden": "true" }));
    const marks = element("svg", { class: "marks", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    const several = looks().length > 1, label = "The image. Arrow keys move the position by a cell.";
    const box = element("div", { class: "stage", tabindex: 0, role: "application", "aria-describedby": "keys",
      "aria-label": several ? `${modelName(index)}. ${label}` : label }, photo, layer, heat, paint, marks);
    const bar = element("canvas", { class: "color-bar", "aria-hidden": "true" }), largest = element("span"), here = element("span", { class: "muted" });
    const scale = element("span", { class: "scale-bar muted" }, element("span", {}, "0"), bar, largest);
    const heading = several ? element("h2", { class: "model-name" }, modelName(index), element("span", { class: "muted small facts" }, page.models[index].facts)) : null;
    const notes = element("p", { class: "muted small" }, notesOn(index));
    const view = element("div", { class: "view" }, heading, box, element("div", { class: "below" }, scale, here), notes);
    drawColorBar(bar);
    listenTo(box, index);
    return { view, photo, layer, heat, paint, marks, box, scale, largest, here };
  });
  $("stages").replaceChildren(...stages.map(({ view }) => view));
  $("stages").dataset.count = stages.length;
}

// Under a model's picture: what it lacks, how often it is right, how much it differs from the first.
function notesOn(index) {
  const { missing, position, layers: { prediction, truth } } = looks()[index], notes = [...missing], first = looks()[0].layers.prediction;
  if (!position.length && !missing.length) notes.push("The model has no position attention to show.");
  if (truth && looks().length > 1) {
    let right = 0, counted = 0;
    truth.forEach((at, i) => { counted += at !== 255; right += at === prediction[i]; });
    notes.push(`${percent(right / (counted || 1))} of the pixels are right.`);
  }
  if (index) {
    const turned = new Map();
    prediction.forEach((at, i) => { if (at !== first[i]) turned.set(256 * first[i] + at, (turned.get(256 * first[i] + at) || 0) + 1); });
    const pairs = [...turned].sort((a, b) => b[1] - a[1]), share = (count) => percent(count / prediction.length);
    const most = pairs.slice(0, 3).map(([pair, count]) => `${className(pair >> 8)} → ${className(pair & 255)} ${share(count)}`);
    notes.push(`${share(pairs.reduce((sum, [, count]) => sum + count, 0))} of the pixels differ from ${modelName(0)}${most.length ? `: ${most.join(", ")}` : ""}.`);
  }
  return notes.map((note) => note.replace(/[^.]$/, "$&.")).join(" ");
}

function drawColorBar(canvas) {
  const bar = new ImageData(128, 8);
  for (let i = 0; i < bar.data.length; i++) bar.data[i] = i % 4 === 3 ? 255 : scales.inferno[3 * Math.round(51 + ((i >> 2) % 128) * 1.6) + (i % 4)];
  put(canvas, bar);
}

function showMarks() {
  const radius = 0.014 * Math.max(...picture().size);
  const ring = ([y, x], color, r) => [element("circle", { cx: x + 0.5, cy: y + 0.5, r, class: "ring-shadow" }),
    element("circle", { cx: x + 0.5, cy: y + 0.5, r, class: "ring", stroke: color })];
  for (const { marks } of stages) {
    marks.replaceChildren(...state.pins.flatMap((pin, index) => ring(pin, rgb(PIN_COLORS[index]), radius)),
      ...(state.point ? ring(state.point, "white", 1.5 * radius) : []));
  }
}

function showPins(note = "") {
  $("pins").replaceChildren(...state.pins.map((pin, index) => {
    const name = className(looks()[0].layers.prediction[pin[0] * picture().size[1] + pin[1]]), dot = element("span", { class: "dot" });
    dot.style.background = rgb(PIN_COLORS[index]);
    return element("span", { class: "chip" }, element("button", { type: "button", click: () => moveTo(pin) }, dot, `${index + 1} ${name}`),
      element("button", { type: "button", "aria-label": `Remove pin ${index + 1}`, click: () => unpin(index) }, "×"));
  }), state.pins.length > 1 ? element("button", { type: "button", click: () => moveTo(null) }, "All pins") : "",
    element("span", { class: "muted", role: "status" }, note));
  if (page.live) applyChanges();
}

function showStrip() {
  $("strip").hidden = page.pictures.length < 2;
  $("strip").replaceChildren(...page.pictures.map(({ name, image }, index) => element("button", {
    type: "button", class: "crop", title: name, "aria-pressed": String(index === state.picture), click: () => turnTo(index),
  }, element("img", { src: image, alt: "" }), element("span", {}, name))));
}

let waiting = false;
function show() {
  remember();
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; showNow(); });
}

function showNow() {
  showMarks();
  for (const name of ["row", "column"]) $(name).setAttribute("aria-checked", String(state.direction === name));
  const point = state.point || state.pins.at(-1), together = !state.point && state.pins.length > 1;
  $("all-pins").hidden = !together || !anyModule();
  looks().forEach((each, index) => {
    const module = moduleOf(each), stage = stages[index], at = point[0] * each.size[1] + point[1];
    stage.view.toggleAttribute("data-active", index === state.model && stages.length > 1);
    stage.here.textContent = `${className(each.layers.prediction[at])}, row ${point[0]}, column ${point[1]}`;
    stage.heat.hidden = !module;
    stage.scale.hidden = !module || together;
    if (!module) return;
    if (together) return drawPins(stage.heat, state.pins.map((pin) => weightsAt(module, pin)), PIN_COLORS, module);
    const weights = weightsAt(module, point);
    stage.largest.textContent = percent(brightest(weights));
    drawHeat(stage.heat, weights, module);
  });
  const module = moduleOf(look());
  $("details").hidden = !module;
  if (module) showPanel(module, point, weightsAt(module, point));
  else {
    $("of-model").textContent = looks().length > 1 ? modelName(state.model) : "";
    $("title").textContent = className(look().layers.prediction[point[0] * look().size[1] + point[1]]);
  }
  showModels(point);
}

function showLayer() {
  $("layer").value = state.layer;
  $("blend-label").hidden = state.layer === "none";
  showLegend($("legend"), state.layer);
  stages.forEach((stage, index) => {
    drawLayer(stage.layer, looks()[index], state.layer);
    stage.layer.style.opacity = $("blend").value / 100;
    stage.heat.style.opacity = $("heat-strength").value / 100;
  });
  show();
}

// Everything, after another picture or other models.
function showAll() {
  const names = [...new Set(looks().flatMap(({ position }) => position.map(({ name }) => name)))], none = !names.length;
  if (!layersThere().includes(state.layer)) state.layer = "none";
  $("layer").replaceChildren(...layersThere().map((name) => element("option", { value: name }, LAYER_NAMES[name])));
  $("module").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  $("module-choice").hidden = names.length < 2;
  if (!names.includes(state.module)) state.module = names[0] || "";
  $("module").value = state.module;
  $("scale").value = state.scale;
  for (const id of ["weights-controls", "heat-label", "scale-label"]) $(id).hidden = none;
  $("name").textContent = picture().name;
  $("facts").textContent = page.models.length > 1 ? "" : page.models[0].facts;
  showStrip();
  showPins();
  showLayer();
  showChannels();
  if (page.live) drawPaint();
}

// ---- change ----------------------------------------------------------------------------------------------------------

function moveTo(point) { state.point = point; show(); }

async function turnTo(index) {
  await choose((index + page.pictures.length) % page.pictures.length);
  showAll();
}

function activate(index) {
  if (index === state.model) return;
  state.model = index;
  showChannels();
  show();
}

function pin(point) {
  const module = anyModule();
  if (!point || !module) return;
  const index = state.pins.findIndex((other) => cellOf(module, other) === cellOf(module, point));
  if (index >= 0) return unpin(index);
  if (state.pins.length === MOST_PINS) return showPins(`At most ${MOST_PINS} pins; remove one.`);
  state.pins.push(point);
  showPins();
  show();
}

function unpin(index) {
  if (index < 0) return;
  state.pins.splice(index, 1);
  if (!state.point && !state.pins.length) state.point = look().start;
  showPins();
  show();
}

function moveBy(rows, columns) {
  const module = anyModule();
  if (!module) return;
  const index = cellOf(module, state.point || state.pins.at(-1)), [h, w] = module.size;
  const y = Math.min(h - 1, Math.max(0, Math.floor(index / w) + rows)), x = Math.min(w - 1, Math.max(0, (index % w) + columns));
  moveTo(centerOf(module, y * w + x).map((at) => Math.floor(at + 0.5)));
}

function pointOf(event, box) {
  const { left, top, width, height } = box.getBoundingClientRect(), parts = [(event.clientY - top) / height, (event.clientX - left) / width];
  return parts.map((part, axis) => Math.min(picture().size[axis] - 1, Math.max(0, Math.floor(part * picture().size[axis]))));
}

function onKey(event) {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const actions = {
    Enter: () => pin(state.point), " ": () => pin(state.point), Delete: () => unpin(state.pins.length - 1), Backspace: () => unpin(state.pins.length - 1),
    Escape: () => state.pins.length && moveTo(null), s: () => turn(state.direction === "row" ? "column" : "row"),
    l: () => { const names = layersThere(); state.layer = names[(names.indexOf(state.layer) + 1) % names.length]; showLayer(); },
    n: () => turnTo(state.picture + 1), p: () => turnTo(state.picture - 1),
  };
  const action = event.key in moves ? () => moveBy(...moves[event.key]) : actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
}

function turn(direction) { state.direction = direction; show(); }

// ---- start -----------------------------------------------------------------------------------------------------------

function listenTo(box, index) {
  let down = null;
  const at = (event) => pointOf(event, box);
  box.addEventListener("pointermove", (event) => { activate(index); if (state.painting) paintAt(event, at(event)); else moveTo(at(event)); });
  box.addEventListener("pointerdown", (event) => {
    if (state.painting) return paintAt(event, at(event));
    down = [event.clientX, event.clientY];
    moveTo(at(event));
  });
  box.addEventListener("pointerup", (event) => {
    if (down && Math.hypot(event.clientX - down[0], event.clientY - down[1]) < 6) pin(at(event));
    down = null;
  });
  box.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse" && state.pins.length && !state.painting) moveTo(null); });
  box.addEventListener("focus", () => activate(index));
  box.addEventListener("keydown", onKey);
}

function listen() {
  for (const name of ["row", "column"]) $(name).addEventListener("click", () => turn(name));
  $("layer").addEventListener("change", () => { state.layer = $("layer").value; showLayer(); });
  $("module").addEventListener("change", () => { state.module = $("module").value; show(); });
  $("scale").addEventListener("change", () => { state.scale = $("scale").value; show(); });
  for (const id of ["blend", "heat-strength"]) $(id).addEventListener("input", showLayer);
  $("save").addEventListener("click", save);
  $("theme").addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.documentElement.dataset.theme = theme === "dark" ? "light" : "dark";
  });
  addEventListener("hashchange", () => { if (page.pictures.length) recall(); });
  listenToChannels();
}

listen();
if (page.live) startLive();
if (page.pictures.length) await recall();
window.attentionPage = { page, state, picture, looks, row, column, statistics, cellOf, centerOf, channelRow, enlarged };
document.documentElement.dataset.ready = "true";
