// Helpers of the attention explorer: elements, colours, numbers, bytes.

// Colour scales as a few stops, mixed in between. Cividis looks the same to colour-blind people; so do
// Okabe and Ito's colours for lines.
const CIVIDIS = [
  [0, 34, 78],
  [18, 53, 112],
  [59, 73, 108],
  [87, 93, 109],
  [112, 113, 115],
  [138, 134, 120],
  [165, 156, 116],
  [195, 179, 105],
  [225, 204, 85],
  [254, 232, 56],
];
const DIVERGING = [
  [5, 72, 133],
  [67, 147, 195],
  [247, 247, 247],
  [230, 130, 40],
  [127, 59, 8],
];
const OKABE_ITO = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const CUT = OKABE_ITO[1]; // the colour of everything that is cut
const SVG = ["svg", "g", "rect", "line", "polygon", "polyline", "circle", "text", "title"];

function node(tag, attributes = {}, ...children) {
  const space = SVG.includes(tag) ? "2000/svg" : "1999/xhtml";
  const element = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child || child === 0));
  return element;
}

function colour(stops, share) {
  const place = clamp(share, 0, 1) * (stops.length - 1);
  const i = Math.min(Math.floor(place), stops.length - 2);
  return stops[i].map((low, c) => Math.round(low + (place - i) * (stops[i + 1][c] - low)));
}

// The colour of a share of a scale: 0 to 1, or with signs -1 to 1.
const shade = (share, isSigned) => (isSigned ? colour(DIVERGING, (1 + share) / 2) : colour(CIVIDIS, share));
const css = (rgb) => `rgb(${rgb.map(Math.round)})`;
const onTop = (rgb) => (0.3 * rgb[0] + 0.6 * rgb[1] + 0.1 * rgb[2] > 117 ? "#000" : "#fff");

// Colour an element by a share of the scale, with black or white text on it; NaN clears it.
function tint(element, share, isSigned = false) {
  const rgb = Number.isNaN(share) ? null : shade(share, isSigned);
  element.style.background = rgb ? css(rgb) : "";
  element.style.color = rgb ? onTop(rgb) : "";
  return element;
}

function number(value, digits = 3) {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  return Math.abs(value) >= 0.001 ? String(Number(value.toPrecision(digits))) : value.toExponential(1);
}

const range = (n) => Array.from({ length: n }, (_, i) => i);
const between = (a, b) => range(Math.abs(a - b) + 1).map((i) => Math.min(a, b) + i);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
// 1, 2, 3 -> "1 to 3".
const span = (whole, numbers) =>
  numbers.length > 1 ? `${whole}s ${numbers[0]} to ${numbers.at(-1)}` : `${whole} ${numbers[0]}`;
const numbered = (texts) => texts.map((text, i) => [i, text]);
const join = (...parts) => parts.filter(Boolean).join(" · ");
const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
// Copied: a view of floats must begin at a multiple of four.
const floats = (view) => new Float32Array(bytes(view).slice().buffer);
const largest = (values) => values.reduce((top, v) => (Number.isFinite(v) ? Math.max(top, v) : top), 0);
