// ---- panel: a position in numbers ------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);

// An element with attributes and children; text is never taken for HTML.
function element(tag, attributes = {}, ...children) {
  const svg = ["circle", "rect", "line", "text", "path", "svg"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function percent(share) {
  const value = 100 * share;
  return `${value >= 99.95 || value === 0 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value >= 0.01 ? value.toFixed(2) : "< 0.01"}\u00a0%`;
}

const number = (value) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));
const signed = (value) => value.toFixed(3).replace("-", "−");
const className = (index) => (index < page.class_names.length ? page.class_names[index] : "ignored");

function showBars(box, sums) {
  const total = sums.reduce((a, b) => a + b, 0) || 1;
  const order = [...sums.keys()].filter((i) => sums[i] / total >= 0.0005).sort((a, b) => sums[b] - sums[a]).slice(0, 8);
  box.replaceChildren(...order.map((i) => {
    const share = sums[i] / total, bar = element("span", { class: "bar" });
    bar.style.width = `${100 * share}%`;
    bar.style.background = rgb(i < page.class_names.length ? classColor(i) : GREY);
    return element("div", { class: "bar-line" }, element("span", { class: "bar-name", title: className(i) }, className(i)),
      element("span", { class: "bar-track" }, bar), element("span", { class: "bar-value" }, percent(share)));
  }));
}

function showDistances(svg, { held, equal, mean, longest }) {
  const top = Math.max(...held, ...equal), step = 320 / held.length, height = (share) => (72 * share) / top;
  const bars = [...held].map((share, i) =>
    element("rect", { x: i * step + 1, y: 74 - height(share), width: step - 2, height: height(share), class: "held" }));
  const outline = [...equal].map((share, i) => `${i ? "L" : "M"}${i * step},${74 - height(share)}H${(i + 1) * step}`).join("");
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => element("text", {
    x: 320 * part, y: 89, "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle",
  }, String(Math.round(part * longest))));
  svg.replaceChildren(...bars, element("path", { d: outline, class: "equal" }), ...ticks);
  svg.setAttribute("aria-label", `Weight by distance; mean distance ${number(mean)} pixels`);
}

function definitions(list, entries) {
  list.replaceChildren(...entries.flatMap(([term, value, title]) =>
    [element("dt", title ? { title } : {}, term), element("dd", {}, value)]));
}

function showCrops(module, weights) {
  const side = Math.round(Math.min(Math.max(0.22 * Math.min(...module.pixels), 24), 160)), photo = stages[0].photo;
  $("crops").replaceChildren(...largestOf(module, weights, 5).map((index) => {
    const [y, x] = centerOf(module, index), canvas = element("canvas", { width: 72, height: 72, "aria-hidden": "true" });
    const context = canvas.getContext("2d");
    context.drawImage(photo, x - side / 2, y - side / 2, side, side, 0, 0, 72, 72);
    context.strokeStyle = "white";
    context.strokeRect(33, 33, 6, 6);
    const label = `${className(module.classes.prediction[index])}, ${percent(weights[index])}`;
    return element("button", { type: "button", class: "crop", title: `Go there: ${label}`, click: () => moveTo([Math.round(y), Math.round(x)]) },
      canvas, element("span", {}, percent(weights[index])), element("span", { class: "muted" }, className(module.classes.prediction[index])));
  }));
}

// What the models have in common, and where they differ, at one position.
function showModels(point) {
  $("models").hidden = looks().length < 2;
  if ($("models").hidden) return;
  const heads = ["", "Predicted class", "Confidence", "Effective positions", "Mean distance"];
  const rows = looks().map((each, index) => {
    const at = point[0] * each.size[1] + point[1], module = moduleOf(each);
    const found = module && statistics(module, cellOf(module, point), weightsAt(module, point));
    const cells = [className(each.layers.prediction[at]), percent(each.layers.confidence[at] / 255),
      ...(found ? [number(found.effective), number(found.distances.mean)] : ["–", "–"])];
    return element("tr", index === state.model ? { "aria-current": "true" } : {}, element("th", { scope: "row" }, modelName(index)),
      ...cells.map((text) => element("td", {}, text)));
  });
  $("models").replaceChildren(element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text))), ...rows);
}

function showPanel(module, point, weights) {
  const index = cellOf(module, point), count = cellCount(module), found = statistics(module, index, weights);
  const { layers, size, receptive_field: field } = look(), outside = outsideField(module, index, weights, field);
  const reads = state.direction === "row", at = point[0] * size[1] + point[1];
  const pinned = state.pins.indexOf(point);
  $("of-model").textContent = looks().length > 1 ? modelName(state.model) : "";
  $("title").textContent = `${pinned < 0 ? "" : `${pinned + 1}  `}${className(layers.prediction[at])} ${reads ? "reads from" : "is read by"}`;
  const truth = layers.truth ? className(layers.truth[at]) : null;
  definitions($("facts-of-position"), [
    ["Pixel", `row ${point[0]}, column ${point[1]}`],
    ...(truth === null ? [] : [["True class", truth]]),
    ["Confidence", percent(layers.confidence[at] / 255)],
    ["Largest weight", `${percent(found.largest)} = ${number(found.largest * count)} × equal`],
    ["Entropy", `${number(found.entropy)} nats of ${number(Math.log(count))}`, "of the weights, scaled to sum 1"],
    ["Effective positions", `${number(found.effective)} of ${count}`, "exp(entropy)"],
    ["Mean distance", `${number(found.distances.mean)} pixels`],
    ...(outside === null ? [] : [[`Beyond ±${Math.floor(field / 2)} pixels`, percent(outside),
      `outside the ${field} × ${field} pixels that the backbone's convolutions see from here`]]),
    ...(reads ? [] : [["Sum of the column", `${number(found.total)}; 1 is the mean`]]),
    ...(module.gamma === null ? [] : [["γ of the module", signed(module.gamma), "the learned factor of what attention adds"]]),
  ]);
  showBars($("by-prediction"), found.prediction);
  $("truth-part").hidden = !found.truth;
  if (found.truth) showBars($("by-truth"), found.truth);
  showDistances($("distances"), found.distances);
  $("crops-title").textContent = reads ? "Reads most from" : "Read most by";
  showCrops(module, weights);
  const stored = module.kind === "weights" ? "weights stored in half precision" :
    `weights from query and key in ${module.type === "float16" ? "half" : "single"} precision, off by at most ${module.error.toExponential(0)}`;
  $("about").textContent = `${module.size[0]} × ${module.size[1]} positions; ${stored}.`;
  const names = [...found.prediction.keys()].sort((a, b) => found.prediction[b] - found.prediction[a]).slice(0, 2);
  const summary = names.map((i) => `${className(i)} ${percent(found.prediction[i] / found.total)}`).join(", ");
  $("status").textContent = `Row ${point[0]}, column ${point[1]}: ${$("title").textContent} ${summary}`;
}
