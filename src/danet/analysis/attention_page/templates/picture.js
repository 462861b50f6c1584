// ---- picture: the layers over the photo ------------------------------------------------------------------------------

const PIN_COLORS = [[230, 159, 0], [86, 180, 233], [0, 190, 140], [240, 228, 66], [235, 90, 20], [220, 130, 185]];
const MOST_DRAWN = 700000; // pixels of the heat map; larger images are drawn at a lower resolution
const GREY = [128, 128, 128], RIGHT = [225, 230, 235], WRONG = [205, 30, 60], SAME = [28, 32, 38];
const rgb = (color) => `rgb(${color.join(",")})`;

function colorScale(name) {
  const steps = page.colors[name], colors = new Uint8Array(256 * 3);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (steps.length - 1), low = Math.min(Math.floor(at), steps.length - 2);
    for (let c = 0; c < 3; c++) colors[3 * i + c] = steps[low][c] + (at - low) * (steps[low + 1][c] - steps[low][c]);
  }
  return colors;
}

// For each pixel along an axis its two cells and the second's share, as bilinear resizing has them.
function along(pixels, drawn, cells, align) {
  return Array.from({ length: drawn }, (_, i) => {
    const pixel = ((i + 0.5) * pixels) / drawn - 0.5;
    let at = align ? (pixel * (cells - 1)) / Math.max(pixels - 1, 1) : ((pixel + 0.5) * cells) / pixels - 0.5;
    at = Math.min(Math.max(at, 0), cells - 1);
    const low = Math.floor(at);
    return [low, Math.min(low + 1, cells - 1), at - low];
  });
}

// A map (h, w) of a module at the size of the picture.
function enlarged(map, { size: [h, w], pixels, align }, height, width) {
  const out = new Float32Array(height * width), across = along(pixels[1], width, w, align);
  along(pixels[0], height, h, align).forEach(([top, bottom, share], y) => {
    const above = new Float32Array(w);
    for (let x = 0; x < w; x++) above[x] = map[top * w + x] * (1 - share) + map[bottom * w + x] * share;
    for (let x = 0, at = y * width; x < width; x++) {
      const [left, right, part] = across[x];
      out[at++] = above[left] * (1 - part) + above[right] * part;
    }
  });
  return out;
}

function drawnSize([height, width]) {
  const shrink = Math.min(1, Math.sqrt(MOST_DRAWN / (height * width)));
  return [height, width].map((length) => Math.max(1, Math.round(length * shrink)));
}

const STEPS = 65535; // of a weight relative to the largest one
const tables = {};

// The brightness of each step at the chosen scale, and its color over the photo.
function table() {
  if (!(state.scale in tables)) {
    const bright = Float32Array.from({ length: STEPS + 1 }, (_, i) => (i / STEPS) ** Number(state.scale));
    const light = Uint8ClampedArray.from({ length: 4 * bright.length }, (_, i) => {
      const value = bright[i >> 2];
      return i % 4 === 3 ? 255 * Math.min(3.5 * value, 0.95) : scales.inferno[3 * Math.round(255 * (0.2 + 0.8 * value)) + (i % 4)];
    });
    tables[state.scale] = { bright, light: new Uint32Array(light.buffer) };
  }
  return tables[state.scale];
}

// What has full color: the largest weight, at least 10 times uniform, so that weights that are all alike are not bright.
const BRIGHT = 10, brightest = (weights) => weights.reduce((a, b) => Math.max(a, b), BRIGHT / weights.length);
const perStep = (weights) => STEPS / brightest(weights);

// One position's weights as light, in the colors of the scale.
function drawHeat(canvas, weights, module) {
  const [height, width] = drawnSize(module.pixels), image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  const { light } = table(), steps = perStep(weights), large = enlarged(weights, module, height, width);
  for (let i = 0; i < pixels.length; i++) pixels[i] = light[Math.min(STEPS, large[i] * steps) | 0];
  put(canvas, image);
}

// Several positions' weights, each in the color of its pin.
function drawPins(canvas, maps, colors, module) {
  const [height, width] = drawnSize(module.pixels), image = new ImageData(width, height);
  const large = maps.map((map) => enlarged(map, module, height, width));
  const steps = maps.map(perStep), { bright } = table();
  for (let i = 0; i < height * width; i++) {
    const sum = [0, 0, 0, 0];
    let strongest = 0;
    large.forEach((map, pin) => {
      const value = bright[Math.min(STEPS, map[i] * steps[pin]) | 0];
      for (let c = 0; c < 3; c++) sum[c] += value ** 4 * colors[pin][c]; // mostly the color of the strongest
      sum[3] += value ** 4;
      strongest = Math.max(strongest, value);
    });
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = sum[c] / (sum[3] || 1);
    image.data[4 * i + 3] = 255 * Math.min(1.5 * strongest, 0.92);
  }
  put(canvas, image);
}

function put(canvas, image) {
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// ---- layers ----------------------------------------------------------------------------------------------------------

const LAYER_NAMES = { none: "photo", prediction: "prediction", truth: "truth", error: "error", change: "change", confidence: "confidence", entropy: "entropy" };

function layersThere() {
  const { layers } = look(), others = { none: true, error: "truth" in layers, change: looks().length > 1 };
  return Object.keys(LAYER_NAMES).filter((name) => name in layers || others[name]);
}

const classColor = (index) => page.palette[index] || GREY;

function layerColor(layers, name, i) {
  const { prediction, truth } = layers;
  if (name === "prediction" || name === "truth") return layers[name][i] === 255 ? [0, 0, 0] : classColor(layers[name][i]);
  if (name === "error") {
    if (truth[i] === 255) return [0, 0, 0];
    return truth[i] === prediction[i] ? RIGHT : WRONG;
  }
  if (name === "change") return looks()[0].layers.prediction[i] === prediction[i] ? SAME : classColor(prediction[i]);
  const at = 3 * layers[name][i];
  return scales.viridis.subarray(at, at + 3);
}

function drawLayer(canvas, { layers, size }, name) {
  canvas.hidden = name === "none";
  if (canvas.hidden) return;
  const [height, width] = size, image = new ImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    const color = layerColor(layers, name, i);
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = color[c];
    image.data[4 * i + 3] = 255;
  }
  put(canvas, image);
}

// What the colors of a layer mean.
function showLegend(box, name) {
  const entry = (color, text) => {
    const dot = element("span", { class: "dot" });
    dot.style.background = rgb(color);
    return element("span", {}, dot, text);
  };
  const scale = (low, high) => [entry(scales.viridis.subarray(0, 3), low), entry(scales.viridis.subarray(765, 768), high)];
  const of = name === "change" ? "prediction" : name, seen = new Set(looks().flatMap(({ layers }) => [...new Set(layers[of])]));
  const there = [...seen].sort((a, b) => a - b), classes = there.map((index) => entry(index === 255 ? [0, 0, 0] : classColor(index), className(index)));
  const entries = {
    none: () => [],
    error: () => [entry(RIGHT, "right"), entry(WRONG, "wrong"), entry([0, 0, 0], "ignored")],
    confidence: () => scale("0", "1: probability of the predicted class"),
    entropy: () => scale("0", "1: all classes equally likely"),
    change: () => [entry(SAME, "as the first"), ...classes],
  }[name] || (() => classes);
  box.replaceChildren(...entries());
  box.hidden = name === "none";
}

// ---- PNG -------------------------------------------------------------------------------------------------------------

const GAP = 12, HEADING = 40; // of the saved picture, in its pixels

function save() {
  const [height, width] = looks()[0].size, times = Math.max(1, Math.round(1200 / width / stages.length));
  const tall = height * times, wide = width * times, top = stages.length > 1 ? HEADING : 0;
  const canvas = element("canvas", { width: stages.length * (wide + GAP) - GAP, height: top + tall });
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  stages.forEach((stage, index) => {
    const left = index * (wide + GAP);
    context.fillStyle = "black";
    context.font = "24px sans-serif";
    if (top) context.fillText(modelName(index), left, 28, wide);
    context.filter = getComputedStyle(stage.photo).filter;
    context.drawImage(stage.photo, left, top, wide, tall);
    context.filter = "none";
    for (const part of [stage.layer, stage.heat, stage.paint]) {
      context.globalAlpha = Number(getComputedStyle(part).opacity);
      context.imageSmoothingEnabled = part !== stage.paint;
      if (!part.hidden && part.width) context.drawImage(part, left, top, wide, tall);
    }
    context.globalAlpha = 1;
    context.imageSmoothingEnabled = true;
    for (const circle of stage.marks.children) {
      context.beginPath();
      context.arc(left + circle.cx.baseVal.value * times, top + circle.cy.baseVal.value * times, circle.r.baseVal.value * times, 0, 7);
      context.lineWidth = circle.getAttribute("class") === "ring" ? 3 : 6;
      context.strokeStyle = circle.getAttribute("stroke") || "black";
      context.stroke();
    }
  });
  canvas.toBlob((blob) => {
    const link = element("a", { download: `${picture().name.replace(/[^\w.-]+/g, "_")}_attention.png` });
    link.href = URL.createObjectURL(blob);
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

