// Files out of the page: the picture as PNG, the map as CSV, everything on show as npz.

function download(name, type, ...parts) {
  const href = URL.createObjectURL(new Blob(parts, { type }));
  node("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}

// The canvases side by side under a title, each over its colour scale.
function pictureOf(title, panes) {
  const [pad, line] = [16, 18];
  const width = panes.reduce((sum, { canvas }) => sum + canvas.width + pad, pad);
  const height = Math.max(...panes.map(({ canvas }) => canvas.height)) + 5 * line + pad;
  const sheet = document.createElement("canvas");
  Object.assign(sheet, { width, height });
  const context = sheet.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.fillStyle = "#000";
  context.font = "14px system-ui, sans-serif";
  context.fillText(title, pad, line + 4, width - 2 * pad);
  let x = pad;
  for (const { canvas, name, colours, ends } of panes) {
    const y = 2 * line;
    context.drawImage(canvas, x, y);
    const ramp = context.createLinearGradient(x, 0, x + canvas.width, 0);
    colours.forEach((c, i) => ramp.addColorStop(i / (colours.length - 1), c));
    context.fillStyle = ramp;
    context.fillRect(x, y + canvas.height + 6, canvas.width, 10);
    context.fillStyle = "#000";
    context.fillText(join(name, ends), x, y + canvas.height + 2 * line, canvas.width);
    x += canvas.width + pad;
  }
  return sheet;
}

const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;

// A row a token that is looked at, a column a run.
function tableOf(state, maps) {
  const names = maps.map((_, run) => state.runName(run));
  const rows = [["token", "stream", "slot", "row", "column", "word", ...names]];
  for (const stream of state.streams.filter((s) => state.isTarget(s))) {
    stream.tokens.forEach((token, rank) => {
      const [, h, w] = stream.cells ?? [0, 1, 1];
      const place = stream.cells ? [Math.floor(rank / h / w), Math.floor(rank / w) % h, rank % w] : ["", "", ""];
      const word = stream.words ? stream.words[rank] : "";
      rows.push([token, stream.name, ...place, word, ...maps.map((map) => map(token))]);
    });
  }
  return rows.map((row) => row.map((v) => (typeof v === "number" ? v : quoted(v))).join(",")).join("\r\n");
}

const CRC = range(256).map((n) => range(8).reduce((c) => (c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1), n));
const crc32 = (data) => ~data.reduce((c, byte) => CRC[(c ^ byte) & 255] ^ (c >>> 8), -1) >>> 0;

// numpy's array file. `type`: "<f4" or "<i4".
function npy(values, shape, type) {
  const header = `{'descr': '${type}', 'fortran_order': False, 'shape': (${shape.map((n) => `${n},`).join(" ")}), }`;
  const text = header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11) + "\n";
  const out = new Uint8Array(10 + text.length + values.byteLength);
  out.set([0x93, ..."NUMPY".split("").map((c) => c.charCodeAt(0)), 1, 0, text.length & 255, text.length >> 8]);
  out.set(new TextEncoder().encode(text), 10);
  out.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), 10 + text.length);
  return out;
}

// A zip file without compression: numpy's npz.
function zip(files) {
  const [parts, directory] = [[], []];
  let offset = 0;
  const words = (...pairs) =>
    Uint8Array.from(pairs.flatMap(([value, n]) => range(n).map((i) => (value / 256 ** i) & 255)));
  for (const [file, data] of Object.entries(files)) {
    const name = new TextEncoder().encode(file);
    const common = [[20, 2], [0, 8], [crc32(data), 4], [data.length, 4], [data.length, 4], [name.length, 2], [0, 2]];
    parts.push(words([0x04034b50, 4], ...common), name, data);
    directory.push(words([0x02014b50, 4], [20, 2], ...common, [0, 10], [offset, 4]), name);
    offset += 30 + name.length + data.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const count = Object.keys(files).length;
  return [...parts, ...directory, words([0x06054b50, 4], [0, 4], [count, 2], [count, 2], [size, 4], [offset, 4], [0, 2])];
}

// The maps on show (runs, tokens), which tokens these are, and the atlas (measures, runs, layers, heads with the
// mean first).
function arraysOf(state, maps, numberOf) {
  const { counts, facts } = state;
  const tokens = Int32Array.from(state.streams.filter((s) => state.isTarget(s)).flatMap((s) => [...s.tokens]));
  const shown = Float32Array.from(maps.flatMap((map) => [...tokens].map((token) => map(token))));
  const places = range(counts.measures).flatMap((m) =>
    range(counts.runs).flatMap((run) =>
      range(counts.layers).flatMap((layer) => range(1 + counts.heads).map((h) => [m, run, layer, h - 1])),
    ),
  );
  const atlas = Float32Array.from(places.map((place) => numberOf(...place)));
  const shape = [counts.measures, counts.runs, counts.layers, 1 + counts.heads];
  const labels = facts.measures.map(({ kind, label }) => label || kind).join("\n");
  return {
    "map.npy": npy(shown, [maps.length, tokens.length], "<f4"),
    "tokens.npy": npy(tokens, [tokens.length], "<i4"),
    "atlas.npy": npy(atlas, shape, "<f4"),
    "measures.txt": new TextEncoder().encode(labels),
  };
}
