// The layer viewer: the browser combines the layers itself, pixel by pixel, as LayeredClip does.

const VIEWS = ["final", "source", "straight", "premultiplied", "checker", "matte", "composite"];
const LAYERS = ["source", "edit", "alpha"];
const SHOWN_SIDE = 448; // CSS pixels that a small picture is enlarged to, by a whole factor
const CHECKER = [102, 153]; // greys of the board behind what is transparent

function render({ model, el }) {
  const [frames, height, width] = model.get("size");
  const [frameStride, stride] = model.get("strides");
  const bytes = (name) => {
    const view = model.get(name);
    return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  };
  const pixels = Object.fromEntries(
    ["source", "edit", "alpha", "composite"].map((name) => [name, bytes(name)]),
  );
  const change = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };

  let timer = null; // while it plays
  let pointer = null; // x and y of the pixel under it

  // 1. Elements.
  const error = make("div", { className: "vera-error", role: "alert", hidden: true });
  const canvas = make("canvas", { width, height, role: "img" });
  const thumbnails = VIEWS.map(() => make("canvas", { width, height }));
  const line = make("div", { className: "vera-line", hidden: true });
  const readout = make("output", { className: "vera-readout" });
  const views = VIEWS.map((view, i) =>
    make(
      "button",
      { type: "button", "data-view": view, onclick: () => change("view", view) },
      thumbnails[i],
      view,
    ),
  );
  const layers = LAYERS.map((layer, i) =>
    make("button", {
      type: "button",
      textContent: `${i + 1} ${layer}`,
      "data-layer": layer,
      onclick: () => toggle(layer),
    }),
  );
  const play = make("button", {
    type: "button",
    className: "vera-play",
    onclick: () => (timer ? stop() : start()),
  });
  const [previous, next] = [
    ["‹", "previous frame", -1],
    ["›", "next frame", 1],
  ].map(([textContent, label, by]) =>
    make("button", { type: "button", textContent, "aria-label": label, onclick: () => step(by) }),
  );
  const slider = make("input", {
    type: "range",
    min: 0,
    max: frames - 1,
    step: 1,
    className: "vera-frame",
    "aria-label": "frame",
    oninput: () => (stop(), change("frame", Number(slider.value))),
  });
  const counter = make("span", { className: "vera-counter" });
  const wipe = make("input", {
    type: "range",
    min: 0,
    max: 1,
    step: 0.01,
    className: "vera-wipe",
    oninput: () => change("wipe", Number(wipe.value)),
  });
  const root = make(
    "div",
    { className: "vera-layer-viewer", tabIndex: 0, role: "group", "aria-label": "layer viewer" },
    error,
    make("div", { className: "vera-caption", textContent: model.get("caption") }),
    make(
      "div",
      { className: "vera-row vera-top" },
      make("div", { className: "vera-picture" }, canvas, line),
      make("div", { className: "vera-views", role: "group", "aria-label": "view" }, ...views),
    ),
    make(
      "div",
      { className: "vera-row", role: "group", "aria-label": "layers of final" },
      "layers",
      ...layers,
    ),
    make("div", { className: "vera-row" }, play, previous, next, slider, counter),
    make("label", { className: "vera-row" }, "wipe to source", wipe),
    readout,
  );
  const scale = Math.max(1, Math.floor(SHOWN_SIDE / Math.max(width, height)));
  canvas.style.width = `${width * scale}px`;
  // Small pixels are what a toy clip is about; a large picture looks better smoothed.
  for (const each of [canvas, ...thumbnails]) each.style.imageRendering = scale > 1 ? "pixelated" : "auto";

  // 2. Drawing: straight into canvas pixels, so that what is seen is what was computed.
  const image = new ImageData(width, height);
  image.data.fill(255);
  const cell = Math.max(1, Math.round(Math.max(width, height) / 16));

  function colour(view, visible, at, x, y, channel) {
    const source = pixels.source[3 * at + channel];
    const edit = pixels.edit[3 * at + channel];
    const matte = pixels.alpha[at];
    const checker = CHECKER[(Math.floor(x / cell) + Math.floor(y / cell)) % 2];
    const over = (under, alpha) =>
      alpha === 0 ? under : Math.round((alpha * edit + (255 - alpha) * under) / 255);
    switch (view) {
      case "source":
        return source;
      case "straight":
        return edit;
      case "premultiplied":
        return over(0, matte);
      case "checker":
        return over(checker, matte);
      case "matte":
        return matte;
      case "composite":
        return pixels.composite[3 * at + channel];
    }
    const alpha = visible.includes("edit") ? (visible.includes("alpha") ? matte : 255) : 0;
    return over(visible.includes("source") ? source : checker, alpha);
  }

  function paint(target, view, edge) {
    const [first, visible] = [model.get("frame") * width * height, model.get("visible")];
    for (let i = 0, y = 0; y < height; y++)
      for (let x = 0; x < width; x++, i++)
        for (let c = 0; c < 3; c++)
          image.data[4 * i + c] = colour(x < edge ? "source" : view, visible, first + i, x, y, c);
    target.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
  }

  function draw() {
    const [frame, view, visible, part] = ["frame", "view", "visible", "wipe"].map((name) => model.get(name));
    const edge = Math.round(part * width);
    paint(canvas, view, edge);
    thumbnails.forEach((thumbnail, i) => paint(thumbnail, VIEWS[i], 0));
    line.hidden = edge === 0;
    line.style.left = `${(100 * edge) / width}%`;
    views.forEach((button) => button.setAttribute("aria-pressed", button.dataset.view === view));
    layers.forEach((button) => button.setAttribute("aria-pressed", visible.includes(button.dataset.layer)));
    slider.value = frame;
    wipe.value = part;
    counter.textContent = `frame ${frame * frameStride}, ${(frame / model.get("fps")).toFixed(2)} s`;
    canvas.setAttribute("aria-label", `${view}, frame ${frame * frameStride}`);
    play.textContent = timer ? "pause" : "play";
    read();
  }

  // 3. The pixel under the pointer.
  function read() {
    const text = ["point at a pixel to read it; keys: space ← → 1 2 3 v"];
    if (pointer) {
      const [x, y] = pointer;
      const at = (model.get("frame") * height + y) * width + x;
      const rgb = (name) => [...pixels[name].slice(3 * at, 3 * at + 3)].join(" ");
      const final = [0, 1, 2].map((c) => colour("final", LAYERS, at, x, y, c)).join(" ");
      text[0] = `x ${x * stride}, y ${y * stride}`;
      text.push(
        `source ${rgb("source")}`,
        `edit ${rgb("edit")}`,
        `alpha ${pixels.alpha[at]}`,
        `final ${final}`,
      );
    }
    readout.replaceChildren(...text.map((part) => make("span", { textContent: part })));
  }
  canvas.onpointermove = (event) => {
    // The box is in the units of the event, whatever the zoom and the density of the screen.
    const box = canvas.getBoundingClientRect();
    const place = (offset, length, count) =>
      Math.min(count - 1, Math.max(0, Math.floor((offset / length) * count)));
    pointer = [
      place(event.clientX - box.left, box.width, width),
      place(event.clientY - box.top, box.height, height),
    ];
    read();
  };
  canvas.onpointerleave = () => ((pointer = null), read());

  // 4. Actions.
  function step(by) {
    stop();
    change("frame", (model.get("frame") + by + frames) % frames);
  }
  function toggle(layer) {
    const visible = model.get("visible");
    model.set("view", "final"); // the only view that layers take part in
    change(
      "visible",
      LAYERS.filter((name) => visible.includes(name) !== (name === layer)),
    );
  }
  function start() {
    // Who asked for less motion gets the clip once, not for ever.
    const once = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (once && model.get("frame") === frames - 1) model.set("frame", 0);
    timer = setInterval(
      () => {
        model.set("frame", (model.get("frame") + 1) % frames); // Python hears of the last one only
        if (once && model.get("frame") === frames - 1) stop();
      },
      1000 / model.get("fps"),
    );
    draw();
  }
  function stop() {
    if (!timer) return;
    clearInterval(timer);
    timer = null;
    model.save_changes();
    draw();
  }
  const keys = {
    " ": () => (timer ? stop() : start()),
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    1: () => toggle("source"),
    2: () => toggle("edit"),
    3: () => toggle("alpha"),
    v: () => change("view", VIEWS[(VIEWS.indexOf(model.get("view")) + 1) % VIEWS.length]),
  };
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation(); // JupyterLab would take it for a command
    // What has the focus answers some keys itself.
    const own = { BUTTON: / /, INPUT: /^Arrow/ }[event.target.tagName]?.test(event.key);
    if (own || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  function showError() {
    const text = model.get("error");
    error.hidden = !text;
    const close = make("button", {
      type: "button",
      textContent: "close",
      onclick: () => change("error", ""),
    });
    error.replaceChildren(`Python failed: ${text} `, close);
  }

  const drawn = "change:frame change:view change:visible change:wipe";
  model.on(drawn, draw);
  model.on("change:error", showError);
  el.replaceChildren(root);
  showError();
  draw();
  return () => {
    clearInterval(timer);
    model.off(drawn, draw);
    model.off("change:error", showError);
  };
}

export default { render };
