// What Python sent, unpacked; maps that Python computes on demand; and colour scales. Axis letters as in
// explorer_state.py.

const NEEDS_PYTHON = "Needs Python: run the notebook to compute this map.";
const SAVED_ONLY = "This page holds the maps of the words in the menu; others need Python.";
const NOT_CAPTURED = "Only rows were captured: other tokens need StoreQK.";
const DIRECTIONS = { from: "where it looks", to: "who looks at it" };
const CACHED_MAPS = 64;
const PATIENCE = 20000; // ms until Python is taken to be gone

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
    measures: facts.measures.length,
    frames: facts.size[0],
  };
  const state = {
    facts,
    counts,
    streams,
    videos: streams.filter((stream) => stream.cells),
    numbers: floats(get("_numbers")),
    curve: floats(get("_curve")),
    matrix: floats(get("_matrix")),
    isAlive: false, // whether Python has answered
    get,
    set(changes) {
      for (const [name, value] of Object.entries(changes)) model.set(name, value);
      state.attempt(() => model.save_changes());
    },
    // What needs a connection, which may be gone.
    attempt(action) {
      try {
        action();
      } catch {
        state.isAlive = false;
      }
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
    isTarget({ side }, direction = get("direction")) {
      return side === "both" || side === (direction === "from" ? "key" : "query");
    },
    isSource: (stream) => stream.side === "both" || !state.isTarget(stream),
    // The tokens whose map is on show, as far as they are known.
    asking: () => (get("query") < 0 ? facts.tokens[get("word")] : [get("query")]),
    // Tokens of the slot that a frame is in.
    slotOf(stream, frame = get("frame")) {
      const [, rows, columns] = stream.cells;
      const first = stream.slots[frame] * rows * columns;
      return stream.tokens.subarray(first, first + rows * columns);
    },
    // The stream to show so that a map in this direction can be seen.
    streamFor(direction) {
      if (state.isTarget(state.shownStream(), direction)) return get("stream");
      return Math.max(
        0,
        state.videos.findIndex((stream) => state.isTarget(stream, direction)),
      );
    },
    tokenName(token, isSource) {
      const stream = streams.find(
        (s) => (isSource ? state.isSource(s) : state.isTarget(s)) && s.tokens.includes(token),
      );
      if (!stream) return `token ${token}`;
      const rank = stream.tokens.indexOf(token);
      if (stream.words) return `“${stream.words[rank].trim() || stream.words[rank]}”`;
      const [, rows, columns] = stream.cells;
      const [t, y, x] = [Math.floor(rank / rows / columns), Math.floor(rank / columns) % rows, rank % columns];
      const frames = range(counts.frames).filter((frame) => stream.slots[frame] === t);
      const what = state.videos.length > 1 ? ` of ${stream.name}` : "";
      return `the patch in row ${y}, column ${x}, ${span("frame", frames)}${what}`;
    },
    // Why a click gives no map; "" if it does.
    whyNot: () => (!facts.clickable ? NOT_CAPTURED : state.isAlive ? "" : NEEDS_PYTHON),
    runName: (run) => (run < 2 ? facts.runs[run] : facts.runs.join(" − ")),
    stepName: (step) => (facts.sigmas ? `sigma ${number(facts.sigmas[step])}` : `step ${facts.steps[step]}`),
  };
  return state;
}

// Saved maps, and maps of other tokens or of single heads, which Python computes.
function createMaps(model, state, onArrival) {
  const { facts, counts, get } = state;
  const overview = { codes: bytes(get("_overview")), ranges: floats(get("_ranges")), groups: facts.groups };
  overview.maps =
    counts.runs * counts.steps * counts.layers * counts.words * counts.directions * facts.groups;
  const cache = new Map(); // least recently used first
  const sender = Math.random().toString(36).slice(2); // replies reach every view of the model
  const open = new Map(); // id -> key of requests without an answer, however old
  let pending = null; // the request that is under way
  let wanted = []; // the requests to send next, the most urgent first
  const failed = new Set(); // keys that are not asked for again, until something else is on show
  let onShow = null; // the key of the map on show
  let asked = 0;

  function requestFor(layer, step = get("step")) {
    const [query, direction] = ["query", "direction"].map(get);
    const content = { layer, step, word: query < 0 ? get("word") : 0, query, direction };
    return { key: Object.values(content).join(), content };
  }

  // One request at a time.
  function sendNext() {
    if (pending || !state.isAlive) return;
    const next = wanted.find(({ key }) => !cache.has(key) && !failed.has(key));
    if (next) post(next.key, next.content);
  }

  function post(key, content) {
    const id = `${sender}-${++asked}`;
    pending = { id, timer: setTimeout(giveUp, PATIENCE) };
    open.set(id, key);
    state.attempt(() => model.send({ id, ...content }));
  }

  // Python is gone or very slow. A late answer is still shown.
  function giveUp() {
    failed.add(open.get(pending.id));
    pending = null;
    state.isAlive = false;
    state.attempt(() => model.send({ hello: true }));
    onArrival();
  }

  // The entry of a key, now the most recently used.
  function recall(key) {
    const pack = cache.get(key);
    if (pack) {
      cache.delete(key);
      cache.set(key, pack);
    }
    return pack;
  }

  const isSaved = () => get("query") < 0 && state.direction() >= 0;

  // The map of a run: a function token -> value, NaN for sinks that are left out, with one for the largest
  // error by quantisation. Null if it is not here.
  function mapOfRun(layer, run, head, step) {
    const pack =
      recall(requestFor(layer, step).key) ?? (isSaved() && head + 1 < facts.groups ? overview : null);
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
    // The number of a measure for a map, NaN if it is not here.
    number(measure, run, layer, head, step = get("step")) {
      if (run === 2) {
        return this.number(measure, 0, layer, head, step) - this.number(measure, 1, layer, head, step);
      }
      const groups = 1 + counts.heads;
      if (isSaved()) {
        return state.numbers[(state.place(run, layer, step) * counts.measures + measure) * groups + head + 1];
      }
      const atlas = cache.get(requestFor("all", step).key)?.numbers;
      return atlas
        ? atlas[((run * counts.layers + layer) * counts.measures + measure) * groups + head + 1]
        : NaN;
    },
    // Ask for what is on show, unless it is saved. Single heads that were not saved come with the mean.
    request(layer) {
      const { key } = requestFor(layer);
      if (key !== onShow) failed.clear();
      onShow = key;
      const map = isSaved() && facts.groups > counts.heads ? [] : [requestFor(layer)];
      const atlas = get("query") < 0 ? [] : [requestFor("all")];
      wanted = state.isAlive ? [...map, ...atlas] : [];
      sendNext();
    },
    // Ask for a cut; it does not wait for maps.
    cut(content) {
      clearTimeout(pending?.timer);
      post("cut", { cut: content });
      clearTimeout(pending.timer); // a run of the model takes its time
    },
    isCutting: () => [...open.values()].includes("cut"),
    hasFailed: (layer) => failed.has(requestFor(layer).key),
    onReply(message, buffers) {
      const key = open.get(message.id);
      if (key === undefined) return; // another view's
      open.delete(message.id);
      state.isAlive = true;
      if (message.id === pending?.id) {
        clearTimeout(pending.timer);
        pending = null;
      }
      if (message.failed) failed.add(key);
      else if (buffers.length === 1) cache.set(key, { numbers: floats(buffers[0]) });
      else if (buffers.length) {
        const groups = 1 + counts.heads;
        const maps = counts.runs * groups;
        const [codes, ranges] = [bytes(buffers[0]), floats(buffers[1])];
        cache.set(key, { codes, ranges, groups, maps, isReply: true });
      }
      if (cache.size > CACHED_MAPS) cache.delete(cache.keys().next().value);
      onArrival();
    },
    stop: () => clearTimeout(pending?.timer),
  };
}

// The upper ends of colour scales; the lower one is zero, whatever a map's smallest value.
function createScales(state) {
  const { facts, get } = state;

  // The highest value over all text, or over the shown video: another one would leave it dark.
  function highest(map, ofText) {
    let top = 0;
    for (const stream of ofText ? state.streams : [state.shownStream()]) {
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
    return Math.max(...maps.map((map) => highest(map, ofText))) || 1;
  }
  return { highest, isLocked, top };
}
