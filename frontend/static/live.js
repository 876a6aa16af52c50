// The engine page: asks for the state twice a second while it is looked at, and shows it.

import { ask } from "./api.js";
import { byId, count, duration, make, percent, whole } from "./dom.js";
import { colourOf, drawBlocks, drawSpark, drawSteps, quantile } from "./pictures.js";

const EVERY = 500; // milliseconds
const EVERY_IF_BAD = 2000; // when nobody watches
const SPARK_SLOTS = 120;
const SMOOTHED_OVER = 4; // states
const LONGEST_GAP = 5; // seconds without a state, after which the line begins anew
const STATES = {
  ready: "ready",
  no_worker: "worker restarting",
  no_engine_core: "engine core restarting",
};
const PROBLEMS = {
  no_worker: "There is no worker for the moment. It is being restarted; requests wait, and none is lost.",
  no_engine_core: "The engine core does not answer. It is being restarted; streams go on when it is back.",
};

let timer = null;
let watched = false;
let state = null;
let recent = []; // the newest states, of which the speed is computed
let speeds = [];
let blockAt = () => -1;
let stepAt = () => -1;
let pointed = null; // where the pointer is on a canvas: { canvas, x, y }

export function start() {
  document.addEventListener("visibilitychange", again);
  addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  for (const canvas of [byId("blocks"), byId("steps")]) {
    canvas.addEventListener("pointermove", ({ offsetX: x, offsetY: y }) => { pointed = { canvas, x, y }; describePointed(); });
    canvas.addEventListener("pointerleave", () => { pointed = null; describePointed(); });
  }
}

/** Begin or end asking all the time. */
export function watch(on) {
  watched = on;
  if (on) refresh();
}

export function showStatus(name, text = STATES[name] ?? name) {
  byId("status").dataset.state = name;
  byId("status").textContent = text;
}

/** Ask once, for the status; and again until all is well. */
export async function refresh() {
  let problem = "";
  try {
    const response = await ask("live/state");
    take(await response.json());
    problem = PROBLEMS[state.status] ?? "";
  } catch (error) {
    if (error.status === 401) return showStatus("unreachable", "needs a key");
    problem = error.message;
    showStatus("unreachable");
  }
  byId("live-problem").textContent = problem;
  byId("live-problem").hidden = problem === "";
  clearTimeout(timer);
  if (watched || problem) timer = setTimeout(again, watched ? EVERY : EVERY_IF_BAD);
}

function again() {
  if (document.visibilityState === "visible") refresh();
}

function take(next) {
  showStatus(next.status);
  state = next;
  if (!next.counters) return;
  const last = recent.at(-1);
  if (last && next.counters.generation_tokens < last.counters.generation_tokens) recent = []; // another engine core
  if (last && next.time - last.time > LONGEST_GAP) [recent, speeds] = [[], []];
  recent = [...recent, next].slice(-SMOOTHED_OVER);
  const [first] = recent;
  const seconds = next.time - first.time;
  if (seconds > 0) {
    const speed = (next.counters.generation_tokens - first.counters.generation_tokens) / seconds;
    speeds = [...speeds, speed].slice(-SPARK_SLOTS);
  }
  if (watched) draw();
}

function draw() {
  if (!watched || !state?.counters) return;
  drawFigures(state);
  drawRequests(state);
  blockAt = drawBlocks(byId("blocks"), state.blocks.cells, state.requests);
  stepAt = drawSteps(byId("steps"), state.steps);
  drawSpark(byId("spark"), speeds, SPARK_SLOTS);
  describe(state);
  describePointed();
}

function drawFigures({ counters, steps, model }) {
  const used = counters.num_blocks - counters.num_free_blocks;
  const say = (id, text) => { byId(id).textContent = text; };
  say("figure-speed", speeds.length ? whole(speeds.at(-1)) : "–");
  say("figure-running", whole(counters.num_running));
  say("figure-waiting", `${whole(counters.num_waiting)} waiting · max ${whole(model?.max_num_seqs ?? 0)}`);
  say("figure-kv", counters.num_blocks ? percent(used / counters.num_blocks) : "–");
  say("figure-blocks", `${whole(used)} of ${whole(counters.num_blocks)}`);
  say("figure-hits", counters.prefix_cache_queries ? percent(counters.prefix_cache_hits / counters.prefix_cache_queries) : "–");
  say("figure-prompt", `${whole(counters.prefix_cache_hits)} of ${count(counters.prefix_cache_queries, "token")}`);
  say("figure-step", steps.ms.length ? duration(quantile(steps.ms, 0.5) / 1000) : "–");
  say("figure-steps", `${count(counters.steps, "step")}${counters.preemptions ? ` · ${count(counters.preemptions, "preemption")}` : ""}`);
}

function drawRequests({ requests, counters }) {
  byId("no-requests").hidden = requests.length > 0;
  byId("requests").replaceChildren(...requests.map(row));
  const all = counters.num_running + counters.num_waiting;
  byId("requests-readout").textContent = all > requests.length ? `${requests.length} of ${whole(all)} shown` : "";
}

function row(request) {
  const swatch = make("i", { className: "swatch" });
  swatch.style.background = request.stage === "waiting" ? "transparent" : colourOf(request.number);
  const bar = make("i", { className: "progress" });
  bar.style.setProperty("--done", request.num_computed_tokens / request.max_total_tokens);
  bar.style.setProperty("--prompt", request.num_prompt_tokens / request.max_total_tokens);
  const cell = (text, className = "number") => make("td", { className }, text);
  return make(
    "tr", { "data-stage": request.stage },
    make("th", { scope: "row" }, swatch, String(request.number)),
    cell(request.stage + (request.constrained ? ", grammar" : ""), ""),
    make("td", { className: "computed" }, bar, make("span", {}, `${whole(request.num_computed_tokens)} of ${whole(request.max_total_tokens)}`)),
    cell(whole(request.num_prompt_tokens)), cell(whole(request.num_cached_tokens)),
    cell(whole(request.num_output_tokens)), cell(whole(request.num_blocks)),
  );
}

/** For those who do not see the pictures. */
function describe({ counters, blocks, steps }) {
  const cached = blocks.cells.filter((cell) => cell === -2).length * blocks.stride;
  const used = counters.num_blocks - counters.num_free_blocks;
  byId("blocks").setAttribute("aria-label", `KV blocks: ${used} in use, about ${cached} cached, ${counters.num_blocks} in all`);
  byId("steps").setAttribute("aria-label", `Time of each of the last ${steps.ms.length} steps: median ${duration(quantile(steps.ms, 0.5) / 1000)}`);
}

function describePointed() {
  const { blocks, steps, requests, model, counters } = state ?? {};
  const on = (id, find) => (pointed?.canvas.id === id ? find(pointed.x, pointed.y) : -1);
  const cell = blocks ? on("blocks", blockAt) : -1;
  const step = steps ? on("steps", stepAt) : -1;
  const shown = blocks && blocks.stride > 1 ? `, one in ${blocks.stride} is shown` : "";
  const size = model && counters ? `${whole(counters.num_blocks)} of ${count(model.block_size, "token")}${shown}` : "";
  byId("blocks-readout").textContent = cell < 0 ? size : `block ${whole(cell * blocks.stride)}: ${holder(blocks.cells[cell], requests)}`;
  byId("steps-readout").textContent = step < 0 ? "" : stepText(steps, step);
}

function holder(cell, requests) {
  if (cell >= 0) return `request ${requests[cell]?.number ?? "?"}`;
  return { "-1": "free", "-2": "free, cached", "-3": "shared by several requests", "-4": "in use" }[cell];
}

function stepText({ count: total, ms, decodes, prompt_tokens: prompts }, index) {
  const number = total - ms.length + index;
  const prompt = prompts[index] ? ` + ${count(prompts[index], "prompt token")}` : "";
  return `step ${whole(number)}: ${duration(ms[index] / 1000)}, ${count(decodes[index], "answer")}${prompt}`;
}
