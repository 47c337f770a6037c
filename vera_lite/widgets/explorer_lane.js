// What the model makes: the films of a denoising run, and the causal lane with a film for every cut.

const FILM_SIDE = 96;

// Canvases of films in a row, each with its name.
function createFilms(state, painter) {
  const { facts, get } = state;
  const [, H, W] = facts.size;
  const size = {
    width: Math.round(FILM_SIDE * Math.min(1, W / H)),
    height: Math.round(FILM_SIDE * Math.min(1, H / W)),
  };
  const names = facts.films ? ["source", ...facts.films] : [];
  const figures = names.map((name) => {
    const canvas = node("canvas", { ...size, role: "img", "aria-label": `${name} so far` });
    return { canvas, figure: node("figure", {}, canvas, name) };
  });
  const title = node("h4");
  const row = node("div", { class: "row" }, ...figures.map(({ figure }) => figure));
  const box = node("div", { class: "panel films" }, title, row);
  box.hidden = !names.length;
  let sheets = [];
  Promise.all(
    (get("_films") ?? []).map((film) =>
      Promise.all(film.map((file) => createImageBitmap(new Blob([bytes(file)])))),
    ),
  ).then((decoded) => {
    sheets = decoded;
    draw();
  });

  function draw() {
    if (!names.length || !painter.isReady() || !sheets.length) return;
    const step = get("step");
    title.textContent = `what the model has made at ${state.stepName(step)} (step ${step + 1} of ${state.counts.steps})`;
    figures.forEach(({ canvas }, i) =>
      painter.drawFrame(canvas, i ? sheets[i - 1][step] : painter.sheet(), get("frame")),
    );
  }
  return { box, draw };
}

// What is chosen to be cut. `onChange` draws it.
function createCut(state, onChange) {
  const cut = {
    isOn: false,
    keys: new Set(),
    cells: new Set(),
    // Patches of the shown frame, or of all frames.
    choosePatches(stream, places, inAllFrames) {
      const slots = inAllFrames ? range(stream.cells[0]) : [stream.slots[state.get("frame")]];
      const perSlot = stream.cells[1] * stream.cells[2];
      const before = [...cut.keys].filter((token) => !stream.tokens.includes(token));
      const chosen = slots.flatMap((t) => places.map((place) => stream.tokens[t * perSlot + place]));
      cut.keys = new Set([...before, ...chosen]);
      onChange();
    },
    toggleKey(token) {
      if (!cut.keys.delete(token)) cut.keys.add(token);
      onChange();
    },
    chooseCells(cells) {
      cut.cells = new Set(cells);
      onChange();
    },
    toggleCells(cells) {
      const all = cells.every((cell) => cut.cells.has(cell));
      for (const cell of cells) cut.cells[all ? "delete" : "add"](cell);
      onChange();
    },
    clear() {
      cut.keys.clear();
      cut.cells.clear();
      onChange();
    },
    isEmpty: () => !cut.keys.size && !cut.cells.size,
  };
  return cut;
}

function createLane(state, maps, painter, cut, onChange) {
  const { facts, counts, get } = state;
  const [, H, W] = facts.size;
  const size = { width: Math.round((FILM_SIDE * W) / H), height: FILM_SIDE };
  const colours = "In each card: the video, and how it changed (yellow: by a quarter of the range or more).";
  const sheets = new Map(); // film file -> bitmap
  let shown = 1; // the entry that is marked in the plot

  const toggle = node("button", { onclick: () => switchTo(!cut.isOn) }, "choose what to cut");
  const everyFrame = node("input", { type: "checkbox" });
  everyFrame.checked = true;
  const onlyShown = node("input", { type: "checkbox", onchange: draw });
  const clear = node("button", { onclick: cut.clear }, "clear");
  const run = node("button", { class: "go", onclick: send }, "cut and run again");
  const status = node("span", { role: "status" });
  const choices = node(
    "div",
    { class: "row" },
    toggle,
    node("label", {}, everyFrame, "patches in all frames"),
    node("label", {}, onlyShown, "hide from the shown token only"),
    clear,
    run,
    status,
  );
  const cards = node("div", { class: "thumbs", role: "group", "aria-label": "all cuts" });
  const plot = node("svg", { viewBox: "0 0 300 170", class: "scatter", role: "img" });
  const box = node(
    "section",
    { class: "lane", "aria-label": "causal lane" },
    node("h3", {}, "Does the model need what it looks at?"),
    node("p", { class: "faint" }, colours),
    choices,
    node("div", { class: "row" }, cards, plot),
  );

  function switchTo(isOn) {
    cut.isOn = isOn;
    onChange();
  }
  function send() {
    const cells = [...cut.cells].map((cell) => cell.split(",").map(Number));
    const content = {
      keys: cut.keys.size ? [...cut.keys].sort((a, b) => a - b) : null,
      cells: cells.length ? cells : null,
      queries: onlyShown.checked && cut.keys.size ? state.asking() : null,
    };
    maps.cut(content);
    draw();
  }

  function bitmap(file) {
    if (!sheets.has(file)) {
      sheets.set(file, null);
      createImageBitmap(new Blob([bytes(file)])).then((decoded) => {
        sheets.set(file, decoded);
        draw();
      });
    }
    return sheets.get(file);
  }

  // |cut - intact|, the mean over the colours, up to a quarter of the range.
  function drawChange(canvas, intact, film) {
    const pixels = [intact, film].map((sheet) => {
      const one = document.createElement("canvas");
      Object.assign(one, { width: canvas.width, height: canvas.height });
      painter.drawFrame(one, sheet, get("frame"));
      return one.getContext("2d").getImageData(0, 0, one.width, one.height).data;
    });
    const picture = new ImageData(canvas.width, canvas.height);
    for (let i = 0; i < picture.data.length; i += 4) {
      const change = range(3).reduce((sum, c) => sum + Math.abs(pixels[0][i + c] - pixels[1][i + c]), 0) / 765;
      picture.data.set([...colour(CIVIDIS, 4 * change), 255], i);
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  const percent = (share) => `${number(100 * share, 2)} %`;

  function drawCards(entries) {
    const focused = [...cards.children].indexOf(document.activeElement);
    const buttons = entries.map((entry, i) => {
      const label = i ? `${i}. ${entry.label}` : "nothing cut";
      const canvases = range(i ? 2 : 1).map(() => node("canvas", size));
      const told = i ? `cut ${percent(entry.looked)} of the attention, changed ${percent(entry.lost)}` : "";
      const onclick = () => {
        shown = i;
        draw();
      };
      const style = `width: ${2 * size.width + 12}px`;
      const facts = { onclick, style, "aria-pressed": i === shown, "aria-label": join(label, told) };
      const [film, intact] = [bitmap(entry.film), bitmap(entries[0].film)];
      if (film && painter.isReady()) painter.drawFrame(canvases[0], film, get("frame"));
      if (i && film && intact) drawChange(canvases[1], intact, film);
      return node("button", facts, node("span", { class: "pair" }, ...canvases), label, node("br"), told);
    });
    cards.replaceChildren(...buttons);
    roving(cards, buttons)();
    buttons[focused]?.focus();
  }

  function drawPlot(entries) {
    const cuts = entries.slice(1);
    const [right, high] = [Math.max(...cuts.map((c) => c.looked)) || 1, Math.max(...cuts.map((c) => c.lost)) || 1];
    const xOf = (share) => 46 + (share / right) * 230;
    const yOf = (share) => 128 - (share / high) * 98;
    const axis = { class: "axis" };
    plot.replaceChildren(
      node("line", { x1: 46, x2: 290, y1: 128, y2: 128, ...axis }),
      node("line", { x1: 46, x2: 46, y1: 24, y2: 128, ...axis }),
      node("text", { x: 42, y: 34, class: "end" }, percent(high)),
      node("text", { x: 42, y: 130, class: "end" }, "0"),
      node("text", { x: 276, y: 143, class: "mid" }, percent(right)),
      node("text", { x: 160, y: 162, class: "mid" }, "looked at: share of all attention that was cut"),
      node("text", { x: 2, y: 12 }, "lost: mean change of the video"),
      ...cuts.flatMap((entry, i) => [
        node("circle", { cx: xOf(entry.looked), cy: yOf(entry.lost), r: i + 1 === shown ? 7 : 5, fill: CUT }),
        node("text", { x: xOf(entry.looked) - 10, y: yOf(entry.lost) + 4, class: "end" }, i + 1),
      ]),
    );
    plot.setAttribute("aria-label", cuts.map((c, i) => `cut ${i + 1}: ${c.looked}, ${c.lost}`).join("; "));
    plot.style.display = cuts.length ? "" : "none";
  }

  let length = 0;
  function draw() {
    if (!facts.cuttable) return;
    const entries = get("_cuts") ?? [];
    if (entries.length > length) shown = entries.length - 1; // the newest
    length = entries.length;
    toggle.setAttribute("aria-pressed", cut.isOn);
    toggle.disabled = run.disabled = clear.disabled = !state.isAlive;
    run.disabled ||= cut.isEmpty() || maps.isCutting();
    const [keys, cells] = [cut.keys.size, cut.cells.size];
    const heads = cells ? `${cells} of ${counts.layers * counts.heads} heads` : "all heads";
    const chosen = keys ? `${keys} token${keys > 1 ? "s" : ""} in ${heads}` : `${cells} whole head${cells > 1 ? "s" : ""}`;
    const hint = "Drag over patches, click words, drag over the atlas. Without tokens, whole heads fall silent.";
    if (!state.isAlive) {
      status.textContent = entries.length
        ? "A new cut needs Python; these were made before."
        : "A cut needs Python: run the notebook.";
    } else if (maps.isCutting()) status.textContent = "the model runs …";
    else status.textContent = cut.isEmpty() ? (cut.isOn ? hint : "") : `chosen: ${chosen}`;
    drawCards(entries);
    drawPlot(entries);
  }
  return { box, draw, inAllFrames: () => everyFrame.checked };
}
