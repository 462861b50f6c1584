// ---- channels: the weights between channels, and each channel's map -------------------------------------------------

const channelsOf = () => look().channel;
const channelCount = () => channelsOf().low.length;

function channelMap(index) {
  const size = channelsOf().maps.length / channelCount();
  return channelsOf().maps.subarray(index * size, (index + 1) * size);
}

// Correlations of one channel's map with all channels' maps.
function similarities(index) {
  const known = channelsOf();
  if (!known.norms) {
    known.norms = Array.from({ length: channelCount() }, (_, c) => {
      const map = channelMap(c), mean = map.reduce((a, b) => a + b, 0) / map.length;
      return [mean, Math.sqrt(map.reduce((sum, value) => sum + (value - mean) ** 2, 0))];
    });
  }
  const own = channelMap(index), [mean, norm] = known.norms[index];
  return known.norms.map(([other, otherNorm], c) => {
    const map = channelMap(c);
    let sum = 0;
    for (let i = 0; i < map.length; i++) sum += (own[i] - mean) * (map[i] - other);
    return norm && otherNorm ? sum / norm / otherNorm : NaN;
  });
}

function drawMap(canvas, index) {
  const [h, w] = channelsOf().map_size, image = new ImageData(w, h);
  channelMap(index).forEach((value, i) => {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = scales.viridis[3 * value + c];
    image.data[4 * i + 3] = 255;
  });
  put(canvas, image);
}

function drawMatrix() {
  const count = channelCount(), image = new ImageData(count, count), { weights } = channelsOf();
  const largest = weights.reduce((a, b) => Math.max(a, b), BRIGHT); // they are in times uniform
  weights.forEach((weight, i) => {
    const color = 3 * Math.round(255 * (weight / largest) ** 0.25);
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = scales.inferno[color + c];
    image.data[4 * i + 3] = 255;
  });
  const mark = Math.max(1, Math.round(count / 256)); // the chosen row, and its place at the edge
  put($("matrix"), image);
  const context = $("matrix").getContext("2d");
  context.fillStyle = "rgb(86,180,233)";
  context.fillRect(0, state.channel - Math.floor(mark / 2), Math.max(2, count / 40), mark);
  context.fillRect(count - Math.max(2, count / 40), state.channel - Math.floor(mark / 2), Math.max(2, count / 40), mark);
}

function thumbnails(title, order, value) {
  return element("div", {}, element("h3", {}, title), element("div", { class: "crops" }, ...order.map((index) => {
    const canvas = element("canvas", { "aria-hidden": "true" });
    drawMap(canvas, index);
    return element("button", { type: "button", class: "crop", title: `Show channel ${index}`, click: () => showChannel(index) },
      canvas, element("span", {}, String(index)), element("span", { class: "muted" }, value(index)));
  })));
}

function sorted(values, sign, skip) {
  return [...values.keys()].filter((i) => i !== skip && Number.isFinite(values[i])).sort((a, b) => sign * (values[b] - values[a])).slice(0, 4);
}

// The class with whose predicted region a channel's map correlates best.
function answersTo(index) {
  const count = page.class_names.length, found = channelsOf().correlations.subarray(index * count, (index + 1) * count);
  return sorted(found, 1).slice(0, 2).map((i) => `${className(i)} ${found[i].toFixed(2).replace("-", "−")}`).join(", ");
}

function channelRow(index) {
  const count = channelCount();
  return channelsOf().weights.subarray(index * count, (index + 1) * count).map((weight) => weight / count);
}

function showChannel(index) {
  state.channel = index;
  const weights = channelRow(index), similar = similarities(index), { low, high } = channelsOf();
  const correlation = (i) => similar[i].toFixed(2).replace("-", "−");
  drawMatrix();
  drawMap($("channel-map"), index);
  const answer = answersTo(index);
  $("channel-map").setAttribute("aria-label", `The map of channel ${index}`);
  $("channel-facts").textContent = `Channel ${index}, ${low[index].toFixed(2)} to ${high[index].toFixed(2)}`.replaceAll("-", "−") +
    (answer ? `; correlates most with ${answer}` : "");
  $("channel-lists").replaceChildren(
    thumbnails("Reads most from", sorted(weights, 1), (i) => percent(weights[i])),
    thumbnails("Most similar", sorted(similar, 1, index), correlation),
    thumbnails("Least similar", sorted(similar, -1, index), correlation));
  remember();
}

function showChannels() {
  $("channels").hidden = !channelsOf();
  if ($("channels").hidden) return;
  const canvas = $("matrix"), count = channelCount();
  $("channels-of").textContent = looks().length > 1 ? modelName(state.model) : "";
  $("beta").textContent = `β = ${signed(channelsOf().beta)}`;
  $("channel-note").textContent = channelsOf().energy === "max_minus"
    ? "As in the authors' code, the least similar channels weigh most." : "The most similar channel weighs most.";
  canvas.setAttribute("aria-label", `${count} × ${count} weights; up and down choose a channel`);
  $("matrix-note").textContent = `${count} × ${count} weights, row from column (fourth root). Click a row.`;
  showChannel(Math.min(state.channel, count - 1));
}

function listenToChannels() {
  const canvas = $("matrix"), choose = (index) => showChannel(Math.min(channelCount() - 1, Math.max(0, index)));
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    choose(Math.floor(((event.clientY - box.top) / box.height) * channelCount()));
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: -1, ArrowDown: 1, PageUp: -16, PageDown: 16 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(state.channel + step);
  });
}
