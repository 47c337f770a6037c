// The attention explorer. Sections: helpers, state, maps on demand, scales, painting, controls, the curve,
// and render(), which builds the page and keeps it up to date.

// Colour scales as a few stops, mixed in between. Cividis looks the same to colour-blind people; so do
// Okabe and Ito's colours for lines.
const CIVIDIS = [
  [0, 34, 78],
  [18, 53, 112],
  [59, 73, 108],
  [87, 93, 109],
  [112, 113, 115],
  [138, 134, 120],
  [165, 156, 116],
  [195, 179, 105],
  [225, 204, 85],
  [254, 232, 56],
];
const DIVERGING = [
  [5, 72, 133],
  [67, 147, 195],
  [247, 247, 247],
  [230, 130, 40],
  [127, 59, 8],
];
const OKABE_ITO = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const NEEDS_PYTHON = "Needs Python: run the notebook to compute this map.";
const NOT_CAPTURED = "Only rows were captured: other tokens need StoreQK.";
const DIRECTIONS = { from: "where it looks", to: "who looks at it" };
const CACHED_MAPS = 64;
const PATIENCE = 20000; // ms until Python is taken to be gone
const STAGE_SIDE = 480; // pixels that a small frame is enlarged to at least

// --- helpers -----------------------------------------------------------------------------------------

const SVG = ["svg", "rect", "line", "polygon", "polyline", "text"];

function node(tag, attributes = {}, ...children) {
  const space = SVG.includes(tag) ? "2000/svg" : "1999/xhtml";
  const element = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function colour(stops, share) {
  const place = clamp(share, 0, 1) * (stops.length - 1);
  const i = Math.min(Math.floor(place), stops.length - 2);
  return stops[i].map((low, c) => Math.round(low + (place - i) * (stops[i + 1][c] - low)));
}

// Colour an element by a share of the scale, with black or white text on it; NaN clears it.
function tint(element, share) {
  const rgb = Number.isNaN(share) ? null : colour(CIVIDIS, share);
  element.style.background = rgb ? `rgb(${rgb})` : "";
  element.style.color = rgb ? (rgb[1] > 117 ? "#000" : "#fff") : "";
  return element;
}

function number(value) {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  return Math.abs(value) >= 0.001 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

const range = (n) => Array.from({ length: n }, (_, i) => i);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const numbered = (texts) => texts.map((text, i) => [i, text]);
const join = (...parts) => parts.filter(Boolean).join(" · ");
const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
// Copied: a view of floats must begin at a multiple of four.
const floats = (view) => new Float32Array(bytes(view).slice().buffer);

// --- state -------------------------------------------------------------------------------------------

// What Python sent, unpacked, and how traits are read and set. Axis letters as in explorer_state.py.
function readState(model) {
  const get = (name) => model.get(name);
  const facts = get("_facts");
  const positions = new Int32Array(bytes(get("_positions")).slice().buffer);
  const streams = facts.streams.map((stream, i, all) => ({
    ...stream,
    tokens: positions.subarray(stream.start, all[i + 1]?.start),
  }));
  const counts = {
    runs: facts.runs.length,
    steps: facts.steps.length,
    layers: facts.layers.length,
    words: facts.words.length,
    directions: facts.directions.length,
    heads: facts.heads.length,
    frames: facts.size[0],
  };
  const state = {
    facts,
    counts,
    streams,
    videos: streams.filter((stream) => stream.cells),
    ratios: floats(get("_ratios")),
    curve: floats(get("_curve")),
    matrix: floats(get("_matrix")),
    isAlive: false, // whether Python has answered
    get,
    set(changes) {
      for (const [name, value] of Object.entries(changes)) model.set(name, value);
      model.save_changes();
    },
    // Place of the direction among the saved ones, or -1.
    direction: () => facts.directions.indexOf(get("direction")),
    // Place of a saved map, heads aside.
    place(run, layer, step = get("step")) {
      const { steps, layers, words, directions } = counts;
      return (((run * steps + step) * layers + layer) * words + get("word")) * directions + state.direction();
    },
    shownStream: () => state.videos[get("stream")],
    // Streams whose tokens are looked at, and streams whose tokens can be asked for.
    isTarget({ side }) {
      return side === "both" || side === (get("direction") === "from" ? "key" : "query");
    },
    isSource: (stream) => stream.side === "both" || !state.isTarget(stream),
    // Why a click gives no map; "" if it does.
    whyNot: () => (!facts.clickable ? NOT_CAPTURED : state.isAlive ? "" : NEEDS_PYTHON),
    runName: (run) => (run < 2 ? facts.runs[run] : facts.runs.join(" − ")),
  };
  return state;
}

// --- maps on demand ----------------------------------------------------------------------------------

// Saved maps, and maps of other tokens or of single heads, which Python computes.
function createMaps(model, state, onArrival) {
  const { facts, counts, get } = state;
  const overview = { codes: bytes(get("_overview")), ranges: floats(get("_ranges")), groups: facts.groups };
  overview.maps =
    counts.runs * counts.steps * counts.layers * counts.words * counts.directions * facts.groups;
  const cache = new Map(); // least recently used first
  const sender = Math.random().toString(36).slice(2); // replies reach every view of the model
  let pending = null; // the request that is under way
  let wanted = null; // the request to send next
  let failedKey = null;
  let asked = 0;

  function requestFor(layer, step = get("step")) {
    const [query, direction] = ["query", "direction"].map(get);
    const content = { layer, step, word: query < 0 ? get("word") : 0, query, direction };
    return { key: Object.values(content).join(), content };
  }

  // One request at a time; of those that wait, the latest.
  function sendNext() {
    if (pending || !wanted || cache.has(wanted.key) || wanted.key === failedKey) return;
    pending = { key: wanted.key, id: `${sender}-${++asked}`, timer: setTimeout(finish, PATIENCE) };
    failedKey = null;
    model.send({ id: pending.id, ...wanted.content });
  }

  function finish(pack) {
    clearTimeout(pending.timer);
    if (pack) cache.set(pending.key, pack);
    else failedKey = pending.key;
    if (cache.size > CACHED_MAPS) cache.delete(cache.keys().next().value);
    pending = null;
    onArrival();
  }

  // Maps of one request, or the saved ones, that hold this head; null if there are none.
  function packFor(layer, head, step) {
    const { key } = requestFor(layer, step);
    const pack = cache.get(key);
    if (pack) {
      cache.delete(key);
      cache.set(key, pack); // now the most recently used
      return pack;
    }
    const isSaved = get("query") < 0 && state.direction() >= 0 && head + 1 < facts.groups;
    return isSaved ? overview : null;
  }

  // The map of a run: a function token -> value, NaN for sinks that are left out, with one for the largest
  // error by quantisation. Null if it is not here.
  function mapOfRun(layer, run, head, step) {
    const pack = packFor(layer, head, step);
    if (!pack) return null;
    const index = (pack.isReply ? run : state.place(run, layer, step)) * pack.groups + head + 1;
    const tokens = pack.codes.length / pack.maps;
    const width = pack.ranges.length / pack.maps;
    const [zero, scale, ...kept] = pack.ranges.subarray(index * width, (index + 1) * width);
    const apart = new Map(); // sinks, whose values are kept as they are
    if (get("direction") === "from") {
      facts.sinks.forEach((sink, i) => apart.set(sink.token, get("exclude_sinks") ? NaN : kept[i]));
    }
    const value = (token) => apart.get(token) ?? zero + (pack.codes[index * tokens + token] / 255) * scale;
    const error = (token) => (apart.has(token) ? 0 : scale / 510);
    return Object.assign(value, { error });
  }

  return {
    // Run 2 is the difference of the two.
    get(layer, run, head, step) {
      if (run < 2) return mapOfRun(layer, run, head, step);
      const [a, b] = [0, 1].map((one) => mapOfRun(layer, one, head, step));
      if (!a || !b) return null;
      const value = (token) => a(token) - b(token);
      return Object.assign(value, { error: (token) => a.error(token) + b.error(token) });
    },
    // Ask for what is on show, unless it is saved. Single heads that were not saved come with the mean.
    request(layer) {
      const isSaved = get("query") < 0 && state.direction() >= 0 && facts.groups > counts.heads;
      wanted = state.isAlive && !isSaved ? requestFor(layer) : null;
      sendNext();
    },
    hasFailed: (layer) => failedKey === requestFor(layer).key,
    onReply(message, buffers) {
      if (message.id !== pending?.id) return; // stale, or another view's
      if (message.failed) return finish();
      const groups = 1 + counts.heads;
      const maps = counts.runs * groups;
      finish({ codes: bytes(buffers[0]), ranges: floats(buffers[1]), groups, maps, isReply: true });
    },
    stop: () => clearTimeout(pending?.timer),
  };
}

// --- scales ------------------------------------------------------------------------------------------

// The upper ends of colour scales; the lower one is zero, whatever a map's smallest value.
function createScales(state) {
  const { facts, get } = state;

  function largest(map, ofText) {
    let top = 0;
    for (const stream of state.streams) {
      if (!map || Boolean(stream.words) !== ofText || !state.isTarget(stream)) continue;
      for (const token of stream.tokens) top = Math.max(top, Math.abs(map(token)) || 0);
    }
    return top;
  }

  const isLocked = () => get("locked_scale") && state.direction() >= 0;

  function top(maps, head, ofText = false) {
    if (isLocked()) {
      const [kind, group, kept] = [ofText, head >= 0, get("exclude_sinks")].map(Number);
      return facts.tops[state.direction()][kind][group][kept] || 1;
    }
    return Math.max(...maps.map((map) => largest(map, ofText))) || 1;
  }
  return { largest, isLocked, top };
}

// --- painting ----------------------------------------------------------------------------------------

// Draws frames and maps on canvases, once the image file with all frames is decoded.
function createPainter(state, onReady) {
  const { facts, get } = state;
  const grey = document.createElement("canvas"); // the frames without colour: all colour is the map's
  const patches = document.createElement("canvas"); // a pixel per token
  let sheet = null;

  createImageBitmap(new Blob([bytes(get("_picture"))])).then((bitmap) => {
    sheet = bitmap;
    [grey.width, grey.height] = [sheet.width, sheet.height];
    const context = grey.getContext("2d");
    context.drawImage(sheet, 0, 0);
    context.globalCompositeOperation = "color";
    context.fillStyle = "#888";
    context.fillRect(0, 0, grey.width, grey.height);
    onReady();
  });

  // The map over a slot's tokens, a pixel each.
  function drawPatches(stream, frame, map, top, isSigned) {
    const [, rows, columns] = stream.cells;
    const first = stream.slots[frame] * rows * columns;
    const picture = new ImageData(columns, rows);
    for (const i of range(rows * columns)) {
      const share = map(stream.tokens[first + i]) / top;
      if (Number.isNaN(share)) continue; // a sink that is left out stays clear
      const rgb = isSigned ? colour(DIVERGING, (1 + share) / 2) : colour(CIVIDIS, share);
      picture.data.set([...rgb, 255], 4 * i);
    }
    [patches.width, patches.height] = [columns, rows];
    patches.getContext("2d").putImageData(picture, 0, 0);
  }

  return {
    isReady: () => sheet !== null,
    // A frame with a map over it; `top` is the value at the end of the scale.
    paint(canvas, frame, map, top, isSigned) {
      const { width, height } = canvas;
      const context = canvas.getContext("2d");
      const stream = state.shownStream();
      const w = sheet.width / facts.columns;
      const h = sheet.height / Math.ceil(state.counts.frames / facts.columns);
      const [x, y] = [(frame % facts.columns) * w, Math.floor(frame / facts.columns) * h];
      const isCovered = map && state.isTarget(stream) && get("opacity") > 0;
      context.imageSmoothingEnabled = false;
      context.drawImage(isCovered ? grey : sheet, x, y, w, h, 0, 0, width, height);
      if (!isCovered) return;
      drawPatches(stream, frame, map, top, isSigned);
      context.globalAlpha = get("opacity");
      context.drawImage(patches, 0, 0, width, height);
      context.globalAlpha = 1;
    },
    // A frame around one cell, dark outside so that it shows on any colour.
    outline(canvas, cell, stroke) {
      const [, rows, columns] = state.shownStream().cells;
      const [y, x] = [Math.floor(cell / columns), cell % columns];
      const [width, height] = [canvas.width / columns, canvas.height / rows];
      const context = canvas.getContext("2d");
      const lines = [
        [3, "#000"],
        [1.5, stroke],
      ];
      for (const [lineWidth, strokeStyle] of lines) {
        Object.assign(context, { lineWidth, strokeStyle });
        context.strokeRect(x * width, y * height, width, height);
      }
    },
  };
}

// --- controls ----------------------------------------------------------------------------------------

// Elements bound to traits; sync() puts the traits into them.
function createControls({ get, set }) {
  const synced = [];
  return {
    sync: () => synced.forEach((put) => put()),
    slider(name, max, text, step = 1) {
      const oninput = () => set({ [name]: Number(input.value) });
      const input = node("input", { type: "range", min: 0, max, step, "aria-label": name, oninput });
      const output = node("output");
      synced.push(() => {
        input.value = get(name);
        output.textContent = text(get(name));
        input.setAttribute("aria-valuetext", output.textContent);
      });
      return node("label", {}, name, input, output);
    },
    // `also`: further traits to set with each choice.
    menu(name, label, options, also = {}) {
      const convert = typeof get(name) === "number" ? Number : String;
      const onchange = () => set({ [name]: convert(select.value), ...also });
      const texts = options.map(([value, text]) => node("option", { value }, text));
      const select = node("select", { "aria-label": label, onchange }, ...texts);
      synced.push(() => (select.value = get(name)));
      return node("label", {}, label, select);
    },
    checkbox(name, label) {
      const input = node("input", { type: "checkbox", onchange: () => set({ [name]: input.checked }) });
      synced.push(() => (input.checked = get(name)));
      return node("label", {}, input, label);
    },
  };
}

function createPlayer({ facts, counts, get, set }) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)"); // then it plays once, without starting over
  const button = node("button", { "aria-label": "play", onclick: toggle }, "▶");
  let timer = null;

  function tick() {
    const next = get("frame") + 1;
    if (next === counts.frames && calm.matches) toggle();
    else set({ frame: next % counts.frames });
  }
  function toggle() {
    clearInterval(timer);
    timer = timer ? null : setInterval(tick, 1000 / facts.fps);
    button.textContent = timer ? "⏸" : "▶";
    button.setAttribute("aria-label", timer ? "pause" : "play");
  }
  return { button, toggle, stop: () => clearInterval(timer) };
}

// --- the curve by layer ------------------------------------------------------------------------------

const PLOT = { left: 48, right: 590, top: 8, bottom: 120 };

const between = (a, b) => range(Math.abs(a - b) + 1).map((i) => Math.min(a, b) + i);

function createPlot(state) {
  const { facts, counts, get, set } = state;
  const layers = range(counts.layers);
  const bin = (PLOT.right - PLOT.left) / counts.layers;
  const xOf = (layer) => PLOT.left + (layer + 0.5) * bin;
  let brushStart = null;

  function onBrush(event) {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * 600;
    const layer = clamp(Math.floor((x - PLOT.left) / bin), 0, counts.layers - 1);
    if (event.type === "pointerdown") {
      svg.setPointerCapture(event.pointerId);
      brushStart = layer;
    }
    if (brushStart !== null) set({ selected_layers: between(brushStart, layer) });
    if (event.type === "pointerup") brushStart = null;
  }
  const brush = { onpointerdown: onBrush, onpointermove: onBrush, onpointerup: onBrush };
  const svg = node("svg", { viewBox: "0 0 600 145", role: "img", ...brush });
  const legend = node("p", { class: "row" });

  // Lines {name, stroke, dash, values} and bands {stroke, low, high}: the word's mask ratio in each run.
  function maskRatios(lines, bands) {
    if (!state.ratios.length || state.direction() < 0) return;
    const head = get("head");
    facts.runs.forEach((name, run) => {
      const block = get("exclude_sinks") ? counts.runs : 0; // the second half is without sinks
      const stroke = OKABE_ITO[run];
      const ratio = (layer, group) =>
        state.ratios[state.place(block + run, layer) * (1 + counts.heads) + group];
      const ofHeads = (layer) => range(counts.heads).map((h) => ratio(layer, h + 1));
      const [low, high] = [Math.min, Math.max].map((end) => layers.map((layer) => end(...ofHeads(layer))));
      bands.push({ stroke, low, high });
      const what = `mask ratio of ${facts.words[get("word")]} (mean; band: all heads)`;
      const values = layers.map((layer) => ratio(layer, 0));
      lines.push({ name: counts.runs > 1 ? `${name}: ${what}` : what, stroke, values });
      if (head >= 0) {
        const values = layers.map((layer) => ratio(layer, head + 1));
        lines.push({ name: `head ${facts.heads[head]}`, stroke, dash: "4 3", values });
      }
    });
    const area = facts.area[get("direction")] ?? NaN;
    const uniform = { name: "uniform attention", stroke: "currentColor", dash: "1 3" };
    lines.push({ ...uniform, values: layers.map(() => area) });
  }

  // The curve that was given, with its band and baselines.
  function givenCurve(lines, bands) {
    if (!state.curve.length) return;
    const row = (i) => [...state.curve.subarray(i * counts.layers, (i + 1) * counts.layers)];
    bands.push({ stroke: OKABE_ITO[2], low: row(1), high: row(2) });
    lines.push({ name: "curve", stroke: OKABE_ITO[2], values: row(0) });
    facts.baselines.forEach((name, i) => {
      lines.push({ name, stroke: OKABE_ITO[3 + (i % 3)], dash: "1 3", values: row(3 + i) });
    });
  }

  function draw() {
    const [lines, bands] = [[], []];
    maskRatios(lines, bands);
    givenCurve(lines, bands);
    const all = [...lines.map((line) => line.values), ...bands.map((band) => band.high)].flat();
    const highest = Math.max(0, ...all.filter(Number.isFinite)) || 1;
    const height = PLOT.bottom - PLOT.top;
    const path = (values) =>
      layers
        .filter((layer) => Number.isFinite(values[layer]))
        .map((layer) => [xOf(layer), PLOT.bottom - (values[layer] / highest) * height]);
    const ruler = (x1, x2, y1, stroke) => node("line", { x1, x2, y1, y2: PLOT.bottom, stroke });

    const fill = "var(--accent)";
    const selected = get("selected_layers");
    const layer = get("layer");
    const selection = selected.map((layer) =>
      node("rect", { x: xOf(layer) - bin / 2, y: PLOT.top, width: bin, height, fill, "fill-opacity": 0.25 }),
    );
    const areas = bands.map(({ stroke, low, high }) =>
      node("polygon", {
        points: [...path(high), ...path(low).reverse()],
        fill: stroke,
        "fill-opacity": 0.18,
      }),
    );
    const curves = lines.map(({ stroke, dash = "", values }) => {
      const style = { fill: "none", stroke, "stroke-width": 2, "stroke-dasharray": dash };
      return node("polyline", { points: path(values), ...style });
    });
    const labels = layers
      .filter((layer) => layer % Math.ceil(counts.layers / 12) === 0)
      .map((layer) => node("text", { x: xOf(layer), y: 138, "text-anchor": "middle" }, layer));
    svg.replaceChildren(
      ...selection,
      ruler(xOf(layer), xOf(layer), PLOT.top, fill),
      ruler(PLOT.left, PLOT.right, PLOT.bottom, "var(--line)"),
      ...areas,
      ...curves,
      node("text", { x: 2, y: 16 }, lines.length ? number(highest) : ""),
      node("text", { x: 2, y: 120 }, "0"),
      ...labels,
    );

    const said = `selected layers: ${selected.join(", ") || "none"} (drag, or Shift + arrows)`;
    svg.setAttribute("aria-label", `by layer; ${said}`);
    const keys = lines.map(({ name, stroke, dash, values }) => {
      const dashes = node("i", { style: `color: ${stroke}` }, dash ? "┄ " : "━ ");
      return node("span", {}, dashes, `${name}: ${number(values[layer])}`);
    });
    legend.replaceChildren(...keys, said);
  }
  return { svg, legend, draw };
}

// --- the page ----------------------------------------------------------------------------------------

function render({ model, el }) {
  const state = readState(model);
  const { facts, counts, get, set, streams, videos } = state;
  const [, H, W] = facts.size;
  const panes = range(counts.runs < 2 ? 1 : 3); // A, B, A − B
  const maps = createMaps(model, state, update);
  const scales = createScales(state);
  const painter = createPainter(state, update);
  const controls = createControls(state);
  const player = createPlayer(state);
  const plot = createPlot(state);
  let current = []; // maps of the panes
  let hovered = null; // cell under the pointer
  let isGone = false;
  let isQueued = false;

  function choose(stream, token) {
    if (state.whyNot()) {
      readout.textContent = state.whyNot();
      return;
    }
    const direction = { both: get("direction"), query: "from", key: "to" }[stream.side];
    set({ query: token, direction });
  }

  // Tokens of the slot that the current frame is in.
  function slotOf(stream) {
    const [, rows, columns] = stream.cells;
    const first = stream.slots[get("frame")] * rows * columns;
    return stream.tokens.subarray(first, first + rows * columns);
  }

  function cellAt(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const [, rows, columns] = state.shownStream().cells;
    const x = clamp(Math.floor(((event.clientX - box.left) / box.width) * columns), 0, columns - 1);
    const y = clamp(Math.floor(((event.clientY - box.top) / box.height) * rows), 0, rows - 1);
    return y * columns + x;
  }

  // 1. Elements.
  const headMenu = controls.menu("head", "head", [[-1, "mean"], ...numbered(facts.heads)]);
  // In cross-attention a token has one direction, so the other one cannot keep it.
  const forget = facts.square ? {} : { query: -1 };
  const directionMenu = controls.menu("direction", "direction", Object.entries(DIRECTIONS), forget);
  const back = node("button", { onclick: () => set({ query: -1 }) }, "back to the word");
  const streamNames = videos.map(({ name, side }) => (side === "both" ? name : `${name} (${side})`));
  const controlRow = [
    player.button,
    controls.slider("frame", counts.frames - 1, String),
    controls.slider("layer", counts.layers - 1, (i) => facts.layers[i]),
    counts.steps > 1 && controls.slider("step", counts.steps - 1, (i) => facts.steps[i]),
    headMenu,
    controls.menu("word", "word", numbered(facts.words), { query: -1 }),
    back,
    directionMenu,
    videos.length > 1 && controls.menu("stream", "stream", numbered(streamNames)),
    controls.slider("opacity", 1, (share) => `${Math.round(100 * share)} %`, 0.05),
    controls.checkbox("locked_scale", "one scale for all layers"),
    facts.sinks.length && controls.checkbox("exclude_sinks", "leave sinks out"),
    counts.runs > 1 && controls.menu("run", "thumbnails", numbered(panes.map(state.runName))),
  ].filter(Boolean);

  const factor = Math.ceil(STAGE_SIDE / Math.max(H, W));
  const stages = panes.map((run) => {
    const onpointermove = (event) => {
      hovered = cellAt(event);
      drawStages();
    };
    const onpointerleave = () => {
      hovered = null;
      drawStages();
    };
    const onclick = (event) => choose(state.shownStream(), slotOf(state.shownStream())[cellAt(event)]);
    const size = { width: factor * W, height: factor * H };
    const canvas = node("canvas", { ...size, role: "img", onclick, onpointermove, onpointerleave });
    const legend = node("div", { class: "row" });
    const name = counts.runs > 1 ? state.runName(run) : "";
    return { run, canvas, legend, figure: node("figure", {}, name, canvas, legend) };
  });

  const wordRows = streams
    .filter((stream) => stream.words)
    .map((stream) => {
      const buttons = stream.words.map((word, rank) =>
        node("button", { onclick: () => choose(stream, stream.tokens[rank]) }, word || "·"),
      );
      const label = { class: "chips", role: "group", "aria-label": `words of ${stream.name}` };
      return { stream, buttons, box: node("div", label, ...buttons) };
    });

  // A row of thumbnails, one for each value of a trait.
  function strip(trait, texts, first = 0) {
    const size = { width: 64, height: Math.max(1, Math.round((64 * H) / W)) };
    const buttons = texts.map((text, i) => {
      const onclick = () => set({ [trait]: i + first });
      return node("button", { "aria-label": `${trait} ${text}`, onclick }, node("canvas", size), text);
    });
    const label = { class: "thumbs", role: "group", "aria-label": `all ${trait}s` };
    const box = node("div", {}, node("h4", {}, `all ${trait}s`), node("div", label, ...buttons));
    return { box, trait, first, buttons };
  }
  const strips = [
    strip("frame", range(counts.frames)),
    strip("head", ["mean", ...facts.heads], -1),
    strip("layer", facts.layers),
    ...(counts.steps > 1 ? [strip("step", facts.steps)] : []),
  ];

  const message = node("span");
  const close = node("button", { onclick: () => set({ error: "" }) }, "close");
  const banner = node("div", { class: "banner", role: "alert" }, message, " ", close);
  const title = node("p", { class: "title", role: "status" });
  const readout = node("p", { class: "readout" });
  const table = node("table", { "aria-label": "mean attention between groups" });
  const residuals = node("div", { class: "row" });
  const sinkText = node("p");
  const about = { class: "vera-explorer", tabindex: 0, role: "group", "aria-label": "attention explorer" };
  const root = node(
    "div",
    { ...about, onkeydown: onKey },
    banner,
    node("div", { class: "row" }, ...controlRow),
    title,
    node("div", { class: "stage" }, ...stages.map(({ figure }) => figure)),
    readout,
    ...wordRows.map(({ box }) => box),
    ...strips.map(({ box }) => box),
    node("h4", {}, "by layer"),
    plot.svg,
    plot.legend,
    table,
    residuals,
    sinkText,
  );

  // 2. Drawing.
  // The two runs share a scale; their difference has its own.
  function paneTop(run, ofText) {
    const shown = run < 2 ? current.slice(0, counts.runs) : [current[2]];
    return scales.top(shown, get("head"), ofText);
  }

  function drawLegend(legend, run, top) {
    const isSigned = run === 2;
    const colours = range(11).map((i) => `rgb(${colour(isSigned ? DIVERGING : CIVIDIS, i / 10)})`);
    const ramp = { class: "ramp", style: `background: linear-gradient(90deg, ${colours})` };
    const highest = scales.largest(current[run], false);
    const above = highest > top * 1.0001 ? `; up to ${number(highest)} drawn like the end` : "";
    const whose = scales.isLocked() ? "all layers" : "this map";
    const low = isSigned ? `−${number(top)}` : "0";
    legend.replaceChildren(low, node("span", ramp), `${number(top)} (${whose})${above}`);
  }

  function drawStages() {
    if (!painter.isReady() || isGone) return;
    const stream = state.shownStream();
    const frame = get("frame");
    const clicked = state.isSource(stream) ? slotOf(stream).indexOf(get("query")) : -1;
    for (const { run, canvas, legend } of stages) {
      const top = paneTop(run);
      painter.paint(canvas, frame, current[run], top, run === 2);
      if (clicked >= 0) painter.outline(canvas, clicked, "#fff");
      if (hovered !== null) painter.outline(canvas, hovered, OKABE_ITO[5]);
      drawLegend(legend, run, top);
      canvas.setAttribute("aria-label", `attention over frame ${frame}, ${state.runName(run)}`);
      canvas.style.cursor = state.whyNot() ? "help" : "crosshair";
      canvas.title = state.whyNot();
    }
    if (hovered !== null) readPatch(stream);
  }

  // The values of the patch under the pointer.
  function readPatch(stream) {
    const token = slotOf(stream)[hovered];
    const columns = stream.cells[2];
    const cell = [stream.slots[get("frame")], Math.floor(hovered / columns), hovered % columns];
    const values = current.map((map, run) => {
      if (!map || !state.isTarget(stream)) return "";
      const name = counts.runs > 1 ? state.runName(run) : "";
      return `${name} ${number(map(token))} ± ${number(map.error(token))}`;
    });
    readout.textContent = join(`token ${token}, ${stream.name} (${cell.join(", ")})`, ...values);
  }

  function disable(control, isLacking, why) {
    control.disabled = isLacking;
    control.title = isLacking ? why : "";
  }

  function drawMenus() {
    back.hidden = get("query") < 0;
    for (const option of headMenu.querySelectorAll("option")) {
      disable(option, !state.isAlive && option.value >= facts.groups - 1, NEEDS_PYTHON);
    }
    for (const option of directionMenu.querySelectorAll("option")) {
      const isLacking = get("query") < 0 ? !facts.directions.includes(option.value) : !state.isAlive;
      disable(option, isLacking, "Click a token for this map.");
    }
  }

  function drawTitle() {
    const [layer, head, query] = ["layer", "head", "query"].map(get);
    const hasNotes = query < 0 && state.direction() >= 0;
    const noteOf = (_, run) => facts.notes[state.place(run, layer) * (1 + counts.heads) + head + 1];
    const waiting = maps.hasFailed(layer) ? "Python gave no answer." : "computing …";
    title.textContent = join(
      query < 0 ? facts.words[get("word")] : `token ${query}`,
      DIRECTIONS[get("direction")],
      facts.layers[layer],
      `step ${facts.steps[get("step")]}`,
      head < 0 ? "mean of heads" : `head ${facts.heads[head]}`,
      ...(hasNotes ? facts.runs.map(noteOf) : []),
      get("exclude_sinks") && "SINKS LEFT OUT",
      current.includes(null) && (state.isAlive ? waiting : NEEDS_PYTHON),
    );
  }

  function drawStrips() {
    const [layer, head, frame, run] = ["layer", "head", "frame", "run"].map(get);
    // The frame, map and scale of each thumbnail; only frames share the scale of the large picture.
    const alone = (map, head) => [frame, map, scales.top([map], head)];
    const content = {
      frame: (t) => [t, current[run], paneTop(run)],
      head: (h) => alone(maps.get(layer, run, h), h),
      layer: (l) => alone(maps.get(l, run, head), head),
      step: (s) => alone(maps.get(layer, run, head, s), head),
    };
    for (const { trait, first, buttons } of strips) {
      buttons.forEach((button, i) => {
        const [time, map, top] = content[trait](i + first);
        button.setAttribute("aria-pressed", get(trait) === i + first);
        disable(button, trait !== "frame" && !map && !state.isAlive, NEEDS_PYTHON);
        button.firstChild.style.opacity = map ? 1 : 0.3;
        if (painter.isReady()) painter.paint(button.firstChild, time, map, top, run === 2);
      });
    }
  }

  function drawWords() {
    for (const { stream, buttons } of wordRows) {
      const map = state.isTarget(stream) ? current[0] : null;
      const top = paneTop(0, true);
      buttons.forEach((button, rank) => {
        const token = stream.tokens[rank];
        tint(button, map ? map(token) / top : NaN);
        button.title = join(map && `${number(map(token))} ± ${number(map.error(token))}`, state.whyNot());
        button.setAttribute("aria-pressed", get("query") === token && state.isSource(stream));
      });
    }
  }

  function drawMatrix() {
    if (!facts.matrix) return;
    const { rows, columns } = facts.matrix;
    const first = (get("step") * counts.layers + get("layer")) * rows.length * columns.length;
    const heads = columns.map((name) => node("th", {}, name));
    const body = rows.map((name, r) => {
      const cells = columns.map((_, c) => {
        const value = state.matrix[first + r * columns.length + c];
        return tint(node("td", {}, value.toFixed(3)), value);
      });
      return node("tr", {}, node("th", {}, name), ...cells);
    });
    table.replaceChildren(node("tr", {}, node("th", {}, "from \\ to"), ...heads), ...body);
  }

  function drawResiduals() {
    const lines = facts.runs.map((name, run) => {
      const residual = facts.residuals[run][get("step")][get("layer")] ?? NaN;
      const isFine = residual <= facts.threshold;
      const dot = node("i", { class: "dot", style: `background: ${OKABE_ITO[isFine ? 2 : 1]}` });
      const verdict = `${isFine ? "within" : "ABOVE"} ${number(facts.threshold)}`;
      const text = `A·V at capture differs from the kernel's output by ${number(residual)}, ${verdict}`;
      return node("span", { "data-ok": isFine }, dot, ` ${counts.runs > 1 ? name : ""} ${text}`);
    });
    residuals.replaceChildren(...lines);
    const names = facts.sinks.map((sink) => sink.name).join(", ") || "none found";
    sinkText.textContent = `sinks${get("exclude_sinks") ? " (left out)" : ""}: ${names}`;
  }

  function update() {
    if (isGone) return;
    controls.sync();
    const [layer, head] = ["layer", "head"].map(get);
    maps.request(layer);
    current = panes.map((run) => maps.get(layer, run, head));
    root.dataset.alive = state.isAlive;
    banner.hidden = !get("error");
    message.textContent = get("error");
    drawMenus();
    drawTitle();
    drawStages();
    drawStrips();
    drawWords();
    plot.draw();
    drawMatrix();
    drawResiduals();
  }

  // Several changes at once are drawn once.
  function queueUpdate() {
    if (!isQueued) {
      queueMicrotask(() => {
        isQueued = false;
        update();
      });
    }
    isQueued = true;
  }

  // 3. Keys.
  function moveSideways(by, isSelecting) {
    if (!isSelecting) return set({ frame: clamp(get("frame") + by, 0, counts.frames - 1) });
    const selected = get("selected_layers");
    if (!selected.length) return set({ selected_layers: [get("layer")] });
    const ends = [selected[0], selected.at(-1)];
    const [from, to] = by > 0 ? ends : ends.reverse();
    set({ selected_layers: between(from, clamp(to + by, 0, counts.layers - 1)) });
  }

  function onKey(event) {
    event.stopPropagation(); // or JupyterLab takes the key
    const { key, target, shiftKey } = event;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (["INPUT", "SELECT"].includes(target.tagName)) return;
    if (target.tagName === "BUTTON" && key === " ") return; // presses the button
    const move = (name, by, low, high) => set({ [name]: clamp(get(name) + by, low, high) });
    const lastHead = (state.isAlive || facts.groups > 1 ? counts.heads : 0) - 1;
    const actions = {
      ArrowLeft: () => moveSideways(-1, shiftKey),
      ArrowRight: () => moveSideways(1, shiftKey),
      ArrowUp: () => move("layer", 1, 0, counts.layers - 1),
      ArrowDown: () => move("layer", -1, 0, counts.layers - 1),
      "[": () => move("head", -1, -1, lastHead),
      "]": () => move("head", 1, -1, lastHead),
      " ": player.toggle,
      Escape: () => set({ query: -1, selected_layers: [] }),
    };
    if (!actions[key]) return;
    event.preventDefault();
    actions[key]();
  }

  // 4. What comes from Python.
  function onMessage(content, buffers) {
    if (content.alive) {
      state.isAlive = true;
      queueUpdate();
    } else {
      maps.onReply(content, buffers);
    }
  }

  const traits =
    "layer head step frame word stream run query direction selected_layers exclude_sinks locked_scale " +
    "opacity error";
  const events = traits.split(" ").map((name) => `change:${name}`);
  for (const event of events) model.on(event, queueUpdate);
  model.on("msg:custom", onMessage);
  el.append(root);
  update();
  model.send({ hello: true });
  return () => {
    isGone = true;
    player.stop();
    maps.stop();
    for (const event of events) model.off(event, queueUpdate);
    model.off("msg:custom", onMessage);
    root.remove();
  };
}

export default { render };
