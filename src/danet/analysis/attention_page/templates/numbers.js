// ---- numbers: arrays of the page, rows and columns of the weights, what is said about them --------------------------

const TYPES = { uint8: Uint8Array, float16: Uint16Array, float32: Float32Array };

// All 65536 numbers in half precision; not every browser has Float16Array.
const HALVES = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
});

async function unpack({ type, data }) {
  const text = atob(data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new TYPES[type](await new Response(stream).arrayBuffer());
  return type === "float16" ? Float32Array.from(values, (bits) => HALVES[bits]) : values;
}

// Replaces every packed array below a value by what it holds.
async function unpacked(value) {
  if (value === null || typeof value !== "object") return value;
  if (typeof value.data === "string" && value.type in TYPES) return unpack(value);
  const entries = await Promise.all(Object.entries(value).map(async ([key, x]) => [key, await unpacked(x)]));
  return Array.isArray(value) ? entries.map(([, x]) => x) : Object.fromEntries(entries);
}

const cellCount = (module) => module.size[0] * module.size[1];

function energies(from, index, to, count) {
  const depth = from.length / count, energy = new Float32Array(count), start = index * depth;
  for (let j = 0, at = 0; j < count; j++) {
    let sum = 0;
    for (let d = 0; d < depth; d++) sum += from[start + d] * to[at++];
    energy[j] = sum;
  }
  return energy;
}

// The weights of position `index` for all positions; they sum to 1.
function row(module, index) {
  const count = cellCount(module);
  if (module.kind === "weights") {
    return module.weights.slice(index * count, (index + 1) * count).map((weight) => weight / count);
  }
  const energy = energies(module.query, index, module.key, count);
  return energy.map((value) => Math.exp(value - module.log_sums[index]));
}

// The weights of all positions for position `index`.
function column(module, index) {
  const count = cellCount(module);
  if (module.kind === "weights") {
    return Float32Array.from({ length: count }, (_, j) => module.weights[j * count + index] / count);
  }
  const energy = energies(module.key, index, module.query, count);
  return energy.map((value, j) => Math.exp(value - module.log_sums[j]));
}

function shares(weights, classes, count) {
  const sums = new Float64Array(count + 1); // the last is what is ignored
  weights.forEach((weight, i) => { sums[Math.min(classes[i], count)] += weight; });
  return sums;
}

// Along one axis, as danet.analysis.attention_points.cell_of and the cell's center, in pixels.
function cellAlong(pixel, pixels, cells, align) {
  if (align) return Math.floor((pixel * (cells - 1)) / Math.max(pixels - 1, 1) + 0.5);
  return Math.floor(((pixel + 0.5) * cells) / pixels);
}

function centerAlong(cell, pixels, cells, align) {
  return align ? (cell * (pixels - 1)) / Math.max(cells - 1, 1) : ((cell + 0.5) * pixels) / cells - 0.5;
}

const cellOf = ({ size, pixels, align }, [y, x]) =>
  cellAlong(y, pixels[0], size[0], align) * size[1] + cellAlong(x, pixels[1], size[1], align);

const centerOf = ({ size, pixels, align }, index) => [
  centerAlong(Math.floor(index / size[1]), pixels[0], size[0], align),
  centerAlong(index % size[1], pixels[1], size[1], align),
];

const DISTANCE_BINS = 16;

// Weight by distance from a position, and the same for equal weights.
function byDistance(module, index, weights) {
  const longest = Math.hypot(...module.pixels), [y, x] = centerOf(module, index);
  const held = new Float64Array(DISTANCE_BINS), equal = new Float64Array(DISTANCE_BINS);
  let total = 0, mean = 0;
  weights.forEach((weight, i) => {
    const [v, u] = centerOf(module, i), distance = Math.hypot(v - y, u - x);
    const bin = Math.min(DISTANCE_BINS - 1, Math.floor((DISTANCE_BINS * distance) / longest));
    held[bin] += weight;
    equal[bin] += 1 / weights.length;
    total += weight;
    mean += weight * distance;
  });
  return { held: held.map((share) => share / (total || 1)), equal, mean: mean / (total || 1), longest };
}

// Share of the weight beyond what the backbone's convolutions see from a position; null where that is not known.
function outsideField(module, index, weights, side) {
  if (side === null) return null;
  const [y, x] = centerOf(module, index);
  let outside = 0, total = 0;
  weights.forEach((weight, i) => {
    const [v, u] = centerOf(module, i);
    if (Math.max(Math.abs(v - y), Math.abs(u - x)) > side / 2) outside += weight;
    total += weight;
  });
  return outside / (total || 1);
}

function statistics(module, index, weights) {
  let total = 0, entropy = 0, largest = 0;
  for (const weight of weights) {
    total += weight;
    if (weight > largest) largest = weight;
  }
  for (const weight of weights) if (weight > 0) entropy -= (weight / total) * Math.log(weight / total);
  const classes = page.class_names.length;
  const found = { total, entropy, effective: Math.exp(entropy), largest, distances: byDistance(module, index, weights) };
  for (const [name, of] of Object.entries(module.classes)) found[name] = shares(weights, of, classes);
  return found;
}

// The positions of the largest weights, each away from those before it.
function largestOf(module, weights, count) {
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]), chosen = [];
  for (const i of order.slice(0, 2000)) {
    const far = (j) => Math.max(Math.abs(Math.floor(i / module.size[1]) - Math.floor(j / module.size[1])),
      Math.abs((i % module.size[1]) - (j % module.size[1]))) > 2;
    if (chosen.length < count && weights[i] > 0 && chosen.every(far)) chosen.push(i);
  }
  return chosen;
}
