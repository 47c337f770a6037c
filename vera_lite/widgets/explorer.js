const CIVIDIS = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120],
  [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56]];
const DIVERGING = [[5, 72, 133], [67, 147, 195], [247, 247, 247], [230, 130, 40], [127, 59, 8]];
const OKABE_ITO = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const NEEDS_PYTHON = "Needs Python: run the notebook to compute this map.";
const NOT_CAPTURED = "Only rows were captured: other tokens need StoreQK.";
const CACHED_MAPS = 64;
const PATIENCE = 20000; // ms until Python is taken to be gone

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
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(place), stops.length - 2);
  return stops[i].map((low, c) => Math.round(low + (place - i) * (stops[i + 1][c] - low)));
}

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
const join = (...parts) => parts.filter(Boolean).join(" · ");
const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
// Copied: a view of floats must begin at a multiple of four.
const floats = (view) => new Float32Array(bytes(view).slice().buffer);

function render({ model, el }) {
  const get = (name) => model.get(name);
  const set = (changes) => {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  };
  const facts = get("_facts");
  const [T, H, W] = facts.size;
  const [S, L, heads, runs] = [facts.steps, facts.layers, facts.heads, facts.runs].map((list) => list.length);
  const [Ws, D] = [facts.words.length, facts.directions.length];
  const overview = { codes: bytes(get("_overview")), ranges: floats(get("_ranges")), groups: facts.groups };
  overview.maps = runs * S * L * Ws * D * facts.groups;
  const positions = new Int32Array(bytes(get("_positions")).slice().buffer);
  const [ratios, curve, matrix] = ["_ratios", "_curve", "_matrix"].map((name) => floats(get(name)));
  const streams = facts.streams.map((stream, i, all) =>
    ({ ...stream, tokens: positions.subarray(stream.start, all[i + 1]?.start) }));
  const videos = streams.filter((s) => s.cells);
  const panes = range(runs < 2 ? 1 : 3); // A, B, A − B
  const paneName = (run) => (run < 2 ? facts.runs[run] : facts.runs.join(" − "));
  const direction = () => facts.directions.indexOf(get("direction"));
  const place = (run, layer, step = get("step")) =>
    (((run * S + step) * L + layer) * Ws + get("word")) * D + direction();

  const cache = new Map(); // least recently used first
  const sender = Math.random().toString(36).slice(2); // replies reach every view of the model
  let flight = null, wanted = null, failed = null, asked = 0;

  function requestFor(layer, step = get("step")) {
    const [query, direction] = ["query", "direction"].map(get);
    const content = { layer, step, word: query < 0 ? get("word") : 0, query, direction };
    return { key: Object.values(content).join(), content };
  }
  const keyOf = (...at) => requestFor(...at).key;

  // One request at a time; of those that wait, the latest.
  function pump() {
    if (flight || !wanted || cache.has(wanted.key) || wanted.key === failed) return;
    flight = { key: wanted.key, id: `${sender}-${++asked}`, timer: setTimeout(land, PATIENCE) };
    failed = null;
    model.send({ id: flight.id, ...wanted.content });
  }
  function land(pack) {
    clearTimeout(flight.timer);
    if (pack) cache.set(flight.key, pack);
    else failed = flight.key;
    if (cache.size > CACHED_MAPS) cache.delete(cache.keys().next().value);
    flight = null;
    update();
  }
  function onReply(message, buffers) {
    if (message.id !== flight?.id) return; // stale, or another view's
    if (message.failed) return land();
    const groups = 1 + heads;
    land({ codes: bytes(buffers[0]), ranges: floats(buffers[1]), groups, maps: runs * groups, single: true });
  }

  // A map: token -> value, NaN for sinks that are left out. Null if it is not here.
  function reader(layer, run, head, step) {
    const key = keyOf(layer, step), group = head + 1;
    let pack = cache.get(key);
    if (pack) cache.delete(key) && cache.set(key, pack); // the most recently used
    else if (get("query") < 0 && direction() >= 0 && group < facts.groups) pack = overview;
    else return null;
    const index = (pack.single ? run : place(run, layer, step)) * pack.groups + group;
    const M = pack.codes.length / pack.maps, n = pack.ranges.length / pack.maps;
    const [zero, scale, ...kept] = pack.ranges.subarray(index * n, (index + 1) * n);
    const apart = new Map();
    if (get("direction") === "from") {
      facts.sinks.forEach((s, i) => apart.set(s.token, get("exclude_sinks") ? NaN : kept[i]));
    }
    const value = (token) => apart.get(token) ?? zero + (pack.codes[index * M + token] / 255) * scale;
    const error = (token) => (apart.has(token) ? 0 : scale / 510);
    return Object.assign(value, { error });
  }

  function map(layer, run, head, step) {
    if (run < 2) return reader(layer, run, head, step);
    const [a, b] = [0, 1].map((one) => reader(layer, one, head, step));
    if (!a || !b) return null;
    const value = (token) => a(token) - b(token);
    return Object.assign(value, { error: (token) => a.error(token) + b.error(token) });
  }

  let current = []; // maps of the panes

  const isTarget = ({ side }) => side === "both" || side === (get("direction") === "from" ? "key" : "query");
  // The upper end of the colour scale; the lower one is zero, whatever a map's smallest value.
  function largest(value, ofText) {
    let top = 0;
    for (const stream of streams) {
      if (!value || Boolean(stream.words) !== ofText || !isTarget(stream)) continue;
      for (const token of stream.tokens) top = Math.max(top, Math.abs(value(token)) || 0);
    }
    return top;
  }
  const isLocked = () => get("locked_scale") && direction() >= 0;
  function topOf(maps, head, ofText = false) {
    const [group, kept] = [Number(head >= 0), Number(get("exclude_sinks"))];
    if (isLocked()) return facts.tops[direction()][Number(ofText)][group][kept] || 1;
    return Math.max(...maps.map((m) => largest(m, ofText))) || 1;
  }
  // The two runs share a scale; their difference has its own.
  const paneTop = (run, ofText) =>
    topOf(run < 2 ? current.slice(0, runs) : [current[2]], get("head"), ofText);

  const isSource = (stream) => stream.side === "both" || !isTarget(stream);
  const shown = () => videos[get("stream")];
  const whyNot = () => (!facts.clickable ? NOT_CAPTURED : get("has_kernel") ? "" : NEEDS_PYTHON);

  function choose(stream, token) {
    if (whyNot()) return (readout.textContent = whyNot());
    const side = { both: get("direction"), query: "from", key: "to" };
    set({ query: token, direction: side[stream.side] });
  }

  let sheet = null, gone = false, hover = null;
  const grey = document.createElement("canvas"); // the frames, so that all colour is the map's
  createImageBitmap(new Blob([bytes(get("_picture"))])).then((bitmap) => {
    sheet = bitmap;
    [grey.width, grey.height] = [sheet.width, sheet.height];
    const context = grey.getContext("2d");
    context.drawImage(sheet, 0, 0);
    context.globalCompositeOperation = "color";
    context.fillStyle = "#888";
    context.fillRect(0, 0, grey.width, grey.height);
    update();
  });
  const patches = document.createElement("canvas");

  function paint(canvas, frame, value, top, signed) {
    const { columns } = facts, { width, height } = canvas, stream = shown();
    const context = canvas.getContext("2d");
    const w = sheet.width / columns, h = sheet.height / Math.ceil(T / columns);
    const [x, y] = [(frame % columns) * w, Math.floor(frame / columns) * h];
    context.imageSmoothingEnabled = false;
    const covered = value && isTarget(stream) && get("opacity") > 0;
    context.drawImage(covered ? grey : sheet, x, y, w, h, 0, 0, width, height);
    if (!covered) return;
    const [, th, tw] = stream.cells;
    const first = stream.slots[frame] * th * tw;
    const picture = new ImageData(tw, th);
    for (const i of range(th * tw)) {
      const v = value(stream.tokens[first + i]) / top;
      if (Number.isNaN(v)) continue; // a sink that is left out stays clear
      picture.data.set([...(signed ? colour(DIVERGING, (1 + v) / 2) : colour(CIVIDIS, v)), 255], 4 * i);
    }
    [patches.width, patches.height] = [tw, th];
    patches.getContext("2d").putImageData(picture, 0, 0);
    context.globalAlpha = get("opacity");
    context.drawImage(patches, 0, 0, width, height);
    context.globalAlpha = 1;
  }

  function slotOf(stream) {
    const [, h, w] = stream.cells, first = stream.slots[get("frame")] * h * w;
    return stream.tokens.subarray(first, first + h * w);
  }

  function outline(canvas, cell, stroke) {
    const [, h, w] = shown().cells, [y, x] = [Math.floor(cell / w), cell % w];
    const context = canvas.getContext("2d"), width = canvas.width / w, height = canvas.height / h;
    for (const [thick, style] of [[3, "#000"], [1.5, stroke]]) {
      context.lineWidth = thick;
      context.strokeStyle = style;
      context.strokeRect(x * width, y * height, width, height);
    }
  }

  function cellAt(event) {
    const box = event.currentTarget.getBoundingClientRect(), [, h, w] = shown().cells;
    const x = clamp(Math.floor(((event.clientX - box.left) / box.width) * w), 0, w - 1);
    const y = clamp(Math.floor(((event.clientY - box.top) / box.height) * h), 0, h - 1);
    return y * w + x;
  }

  const synced = []; // functions that put traits into controls
  function slider(name, max, text, step = 1) {
    const oninput = () => set({ [name]: Number(input.value) });
    const input = node("input", { type: "range", min: 0, max, step, "aria-label": name, oninput });
    const output = node("output");
    synced.push(() => {
      input.value = get(name);
      output.textContent = text(get(name));
      input.setAttribute("aria-valuetext", output.textContent);
    });
    return node("label", {}, name, input, output);
  }
  function menu(name, label, options, also = {}) {
    const convert = typeof get(name) === "number" ? Number : String;
    const onchange = () => set({ [name]: convert(select.value), ...also });
    const texts = options.map(([value, text]) => node("option", { value }, text));
    const select = node("select", { "aria-label": label, onchange }, ...texts);
    synced.push(() => (select.value = get(name)));
    return node("label", {}, label, select);
  }
  function checkbox(name, label) {
    const input = node("input", { type: "checkbox", onchange: () => set({ [name]: input.checked }) });
    synced.push(() => (input.checked = get(name)));
    return node("label", {}, input, label);
  }
  const numbered = (texts) => texts.map((text, i) => [i, text]);

  let timer = null;
  const calm = matchMedia("(prefers-reduced-motion: reduce)"); // plays once, without starting over
  function tick() {
    const next = get("frame") + 1;
    if (next === T && calm.matches) toggle();
    else set({ frame: next % T });
  }
  const play = node("button", { "aria-label": "play", onclick: toggle }, "▶");
  function toggle() {
    clearInterval(timer);
    timer = timer ? null : setInterval(tick, 1000 / facts.fps);
    play.textContent = timer ? "⏸" : "▶";
    play.setAttribute("aria-label", timer ? "pause" : "play");
  }

  const headMenu = menu("head", "head", [[-1, "mean"], ...numbered(facts.heads)]);
  const ways = [["from", "where it looks"], ["to", "who looks at it"]];
  // In cross-attention a token has one direction, so the other one cannot keep it.
  const wayMenu = menu("direction", "direction", ways, facts.square ? {} : { query: -1 });
  const back = node("button", { onclick: () => set({ query: -1 }) }, "back to the word");
  const streamNames = videos.map((s) => (s.side === "both" ? s.name : `${s.name} (${s.side})`));
  const controls = node("div", { class: "row" }, play, slider("frame", T - 1, String),
    slider("layer", L - 1, (i) => facts.layers[i]),
    ...(S > 1 ? [slider("step", S - 1, (i) => facts.steps[i])] : []),
    headMenu, menu("word", "word", numbered(facts.words), { query: -1 }), back, wayMenu,
    ...(videos.length > 1 ? [menu("stream", "stream", numbered(streamNames))] : []),
    slider("opacity", 1, (o) => `${Math.round(100 * o)} %`, 0.05),
    checkbox("locked_scale", "one scale for all layers"),
    ...(facts.sinks.length ? [checkbox("exclude_sinks", "leave sinks out")] : []),
    ...(runs > 1 ? [menu("run", "thumbnails", numbered(panes.map(paneName)))] : []));

  const [width, height] = [W, H].map((n) => n * Math.ceil(480 / Math.max(H, W)));
  const stages = panes.map((run) => {
    const hovered = (event) => {
      hover = event.type === "pointerleave" ? null : cellAt(event);
      drawStages();
    };
    const onclick = (event) => choose(shown(), slotOf(shown())[cellAt(event)]);
    const canvas = node("canvas", { width, height, role: "img", onclick, onpointermove: hovered,
      onpointerleave: hovered });
    const legend = node("div", { class: "row" });
    return { run, canvas, legend, figure: node("figure", {}, runs > 1 ? paneName(run) : "", canvas, legend) };
  });

  const chips = streams.filter((s) => s.words).map((stream) => {
    const press = (rank) => () => choose(stream, stream.tokens[rank]);
    const buttons = stream.words.map((word, rank) => node("button", { onclick: press(rank) }, word || "·"));
    const label = { class: "chips", role: "group", "aria-label": `words of ${stream.name}` };
    return { stream, buttons, box: node("div", label, ...buttons) };
  });

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
  const strips = [strip("frame", range(T)), strip("head", ["mean", ...facts.heads], -1),
    strip("layer", facts.layers), ...(S > 1 ? [strip("step", facts.steps)] : [])];

  const plot = { left: 48, right: 590, top: 8, bottom: 120 };
  const bin = (plot.right - plot.left) / L;
  const xOf = (layer) => plot.left + (layer + 0.5) * bin;
  const span = (a, b) => range(Math.abs(a - b) + 1).map((i) => Math.min(a, b) + i);
  let brush = null;
  function brushed(event) {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * 600;
    const layer = clamp(Math.floor((x - plot.left) / bin), 0, L - 1);
    if (event.type === "pointerdown") {
      svg.setPointerCapture(event.pointerId);
      brush = layer;
    }
    if (brush !== null) set({ selected_layers: span(brush, layer) });
    if (event.type === "pointerup") brush = null;
  }
  const svg = node("svg", { viewBox: "0 0 600 145", role: "img", onpointerdown: brushed,
    onpointermove: brushed, onpointerup: brushed });
  const curveKey = node("p", { class: "row" });

  function drawCurve() {
    const lines = [], bands = [], head = get("head");
    const line = (name, stroke, value, dash = "") =>
      lines.push({ name, stroke, dash, values: range(L).map(value) });
    if (ratios.length && direction() >= 0) {
      facts.runs.forEach((name, run) => {
        const shift = get("exclude_sinks") ? runs : 0, stroke = OKABE_ITO[run];
        const ratio = (layer, group) => ratios[place(shift + run, layer) * (1 + heads) + group];
        const ends = (end) => range(L).map((l) => end(...range(heads).map((h) => ratio(l, h + 1))));
        bands.push([stroke, ends(Math.min), ends(Math.max)]);
        const what = `mask ratio of ${facts.words[get("word")]} (mean; band: all heads)`;
        line(runs > 1 ? `${name}: ${what}` : what, stroke, (l) => ratio(l, 0));
        if (head >= 0) line(`head ${facts.heads[head]}`, stroke, (l) => ratio(l, head + 1), "4 3");
      });
      line("uniform attention", "currentColor", () => facts.area[get("direction")] ?? NaN, "1 3");
    }
    if (curve.length) {
      bands.push([OKABE_ITO[2], curve.subarray(L, 2 * L), curve.subarray(2 * L, 3 * L)]);
      const at = (i) => (l) => curve[i * L + l];
      line("curve", OKABE_ITO[2], at(0));
      facts.baselines.forEach((name, i) => line(name, OKABE_ITO[3 + (i % 3)], at(3 + i), "1 3"));
    }
    const all = [...lines.map((x) => x.values), ...bands.map((band) => [...band[2]])].flat();
    const highest = Math.max(0, ...all.filter(Number.isFinite)) || 1;
    const height = plot.bottom - plot.top, fill = "var(--accent)";
    const path = (values) => range(L).filter((l) => Number.isFinite(values[l]))
      .map((l) => [xOf(l), plot.bottom - (values[l] / highest) * height]);
    const chosen = get("selected_layers"), layer = get("layer");
    const box = { y: plot.top, width: bin, height, fill, "fill-opacity": 0.25 };
    const ruler = (x1, x2, y1, stroke) => node("line", { x1, x2, y1, y2: plot.bottom, stroke });
    svg.replaceChildren(
      ...chosen.map((l) => node("rect", { x: xOf(l) - bin / 2, ...box })),
      ruler(xOf(layer), xOf(layer), plot.top, fill),
      ruler(plot.left, plot.right, plot.bottom, "var(--line)"),
      ...bands.map(([fill, low, high]) =>
        node("polygon", { points: [...path(high), ...path(low).reverse()], fill, "fill-opacity": 0.18 })),
      ...lines.map(({ stroke, dash, values }) => node("polyline",
        { points: path(values), fill: "none", stroke, "stroke-width": 2, "stroke-dasharray": dash })),
      node("text", { x: 2, y: 16 }, lines.length ? number(highest) : ""), node("text", { x: 2, y: 120 }, "0"),
      ...range(L).filter((l) => l % Math.ceil(L / 12) === 0)
        .map((l) => node("text", { x: xOf(l), y: 138, "text-anchor": "middle" }, l)));
    const selection = `selected layers: ${chosen.join(", ") || "none"} (drag, or Shift + arrows)`;
    svg.setAttribute("aria-label", `by layer; ${selection}`);
    const keys = lines.map(({ name, stroke, dash, values }) => node("span", {},
      node("i", { style: `color: ${stroke}` }, dash ? "┄ " : "━ "), `${name}: ${number(values[layer])}`));
    curveKey.replaceChildren(...keys, selection);
  }

  const message = node("span");
  const close = node("button", { onclick: () => set({ error: "" }) }, "close");
  const banner = node("div", { class: "banner", role: "alert" }, message, " ", close);
  const title = node("p", { class: "title", role: "status" });
  const readout = node("p", { class: "readout" });
  const table = node("table", { "aria-label": "mean attention between groups" });
  const residuals = node("div", { class: "row" });
  const sinkText = node("p");
  const about = { class: "vera-explorer", tabindex: 0, role: "group", "aria-label": "attention explorer" };
  const root = node("div", { ...about, onkeydown: onKey }, banner, controls, title,
    node("div", { class: "stage" }, ...stages.map((s) => s.figure)), readout, ...chips.map((c) => c.box),
    ...strips.map((s) => s.box), node("h4", {}, "by layer"), svg, curveKey, table, residuals, sinkText);

  function ramp(stops) {
    const colours = range(11).map((i) => `rgb(${colour(stops, i / 10)})`);
    return node("span", { class: "ramp", style: `background: linear-gradient(90deg, ${colours})` });
  }

  function drawStages() {
    if (!sheet || gone) return;
    const stream = shown(), frame = get("frame"), slot = slotOf(stream), w = stream.cells[2];
    const clicked = isSource(stream) ? slot.indexOf(get("query")) : -1;
    for (const { run, canvas, legend } of stages) {
      const signed = run === 2, top = paneTop(run), highest = largest(current[run], false);
      paint(canvas, frame, current[run], top, signed);
      if (clicked >= 0) outline(canvas, clicked, "#fff");
      if (hover !== null) outline(canvas, hover, OKABE_ITO[5]);
      const above = highest > top * 1.0001 ? `; up to ${number(highest)} drawn like the end` : "";
      legend.replaceChildren(signed ? `−${number(top)}` : "0", ramp(signed ? DIVERGING : CIVIDIS),
        `${number(top)} (${isLocked() ? "all layers" : "this map"})${above}`);
      canvas.setAttribute("aria-label", `attention over frame ${frame}, ${paneName(run)}`);
      canvas.style.cursor = whyNot() ? "help" : "crosshair";
      canvas.title = whyNot();
    }
    if (hover === null) return;
    const token = slot[hover], cell = [stream.slots[frame], Math.floor(hover / w), hover % w];
    const values = current.map((m, run) => m && isTarget(stream)
      && `${runs > 1 ? paneName(run) : ""} ${number(m(token))} ± ${number(m.error(token))}`);
    readout.textContent = join(`token ${token}, ${stream.name} (${cell.join(", ")})`, ...values);
  }

  function disable(control, lacking, why) {
    control.disabled = lacking;
    control.title = lacking ? why : "";
  }

  function update() {
    if (gone) return;
    synced.forEach((put) => put());
    const [layer, head, step, query, run, frame] = "layer head step query run frame".split(" ").map(get);
    const live = get("has_kernel");
    // Single heads that were not saved come with the same request.
    const isSaved = query < 0 && direction() >= 0 && facts.groups > heads;
    wanted = live && !isSaved ? requestFor(layer) : null;
    pump();
    current = panes.map((pane) => map(layer, pane, head));
    const waiting = failed === keyOf(layer) ? "Python gave no answer." : "computing …";
    const noteOf = (_, run) => query < 0 && facts.notes[place(run, layer) * (1 + heads) + head + 1];
    const notes = direction() < 0 ? [] : facts.runs.map(noteOf);
    title.textContent = join(query < 0 ? facts.words[get("word")] : `token ${query}`,
      ways.find(([way]) => way === get("direction"))[1], facts.layers[layer], `step ${facts.steps[step]}`,
      head < 0 ? "mean of heads" : `head ${facts.heads[head]}`, ...notes, get("exclude_sinks") && "SINKS LEFT OUT",
      current.includes(null) && (live ? waiting : NEEDS_PYTHON));
    back.hidden = query < 0;
    banner.hidden = !get("error");
    message.textContent = get("error");
    for (const option of headMenu.querySelectorAll("option")) {
      disable(option, !live && option.value >= facts.groups - 1, NEEDS_PYTHON);
    }
    for (const option of wayMenu.querySelectorAll("option")) {
      const lacking = query < 0 ? !facts.directions.includes(option.value) : !live;
      disable(option, lacking, "Click a token for this map.");
    }
    drawStages();
    const one = (value, h) => [frame, value, topOf([value], h)];
    const content = {
      frame: (t) => [t, current[run], paneTop(run)],
      head: (h) => one(map(layer, run, h), h),
      layer: (l) => one(map(l, run, head), head),
      step: (s) => one(map(layer, run, head, s), head),
    };
    for (const { trait, first, buttons } of strips) {
      buttons.forEach((button, i) => {
        button.setAttribute("aria-pressed", get(trait) === i + first);
        const [time, value, top] = content[trait](i + first);
        disable(button, trait !== "frame" && !value && !live, NEEDS_PYTHON);
        button.firstChild.style.opacity = value ? 1 : 0.3;
        if (sheet) paint(button.firstChild, time, value, top, run === 2);
      });
    }
    for (const { stream, buttons } of chips) {
      const value = isTarget(stream) ? current[0] : null, top = paneTop(0, true);
      buttons.forEach((button, rank) => {
        const token = stream.tokens[rank];
        tint(button, value ? value(token) / top : NaN);
        button.title = join(value && `${number(value(token))} ± ${number(value.error(token))}`, whyNot());
        button.setAttribute("aria-pressed", query === token && isSource(stream));
      });
    }
    drawCurve();
    if (facts.matrix) {
      const { rows, columns } = facts.matrix;
      const cell = (r) => (_, c) => {
        const value = matrix[((step * L + layer) * rows.length + r) * columns.length + c];
        return tint(node("td", {}, value.toFixed(3)), value);
      };
      table.replaceChildren(
        node("tr", {}, node("th", {}, "from \\ to"), ...columns.map((name) => node("th", {}, name))),
        ...rows.map((name, r) => node("tr", {}, node("th", {}, name), ...columns.map(cell(r)))));
    }
    residuals.replaceChildren(...facts.runs.map((name, i) => {
      const residual = facts.residuals[i][step][layer] ?? NaN, ok = residual <= facts.threshold;
      const dot = node("i", { class: "dot", style: `background: ${OKABE_ITO[ok ? 2 : 1]}` });
      const [whose, verdict] = [runs > 1 ? name : "", ok ? "within" : "ABOVE"];
      return node("span", { "data-ok": ok }, dot, ` ${whose} A·V at capture differs from the kernel's output by `
        + `${number(residual)}, ${verdict} ${number(facts.threshold)}`);
    }));
    const names = facts.sinks.map((s) => s.name).join(", ") || "none found";
    sinkText.textContent = `sinks${get("exclude_sinks") ? " (left out)" : ""}: ${names}`;
  }

  function onKey(event) {
    event.stopPropagation(); // or JupyterLab takes the key
    const { key, target: { tagName } } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT"].includes(tagName)) return;
    if (tagName === "BUTTON" && key === " ") return; // presses the button
    const move = (name, by, low, high) => set({ [name]: clamp(get(name) + by, low, high) });
    const sideways = (by) => {
      if (!event.shiftKey) return move("frame", by, 0, T - 1);
      const chosen = get("selected_layers"), ends = [chosen[0], chosen.at(-1)];
      const [from, to] = by > 0 ? ends : ends.reverse();
      set({ selected_layers: chosen.length ? span(from, clamp(to + by, 0, L - 1)) : [get("layer")] });
    };
    const lastHead = (get("has_kernel") || facts.groups > 1 ? heads : 0) - 1;
    const actions = {
      ArrowLeft: () => sideways(-1),
      ArrowRight: () => sideways(1),
      ArrowUp: () => move("layer", 1, 0, L - 1),
      ArrowDown: () => move("layer", -1, 0, L - 1),
      "[": () => move("head", -1, -1, lastHead),
      "]": () => move("head", 1, -1, lastHead),
      " ": toggle,
      Escape: () => set({ query: -1, selected_layers: [] }),
    };
    if (!actions[key]) return;
    event.preventDefault();
    actions[key]();
  }

  let queued = false;
  const onChange = () => {
    if (!queued) queueMicrotask(() => (queued = false) || update());
    queued = true;
  };
  const traits = "layer head step frame word stream run query direction selected_layers exclude_sinks "
    + "locked_scale opacity error has_kernel";
  const events = traits.split(" ").map((name) => `change:${name}`);
  for (const event of events) model.on(event, onChange);
  model.on("msg:custom", onReply);
  el.append(root);
  update();
  return () => {
    gone = true;
    clearInterval(timer);
    clearTimeout(flight?.timer);
    for (const event of events) model.off(event, onChange);
    model.off("msg:custom", onReply);
    root.remove();
  };
}

export default { render };
