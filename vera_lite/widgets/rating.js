// The rating panel: two results side by side, five answers. It does not know what made them.

const ANSWERS = [
  [-2, "A is much better"],
  [-1, "A is a little better"],
  [0, "no difference"],
  [1, "B is a little better"],
  [2, "B is much better"],
];
const SHOWN_SIDE = 260; // CSS pixels that a small picture is enlarged to, by a whole factor

// What a browser remembers of an unfinished study; a frame without an origin remembers nothing.
function remember(key, value) {
  try {
    if (value === undefined) return JSON.parse(localStorage.getItem(key));
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, JSON.stringify(value));
  } catch {
    return null;
  }
}

async function render({ model, el }) {
  const screens = model.get("_screens");
  const key = `vera-rating-${model.get("study")}`;
  const videos = await Promise.all(
    model.get("_videos").map((frames) =>
      Promise.all(
        frames.map((view) =>
          createImageBitmap(new Blob([new Uint8Array(view.buffer, view.byteOffset, view.byteLength)])),
        ),
      ),
    ),
  );
  let timer = null; // while it plays
  let frame = 0;
  let since = performance.now(); // when the shown pair appeared

  // 1. Elements.
  const error = make("div", { className: "vera-error", role: "alert", hidden: true });
  const name = make("input", {
    "aria-label": "your name or number",
    placeholder: "your name or number",
    oninput: () => change({ rater: name.value }),
  });
  const progress = make("span", { className: "vera-progress", role: "status" });
  const instruction = make("div", { className: "vera-instruction" });
  const pictures = ["source", "left", "right"].map((part) => {
    const canvas = make("canvas", { role: "img", "aria-label": { left: "A", right: "B" }[part] ?? part });
    const label = { left: "A", right: "B" }[part] ?? part;
    return { part, canvas, figure: make("figure", {}, canvas, make("figcaption", { textContent: label })) };
  });
  const buttons = ANSWERS.map(([value, text], i) =>
    make("button", {
      type: "button",
      textContent: `${i + 1}  ${text}`,
      "data-answer": value,
      onclick: () => answer(value),
    }),
  );
  const play = make("button", {
    type: "button",
    className: "vera-play",
    onclick: () => (timer ? stop() : start()),
  });
  const back = make("button", { type: "button", textContent: "‹ back", onclick: () => go(-1) });
  const next = make("button", { type: "button", textContent: "next ›", onclick: () => go(1) });
  const again = make("button", { type: "button", onclick: startAgain });
  // A frame without an origin may not download.
  const isBoxed = window !== window.parent && window.origin === "null";
  const save = make("a", { className: "vera-save", textContent: "save my answers", download: "ratings.jsonl" });
  const text = make("textarea", { readOnly: true, rows: 4, "aria-label": "answers as text" });
  const trial = make(
    "div",
    {},
    instruction,
    make("div", { className: "vera-pictures" }, ...pictures.map(({ figure }) => figure)),
    make("div", { className: "vera-answers", role: "group", "aria-label": "which is better" }, ...buttons),
  );
  const done = make("p", { className: "vera-done" });
  const root = make(
    "div",
    { className: "vera-rating", tabIndex: 0, role: "group", "aria-label": "rating panel" },
    error,
    make("div", { className: "vera-row" }, name, progress),
    trial,
    done,
    make("div", { className: "vera-row" }, back, next, play, save, again),
    make("details", {}, make("summary", { textContent: "answers as text, to copy" }), text),
  );

  // 2. State: the traits, and what the browser remembers.
  function change(values) {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
    const [rater, answers] = [model.get("rater"), model.get("answers")];
    if (rater || answers.length) remember(key, { rater, answers });
  }
  function firstOpen(answers) {
    const answered = new Set(answers.map(({ screen }) => screen));
    const open = screens.findIndex((_, i) => !answered.has(i));
    return open < 0 ? screens.length : open;
  }
  function answer(value) {
    const screen = model.get("screen");
    if (screen >= screens.length) return;
    const seconds = Math.round((performance.now() - since) / 100) / 10;
    const others = model.get("answers").filter((row) => row.screen !== screen);
    const answers = [...others, { screen, answer: value, seconds }].sort((a, b) => a.screen - b.screen);
    change({ answers, screen: firstOpen(answers) });
  }
  function go(by) {
    const screen = model.get("screen") + by;
    if (screen >= 0 && screen <= firstOpen(model.get("answers"))) change({ screen });
  }
  let sure = false; // "start again" was pressed once
  function startAgain() {
    sure = !sure;
    if (!sure) {
      change({ rater: "", answers: [], screen: 0 });
      remember(key, null);
    }
    draw();
  }

  // 3. Drawing.
  function paint() {
    const shown = screens[model.get("screen")];
    if (!shown) return;
    for (const { part, canvas, figure } of pictures) {
      figure.hidden = shown[part] === null;
      if (figure.hidden) continue;
      const frames = videos[shown[part]];
      const { width, height } = frames[0];
      if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
      const scale = Math.max(1, Math.floor(SHOWN_SIDE / Math.max(width, height)));
      canvas.style.width = `${width * scale}px`;
      canvas.style.imageRendering = scale > 1 ? "pixelated" : "auto";
      canvas.getContext("2d", { willReadFrequently: true }).drawImage(frames[frame % frames.length], 0, 0);
    }
  }
  function lines() {
    const head = { study: model.get("study"), rater: model.get("rater") };
    return model
      .get("answers")
      .map((row) => `${JSON.stringify({ ...head, ...row })}\n`)
      .join("");
  }
  function draw() {
    const [screen, answers] = [model.get("screen"), model.get("answers")];
    const given = answers.find((row) => row.screen === screen)?.answer;
    const ended = screen >= screens.length;
    progress.textContent = ended
      ? `${answers.length} of ${screens.length} rated`
      : `pair ${screen + 1} of ${screens.length}`;
    if (document.activeElement !== name) name.value = model.get("rater");
    trial.hidden = ended;
    done.hidden = !ended;
    done.textContent = "Thank you, that was all. Please save or copy your answers and send them back.";
    instruction.textContent = ended ? "" : screens[screen].instruction;
    buttons.forEach((button) => button.setAttribute("aria-pressed", Number(button.dataset.answer) === given));
    back.disabled = screen === 0;
    next.disabled = screen >= firstOpen(answers);
    play.hidden = ended;
    play.textContent = timer ? "pause" : "play";
    again.textContent = sure ? "really? answers that are not saved are lost" : "start again";
    text.value = lines();
    save.hidden = isBoxed || !answers.length;
    save.href = `data:application/jsonl;charset=utf-8,${encodeURIComponent(text.value)}`;
    paint();
  }
  function start() {
    // Who asked for less motion gets the clip once, not for ever.
    const once = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const last = videos[0].length - 1;
    timer = setInterval(() => {
      frame += 1;
      if (once && frame % (last + 1) === last) stop();
      paint();
    }, 1000 / model.get("fps"));
    draw();
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    draw();
  }
  function turn() {
    [since, frame, sure] = [performance.now(), 0, false];
    draw();
  }

  // 4. Keys: 1 to 5 answer, the space bar plays, arrows turn pages.
  const keys = {
    " ": () => (timer ? stop() : start()),
    ArrowLeft: () => go(-1),
    ArrowRight: () => go(1),
  };
  ANSWERS.forEach(([value], i) => (keys[i + 1] = () => answer(value)));
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation(); // JupyterLab would take it for a command
    const own = { BUTTON: /^( |Enter)$/, INPUT: /./, TEXTAREA: /./, A: /^Enter$/, SUMMARY: /^( |Enter)$/ };
    if (own[event.target.tagName]?.test(event.key) || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  function showError() {
    const message = model.get("error");
    error.hidden = !message;
    const close = make("button", {
      type: "button",
      textContent: "close",
      onclick: () => change({ error: "" }),
    });
    error.replaceChildren(`Python failed: ${message} `, close);
  }

  const drawn = "change:answers change:rater";
  model.on(drawn, draw);
  model.on("change:screen", turn);
  model.on("change:error", showError);
  el.replaceChildren(root);
  showError();
  const kept = remember(key);
  if (kept && !model.get("answers").length && !model.get("rater"))
    change({ ...kept, screen: firstOpen(kept.answers) });
  start();
  return () => {
    clearInterval(timer);
    model.off(drawn, draw);
    model.off("change:screen", turn);
    model.off("change:error", showError);
  };
}

export default { render };
