// Vera's pipeline in the browser: words -> features, pixels -> latents, denoising, layers -> video.
// Names and order of the numbers are those of vera_lite.pipelines; videos are (T, C, H, W) in [0, 1].

const element = (id) => document.getElementById(id);
const settings = JSON.parse(element("settings").textContent);
const [frames, height, width] = settings.clip_size;
const pixels = height * width;
const LAYERS = ["edit", "alpha", "composite"];
const NAMES = { edit: "edit layer", alpha: "matte", composite: "composite" };

// --- data in the page --------------------------------------------------------------------------

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Takes its text out of the page, which need not hold it twice. */
async function take(id) {
  const found = element(id);
  const bytes = await unpack(found.textContent);
  found.remove();
  return bytes;
}

// --- the model ---------------------------------------------------------------------------------

class Model {
  static async load() {
    const module = new Blob([await take("runtime")], { type: "text/javascript" });
    const ort = await import(URL.createObjectURL(module));
    ort.env.wasm.numThreads = 1; // threads need headers that a file does not have
    ort.env.wasm.wasmBinary = await take("wasm");
    const model = new Model();
    model.ort = ort;
    for (const name of ["encode", "decode", "denoise"]) {
      model[name] = await ort.InferenceSession.create(await take(name));
    }
    return model;
  }

  async call(session, inputs) {
    const given = {};
    for (const name of session.inputNames) {
      const [values, shape] = inputs[name];
      given[name] = new this.ort.Tensor("float32", values, shape);
    }
    return (await session.run(given)).output.data;
  }

  /** (T, 3, H, W) -> latents. */
  latents(video) {
    return this.call(this.encode, { video: [video, [1, frames, 3, height, width]] });
  }

  /** Latents of all layers -> {layer: video}; the matte has one channel. */
  async layers(latents) {
    const size = latents.length / LAYERS.length;
    const videos = {};
    for (const [k, name] of LAYERS.entries()) {
      const part = latents.slice(k * size, (k + 1) * size);
      videos[name] = await this.call(this.decode, { latents: [part, settings.noise_shape.slice(1)] });
    }
    videos.alpha = meanOfChannels(videos.alpha);
    return videos;
  }

  /** Calls `tell({step, sigma, layers})` after each step, and stops where it answers false. */
  async run({ source, mask, sentence, steps, noise, wires, tell }) {
    const { noise_shape: shape, shift, prediction, vocabulary } = settings;
    const text = features(sentence);
    const textShape = [1, vocabulary.max_phrases, vocabulary.phrases.length];
    const z = await this.latents(source);
    const zMask = mask ? await this.latents(threefold(mask)) : new Float32Array(z.length);
    const levels = [];
    for (let i = 0; i < steps; i++) {
      const u = 1 - i / steps;
      levels.push((shift * u) / (1 + (shift - 1) * u));
    }
    levels.push(0);
    let x = noise;
    let layers = null;
    for (let step = 0; step < steps; step++) {
      const [sigma, next] = [levels[step], levels[step + 1]];
      const output = await this.call(this.denoise, {
        latents: [x, shape],
        sigma: [Float32Array.of(sigma), [1]],
        text: [text, textShape],
        source: [z, shape.slice(1)],
        mask: [zMask, shape.slice(1)],
        mask_given: [Float32Array.of(mask ? 1 : 0), [1]],
        wires: [wires, [3, 3]],
      });
      const clean = new Float32Array(x.length);
      const following = new Float32Array(x.length);
      for (let i = 0; i < x.length; i++) {
        const velocity = prediction === "velocity" ? output[i] : (x[i] - output[i]) / Math.max(sigma, 1e-3);
        clean[i] = x[i] - sigma * velocity;
        following[i] = x[i] + (next - sigma) * velocity;
      }
      x = following;
      layers = await this.layers(step + 1 === steps ? x : clean);
      if ((await tell?.({ step, sigma, layers })) === false) break;
    }
    return layers;
  }
}

function meanOfChannels(video) {
  const mean = new Float32Array(frames * pixels);
  for (let t = 0; t < frames; t++) {
    for (let i = 0; i < pixels; i++) {
      const at = 3 * t * pixels + i;
      mean[t * pixels + i] = (video[at] + video[at + pixels] + video[at + 2 * pixels]) / 3;
    }
  }
  return mean;
}

function threefold(grey) {
  const video = new Float32Array(3 * grey.length);
  for (let t = 0; t < frames; t++) {
    for (let c = 0; c < 3; c++) video.set(grey.subarray(t * pixels, (t + 1) * pixels), (3 * t + c) * pixels);
  }
  return video;
}

/** final = alpha * edit + (1 - alpha) * source, where alpha reaches its floor. */
function composite({ edit, alpha }, source, strength = 1) {
  const final = new Float32Array(source.length);
  for (let t = 0; t < frames; t++) {
    for (let i = 0; i < pixels; i++) {
      let a = alpha[t * pixels + i];
      a = a >= settings.alpha_floor ? Math.min(1, strength * a) : 0;
      for (let c = 0; c < 3; c++) {
        const at = (3 * t + c) * pixels + i;
        final[at] = a * edit[at] + (1 - a) * source[at];
      }
    }
  }
  return final;
}

// --- words (vera_lite.conditioning.phrases) ----------------------------------------------------

function parse(sentence) {
  const { phrases, synonyms, fillers, max_phrases } = settings.vocabulary;
  const longest = Math.max(...[...phrases, ...Object.keys(synonyms)].map((p) => p.split(" ").length));
  const words = sentence.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  const found = [];
  for (let i = 0; i < words.length; ) {
    let n = Math.min(longest, words.length - i);
    for (; n > 0; n--) {
      let phrase = words.slice(i, i + n).join(" ");
      phrase = synonyms[phrase] ?? phrase;
      if (phrases.includes(phrase)) {
        found.push(phrase);
        break;
      }
    }
    if (n === 0 && !fillers.includes(words[i])) {
      throw new Error(`The model does not know "${words[i]}". The words that it knows are listed below.`);
    }
    i += Math.max(n, 1);
  }
  if (!found.length) throw new Error("Say what to add, with words of the list below.");
  if (found.length > max_phrases) throw new Error(`Use at most ${max_phrases} of the listed phrases.`);
  return found;
}

function features(sentence) {
  const { phrases, max_phrases } = settings.vocabulary;
  const rows = new Float32Array(max_phrases * phrases.length);
  for (const [slot, phrase] of parse(sentence).entries()) rows[slot * phrases.length + phrases.indexOf(phrase)] = 1;
  return rows;
}

// --- noise -------------------------------------------------------------------------------------

/** Normal numbers, the same for a seed in every browser (mulberry32, Box-Muller). Not those of torch. */
function gauss(seed, count) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return Float32Array.from({ length: count }, () =>
    Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
}

// --- the page ----------------------------------------------------------------------------------

const shown = []; // {canvas, video} of every canvas that plays
let frame = 0;

function figure(parent, name) {
  const box = document.createElement("figure");
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", name);
  const caption = document.createElement("figcaption");
  caption.textContent = name;
  box.append(canvas, caption);
  parent.append(box);
  const view = { canvas, caption, video: null };
  shown.push(view);
  return view;
}

function paint({ canvas, video }) {
  if (!video) return;
  const image = new ImageData(width, height);
  const channels = video.length / (frames * pixels);
  for (let i = 0; i < pixels; i++) {
    for (let c = 0; c < 3; c++) {
      const value = video[(channels * frame + Math.min(c, channels - 1)) * pixels + i];
      image.data[4 * i + c] = Math.round(255 * value);
    }
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

async function toVideo(text) {
  return Float32Array.from(await unpack(text), (byte) => byte / 255);
}

const clips = await Promise.all(
  settings.clips.map(async ({ sentence, source, mask }) => ({
    sentence,
    source: await toVideo(source),
    mask: await toVideo(mask),
  })),
);
const views = {};
for (const name of ["source", ...LAYERS, "result"]) views[name] = figure(element("views"), NAMES[name] ?? name);
const drawn = new Float32Array(frames * pixels);
let clip = clips[0];
let history = []; // layers after each step of the last run
let last = null; // the last finished run: {result, caption}
let running = null;

for (const [k, { sentence, source }] of clips.entries()) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("role", "radio");
  button.setAttribute("aria-label", `clip ${k + 1}: ${sentence}`);
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  button.append(canvas);
  shown.push({ canvas, video: source });
  button.addEventListener("click", () => choose(k));
  button.addEventListener("keydown", ({ key }) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[key];
    if (by) choose((k + by + clips.length) % clips.length, true);
  });
  element("clips").append(button);
}

function choose(k, focus = false) {
  clip = clips[k];
  for (const [i, button] of [...element("clips").children].entries()) {
    button.setAttribute("aria-checked", i === k);
    button.tabIndex = i === k ? 0 : -1;
    if (i === k && focus) button.focus();
  }
  element("sentence").value = clip.sentence;
  element("problem").textContent = "";
  views.source.video = clip.source;
  history = [];
  last = null;
  element("before").replaceChildren();
  for (const name of [...LAYERS, "result"]) {
    views[name].video = null;
    views[name].canvas.getContext("2d").clearRect(0, 0, width, height);
  }
  element("step").disabled = true;
  element("step-value").textContent = "none yet";
  showSource();
}

const maskKind = () => document.querySelector("input[name=mask]:checked").value;

/** The source, with the mask that counts laid over it in blue. */
function showSource() {
  const mask = { none: null, clip: clip.mask, drawn }[maskKind()];
  views.source.canvas.classList.toggle("drawn", maskKind() === "drawn");
  if (!mask) {
    views.source.video = clip.source;
  } else {
    const tinted = Float32Array.from(clip.source);
    for (let t = 0; t < frames; t++) {
      for (let i = 0; i < pixels; i++) {
        if (mask[t * pixels + i] < 0.5) continue;
        for (const [c, colour] of [0.1, 0.5, 1].entries()) {
          const at = (3 * t + c) * pixels + i;
          tinted[at] = 0.5 * tinted[at] + 0.5 * colour;
        }
      }
    }
    views.source.video = tinted;
  }
  paint(views.source);
}

function showStep() {
  const found = history[Number(element("step").value)];
  if (!found) return;
  const strength = Number(element("strength").value);
  for (const name of LAYERS) views[name].video = found.layers[name];
  views.result.video = composite(found.layers, clip.source, strength);
  element("step-value").textContent =
    `${found.step + 1} of ${history.length}, noise level ${found.sigma.toFixed(2)}`;
  element("strength-value").textContent = strength.toFixed(2);
  for (const view of Object.values(views)) paint(view);
}

function showBefore(previous) {
  element("before").replaceChildren();
  if (!previous) return;
  for (const [name, video] of [["before: " + previous.caption, previous.result]]) {
    const view = figure(element("before"), name);
    view.video = video;
    paint(view);
  }
}

function wires() {
  const cut = new Float32Array(9);
  for (const box of element("wires").querySelectorAll("input")) {
    if (!box.checked) cut[Number(box.dataset.wire)] = settings.cut;
  }
  return cut;
}

function describeWires() {
  const off = [...element("wires").querySelectorAll("input:not(:checked)")];
  return off.length ? `without ${off.map((box) => box.dataset.name).join(", ")}` : "all wires";
}

const head = element("wires").createTHead().insertRow();
head.insertCell();
for (const text of LAYERS.map((name) => `looks at ${NAMES[name]}`)) {
  head.append(Object.assign(document.createElement("th"), { scope: "col", textContent: text }));
}
const body = element("wires").createTBody();
for (const [row, name] of LAYERS.entries()) {
  const line = body.insertRow();
  line.append(Object.assign(document.createElement("th"), { scope: "row", textContent: NAMES[name] }));
  for (const [column, other] of LAYERS.entries()) {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
    box.dataset.wire = 3 * row + column;
    box.dataset.name = `${NAMES[name]} → ${NAMES[other]}`;
    box.disabled = row === column; // attention needs something to look at
    box.setAttribute("aria-label", box.dataset.name);
    line.insertCell().append(box);
  }
}

function draw(event) {
  if (maskKind() !== "drawn" || !(event.buttons & 1)) return;
  const box = views.source.canvas.getBoundingClientRect();
  const [x, y] = [((event.clientX - box.x) / box.width) * width, ((event.clientY - box.y) / box.height) * height];
  const reach = width / 12;
  for (let t = 0; t < frames; t++) {
    for (let i = 0; i < pixels; i++) {
      const far = Math.hypot((i % width) + 0.5 - x, Math.floor(i / width) + 0.5 - y);
      if (far < reach) drawn[t * pixels + i] = 1;
    }
  }
  showSource();
}
views.source.canvas.addEventListener("pointerdown", draw);
views.source.canvas.addEventListener("pointermove", draw);
element("clear").addEventListener("click", () => {
  drawn.fill(0);
  showSource();
});
for (const radio of document.querySelectorAll("input[name=mask]")) radio.addEventListener("change", showSource);
element("strength").addEventListener("input", showStep);
element("step").addEventListener("input", showStep);
element("play").addEventListener("click", () => {
  const playing = element("play").getAttribute("aria-pressed") !== "true";
  element("play").setAttribute("aria-pressed", playing);
  element("play").textContent = playing ? "Pause" : "Play";
});
element("words").textContent = settings.vocabulary.phrases.join(", ");
element("steps").value = settings.steps;
choose(0);

setInterval(() => {
  if (element("play").getAttribute("aria-pressed") === "true") frame = (frame + 1) % frames;
  for (const view of shown) if (view.canvas.isConnected) paint(view);
}, 160);
if (matchMedia("(prefers-reduced-motion: reduce)").matches) element("play").click();

let model;
try {
  model = await Model.load();
} catch (error) {
  element("status").textContent = `The network could not be started: ${error.message}`;
  throw error;
}
element("run").disabled = false;
element("run").textContent = "Draw";
element("status").textContent = "Ready.";

/** Draws as the page's fields say; `noise` is for tests. */
async function run(noise = null) {
  const sentence = element("sentence").value;
  const chosen = clip;
  try {
    parse(sentence);
    if (maskKind() === "drawn" && !drawn.some((v) => v)) throw new Error("Draw a mask on the source, or choose none.");
  } catch (error) {
    element("problem").textContent = error.message;
    return null;
  }
  element("problem").textContent = "";
  const steps = Math.max(1, Math.min(50, Number(element("steps").value) || settings.steps));
  const count = settings.noise_shape.reduce((a, b) => a * b);
  const mine = (running = {});
  const found = [];
  const started = performance.now();
  element("run").textContent = "Stop";
  const layers = await model.run({
    source: chosen.source,
    mask: { none: null, clip: chosen.mask, drawn }[maskKind()],
    sentence,
    steps,
    noise: noise ?? gauss(Number(element("seed").value), count),
    wires: wires(),
    tell: async (state) => {
      if (running !== mine || clip !== chosen) return false;
      found.push(state);
      history = found;
      Object.assign(element("step"), { max: found.length - 1, value: found.length - 1, disabled: false });
      showStep();
      element("status").textContent = `Step ${state.step + 1} of ${steps}.`;
      await new Promise((resolve) => setTimeout(resolve)); // lets the page paint
      return true;
    },
  });
  element("run").textContent = "Draw";
  if (running !== mine || clip !== chosen || found.length < steps) {
    element("status").textContent = "Stopped.";
    return null;
  }
  running = null;
  element("status").textContent = `${steps} steps in ${((performance.now() - started) / 1000).toFixed(1)} s.`;
  const result = composite(layers, chosen.source);
  showBefore(last);
  last = { result, caption: `“${sentence}”, ${describeWires()}` };
  return { ...layers, final: result };
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running = null;
  else run();
});
window.vera = { run, parse };
