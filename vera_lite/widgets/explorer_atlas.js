// The head atlas: one number of every head in every layer, over the same axis as its curve by layer.

const ATLAS = { width: 600, left: 46, right: 592, top: 4, rows: 132, gap: 4, plot: 84 };

// `cut`: cells that are chosen to be cut, "layer,head", and how to choose them.
function createAtlas(state, maps, cut, onHover) {
  const { facts, counts, get, set } = state;
  const layers = range(counts.layers);
  const rows = range(counts.heads + 1).map((row) => row - 1); // the mean, then the heads
  const bin = (ATLAS.right - ATLAS.left) / counts.layers;
  const high = clamp(ATLAS.rows / rows.length, 3, 20);
  const yOf = (head) => ATLAS.top + (head + 1) * high + (head < 0 ? 0 : ATLAS.gap);
  const xOf = (layer) => ATLAS.left + layer * bin;
  const bottom = yOf(counts.heads);
  const plot = { top: bottom + 10, bottom: bottom + 10 + ATLAS.plot };
  let start = null; // of a drag: {layer, head} on the atlas, {layer} on the curve

  const visible = facts.measures.map((_, i) => i).filter((i) => facts.measures[i].label);
  // The measure on show; without sinks, the mask's has a number of its own.
  const measure = () => {
    const { kind } = facts.measures[get("measure")];
    return get("measure") + Number(kind === "mask" && get("exclude_sinks"));
  };
  const value = (layer, head, run = get("run")) => maps.number(measure(), run, layer, head);

  function placeOf(event) {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * ATLAS.width;
    const y = ((event.clientY - box.top) / box.width) * ATLAS.width;
    const layer = clamp(Math.floor((x - ATLAS.left) / bin), 0, counts.layers - 1);
    const gap = y > yOf(0) - ATLAS.gap ? ATLAS.gap : 0;
    const head = clamp(Math.floor((y - ATLAS.top - gap) / high) - 1, -1, counts.heads - 1);
    return { layer, head, isCurve: y > plot.top - 5, isInside: x >= ATLAS.left && x <= ATLAS.right };
  }
  function onPointer(event) {
    const { layer, head, isCurve, isInside } = placeOf(event);
    if (event.type === "pointerdown" && isInside) {
      svg.setPointerCapture(event.pointerId);
      start = { layer, head, isCurve };
      if (!isCurve && !cut.isOn) set({ layer, head: canShow(head) ? head : -1 });
    }
    if (start?.isCurve) set({ selected_layers: between(start.layer, layer) });
    else if (start && cut.isOn) {
      const heads = start.head < 0 ? range(counts.heads) : between(start.head, Math.max(head, 0));
      cut.chooseCells(between(start.layer, layer).flatMap((x) => heads.map((y) => `${x},${y}`)));
    }
    if (event.type === "pointerup") start = null;
    if (!isCurve && isInside) onHover(`${describe(layer, head)}: ${number(value(layer, head))}`);
  }
  const canShow = (head) => state.isAlive || head + 1 < facts.groups;
  const describe = (layer, head) =>
    `${facts.layers[layer]}, ${head < 0 ? "mean of heads" : `head ${facts.heads[head]}`}`;

  function onkeydown(event) {
    const [layer, head] = ["layer", "head"].map(get);
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (event.key === "Enter" && cut.isOn) {
      const heads = head < 0 ? range(counts.heads) : [head];
      cut.toggleCells(heads.map((y) => `${layer},${y}`));
    } else if (move && !event.shiftKey) {
      const to = clamp(head + move[1], -1, counts.heads - 1);
      set({ layer: clamp(layer + move[0], 0, counts.layers - 1), head: canShow(to) ? to : head });
    } else return;
    event.stopPropagation();
    event.preventDefault();
  }

  // 1. Elements; cells are made once.
  const cells = rows.map((head) =>
    layers.map((layer) => {
      const size = { width: Math.max(bin - 1, 1), height: Math.max(high - 1, 1) };
      return node("rect", { x: xOf(layer), y: yOf(head), ...size });
    }),
  );
  const every = Math.ceil(counts.layers / 15);
  const labels = [
    ...layers
      .filter((layer) => layer % every === 0)
      .map((layer) => node("text", { x: xOf(layer) + bin / 2, y: plot.bottom + 15, class: "mid" }, layer)),
    node("text", { x: 2, y: yOf(-1) + high / 2 + 4 }, "mean"),
    ...rows
      .slice(1)
      .filter((head) => head % Math.ceil(14 / high) === 0)
      .map((head) => node("text", { x: 40, y: yOf(head) + high / 2 + 4, class: "end" }, facts.heads[head])),
    node("text", { x: 2, y: plot.bottom + 15 }, "layer"),
  ];
  const marks = node("g");
  const lines = node("g");
  const svg = node(
    "svg",
    {
      viewBox: `0 0 ${ATLAS.width} ${plot.bottom + 20}`,
      class: "atlas",
      role: "application",
      tabindex: 0,
      onpointerdown: onPointer,
      onpointermove: onPointer,
      onpointerup: onPointer,
      onkeydown,
    },
    ...cells.flat(),
    marks,
    lines,
    ...labels,
  );
  const menu = node("select", {
    "aria-label": "measure",
    onchange: () => set({ measure: Number(menu.value) }),
  });
  menu.append(...visible.map((i) => node("option", { value: i }, facts.measures[i].label)));
  const ramp = node("span", { class: "ramp" });
  const [low, top] = [node("output"), node("output")];
  const legend = node("p", { class: "row small" });
  const box = node(
    "div",
    { class: "panel wide" },
    node("h4", {}, "each head of each layer: ", menu),
    node("div", { class: "row small" }, low, ramp, top, node("span", {}, "a click opens the map")),
    svg,
    legend,
  );

  // 2. The curve by layer. Lines {name, stroke, dash, values} and bands {stroke, low, high}.
  function ofMeasure(lines, bands) {
    const [run, head] = ["run", "head"].map(get);
    const { kind, label } = facts.measures[get("measure")];
    for (const one of run === 2 ? [2] : range(counts.runs)) {
      const stroke = OKABE_ITO[one];
      const heads = (layer) => range(counts.heads).map((h) => value(layer, h, one));
      const [low, high] = [Math.min, Math.max].map((end) => layers.map((layer) => end(...heads(layer))));
      bands.push({ stroke, low, high });
      const name = `${counts.runs > 1 ? `${state.runName(one)}, ` : ""}mean of heads (band: single heads)`;
      lines.push({ name, stroke, values: layers.map((layer) => value(layer, -1, one)) });
      if (head >= 0) {
        const values = layers.map((layer) => value(layer, head, one));
        lines.push({ name: `head ${facts.heads[head]}`, stroke, dash: "4 3", values });
      }
    }
    const area = facts.area[get("direction")];
    if (kind === "mask" && area !== undefined && run < 2) {
      const uniform = { name: "uniform attention", stroke: "currentColor", dash: "1 3" };
      lines.push({ ...uniform, values: layers.map(() => area) });
    }
    return label;
  }

  // The curve that was given, with its band and baselines.
  function givenCurve(lines, bands) {
    if (!state.curve.length || get("measure") !== 0) return;
    const row = (i) => [...state.curve.subarray(i * counts.layers, (i + 1) * counts.layers)];
    bands.push({ stroke: OKABE_ITO[2], low: row(1), high: row(2) });
    lines.push({ name: "all clips", stroke: OKABE_ITO[2], values: row(0) });
    facts.baselines.forEach((name, i) => {
      lines.push({ name, stroke: OKABE_ITO[3 + (i % 3)], dash: "1 3", values: row(3 + i) });
    });
  }

  function drawCurve() {
    const [curves, bands] = [[], []];
    const label = ofMeasure(curves, bands);
    givenCurve(curves, bands);
    const all = [...curves.map((line) => line.values), ...bands.flatMap((b) => [b.low, b.high])].flat();
    const [bottom, highest] = [-largest(all.map((v) => -v)), largest(all) || 1];
    const yOf = (v) => plot.bottom - ((v - bottom) / (highest - bottom)) * (plot.bottom - plot.top);
    const path = (values) =>
      layers.filter((x) => Number.isFinite(values[x])).map((x) => [xOf(x) + bin / 2, yOf(values[x])]);
    const selected = get("selected_layers");
    const rest = { y: plot.top, height: plot.bottom - plot.top };
    lines.replaceChildren(
      ...selected.map((x) => node("rect", { x: xOf(x), width: bin, ...rest, class: "brushed" })),
      node("line", { x1: ATLAS.left, x2: ATLAS.right, y1: yOf(0), y2: yOf(0), class: "axis" }),
      ...bands.map(({ stroke, low, high }) =>
        node("polygon", {
          points: [...path(high), ...path(low).reverse()],
          fill: stroke,
          "fill-opacity": 0.18,
        }),
      ),
      ...curves.map(({ stroke, dash = "", values }) => {
        const style = { fill: "none", stroke, "stroke-width": 2, "stroke-dasharray": dash };
        return node("polyline", { points: path(values), ...style });
      }),
      ...curves
        .filter(({ dash }) => !dash)
        .flatMap(({ stroke, values }) =>
          path(values).map(([cx, cy]) => node("circle", { cx, cy, r: 2, fill: stroke })),
        ),
      node("text", { x: 40, y: plot.top + 8, class: "end" }, number(highest, 2)),
      node("text", { x: 40, y: plot.bottom, class: "end" }, number(bottom, 2)),
    );
    const layer = get("layer");
    const keys = curves.map(({ name, stroke, dash, values }) => {
      const dashes = node("i", { style: `color: ${stroke}` }, dash ? "┄ " : "━ ");
      return node("span", {}, dashes, `${name}: ${number(values[layer])}`);
    });
    const said = selected.length ? `selected layers: ${selected.join(", ")}` : "drag over the curve to select layers";
    legend.replaceChildren(...keys, node("span", { class: "faint" }, said));
    const name = `${label} by layer and head; arrows move. ${said}`;
    svg.setAttribute("aria-label", name);
  }

  function frameOf(layer, head, attributes) {
    const size = { width: Math.max(bin - 1, 1), height: Math.max(high - 1, 1) };
    return node("rect", { x: xOf(layer), y: yOf(head), ...size, fill: "none", ...attributes });
  }

  function draw() {
    const [layer, head, run] = ["layer", "head", "run"].map(get);
    const isSigned = run === 2;
    menu.value = get("measure");
    const values = rows.map((h) => layers.map((x) => value(x, h)));
    const end = largest(values.flat().map(Math.abs)) || 1;
    cells.forEach((row, i) =>
      row.forEach((cell, x) => {
        const v = values[i][x];
        cell.setAttribute("fill", Number.isFinite(v) ? css(shade(v / end, isSigned)) : "none");
      }),
    );
    ramp.style.background = `linear-gradient(90deg, ${range(11).map((i) =>
      css(shade(isSigned ? i / 5 - 1 : i / 10, isSigned)),
    )})`;
    low.textContent = isSigned ? `−${number(end)}` : "0";
    top.textContent = `${number(end)}${values.flat().some(Number.isFinite) ? "" : " (no numbers here)"}`;
    marks.replaceChildren(
      ...[...cut.cells].map((cell) => {
        const [x, y] = cell.split(",").map(Number);
        return frameOf(x, y, { stroke: CUT, "stroke-width": 2.5, class: "cut" });
      }),
      frameOf(layer, head, { stroke: "#000", "stroke-width": 4 }),
      frameOf(layer, head, { stroke: "#fff", "stroke-width": 2, class: "chosen" }),
    );
    drawCurve();
  }
  return { box, draw };
}
