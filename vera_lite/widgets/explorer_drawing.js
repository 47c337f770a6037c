// Painting frames and maps, controls that are bound to traits, strips of thumbnails, and the player.

const DETAIL = 0.6; // of a frame's contrast that is left under a map, so that the video is not read as attention
const MIDDLE = 128; // the grey of a frame under a map, on average

// Draws frames and maps on canvases, once the image file with all frames is decoded.
function createPainter(state, onReady) {
  const { facts, get } = state;
  const quiet = document.createElement("canvas"); // the frames in few greys: all colour is the map's
  const patches = document.createElement("canvas"); // a pixel per token
  let sheet = null;

  createImageBitmap(new Blob([bytes(get("_picture"))])).then((bitmap) => {
    sheet = bitmap;
    [quiet.width, quiet.height] = [sheet.width, sheet.height];
    const context = quiet.getContext("2d");
    context.drawImage(sheet, 0, 0);
    const picture = context.getImageData(0, 0, quiet.width, quiet.height);
    const { data } = picture;
    for (let i = 0; i < data.length; i += 4) {
      const grey = 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
      data[i] = data[i + 1] = data[i + 2] = MIDDLE + DETAIL * (grey - MIDDLE);
    }
    context.putImageData(picture, 0, 0);
    onReady();
  });

  // The map over a slot's tokens, a pixel each; clear where there is nothing to see.
  function drawPatches(stream, frame, map, top, isSigned) {
    const [, rows, columns] = stream.cells;
    const picture = new ImageData(columns, rows);
    state.slotOf(stream, frame).forEach((token, i) => {
      const share = map(token) / top;
      if (Number.isNaN(share) || Math.abs(share) < get("threshold")) return;
      picture.data.set([...shade(share, isSigned), 255], 4 * i);
    });
    [patches.width, patches.height] = [columns, rows];
    patches.getContext("2d").putImageData(picture, 0, 0);
  }

  // One frame of a sheet of frames.
  function drawFrame(canvas, frames, frame) {
    const w = frames.width / facts.columns;
    const h = frames.height / Math.ceil(state.counts.frames / facts.columns);
    const [x, y] = [(frame % facts.columns) * w, Math.floor(frame / facts.columns) * h];
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(frames, x, y, w, h, 0, 0, canvas.width, canvas.height);
  }

  return {
    isReady: () => sheet !== null,
    sheet: () => sheet,
    drawFrame,
    // A frame with a map over it; `top` is the value at the end of the scale.
    paint(canvas, frame, map, top, isSigned) {
      const stream = state.shownStream();
      const isCovered = map && state.isTarget(stream) && get("opacity") > 0;
      drawFrame(canvas, isCovered ? quiet : sheet, frame);
      if (!isCovered) return;
      drawPatches(stream, frame, map, top, isSigned);
      const context = canvas.getContext("2d");
      context.globalAlpha = get("opacity");
      context.drawImage(patches, 0, 0, canvas.width, canvas.height);
      context.globalAlpha = 1;
    },
    // A frame around one cell, dark outside so that it shows on any colour.
    outline(canvas, cell, stroke, dash = [], width = 2) {
      const [, rows, columns] = state.shownStream().cells;
      const [y, x] = [Math.floor(cell / columns), cell % columns];
      const [w, h] = [canvas.width / columns, canvas.height / rows];
      const context = canvas.getContext("2d");
      context.setLineDash(dash);
      for (const [lineWidth, strokeStyle] of [
        [2 * width, "#000"],
        [width, stroke],
      ]) {
        Object.assign(context, { lineWidth, strokeStyle });
        context.strokeRect(x * w, y * h, w, h);
      }
      context.setLineDash([]);
    },
    // The ends of a colour scale as they look under the map's opacity.
    ramp(isSigned) {
      const share = get("opacity");
      return range(11).map((i) => {
        const place = isSigned ? i / 5 - 1 : i / 10;
        if (Math.abs(place) < get("threshold")) return css([MIDDLE, MIDDLE, MIDDLE]);
        return css(shade(place, isSigned).map((c) => share * c + (1 - share) * MIDDLE));
      });
    },
  };
}

// Elements bound to traits; sync() puts the traits into them.
function createControls({ get, set }) {
  const synced = [];
  return {
    sync: () => synced.forEach((put) => put()),
    slider(name, label, max, text, step = 1) {
      const oninput = () => set({ [name]: Number(input.value) });
      const input = node("input", { type: "range", min: 0, max, step, "aria-label": label, oninput });
      const output = node("output");
      synced.push(() => {
        input.value = get(name);
        output.textContent = text(get(name));
        input.setAttribute("aria-valuetext", output.textContent);
      });
      return node("label", {}, label, input, output);
    },
    // `onChoice`: further traits to set with a choice.
    menu(name, label, options, onChoice = () => ({})) {
      const convert = (text) => (typeof get(name) === "string" ? text : Number(text));
      const onchange = () => {
        const value = convert(select.value);
        set({ [name]: typeof get(name) === "boolean" ? Boolean(value) : value, ...onChoice(value) });
      };
      const texts = options.map(([value, text]) => node("option", { value }, text));
      const select = node("select", { "aria-label": label, onchange }, ...texts);
      synced.push(() => {
        const value = get(name);
        select.value = typeof value === "boolean" ? Number(value) : value;
      });
      return node("label", {}, label, select);
    },
    checkbox(name, label) {
      const input = node("input", { type: "checkbox", onchange: () => set({ [name]: input.checked }) });
      synced.push(() => (input.checked = get(name)));
      return node("label", {}, input, label);
    },
  };
}

// One tab stop for a row of buttons: the pressed one, or the first. Arrows go to the neighbours.
function roving(box, buttons) {
  box.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const from = buttons.indexOf(event.target);
    if (!by || from < 0 || event.shiftKey) return;
    event.stopPropagation();
    event.preventDefault();
    buttons[clamp(from + by, 0, buttons.length - 1)].focus();
  });
  box.addEventListener("focusin", ({ target }) => {
    for (const button of buttons) button.tabIndex = button === target ? 0 : -1;
  });
  return () => {
    if (!buttons.length) return;
    const pressed = buttons.find((button) => button.getAttribute("aria-pressed") === "true") ?? buttons[0];
    if (!box.contains(document.activeElement)) {
      for (const button of buttons) button.tabIndex = button === pressed ? 0 : -1;
    }
    // Only the strip scrolls, never the page.
    const [low, high] = [pressed.offsetLeft, pressed.offsetWidth]; // the strip is positioned
    if (low < box.scrollLeft || low + high > box.scrollLeft + box.clientWidth) {
      box.scrollLeft = low - box.clientWidth / 2 + high / 2;
    }
  };
}

// A row of thumbnails, one for each value of a trait.
function createStrip(state, trait, title, texts, first = 0) {
  const [, H, W] = state.facts.size;
  const side = 56;
  const shape = { width: Math.round(side * Math.min(1, W / H)), height: Math.round(side * Math.min(1, H / W)) };
  const buttons = texts.map((text, i) => {
    const onclick = () => state.set({ [trait]: i + first });
    return node("button", { "aria-label": `${trait} ${text}`, onclick }, node("canvas", shape), text);
  });
  const row = node("div", { class: "thumbs", role: "group", "aria-label": `all ${trait}s` }, ...buttons);
  const follow = roving(row, buttons);
  return { box: node("div", { class: "strip" }, node("h4", {}, title), row), trait, first, buttons, follow };
}

function createPlayer({ facts, counts, get, set }) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)"); // then it plays once, without starting over
  const button = node("button", { "aria-label": "play", onclick: toggle }, "▶");
  const hasSteps = counts.steps > 1;
  const options = [node("option", { value: "frame" }, "frames"), node("option", { value: "step" }, "denoising")];
  const what = node("select", { "aria-label": "what to play" }, ...options);
  if (facts.sigmas) what.value = "step";
  let timer = null;

  function tick() {
    const count = what.value === "step" ? counts.steps : counts.frames;
    const next = get(what.value) + 1;
    if (next === count && calm.matches) toggle();
    else set({ [what.value]: next % count });
  }
  function toggle() {
    clearInterval(timer);
    timer = timer ? null : setInterval(tick, 1000 / (what.value === "step" ? 3 : facts.fps));
    button.textContent = timer ? "⏸" : "▶";
    button.setAttribute("aria-label", timer ? "pause" : "play");
  }
  const box = node("span", { class: "row" }, button, hasSteps && what);
  return { box, toggle, stop: () => clearInterval(timer) };
}
