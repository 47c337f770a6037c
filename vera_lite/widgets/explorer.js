// The page of the attention explorer. The parts before this one are joined in front of it.

const STAGE_SIDE = 480; // pixels that a small frame is enlarged to at least
const HELP = [
  "The colour of a patch is the share of attention that it gets from the query (“who looks at it”: that it gives " +
    "to the query). It begins at 0 and ends at the number at the end of the colour bar. Under a map the video has " +
    "few greys, so that it is not mistaken for attention.",
  "The white frame marks the query; it is dashed in frames of another time slot. Click a patch or a word to make it " +
    "the query.",
  "The atlas has a column for each layer and a row for each head; a click opens that map. The curve below is the " +
    "mean of the heads, its band spans them.",
  "Keys: ← → frame, ↑ ↓ layer, [ ] head, Space play, Esc back to the word, Shift + ← → select layers. On the picture, " +
    "arrows move over patches and Enter chooses; on the atlas, arrows move over heads.",
];

function render({ model, el }) {
  const state = readState(model);
  const { facts, counts, get, set, streams, videos } = state;
  const [, H, W] = facts.size;
  const panes = range(counts.runs < 2 ? 1 : 3); // A, B, A − B
  const maps = createMaps(model, state, queueUpdate);
  const scales = createScales(state);
  const painter = createPainter(state, queueUpdate);
  const controls = createControls(state);
  const player = createPlayer(state);
  const cut = createCut(state, queueUpdate);
  const atlas = createAtlas(state, maps, cut, (text) => (readout.textContent = text));
  const films = createFilms(state, painter);
  const lane = createLane(state, maps, painter, cut, queueUpdate);
  let current = []; // maps of the panes
  let hovered = null; // cell under the pointer or the keyboard's cursor
  let dragged = null; // cell where a drag began
  let isGone = false;
  let isQueued = false;

  function choose(stream, token) {
    if (cut.isOn) {
      if (state.isTarget(stream)) cut.toggleKey(token);
      else readout.textContent = "Only what is looked at can be cut.";
    } else if (state.whyNot()) {
      readout.textContent = state.whyNot();
    } else {
      const direction = { both: get("direction"), query: "from", key: "to" }[stream.side];
      set({ query: token, direction, stream: state.streamFor(direction) });
    }
  }

  function cellAt(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const [, rows, columns] = state.shownStream().cells;
    const x = clamp(Math.floor(((event.clientX - box.left) / box.width) * columns), 0, columns - 1);
    const y = clamp(Math.floor(((event.clientY - box.top) / box.height) * rows), 0, rows - 1);
    return y * columns + x;
  }

  // The cells between two corners.
  function rectangle(a, b) {
    const columns = state.shownStream().cells[2];
    const rows = between(Math.floor(a / columns), Math.floor(b / columns));
    return rows.flatMap((y) => between(a % columns, b % columns).map((x) => y * columns + x));
  }

  // 1. Elements.
  const headMenu = controls.menu("head", "head", [[-1, "mean"], ...numbered(facts.heads)]);
  // In cross-attention a token has one direction, so the other one cannot keep it.
  const directionMenu = controls.menu("direction", "map of", Object.entries(DIRECTIONS), (direction) => ({
    ...(facts.square ? {} : { query: -1 }),
    stream: state.streamFor(direction),
  }));
  const back = node("button", { onclick: () => set({ query: -1 }) }, "back to the word");
  const streamNames = videos.map(({ name, side }) => (side === "both" ? name : `${name} (${side})`));
  const controlRow = [
    player.box,
    controls.slider("frame", "frame", counts.frames - 1, String),
    counts.steps > 1 &&
      controls.slider("step", facts.sigmas ? "sigma" : "step", counts.steps - 1, (i) =>
        facts.sigmas ? number(facts.sigmas[i]) : facts.steps[i],
      ),
    controls.slider("layer", "layer", counts.layers - 1, String),
    headMenu,
    controls.menu("word", "word", numbered(facts.words), () => ({ query: -1 })),
    back,
    directionMenu,
    videos.length > 1 && controls.menu("stream", "video", numbered(streamNames)),
    counts.runs > 1 && controls.menu("run", "atlas and strips", numbered(panes.map(state.runName))),
  ];
  const looks = [
    [0.75, "map over the video"],
    [1, "map alone"],
    [0, "video alone"],
  ];
  if (!looks.some(([share]) => share === get("opacity"))) {
    looks.push([get("opacity"), `map, ${Math.round(100 * get("opacity"))} %`]);
  }
  const percent = (share) => `${Math.round(100 * share)} %`;
  const scaleRow = [
    controls.menu("locked_scale", "scale", [
      [0, "its own"],
      [1, "one for all maps"],
    ]),
    controls.menu("opacity", "show", looks),
    controls.slider("threshold", "hide below", 1, percent, 0.05),
    facts.sinks.length > 0 && controls.checkbox("exclude_sinks", "leave sinks out"),
  ];

  const factor = Math.ceil(STAGE_SIDE / Math.max(H, W));
  const stages = panes.map((run) => {
    const onpointermove = (event) => {
      hovered = cellAt(event);
      if (dragged !== null) cut.choosePatches(state.shownStream(), rectangle(dragged, hovered), lane.inAllFrames());
      else drawStages();
    };
    const onpointerleave = () => {
      hovered = null;
      drawStages();
    };
    const onpointerdown = (event) => {
      if (!cut.isOn || !state.isTarget(state.shownStream())) return;
      event.preventDefault();
      event.currentTarget.setPointerCapture(event.pointerId);
      dragged = cellAt(event);
      onpointermove(event);
    };
    const onpointerup = () => (dragged = null);
    const onclick = (event) => {
      if (!cut.isOn) choose(state.shownStream(), state.slotOf(state.shownStream())[cellAt(event)]);
    };
    const size = { width: factor * W, height: factor * H, tabindex: 0, role: "application" };
    const events = { onclick, onpointermove, onpointerleave, onpointerdown, onpointerup, onkeydown: onStageKey };
    const canvas = node("canvas", { ...size, ...events });
    const legend = node("figcaption", { class: "row small" });
    return { run, canvas, legend, figure: node("figure", {}, canvas, legend) };
  });

  const wordRows = streams
    .filter((stream) => stream.words)
    .map((stream) => {
      const buttons = stream.words.map((word, rank) => {
        const token = stream.tokens[rank];
        // Words are cut by dragging, too; a click that no pointer made comes from the keyboard.
        const onclick = ({ detail }) => (!cut.isOn || detail === 0) && choose(stream, token);
        const onpointerdown = () => cut.isOn && choose(stream, token);
        const onpointerenter = ({ buttons }) => {
          if (cut.isOn && buttons === 1 && !cut.keys.has(token)) choose(stream, token);
        };
        return node("button", { onclick, onpointerdown, onpointerenter }, word || "·");
      });
      const label = { class: "chips", role: "group", "aria-label": `words of ${stream.name}` };
      const box = node("div", label, ...buttons);
      return { stream, buttons, box, follow: roving(box, buttons) };
    });
  const frames = createStrip(state, "frame", "all frames", range(counts.frames));
  const strips = [
    frames,
    createStrip(state, "head", "all heads of this layer", ["mean", ...facts.heads], -1),
    createStrip(state, "layer", "all layers", range(counts.layers)),
    ...(counts.steps > 1 ? [createStrip(state, "step", "all steps", range(counts.steps).map((s) => state.stepName(s).split(" ")[1]))] : []),
  ];

  const message = node("span");
  const close = node("button", { onclick: () => set({ error: "" }) }, "close");
  const banner = node("div", { class: "banner", role: "alert" }, message, " ", close);
  const title = node("h3", { class: "title", role: "status" });
  const said = node("p", { class: "said" });
  const readout = node("p", { class: "readout", "aria-live": "polite" });
  const where = node("p", { class: "where" });
  const table = node("table", { "aria-label": "mean attention between groups" });
  const matrixBox = node("div", { class: "panel" }, node("h4", {}, "between groups, mean of heads"), table);
  matrixBox.hidden = !facts.matrix;
  const residuals = node("span", { class: "row" });
  const sinkText = node("span");
  const help = node("div", { class: "help" }, ...HELP.map((text) => node("p", {}, text)), residuals, sinkText);
  help.hidden = true;
  const helpButton = node(
    "button",
    {
      "aria-expanded": "false",
      onclick: () => {
        help.hidden = !help.hidden;
        helpButton.setAttribute("aria-expanded", !help.hidden);
      },
    },
    "? help",
  );
  const save = (kind) => node("button", { onclick: () => saveAs(kind) }, kind);
  const about = { class: "vera-explorer", tabindex: 0, role: "group", "aria-label": "attention explorer" };
  const root = node(
    "div",
    { ...about, onkeydown: onKey },
    banner,
    node(
      "div",
      { class: "head" },
      node("div", {}, title, said),
      node("div", { class: "row small" }, "save", save("PNG"), save("CSV"), save("npz"), helpButton),
    ),
    help,
    node("div", { class: "row controls" }, ...controlRow),
    node(
      "div",
      { class: "columns" },
      node(
        "div",
        { class: "column" },
        node("div", { class: "panels" }, node("div", { class: "stage" }, ...stages.map(({ figure }) => figure)), films.box),
        where,
        node("div", { class: "row small" }, ...scaleRow),
        frames.box,
        ...wordRows.map(({ box }) => box),
        readout,
      ),
      node(
        "div",
        { class: "column" },
        node("div", { class: "panels" }, atlas.box, matrixBox),
        node("div", { class: "panels" }, ...strips.slice(1).map(({ box }) => box)),
      ),
    ),
    facts.cuttable && lane.box,
  );

  // 2. Drawing.
  // The two runs share a scale; their difference has its own.
  function paneTop(run, ofText) {
    const shown = run < 2 ? current.slice(0, counts.runs) : [current[2]];
    return scales.top(shown, get("head"), ofText);
  }

  function endsOf(run, top) {
    return [run === 2 ? `−${number(top)}` : "0", number(top)];
  }

  function drawLegend(legend, run, top) {
    if (!current[run] || !state.isTarget(state.shownStream()) || get("opacity") === 0) {
      legend.replaceChildren(counts.runs > 1 ? state.runName(run) : "");
      return;
    }
    const [low, high] = endsOf(run, top);
    const style = `background: linear-gradient(90deg, ${painter.ramp(run === 2)})`;
    const above = scales.highest(current[run], false);
    const clipped = above > top * 1.0001 ? `up to ${number(above)} looks like the end` : "";
    const half = run === 2 ? "0" : number(top / 2);
    const scale = node("span", { class: "scale", style }, ...[low, half, high].map((text) => node("b", {}, text)));
    const name = counts.runs > 1 ? node("div", { class: "whole" }, state.runName(run)) : "";
    legend.replaceChildren(name, scale, clipped);
  }

  // The query's cells in a frame of the shown stream.
  function queryCells(frame) {
    const stream = state.shownStream();
    if (!state.isSource(stream)) return [];
    const slot = state.slotOf(stream, frame);
    return state.asking().flatMap((token) => (slot.includes(token) ? [slot.indexOf(token)] : []));
  }

  // Frames of the shown stream whose slot holds a part of the query.
  function queryFrames() {
    return range(counts.frames).filter((frame) => queryCells(frame).length);
  }

  // Outlines of the query: in this frame, or dashed where it is in another frame.
  function markQuery(canvas, frame, width) {
    const [here, there] = [queryCells(frame), queryFrames()];
    const cells = here.length || !there.length ? here : queryCells(there[0]);
    const most = state.shownStream().cells[1] * state.shownStream().cells[2];
    if (cells.length > most / 2) return; // the whole picture
    for (const cell of cells) painter.outline(canvas, cell, "#fff", here.length ? [] : [6, 5], width);
  }

  function drawWhere() {
    const [tokens, here, there] = [state.asking(), queryCells(get("frame")), queryFrames()];
    const stream = state.shownStream();
    let text = "";
    if (!state.isTarget(stream)) {
      text = `Nobody looks at “${stream.name}” in this direction: choose another video.`;
    } else if (!tokens.length) text = "Where the query stands was not captured.";
    else if (here.length) text = "White frame: the query.";
    else if (there.length) text = `Dashed: the query, which is in ${span("frame", there)}.`;
    else {
      const names = tokens.slice(0, 3).map((token) => state.tokenName(token, true));
      text = `The query: ${names.join(", ")}${tokens.length > 3 ? " …" : "."}`;
    }
    const hint = cut.isOn
      ? "Drag to choose what to cut."
      : !facts.clickable
        ? ""
        : state.isAlive
          ? "Click a patch or a word to ask for its map."
          : SAVED_ONLY;
    where.textContent = `${text} ${hint}`;
  }

  function drawStages() {
    if (!painter.isReady() || isGone) return;
    const stream = state.shownStream();
    const frame = get("frame");
    const slot = state.slotOf(stream);
    for (const { run, canvas, legend } of stages) {
      const top = paneTop(run);
      painter.paint(canvas, frame, current[run], top, run === 2);
      markQuery(canvas, frame, 3);
      if (state.isTarget(stream)) {
        slot.forEach((token, cell) => cut.keys.has(token) && painter.outline(canvas, cell, CUT, [], 4));
      }
      if (hovered !== null) painter.outline(canvas, hovered, OKABE_ITO[5]);
      drawLegend(legend, run, top);
      const name = counts.runs > 1 ? `, ${state.runName(run)}` : "";
      canvas.setAttribute("aria-label", `attention over frame ${frame}${name}; arrows move, Enter chooses`);
      canvas.style.cursor = state.whyNot() && !cut.isOn ? "help" : "crosshair";
    }
    if (hovered !== null) readPatch(stream);
  }

  // The values of the patch under the pointer.
  function readPatch(stream) {
    const token = state.slotOf(stream)[hovered];
    const columns = stream.cells[2];
    const cell = [stream.slots[get("frame")], Math.floor(hovered / columns), hovered % columns];
    const values = current.map((map, run) => {
      if (!map || !state.isTarget(stream)) return "";
      const name = counts.runs > 1 ? `${state.runName(run)} ` : "";
      return `${name}${number(map(token), 4)} ± ${number(map.error(token), 2)}`;
    });
    readout.textContent = join(...values, `token ${token}, ${stream.name} (${cell.join(", ")})`);
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

  function titleText() {
    const [layer, head, query, word] = ["layer", "head", "query", "word"].map(get);
    const who = query < 0 ? facts.words[word] : state.tokenName(query, true);
    const verb = get("direction") === "from" ? `Where ${who} looks` : `Who looks at ${who}`;
    const which = head < 0 ? "mean of heads" : `head ${facts.heads[head]}`;
    return [`${verb}: ${facts.layers[layer]}`, which, counts.steps > 1 && state.stepName(get("step"))]
      .filter(Boolean)
      .join(", ");
  }

  // What the measures say of the map, and whether it is exact.
  function saidOf(run) {
    const [layer, head] = ["layer", "head"].map(get);
    const found = facts.measures.map((_, i) => maps.number(i, run, layer, head));
    const of = (kind) => found[facts.measures.findIndex((m) => m.kind === kind)] ?? NaN;
    const parts = [];
    const area = facts.area[get("direction")];
    const mask = of(get("exclude_sinks") ? "mask without sinks" : "mask");
    if (Number.isFinite(mask)) parts.push(`${percent(mask)} in the mask, which is ${percent(area)} of the area`);
    if (Number.isFinite(of("entropy"))) parts.push(`entropy ${of("entropy").toFixed(2)} (1: everywhere alike)`);
    if (Number.isFinite(of("patches"))) {
      parts.push(`on average ${of("patches").toFixed(1)} patches and ${of("slots").toFixed(1)} time slots away`);
    }
    const texts = facts.measures.map((m, i) => (m.kind === "stream" && streams[m.stream].words ? found[i] : 0));
    if (of("sinks") > 0.5) parts.push("mostly sinks");
    else if (texts.reduce((sum, v) => sum + (v || 0), 0) > 0.5) parts.push("mostly text");
    else if (Number.isFinite(of("own slot"))) parts.push(of("own slot") > 0.5 ? "spatial" : "temporal");
    if (run === 1 && Number.isFinite(of("divergence"))) {
      parts.push(`Jensen-Shannon ${of("divergence").toFixed(3)} from ${facts.runs[0]}`);
    }
    return `${counts.runs > 1 ? `${facts.runs[run]}: ` : ""}${parts.join(", ")}`;
  }

  function drawTitle() {
    title.textContent = titleText();
    const layer = get("layer");
    const waiting = maps.hasFailed(layer) ? "Python gave no answer: run the cell again." : "computing …";
    const isExact = facts.runs.every((_, run) => residualOf(run) <= facts.threshold);
    const dot = node("i", { class: "dot", style: `background: ${OKABE_ITO[isExact ? 2 : 1]}` });
    const check = node("span", { class: "check", "data-ok": isExact }, dot, isExact ? " exact" : " NOT EXACT, see help");
    said.replaceChildren(
      ...(current.includes(null)
        ? [maps.hasFailed(layer) || state.isAlive ? waiting : NEEDS_PYTHON]
        : facts.runs.map((_, run) => node("span", {}, saidOf(run)))),
      get("exclude_sinks") ? "SINKS LEFT OUT" : "",
      check,
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
    for (const { trait, first, buttons, follow } of strips) {
      buttons.forEach((button, i) => {
        const [time, map, top] = content[trait](i + first);
        button.setAttribute("aria-pressed", get(trait) === i + first);
        disable(button, trait !== "frame" && !map && !state.isAlive, NEEDS_PYTHON);
        button.firstChild.style.opacity = map ? 1 : 0.3;
        if (painter.isReady()) {
          painter.paint(button.firstChild, time, map, top, run === 2);
          if (trait === "frame" && queryCells(time).length) markQuery(button.firstChild, time, 1);
        }
      });
      follow();
    }
  }

  function drawWords() {
    for (const { stream, buttons, follow } of wordRows) {
      const map = state.isTarget(stream) ? current[0] : null;
      const top = paneTop(0, true);
      const asking = state.isSource(stream) ? state.asking() : [];
      buttons.forEach((button, rank) => {
        const token = stream.tokens[rank];
        tint(button, map ? map(token) / top : NaN);
        button.title = join(map && `${number(map(token), 4)} ± ${number(map.error(token), 2)}`, state.whyNot());
        button.setAttribute("aria-pressed", asking.includes(token));
        button.classList.toggle("cut", cut.keys.has(token) && state.isTarget(stream));
      });
      follow();
    }
  }

  function drawMatrix() {
    if (!facts.matrix) return;
    const { rows, columns } = facts.matrix;
    const first = (get("step") * counts.layers + get("layer")) * rows.length * columns.length;
    const heads = columns.map((name) => node("th", { scope: "col" }, name));
    const body = rows.map((name, r) => {
      const cells = columns.map((_, c) => {
        const value = state.matrix[first + r * columns.length + c];
        return tint(node("td", {}, value.toFixed(3)), value);
      });
      return node("tr", {}, node("th", { scope: "row" }, name), ...cells);
    });
    table.replaceChildren(node("tr", {}, node("th", {}, "from \\ to"), ...heads), ...body);
  }

  const residualOf = (run) => facts.residuals[run][get("step")][get("layer")] ?? NaN;

  function drawResiduals() {
    const lines = facts.runs.map((name, run) => {
      const isFine = residualOf(run) <= facts.threshold;
      const verdict = `${isFine ? "within" : "ABOVE"} ${number(facts.threshold)}`;
      const text = `A·V at capture differs from the kernel's output by ${number(residualOf(run))}, ${verdict}.`;
      return node("span", { "data-ok": isFine }, `${counts.runs > 1 ? `${name}: ` : ""}${text}`);
    });
    residuals.replaceChildren(...lines);
    const names = facts.sinks.map((sink) => sink.name).join(", ") || "none found";
    sinkText.textContent = `Sinks${get("exclude_sinks") ? " (left out)" : ""}: ${names}.`;
  }

  function update() {
    if (isGone) return;
    controls.sync();
    const [layer, head] = ["layer", "head"].map(get);
    maps.request(layer);
    current = panes.map((run) => maps.get(layer, run, head));
    root.dataset.alive = state.isAlive;
    root.classList.toggle("cutting", cut.isOn);
    banner.hidden = !get("error");
    message.textContent = get("error");
    drawMenus();
    drawTitle();
    drawWhere();
    drawStages();
    drawStrips();
    drawWords();
    atlas.draw();
    films.draw();
    lane.draw();
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

  // 3. Files.
  function saveAs(kind) {
    if (current.includes(null)) return;
    const name = titleText().replaceAll(/[^\w]+/g, "-").slice(0, 80);
    if (kind === "PNG") {
      const shown = stages.map(({ run, canvas }) => {
        const ends = endsOf(run, paneTop(run)).join(" to ");
        return { canvas, name: counts.runs > 1 ? state.runName(run) : "", colours: painter.ramp(run === 2), ends };
      });
      const text = `${titleText()}, frame ${get("frame")}`;
      pictureOf(text, shown).toBlob((blob) => download(`${name}.png`, "image/png", blob));
    } else if (kind === "CSV") download(`${name}.csv`, "text/csv", tableOf(state, current));
    else {
      const arrays = arraysOf(state, current.slice(0, counts.runs), (...place) => maps.number(...place));
      download(`${name}.npz`, "application/zip", ...zip(arrays));
    }
  }

  // 4. Keys.
  function moveSideways(by, isSelecting) {
    if (!isSelecting) return set({ frame: clamp(get("frame") + by, 0, counts.frames - 1) });
    const selected = get("selected_layers");
    if (!selected.length) return set({ selected_layers: [get("layer")] });
    const ends = [selected[0], selected.at(-1)];
    const [from, to] = by > 0 ? ends : ends.reverse();
    set({ selected_layers: between(from, clamp(to + by, 0, counts.layers - 1)) });
  }

  // On the picture, arrows move a cursor over the patches.
  function onStageKey(event) {
    const stream = state.shownStream();
    const [, rows, columns] = stream.cells;
    const from = hovered ?? Math.floor(rows / 2) * columns + Math.floor(columns / 2);
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const move = moves[event.key];
    if (event.shiftKey || event.ctrlKey || event.metaKey || event.altKey) return;
    if (move) {
      const y = clamp(Math.floor(from / columns) + move[0], 0, rows - 1);
      const x = clamp((from % columns) + move[1], 0, columns - 1);
      hovered = hovered === null ? from : y * columns + x;
      drawStages();
    } else if (event.key === "Enter" && hovered !== null) choose(stream, state.slotOf(stream)[hovered]);
    else return;
    event.stopPropagation();
    event.preventDefault();
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
      "?": () => helpButton.click(),
      " ": player.toggle,
      Escape: () => set({ query: -1, selected_layers: [] }),
    };
    if (!actions[key]) return;
    event.preventDefault();
    actions[key]();
  }

  // 5. What comes from Python.
  function onMessage(content, buffers) {
    if (content.alive) {
      state.isAlive = true;
      queueUpdate();
    } else {
      maps.onReply(content, buffers);
    }
  }

  const traits =
    "layer head step frame word stream run query direction selected_layers measure exclude_sinks " +
    "locked_scale opacity threshold error _cuts";
  const events = traits.split(" ").map((name) => `change:${name}`);
  for (const event of events) model.on(event, queueUpdate);
  model.on("msg:custom", onMessage);
  el.append(root);
  update();
  state.attempt(() => model.send({ hello: true }));
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
