// ---- picture: the layers over the photo ------------------------------------------------------------------------------

const PIN_COLORS = [[230, 159, 0], [86, 180, 233], [0, 190, 140], [240, 228, 66], [235, 90, 20], [220, 130, 185]];
const MOST_DRAWN = 700000; // pixels of the heat map; larger images are drawn at a lower resolution
const GREY = [128, 128, 128], RIGHT = [225, 230, 235], WRONG = [205, 30, 60];
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
function along(pixels, drawn, cells) {
  return Array.from({ length: drawn }, (_, i) => {
    const pixel = ((i + 0.5) * pixels) / drawn - 0.5;
    let at = page.align_corners ? (pixel * (cells - 1)) / Math.max(pixels - 1, 1) : ((pixel + 0.5) * cells) / pixels - 0.5;
    at = Math.min(Math.max(at, 0), cells - 1);
    const low = Math.floor(at);
    return [low, Math.min(low + 1, cells - 1), at - low];
  });
}

// A map (h, w) at the size of the picture.
function enlarged(map, [h, w], height, width) {
  const out = new Float32Array(height * width), across = along(page.size[1], width, w);
  along(page.size[0], height, h).forEach(([top, bottom, share], y) => {
    const above = new Float32Array(w);
    for (let x = 0; x < w; x++) above[x] = map[top * w + x] * (1 - share) + map[bottom * w + x] * share;
    for (let x = 0, at = y * width; x < width; x++) {
      const [left, right, part] = across[x];
      out[at++] = above[left] * (1 - part) + above[right] * part;
    }
  });
  return out;
}

function drawnSize() {
  const shrink = Math.min(1, Math.sqrt(MOST_DRAWN / (page.size[0] * page.size[1])));
  return page.size.map((length) => Math.max(1, Math.round(length * shrink)));
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

const perStep = (weights) => STEPS / weights.reduce((a, b) => Math.max(a, b), 1e-30);

// One position's weights as light, in the colors of the scale.
function drawHeat(canvas, weights, size) {
  const [height, width] = drawnSize(), image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  const { light } = table(), steps = perStep(weights), large = enlarged(weights, size, height, width);
  for (let i = 0; i < pixels.length; i++) pixels[i] = light[Math.min(STEPS, large[i] * steps) | 0];
  put(canvas, image);
}

// Several positions' weights, each in the color of its pin.
function drawPins(canvas, maps, colors, size) {
  const [height, width] = drawnSize(), image = new ImageData(width, height);
  const large = maps.map((map) => enlarged(map, size, height, width));
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

const LAYER_NAMES = { none: "photo", prediction: "prediction", truth: "truth", error: "error", confidence: "confidence", entropy: "entropy" };

function layersThere() {
  const { truth } = page.layers;
  return Object.keys(LAYER_NAMES).filter((name) => name === "none" || name in page.layers || (name === "error" && truth));
}

const classColor = (index) => page.palette[index] || GREY;

function layerColor(name, i) {
  const { prediction, truth } = page.layers;
  if (name === "prediction" || name === "truth") return page.layers[name][i] === 255 ? [0, 0, 0] : classColor(page.layers[name][i]);
  if (name === "error") {
    if (truth[i] === 255) return [0, 0, 0];
    return truth[i] === prediction[i] ? RIGHT : WRONG;
  }
  const at = 3 * page.layers[name][i];
  return scales.viridis.subarray(at, at + 3);
}

function drawLayer(canvas, name) {
  canvas.hidden = name === "none";
  if (canvas.hidden) return;
  const [height, width] = page.size, image = new ImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    const color = layerColor(name, i);
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
  const there = name in page.layers ? [...new Set(page.layers[name])].sort((a, b) => a - b) : [];
  const entries = {
    none: () => [],
    error: () => [entry(RIGHT, "right"), entry(WRONG, "wrong"), entry([0, 0, 0], "ignored")],
    confidence: () => scale("0", "1: probability of the predicted class"),
    entropy: () => scale("0", "1: all classes equally likely"),
  }[name] || (() => there.map((index) => entry(index === 255 ? [0, 0, 0] : classColor(index), className(index))));
  box.replaceChildren(...entries());
  box.hidden = name === "none";
}

// ---- PNG -------------------------------------------------------------------------------------------------------------

function save() {
  const [height, width] = page.size, times = Math.max(1, Math.round(1200 / width)), canvas = element("canvas", { width: width * times, height: height * times });
  const context = canvas.getContext("2d");
  context.filter = getComputedStyle($("photo")).filter;
  context.drawImage($("photo"), 0, 0, canvas.width, canvas.height);
  context.filter = "none";
  for (const id of ["layer-picture", "heat"]) {
    context.globalAlpha = Number($(id).style.opacity);
    if (!$(id).hidden && $(id).width) context.drawImage($(id), 0, 0, canvas.width, canvas.height);
  }
  context.globalAlpha = 1;
  for (const circle of $("marks").children) {
    context.beginPath();
    context.arc(circle.cx.baseVal.value * times, circle.cy.baseVal.value * times, circle.r.baseVal.value * times, 0, 7);
    context.lineWidth = circle.getAttribute("class") === "ring" ? 3 : 6;
    context.strokeStyle = circle.getAttribute("stroke") || "black";
    context.stroke();
  }
  canvas.toBlob((blob) => {
    const link = element("a", { download: `${page.name.replace(/[^\w.-]+/g, "_")}_attention.png` });
    link.href = URL.createObjectURL(blob);
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

