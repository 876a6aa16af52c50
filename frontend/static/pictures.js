// The pictures of the engine page, on canvases: blocks, steps, and the line of tokens per second.

const dark = matchMedia("(prefers-color-scheme: dark)");
const FREE = -1, CACHED = -2, SHARED = -3, UNLISTED = -4;
const CELL_SIZES = [16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3];
const MOST_HEIGHT = 390;
const NUM_BARS = 256;

/** The colour of a request: neighbours in time are far apart in hue. */
export const colourOf = (number) => `oklch(${dark.matches ? 0.74 : 0.64} 0.13 ${(number * 137.508 + 215) % 360})`;

/** The canvas in CSS pixels, cleared, `height` tall. */
function begin(canvas, height) {
  const width = canvas.clientWidth;
  const scale = devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  const style = getComputedStyle(canvas);
  return { pen, width, height, colour: (name) => style.getPropertyValue(`--${name}`).trim() };
}

/** A cell per block. Returns what is under a point: index of a cell, or -1. */
export function drawBlocks(canvas, cells, requests) {
  const width = canvas.clientWidth;
  const fits = (size) => Math.ceil(cells.length / Math.floor(width / size)) * size <= MOST_HEIGHT;
  const size = CELL_SIZES.find(fits) ?? CELL_SIZES.at(-1);
  const columns = Math.max(1, Math.floor(width / size));
  const rows = Math.ceil(cells.length / columns);
  const { pen, colour } = begin(canvas, rows * size);
  const gap = size > 6 ? 2 : 1;
  const fixed = new Map([[FREE, colour("free")], [CACHED, colour("cached")], [SHARED, colour("shared")], [UNLISTED, colour("muted")]]);
  const colours = requests.map(({ number }) => colourOf(number));
  cells.forEach((cell, i) => {
    pen.fillStyle = fixed.get(cell) ?? colours[cell] ?? colour("muted");
    pen.fillRect((i % columns) * size, Math.floor(i / columns) * size, size - gap, size - gap);
  });
  return (x, y) => {
    const [column, row] = [Math.floor(x / size), Math.floor(y / size)];
    const index = row * columns + column;
    return column >= 0 && column < columns && index >= 0 && index < cells.length ? index : -1;
  };
}

/** A bar per step, the newest at the right. Returns what is under a point: index of a step, or -1. */
export function drawSteps(canvas, { ms, prompt_tokens: prompts }) {
  const { pen, width, height, colour } = begin(canvas, 168);
  const bottom = height - 1, top = 16;
  const most = niceCeiling(1.2 * quantile(ms, 0.95) || 1);
  pen.font = `11px ${getComputedStyle(canvas).fontFamily}`;
  pen.fillStyle = pen.strokeStyle = colour("line");
  for (const share of [0.5, 1]) {
    const y = Math.round(bottom - share * (bottom - top)) + 0.5;
    pen.beginPath(), pen.moveTo(0, y), pen.lineTo(width, y), pen.stroke();
  }
  const step = width / NUM_BARS;
  const first = NUM_BARS - ms.length;
  ms.forEach((value, i) => {
    const tall = Math.max(1, Math.min(1, value / most) * (bottom - top));
    pen.fillStyle = colour(prompts[i] ? "prompt" : "decode");
    const wide = Math.max(step - (step > 2.5 ? 1 : 0.4), 0.8);
    pen.fillRect((first + i) * step, bottom - tall, wide, tall);
    if (value > most) pen.clearRect((first + i) * step, top + 4, wide, 2); // broken: it is taller than the picture
  });
  pen.fillStyle = colour("muted");
  pen.textBaseline = "bottom";
  pen.fillText(`${most} ms`, 0, top - 2);
  return (x) => {
    const index = Math.floor(x / step) - first;
    return index >= 0 && index < ms.length ? index : -1;
  };
}

/** The last minute as a line; `values` oldest first, `slots` in a whole line. */
export function drawSpark(canvas, values, slots) {
  const { pen, width, height, colour } = begin(canvas, 34);
  const most = Math.max(...values, 1);
  const points = values.map((value, i) => [
    ((slots - values.length + i) / (slots - 1)) * width, height - 2 - (value / most) * (height - 6),
  ]);
  if (points.length < 2) return;
  const trace = () => {
    pen.beginPath();
    points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  };
  trace();
  pen.lineTo(width, height), pen.lineTo(points[0][0], height), pen.closePath();
  pen.fillStyle = colour("decode");
  pen.globalAlpha = 0.16;
  pen.fill();
  pen.globalAlpha = 1;
  trace();
  pen.strokeStyle = colour("decode");
  pen.lineWidth = 1.5;
  pen.lineJoin = "round";
  pen.stroke();
}

export function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
}

function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const digit = [1, 2, 5, 10].find((one) => one * power >= value);
  return Number((digit * power).toPrecision(2));
}
