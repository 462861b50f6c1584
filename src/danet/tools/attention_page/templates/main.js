// ---- state, events, permalink ----------------------------------------------------------------------------------------

const page = await unpacked(JSON.parse($("data").textContent));
const scales = { inferno: colorScale("inferno"), viridis: colorScale("viridis") };
const state = { point: null, pins: page.pins, direction: "row", layer: "none", module: 0, channel: 0, scale: "0.5" };
const MOST_PINS = PIN_COLORS.length;
const moduleNow = () => page.position[state.module];
const weightsAt = (point) => (state.direction === "row" ? row : column)(moduleNow(), cellOf(moduleNow(), point));
const inside = (point) => point.length === 2 && point.every((at, axis) => Number.isInteger(at) && at >= 0 && at < page.size[axis]);

function remember() {
  const parts = { p: state.point, pins: state.pins.map((pin) => pin.join(",")).join(";"), v: state.direction, l: state.layer };
  Object.assign(parts, { b: $("blend").value, s: state.scale, m: state.module, c: state.channel });
  const hash = Object.entries(parts).filter(([, value]) => value !== null && value !== "").map(([key, value]) => `${key}=${value}`).join("&");
  history.replaceState(null, "", `#${hash}`);
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1)), point = (text) => text.split(",").map(Number);
  const among = (key, allowed, otherwise) => (allowed.includes(parts.get(key)) ? parts.get(key) : otherwise);
  if (parts.has("pins")) state.pins = parts.get("pins").split(";").map(point).filter(inside).slice(0, MOST_PINS);
  if (parts.has("p") && inside(point(parts.get("p")))) state.point = point(parts.get("p"));
  state.direction = among("v", ["row", "column"], "row");
  state.layer = among("l", layersThere(), "none");
  state.scale = among("s", ["0.5", "1", "0.25"], "0.5");
  state.module = Math.max(0, page.position.findIndex((_, index) => String(index) === parts.get("m")));
  const channel = Number(parts.get("c"));
  if (page.channel && Number.isInteger(channel) && channel >= 0) state.channel = channel;
  const blend = Number(parts.get("b") || 60);
  if (blend >= 0 && blend <= 100) $("blend").value = blend;
}

// ---- show ------------------------------------------------------------------------------------------------------------

function showMarks() {
  const radius = 0.014 * Math.max(...page.size), marks = [];
  const ring = ([y, x], color, r) => marks.push(
    element("circle", { cx: x + 0.5, cy: y + 0.5, r, class: "ring-shadow" }),
    element("circle", { cx: x + 0.5, cy: y + 0.5, r, class: "ring", stroke: color }));
  state.pins.forEach((pin, index) => ring(pin, rgb(PIN_COLORS[index]), radius));
  if (state.point) ring(state.point, "white", 1.5 * radius);
  $("marks").replaceChildren(...marks);
}

function showPins() {
  $("pins").replaceChildren(...state.pins.map((pin, index) => {
    const name = className(page.layers.prediction[pin[0] * page.size[1] + pin[1]]), dot = element("span", { class: "dot" });
    dot.style.background = rgb(PIN_COLORS[index]);
    return element("span", { class: "chip" }, element("button", { type: "button", click: () => moveTo(pin) }, dot, `${index + 1} ${name}`),
      element("button", { type: "button", "aria-label": `Remove pin ${index + 1}`, click: () => unpin(index) }, "×"));
  }), state.pins.length > 1 ? element("button", { type: "button", click: () => moveTo(null) }, "All pins") : "");
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
  if (!page.position.length) return;
  const module = moduleNow(), point = state.point || state.pins.at(-1);
  if (!point) return;
  const weights = weightsAt(point);
  if (state.point || state.pins.length === 1) drawHeat($("heat"), weights, module.size);
  else drawPins($("heat"), state.pins.map(weightsAt), PIN_COLORS, module.size);
  $("scale-bar").hidden = !state.point && state.pins.length > 1;
  $("all-pins").hidden = !$("scale-bar").hidden;
  showPanel(module, point, weights);
}

function showLayer() {
  $("layer").value = state.layer;
  $("blend-label").hidden = state.layer === "none";
  showLegend($("legend"), state.layer);
  drawLayer($("layer-picture"), state.layer);
  $("layer-picture").style.opacity = $("blend").value / 100;
  $("heat").style.opacity = $("heat-strength").value / 100;
  show();
}

// ---- change ----------------------------------------------------------------------------------------------------------

function moveTo(point) { state.point = point; show(); }

function pin(point) {
  if (!point || !page.position.length) return;
  const index = state.pins.findIndex((other) => cellOf(moduleNow(), other) === cellOf(moduleNow(), point));
  if (index >= 0) return unpin(index);
  if (state.pins.length === MOST_PINS) { $("status").textContent = `At most ${MOST_PINS} pins; remove one.`; return; }
  state.pins.push(point);
  showPins();
  show();
}

function unpin(index) {
  if (index < 0) return;
  state.pins.splice(index, 1);
  if (!state.point && !state.pins.length) state.point = page.start;
  showPins();
  show();
}

function moveBy(rows, columns) {
  if (!page.position.length) return;
  const module = moduleNow(), index = cellOf(module, state.point || state.pins.at(-1) || page.start), [h, w] = module.size;
  const y = Math.min(h - 1, Math.max(0, Math.floor(index / w) + rows)), x = Math.min(w - 1, Math.max(0, (index % w) + columns));
  moveTo(centerOf(module, y * w + x).map((at) => Math.floor(at + 0.5)));
}

function pointOf(event) {
  const box = $("stage").getBoundingClientRect(), parts = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
  return parts.map((part, axis) => Math.min(page.size[axis] - 1, Math.max(0, Math.floor(part * page.size[axis]))));
}

function onKey(event) {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const actions = {
    Enter: () => pin(state.point), " ": () => pin(state.point), Delete: () => unpin(state.pins.length - 1), Backspace: () => unpin(state.pins.length - 1),
    Escape: () => state.pins.length && moveTo(null), s: () => turn(state.direction === "row" ? "column" : "row"),
    l: () => { const names = layersThere(); state.layer = names[(names.indexOf(state.layer) + 1) % names.length]; showLayer(); },
  };
  const action = event.key in moves ? () => moveBy(...moves[event.key]) : actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
}

function turn(direction) { state.direction = direction; show(); }

// ---- start -----------------------------------------------------------------------------------------------------------

function listen() {
  let down = null;
  const stage = $("stage");
  stage.addEventListener("pointermove", (event) => moveTo(pointOf(event)));
  stage.addEventListener("pointerdown", (event) => { down = [event.clientX, event.clientY]; moveTo(pointOf(event)); });
  stage.addEventListener("pointerup", (event) => {
    if (down && Math.hypot(event.clientX - down[0], event.clientY - down[1]) < 6) pin(pointOf(event));
    down = null;
  });
  stage.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse" && state.pins.length) moveTo(null); });
  stage.addEventListener("keydown", onKey);
  for (const name of ["row", "column"]) $(name).addEventListener("click", () => turn(name));
  $("layer").addEventListener("change", () => { state.layer = $("layer").value; showLayer(); });
  $("module").addEventListener("change", () => { state.module = Number($("module").value); show(); });
  $("scale").addEventListener("change", () => { state.scale = $("scale").value; show(); });
  for (const id of ["blend", "heat-strength"]) $(id).addEventListener("input", showLayer);
  $("save").addEventListener("click", save);
  $("theme").addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.documentElement.dataset.theme = theme === "dark" ? "light" : "dark";
  });
  addEventListener("hashchange", () => { recall(); showPins(); showLayer(); });
}

async function start() {
  recall();
  $("facts").textContent = page.facts;
  $("photo").src = page.image;
  $("photo").alt = page.name;
  document.documentElement.style.setProperty("--ratio", page.size[1] / page.size[0]);
  $("marks").setAttribute("viewBox", `0 0 ${page.size[1]} ${page.size[0]}`);
  const without = page.position.length ? [] : ["The model has no position attention to show."];
  $("missing").textContent = [...without, ...page.missing].join(" ");
  $("missing").hidden = !$("missing").textContent;
  for (const id of ["panel", "weights-controls", "heat-label", "scale-label", "scale-bar", "keys", "marks"]) $(id).hidden = without.length > 0;
  $("layer").replaceChildren(...layersThere().map((name) => element("option", { value: name }, LAYER_NAMES[name])));
  $("module").replaceChildren(...page.position.map((module, index) => element("option", { value: index }, module.name)));
  $("module-choice").hidden = page.position.length < 2;
  $("module").value = state.module;
  $("scale").value = state.scale;
  const bar = new ImageData(128, 8);
  for (let i = 0; i < bar.data.length; i++) bar.data[i] = i % 4 === 3 ? 255 : scales.inferno[3 * Math.round(51 + ((i >> 2) % 128) * 1.6) + (i % 4)];
  put($("color-bar"), bar);
  await $("photo").decode();
  if (!state.point && !state.pins.length) state.point = page.start;
  listen();
  showPins();
  showLayer();
  if (page.channel) startChannels();
  showNow();
  window.attentionPage = { page, state, row, column, statistics, cellOf, centerOf, channelRow, enlarged };
  document.documentElement.dataset.ready = "true";
}

await start();
