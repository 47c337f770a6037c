// The path editor. Sections: the path, reading JSON, helpers, and render(): editing, elements, drawing,
// the pointer, playing and keys.

// Okabe and Ito's colours, which colour-blind people tell apart.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const TIMINGS = ["equal_frames", "constant_speed"];
const ONION_SKIN = [0, 0.25, 0.5, 0.75, 1]; // moments of the clip
const NEAR = 7; // CSS pixels from the line that still count as on it
const SHAKE = 3; // CSS pixels that a hand may move when it only clicks
const HINT =
  "Click adds a keyframe, drag moves it, right-click removes it. Double-click inserts one into the line.";
const KEYS = "arrows: 1 pixel, Shift: 10; wheel, + and −: scale; Delete";
const ON_LINE = "Double-click to insert a keyframe here, or click beside the line to add one at its end.";
const NO_PYTHON = ": no Python is connected, so copy it to keep the path";

// --- the path ----------------------------------------------------------------------------------------
// The same steps, in the same order, as in vera_lite/media/trajectory.py: the preview shows what will be used.

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

// When each keyframe is reached, from 0 to 1. Those without a time are spread between their neighbours.
export function times({ keyframes, timing }) {
  const times = keyframes.map((k) => k.time);
  times[0] ??= 0;
  times[times.length - 1] ??= 1;
  const known = times.flatMap((t, i) => (t === null ? [] : [i]));
  known.slice(1).forEach((b, i) => {
    const a = known[i];
    let lengths = keyframes.slice(a, b).map((p, j) => {
      const q = keyframes[a + j + 1];
      const [dx, dy] = [q.x - p.x, q.y - p.y];
      return Math.sqrt(dx * dx + dy * dy);
    });
    if (timing === "equal_frames" || !lengths.some(Boolean)) lengths = lengths.map(() => 1);
    let length = 0;
    const soFar = lengths.map((l) => (length += l));
    for (let i = a + 1; i < b; i++) {
      const time = times[a] + ((times[b] - times[a]) * soFar[i - a - 1]) / length;
      times[i] = times[b] < time ? times[b] : time;
    }
  });
  return times;
}

// Linear between known times, constant before the first and after the last.
function interpolate([times, values], t) {
  const j = times.filter((time) => time <= t).length;
  if (j === 0 || j === times.length) return values[Math.max(j - 1, 0)];
  return values[j - 1] + ((values[j] - values[j - 1]) * (t - times[j - 1])) / (times[j] - times[j - 1]);
}

// Times and values of x, of y and of the scale.
function tracks(trajectory) {
  const { keyframes, scales } = trajectory;
  const at = times(trajectory);
  let scaled = keyframes.flatMap((k, i) => (k.scale ? [[at[i], k.scale]] : []));
  if (!scaled.length) {
    const given = scales.filter(Boolean);
    const all = scales.map((_, i) => given[i] ?? given.at(-1));
    scaled = all.map((s, i) => [i / Math.max(all.length - 1, 1), s]);
  }
  const column = (c) => scaled.map((row) => row[c]);
  return [
    [at, keyframes.map((k) => k.x)],
    [at, keyframes.map((k) => k.y)],
    [column(0), column(1)],
  ];
}

// n rows of x, y and scale.
export function sample(trajectory, n) {
  const all = tracks(trajectory);
  return Array.from({ length: n }, (_, i) => all.map((track) => interpolate(track, i / Math.max(n - 1, 1))));
}

// Moves keyframes outside the frame to its edge; returns what to say about it.
function clamp({ keyframes, size: [height, width] }) {
  const moved = [];
  keyframes.forEach((k, i) => {
    const x = Math.min(Math.max(k.x, 0), width - 1);
    const y = Math.min(Math.max(k.y, 0), height - 1);
    if (x !== k.x || y !== k.y) moved.push(i + 1);
    Object.assign(k, { x, y });
  });
  const [s, were] = moved.length > 1 ? ["s", "were"] : ["", "was"];
  return (
    moved.length &&
    `Keyframe${s} ${moved.join(", ")} lay outside the ${width}x${height} frame and ${were} moved to its edge.`
  );
}

// --- reading JSON ------------------------------------------------------------------------------------

// What Trajectory.from_json takes, of this size; throws an error with a sentence for anything else.
export function parse(text, [height, width]) {
  const check = (fits, why) => {
    if (!fits) throw new Error(`This is not the JSON of a trajectory here: ${why}.`);
  };
  const isFree = (v, high = Infinity) => v === null || (Number.isFinite(v) && v >= 0 && v <= high);
  let fields;
  try {
    fields = JSON.parse(text);
  } catch (error) {
    check(false, error.message);
  }
  const { version, keyframes: given, size, timing = TIMINGS[0], scales = [1], ...more } = fields ?? {};
  check(version === 1, `the version is ${version}, and only 1 can be read`);
  check(Array.isArray(given) && given.length, "there are no keyframes");
  const keyframes = given.map((keyframe, i) => {
    const { x, y, scale = null, time = null, ...more } = keyframe ?? {};
    const fits = [x, y].every(Number.isFinite) && isFree(scale) && isFree(time, 1) && same(more, {});
    check(fits, `keyframe ${i + 1} needs numbers x and y, and may have scale (above 0) and time (0 to 1)`);
    return { x, y, scale, time };
  });
  const known = keyframes.map((k) => k.time).filter((t) => t !== null);
  check(
    known.every((t, i) => !i || known[i - 1] <= t),
    "the keyframes are not in order of time",
  );
  check(same(size, [height, width]), `the frame's size (height, width) is ${size}, not ${height},${width}`);
  check(TIMINGS.includes(timing), `timing is not ${TIMINGS.join(" or ")}`);
  check(
    Array.isArray(scales) && scales.every((s) => isFree(s)) && scales.some(Boolean),
    "scales must be numbers, one of them above 0",
  );
  check(
    same(scales, [1]) || !keyframes.some((k) => k.scale),
    "there are scales for the clip and for keyframes",
  );
  check(same(more, {}), `there is an unknown field ${Object.keys(more)[0]}`);
  return { version, keyframes, size, timing, scales };
}

// --- helpers -----------------------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const isDrawn = ["svg", "polyline", "path"].includes(tag);
  const element = document.createElementNS(`http://www.w3.org/${isDrawn ? "2000/svg" : "1999/xhtml"}`, tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && !isDrawn) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const row = (...children) => make("div", { className: "row" }, ...children);
const button = (textContent, onclick, properties) =>
  make("button", { type: "button", textContent, onclick, ...properties });

function render({ model, el }) {
  const get = (name) => model.get(name);
  const facts = get("_facts");
  const n = facts.frames;
  const [H, W] = facts.size;
  const [height, width] = facts.shown; // of the stored background
  let [past, future] = [[], []]; // objects before and after, for undo and redo
  let seen = get("objects"); // as this view knows them
  let last = {}; // tag and time of the last edit
  let isAlive = false; // whether Python has answered
  let isGone = false;
  let isQueued = false;
  let timer = null; // while it plays
  let warning = "";
  let drag = null; // the keyframe that is dragged
  let isOnLine = false; // whether the last press was on the line

  const active = () => Math.min(get("object"), get("objects").length - 1);
  const path = () => get("objects")[active()].trajectory;
  const chosen = () => (get("keyframe") < path().keyframes.length ? get("keyframe") : -1);
  // The frame that is nearest to a keyframe.
  const moment = (trajectory, k) => (k < 0 ? {} : { frame: Math.round(times(trajectory)[k] * (n - 1)) });
  const select = (keyframe) => set({ keyframe, ...moment(path(), keyframe) });

  function set(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  }
  function tell(text) {
    warning = text;
    queue();
  }

  // 1. Every edit is a step for undo; those with one tag, such as all moves of one drag, are one step.
  function edit(change, { object = active(), keyframe = chosen() } = {}, tag) {
    const objects = structuredClone(get("objects"));
    change(objects[active()].trajectory, objects);
    const { trajectory } = objects[object];
    tell(clamp(trajectory));
    if (!same(objects, seen)) {
      const time = performance.now();
      const goesOn = tag && tag === last.tag && (typeof tag === "object" || time - last.time < 1000);
      if (!goesOn) past.push(seen);
      [last, future, seen] = [{ tag, time }, [], objects];
    }
    keyframe = Math.min(keyframe, trajectory.keyframes.length - 1);
    set({ objects, object, keyframe, ...moment(trajectory, keyframe) });
  }
  // One step of undo or redo.
  function travel(from, to) {
    if (!from.length) return;
    to.push(seen);
    [seen, last] = [from.pop(), {}];
    const changed = seen.findIndex((object, i) => !same(object, to.at(-1)[i])); // shows where it happens
    const object = changed < 0 ? seen.length - 1 : changed;
    const keyframe = Math.min(get("keyframe"), seen[object].trajectory.keyframes.length - 1);
    tell("");
    set({ objects: seen, object, keyframe });
  }
  const undo = () => travel(past, future);
  const redo = () => travel(future, past);

  const focus = (k) => queueMicrotask(() => (handles[k] ?? root).focus());
  function insert(k, x, y, tag) {
    const added = { x, y, scale: null, time: null };
    edit(({ keyframes }) => keyframes.splice(k, 0, added), { keyframe: k }, tag);
    focus(k);
  }
  function remove(k) {
    edit(({ keyframes }) => keyframes.splice(k, 1));
    focus(Math.min(k, path().keyframes.length - 1));
  }
  const move = (k, x, y, tag) =>
    edit(({ keyframes }) => Object.assign(keyframes[k], { x, y }), { keyframe: k }, tag);

  // x, y, scale or time of a keyframe; null leaves it to the path.
  function assign(k, name, value, tag) {
    const known = (part) => part.map((keyframe) => keyframe.time).filter((t) => t !== null);
    const { keyframes } = path();
    const isPlace = name === "x" || name === "y";
    const before = Math.max(0, ...known(keyframes.slice(0, k)));
    const after = Math.min(1, ...known(keyframes.slice(k + 1)));
    const [low, high] = { x: [0, W - 1], y: [0, H - 1], scale: [0, 100], time: [before, after] }[name];
    // A place outside the frame moves to its edge; other numbers must be in range.
    const isFine = isPlace ? Number.isFinite(value) : value >= low && value <= high;
    if (value === null ? isPlace : !isFine)
      return tell(`The ${name} of keyframe ${k + 1} must be a number from ${low} to ${high}.`);
    edit(
      (trajectory) => {
        if (name === "scale" && value) trajectory.scales = [1]; // a path may not have two kinds of scales
        trajectory.keyframes[k][name] = value;
      },
      { keyframe: k },
      tag,
    );
  }
  function rescale(k, by) {
    const scale = interpolate(tracks(path())[2], times(path())[k]) * by;
    assign(k, "scale", Number(Math.max(0.01, scale).toPrecision(3)), `scale ${k}`);
  }

  // 2. Elements.
  const error = make("div", { className: "error", role: "alert", hidden: true });
  const message = make("div", { role: "status" });
  const canvas = make("canvas", { width, height, role: "img" });
  const lines = make("svg", { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", "aria-hidden": true });
  const stage = make("div", { className: "stage", role: "group", "aria-label": "picture" }, canvas, lines);
  const [handles, tabs, rows] = [[], [], []];

  const tabBox = make("span", { className: "row", role: "group", "aria-label": "objects" });
  const addObject = button("+ object", () =>
    edit(
      (trajectory, objects) => {
        const empty = { ...structuredClone(trajectory), keyframes: [], scales: [1] };
        objects.push({ ...objects[active()], trajectory: empty });
      },
      { object: get("objects").length, keyframe: -1 },
    ),
  );
  const dropObject = button("remove object", () =>
    edit((_, objects) => objects.splice(active(), 1), {
      object: Math.min(active(), get("objects").length - 2),
      keyframe: -1,
    }),
  );
  function menu(options, onchange) {
    const texts = options.map(([value, textContent]) => make("option", { value, textContent }));
    return make("select", { onchange }, ...texts);
  }
  const timing = menu(
    TIMINGS.map((name) => [name, name.replace("_", " ")]),
    () => edit((trajectory) => (trajectory.timing = timing.value)),
  );
  const foreground = menu(
    facts.foregrounds.map((_, i) => [i, i + 1]),
    () => edit((_, objects) => (objects[active()].foreground = Number(foreground.value))),
  );

  const heads = ["", "x", "y", "scale", "time", ""].map((textContent) => make("th", { textContent }));
  const table = make("table", { "aria-label": "keyframes" }, make("tr", {}, ...heads));
  // After the selected one, halfway to the next; otherwise at the end, in the middle of the picture.
  const addKeyframe = button("+ keyframe", () => {
    const k = chosen();
    const { keyframes } = path();
    const [a, b] = [keyframes[k], keyframes[k + 1]];
    if (a && b) insert(k + 1, (a.x + b.x) / 2, (a.y + b.y) / 2);
    else insert(keyframes.length, Math.floor((W - 1) / 2), Math.floor((H - 1) / 2));
  });
  const undoButton = button("undo", undo, { title: "Ctrl+Z" });
  const redoButton = button("redo", redo, { title: "Ctrl+Shift+Z" });
  const slider = (min, max, step, label, oninput) =>
    make("input", { type: "range", min, max, step, "aria-label": label, oninput });
  const scale = slider(0.05, 3, 0.05, "scale of the selected keyframe", () =>
    assign(chosen(), "scale", Number(scale.value), `scale ${chosen()}`),
  );
  const scaleLabel = make("label", {}, "", scale);

  const play = button("", () => (timer ? stop() : start()), { className: "play" });
  const frame = slider(0, n - 1, 1, "frame", () => {
    stop();
    set({ frame: Number(frame.value) });
  });
  const counter = make("span");
  const onion = make("input", { type: "checkbox", onchange: () => set({ onion_skin: onion.checked }) });
  const disc = slider(1, Math.max(H, W), 1, "disc", () => set({ disc: Number(disc.value) }));

  const json = make("textarea", {
    rows: 4,
    spellcheck: false,
    "aria-label": "path as JSON",
    placeholder: "The path is empty. Paste a trajectory's JSON here, then load it.",
  });
  const load = button("load", () => {
    try {
      const trajectory = parse(json.value, facts.size);
      edit((_, objects) => (objects[active()].trajectory = trajectory), { keyframe: -1 });
    } catch (problem) {
      tell(problem.message);
    }
  });
  const copy = button("copy", () => {
    json.select();
    // The old command also works where a page has no clipboard API.
    tell(document.execCommand("copy") ? "Copied." : "Press Ctrl+C to copy.");
  });
  // A frame without an origin may not download.
  const isBoxed = window !== window.parent && window.origin === "null";
  const save = make("a", { download: "path.json", textContent: "save as a file" });
  const summary = make("summary");

  const root = make(
    "div",
    { className: "vera-path-editor", tabIndex: 0, role: "group", "aria-label": "path editor" },
    error,
    make(
      "div",
      { className: "row top" },
      make(
        "div",
        {},
        stage,
        message,
        row(play, frame, counter),
        row(
          make("label", {}, onion, "onion skin"),
          make("label", { hidden: facts.foregrounds.length > 0 }, "disc", disc),
        ),
      ),
      make(
        "div",
        {},
        row(tabBox, addObject, dropObject),
        row(
          make("label", {}, "timing", timing),
          make("label", { hidden: facts.foregrounds.length < 2 }, "foreground", foreground),
        ),
        table,
        row(addKeyframe, undoButton, redoButton),
        row(scaleLabel),
      ),
    ),
    make("details", {}, summary, json, row(copy, load, save)),
  );
  // Small pixels stay sharp, by a whole factor; a large picture is made to fit.
  const factor = Math.floor(448 / Math.max(W, H)) || Math.min(1, 640 / W, 480 / H);
  stage.style.width = `${W * factor}px`;
  canvas.style.imageRendering = factor > 1 ? "pixelated" : "auto";

  // 3. Drawing.
  let [background, foregrounds] = [[], []]; // decoded pictures
  const decode = (files) => Promise.all(files.map((file) => createImageBitmap(new Blob([file]))));
  Promise.all([get("_background"), ...get("_foregrounds")].map(decode)).then((pictures) => {
    [background, ...foregrounds] = pictures;
    queue();
  });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "medium"; // bilinear, and averaged where it shrinks, like media.placement.place
  const colourOf = (i) => COLOURS[i % COLOURS.length];
  const nearest = (pictures, i) => pictures[Math.round((i * (pictures.length - 1)) / (n - 1))];

  // An object at a place, as its i-th frame or as a disc.
  function stamp(object, [x, y, scale], i, colour) {
    const seen = facts.foregrounds[object.foreground];
    if (!seen) {
      context.fillStyle = colour;
      context.beginPath();
      context.arc(x + 0.5, y + 0.5, (get("disc") / 2) * scale, 0, 7);
      context.fill();
    } else if (foregrounds.length) {
      const [left, top, ...size] = seen.map((v) => v * scale); // from the middle of its canvas
      context.drawImage(nearest(foregrounds[object.foreground], i), x + 0.5 + left, y + 0.5 + top, ...size);
    }
  }

  // Background, objects and their paths.
  function paint() {
    const now = get("frame");
    const svg = [];
    context.setTransform(width / W, 0, 0, height / H, 0, 0); // in pixels of the frame from here on
    if (background.length) context.drawImage(nearest(background, now), 0, 0, W, H);
    get("objects").forEach((object, i) => {
      const { keyframes } = object.trajectory;
      const colour = colourOf(i);
      const isActive = i === active();
      if (!keyframes.length) return;
      const places = sample(object.trajectory, n);
      if (isActive && get("onion_skin") && !timer) {
        context.globalAlpha = 0.3;
        for (const at of ONION_SKIN.map((m) => Math.round(m * (n - 1)))) {
          stamp(object, places[at], at, colour);
        }
        context.globalAlpha = 1;
      }
      stamp(object, places[now], now, colour);
      const middle = ([x, y]) => [x + 0.5, y + 0.5]; // of a pixel
      const points = keyframes.map((k) => middle([k.x, k.y]));
      const line = (stroke, width) => make("polyline", { points, stroke, "stroke-width": width });
      const dots = (stroke, width, all) =>
        make("path", { d: all.map((p) => `M${p}h0`).join(""), stroke, "stroke-width": width });
      if (isActive) svg.push(line("#000a", 5), line(colour, 3), dots("#fff", 4, places.map(middle)));
      else svg.push(line("#000a", 4), line(colour, 2), dots(colour, 9, points), dots("#fff", 5, points));
    });
    lines.replaceChildren(...svg);
  }

  // As many elements as asked for; those that stay keep the focus.
  function fit(parent, elements, count, create) {
    while (elements.length > count) {
      if (elements.at(-1).matches(":focus-within")) root.focus(); // or the next key goes elsewhere
      elements.pop().remove();
    }
    while (elements.length < count) parent.append(elements[elements.push(create(elements.length)) - 1]);
  }
  // A text goes into a field once, so that what is typed there afterwards stays.
  function show(field, text) {
    if (field.shown !== text) field.value = field.shown = text;
  }
  function createRow(k) {
    const onfocus = () => chosen() !== k && select(k);
    const fields = ["x", "y", "scale", "time"].map((name) => {
      const onchange = ({ target }) => {
        target.shown = null; // shows what comes of it, even if that is the old value
        assign(k, name, target.value.trim() === "" ? null : Number(target.value));
      };
      return make("input", {
        inputMode: "decimal",
        onchange,
        onfocus,
        "aria-label": `${name} of keyframe ${k + 1}`,
      });
    });
    const drop = button("×", () => remove(k), { "aria-label": `remove keyframe ${k + 1}` });
    const cells = [k + 1, ...fields, drop].map((cell) => make("td", {}, cell));
    return Object.assign(make("tr", {}, ...cells), { fields });
  }

  const press = (element, isPressed) => element.setAttribute("aria-pressed", isPressed);

  function drawObjects() {
    const objects = get("objects");
    root.style.setProperty("--colour", colourOf(active()));
    fit(tabBox, tabs, objects.length, (i) =>
      button(i + 1, () => set({ object: i, keyframe: -1 }), {
        className: "tab",
        "aria-label": `object ${i + 1}`,
        style: `--colour: ${colourOf(i)}`,
      }),
    );
    tabs.forEach((tab, i) => press(tab, i === active()));
    dropObject.disabled = objects.length < 2;
    timing.value = path().timing;
    foreground.value = objects[active()].foreground;
    [undoButton.disabled, redoButton.disabled] = [!past.length, !future.length];
  }

  // Handles in the picture and rows of the table.
  function drawKeyframes() {
    const k = chosen();
    const trajectory = path();
    const { keyframes } = trajectory;
    const [[at], , track] = keyframes.length ? tracks(trajectory) : [[[]]];
    const scales = at.map((t) => interpolate(track, t));
    fit(stage, handles, at.length, (i) =>
      button(i + 1, null, { className: "handle", title: KEYS, onfocus: () => chosen() !== i && select(i) }),
    );
    fit(table, rows, at.length, createRow);
    keyframes.forEach(({ x, y, scale, time }, i) => {
      const handle = handles[i];
      const { fields } = rows[i];
      handle.style.left = `${(100 * (x + 0.5)) / W}%`;
      handle.style.top = `${(100 * (y + 0.5)) / H}%`;
      press(handle, i === k);
      const [size, when] = [scales[i], at[i]].map((v) => v.toFixed(2));
      handle.setAttribute(
        "aria-label",
        `keyframe ${i + 1} of ${at.length}, x ${x}, y ${y}, scale ${size}, time ${when}`,
      );
      rows[i].className = i === k ? "chosen" : "";
      [x, y, scale || "", time ?? ""].forEach((value, column) => show(fields[column], String(value)));
      [fields[2].placeholder, fields[3].placeholder] = [`auto ${size}`, `auto ${when}`];
    });
    table.hidden = !at.length;
    scaleLabel.hidden = k < 0;
    scaleLabel.firstChild.data = `scale of keyframe ${k + 1}`;
    scale.value = scales[k];
  }

  function drawPlayer() {
    const now = get("frame");
    frame.value = now;
    counter.textContent = `frame ${now} of 0–${n - 1}, ${(now / facts.fps).toFixed(2)} s`;
    canvas.setAttribute("aria-label", `frame ${now}, objects: ${get("objects").length}`);
    play.textContent = timer ? "pause" : "play";
    stage.classList.toggle("playing", Boolean(timer));
    onion.checked = get("onion_skin");
    disc.value = get("disc");
  }

  function drawTexts() {
    const isEmpty = !path().keyframes.length;
    const text = isEmpty ? "" : JSON.stringify(path());
    show(json, text);
    [copy.disabled, save.hidden] = [isEmpty, isEmpty || isBoxed];
    save.href = `data:application/json,${encodeURIComponent(text)}`;
    summary.textContent = `path as JSON${isAlive ? "" : NO_PYTHON}`;
    message.textContent = warning || (isEmpty ? "Click in the picture to place the first keyframe." : HINT);
    message.className = `message ${warning ? "warns" : ""}`;
  }

  function draw() {
    if (isGone) return;
    paint();
    drawObjects();
    drawKeyframes();
    drawPlayer();
    drawTexts();
  }

  // Several changes at once are drawn once.
  function queue() {
    if (!isQueued) {
      queueMicrotask(() => {
        isQueued = false;
        draw();
      });
    }
    isQueued = true;
  }

  // 4. The pointer.
  // In pixels from the frame's corner: pixel 0 goes from 0 to 1.
  function point(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * W, ((event.clientY - box.top) / box.height) * H];
  }
  // The segment of the line that is near, or -1.
  function segment(event) {
    const [x, y] = point(event);
    const unit = canvas.getBoundingClientRect().width / W; // CSS pixels in one of the frame's
    let [found, least] = [-1, NEAR];
    path().keyframes.forEach((a, i, { [i + 1]: b }) => {
      if (!b) return;
      const [dx, dy] = [b.x - a.x, b.y - a.y];
      const [px, py] = [x - 0.5 - a.x, y - 0.5 - a.y];
      const t = Math.min(Math.max((px * dx + py * dy) / (dx * dx + dy * dy || 1), 0), 1);
      const distance = Math.hypot(px - t * dx, py - t * dy) * unit;
      if (distance < least) [found, least] = [i, distance];
    });
    return found;
  }
  stage.onmousedown = (event) => event.preventDefault(); // the focus is set below
  stage.onpointerdown = (event) => {
    if (event.button || event.ctrlKey) return;
    stop();
    const [x, y] = point(event);
    const tag = {}; // all moves of this drag are one step for undo
    let k = handles.indexOf(event.target);
    let offset = [0, 0]; // from the pointer to the middle of the handle
    isOnLine = k < 0 && segment(event) >= 0;
    if (isOnLine) return tell(ON_LINE);
    if (k >= 0) {
      const { x: left, y: top } = path().keyframes[k];
      offset = [left + 0.5 - x, top + 0.5 - y];
      focus(k);
    } else {
      k = path().keyframes.length;
      insert(k, Math.floor(x), Math.floor(y), tag);
    }
    drag = { k, offset, tag, start: [event.clientX, event.clientY] };
    stage.setPointerCapture(event.pointerId);
  };
  stage.onpointermove = (event) => {
    if (!drag) {
      stage.style.cursor = segment(event) < 0 ? "crosshair" : "copy";
      return;
    }
    const { k, offset, tag, start } = drag;
    if (start && Math.hypot(event.clientX - start[0], event.clientY - start[1]) < SHAKE) return;
    drag.start = null;
    move(k, ...point(event).map((v, i) => Math.floor(v + offset[i])), tag);
  };
  stage.onpointerup = stage.onpointercancel = () => (drag = null);
  stage.ondblclick = (event) => {
    const i = isOnLine ? segment(event) : -1;
    if (i >= 0) insert(i + 1, ...point(event).map(Math.floor));
  };
  stage.oncontextmenu = (event) => {
    const k = handles.indexOf(event.target);
    if (k < 0) return;
    event.preventDefault();
    event.stopPropagation();
    remove(k);
  };
  // Only while a handle has the focus, or one could not scroll past the picture.
  stage.addEventListener(
    "wheel",
    (event) => {
      if (!handles.includes(root.getRootNode().activeElement) || chosen() < 0) return;
      event.preventDefault();
      rescale(chosen(), Math.exp(-event.deltaY / 1000));
    },
    { passive: false },
  );

  // 5. Playing, and keys.
  function start() {
    // Who asked for less motion gets the clip once, not for ever.
    const once = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (once && get("frame") === n - 1) model.set("frame", 0);
    timer = setInterval(() => {
      model.set("frame", (get("frame") + 1) % n); // Python hears of the last one only
      if (once && get("frame") === n - 1) stop();
    }, 1000 / facts.fps);
    queue();
  }
  function stop() {
    if (!timer) return;
    clearInterval(timer);
    timer = null;
    model.save_changes();
    queue();
  }
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  // What a key does where the focus is; null leaves it to the browser.
  function actionOf({ key, target, shiftKey }) {
    const k = chosen();
    const handle = handles.indexOf(target);
    const arrow = ARROWS[key];
    if (target.matches("select, textarea, td input") || (arrow && target.type === "range")) return null;
    if (arrow && handle >= 0) {
      const { x, y } = path().keyframes[handle];
      const by = shiftKey ? 10 : 1;
      return () => move(handle, x + by * arrow[0], y + by * arrow[1], `move ${handle}`);
    }
    if (arrow?.[0]) return () => step(arrow[0]);
    if (key === " " && !target.matches("button, input, summary")) return play.onclick;
    if (key === "Escape") return deselect;
    if (k >= 0 && (key === "Delete" || key === "Backspace")) return () => remove(k);
    if (k >= 0 && "+=-".includes(key)) return () => rescale(k, key === "-" ? 1 / 1.1 : 1.1);
    return null;
  }
  function step(by) {
    stop();
    set({ frame: (get("frame") + by + n) % n });
  }
  function deselect() {
    select(-1);
    root.focus();
  }
  function onKey(event) {
    const { key, target } = event;
    const isCommand = event.ctrlKey || event.metaKey;
    if (event.altKey || (isCommand && !/^[zy]$/i.test(key))) return;
    event.stopPropagation(); // JupyterLab would take it for a command
    let action = isCommand ? (event.shiftKey || key === "y" ? redo : undo) : actionOf(event);
    const isTyping = (target.shown ?? target.value) !== target.value;
    if (isCommand && isTyping) action = null; // undoes what was typed
    if (!action) return;
    event.preventDefault();
    action();
  }
  root.addEventListener("keydown", onKey);

  // 6. What comes from Python.
  function onMessage(content) {
    isAlive ||= Boolean(content.alive);
    queue();
  }
  function onObjects() {
    if (same(get("objects"), seen)) return;
    past.push(seen); // Python, or another view, changed them
    [future, seen, warning] = [[], get("objects"), ""];
  }
  function showError() {
    const text = get("error");
    error.hidden = !text;
    error.replaceChildren(
      `Python failed: ${text} `,
      button("close", () => set({ error: "" })),
    );
  }
  const drawn = "objects object keyframe frame onion_skin disc".split(" ");
  const listeners = [
    ["change:objects", onObjects],
    ["change:error", showError],
    ["msg:custom", onMessage],
    ...drawn.map((name) => [`change:${name}`, queue]),
  ];
  for (const [event, listener] of listeners) model.on(event, listener);
  el.append(root);
  showError();
  draw();
  model.send({ hello: true });
  return () => {
    isGone = true;
    clearInterval(timer);
    for (const [event, listener] of listeners) model.off(event, listener);
    root.remove();
  };
}

export default { render };
