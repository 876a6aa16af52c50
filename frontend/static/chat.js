// The conversation: turns of what is said to the model and its answer, one of which may be coming.

import { completion } from "./api.js";
import { command, copyBy } from "./curl.js";
import { byId, make } from "./dom.js";
import { Answer, announce, userMessage } from "./message.js";
import { FieldError, requestBody, wantsJson } from "./settings.js";
import { hideCard } from "./tokens.js";

const NEAR_THE_END = 80; // pixels
const OURS = [
  "Spell the word “tern”.".replace(/[“”]/g, '"'),
  "Tell me a story about Anna, Oslo and a storm.",
  "Recite the months of the year.",
  "Extract name, age and city as JSON: Dehul from Cairo is 80.",
];
const ANYONES = [
  "Write a haiku about the sea.",
  "Explain paged attention in three sentences.",
  "List five rivers and their lengths as JSON.",
];

let turns = [];
let active = null; // { controller, answer }
let atTheEnd = true; // the user looks at the newest line, and wants to

export function start() {
  const input = byId("input");
  byId("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  byId("stop-button").addEventListener("click", stop);
  byId("new-button").addEventListener("click", clear);
  byId("curl-button").addEventListener("click", (event) => copyCommand(event.currentTarget));
  byId("copy-close").addEventListener("click", () => byId("copy-dialog").close());
  byId("scroller").addEventListener("scroll", onScroll, { passive: true });
  new ResizeObserver(keepUp).observe(byId("messages"));
  input.addEventListener("input", fit);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    hideCard();
    stop();
  });
}

/** What to try with this model. */
export function suggest(model) {
  const ideas = model.startsWith("tern-mini") ? OURS : ANYONES;
  byId("welcome-title").textContent = model ? `Ask ${model}.` : "Say something.";
  byId("suggestions").replaceChildren(...ideas.map((idea) => make(
    "button", { type: "button", onclick: () => { byId("input").value = idea; send(); } }, idea,
  )));
}

/** Something has happened to the server, so many seconds ago: whoever waits for an answer wants to know. */
export function noteEvent(text, ageSeconds) {
  if (active && performance.now() - 1000 * ageSeconds >= active.answer.begun) {
    active.answer.note(text, "event");
  }
}

export function stop() {
  active?.controller.abort();
}

function send() {
  const input = byId("input");
  const text = input.value.trim();
  if (!text || active) return;
  if (run({ messages: [{ role: "user", content: text }], answer: null, element: userMessage(text) })) {
    input.value = "";
    fit();
  }
}

function sendResults(calls, results) {
  if (active) return false;
  const messages = calls.map(({ id }, index) => ({ role: "tool", tool_call_id: id, content: results[index] }));
  return run({ messages, answer: null, element: userMessage(results.join("\n"), { code: true }) });
}

function clear() {
  stop();
  turns = [];
  byId("messages").replaceChildren();
  byId("welcome").hidden = false;
  byId("input").focus();
}

/** Ask for the answer to a turn, which comes behind all turns before it. False: the form must be corrected. */
function run(turn) {
  let body;
  try {
    body = requestBody(byId("model").value, [...history(turn), ...turn.messages]);
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    complain(error);
    return false;
  }
  const answer = new Answer({
    json: wantsJson() && !body.logprobs,
    actions: {
      Copy: ({ content, actions }) => copyBy(actions.children[0], content),
      curl: ({ actions }) => copyBy(actions.children[1], command(body)),
      Again: () => again(turn),
    },
  });
  turn.answer = answer;
  if (!turns.includes(turn)) turns.push(turn);
  byId("welcome").hidden = true;
  byId("messages").append(turn.element, answer.element);
  atTheEnd = true;
  keepUp();
  void follow(answer, body);
  return true;
}

async function follow(answer, body) {
  const controller = new AbortController();
  active = { controller, answer };
  showBusy(true);
  try {
    for await (const chunk of completion(body, controller.signal)) {
      answer.take(chunk);
    }
    answer.end();
    if (answer.toolCalls.length) answer.askForResults((results) => sendResults(answer.toolCalls, results));
    announce(answer.content || (answer.toolCalls.length ? "The model calls a tool." : "The answer is empty."));
  } catch (error) {
    if (error.name === "AbortError") {
      answer.end("stopped");
      announce("Stopped.");
    } else {
      const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
      answer.note(error.message + wait, "bad");
      answer.end("failed");
      announce(error.message);
    }
  } finally {
    active = null;
    showBusy(false);
  }
}

function again(turn) {
  if (active) return;
  for (const later of turns.splice(turns.indexOf(turn))) {
    later.element.remove();
    later.answer.element.remove();
  }
  run(turn);
}

function history(turn) {
  const before = turns.includes(turn) ? turns.slice(0, turns.indexOf(turn)) : turns;
  return before
    .filter(({ answer }) => answer.content || answer.toolCalls.length)
    .flatMap(({ messages, answer }) => [...messages, answer.message]);
}

function copyCommand(button) {
  const text = byId("input").value.trim();
  const last = text ? [{ role: "user", content: text }] : [];
  const messages = [...history(null), ...last];
  try {
    copyBy(button, command(requestBody(byId("model").value, messages.length ? messages : [{ role: "user", content: "Hello" }])));
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    complain(error);
  }
}

function complain({ message, field }) {
  announce(message);
  document.body.classList.add("panel-open");
  field.closest("details")?.setAttribute("open", "");
  field.focus();
  field.reportValidity?.();
}

function showBusy(busy) {
  byId("send-button").hidden = busy;
  byId("stop-button").hidden = !busy;
}

function onScroll() {
  const box = byId("scroller");
  atTheEnd = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_THE_END;
  hideCard();
}

/** The conversation has grown. */
function keepUp() {
  const box = byId("scroller");
  if (atTheEnd) box.scrollTop = box.scrollHeight;
}

function fit() {
  const input = byId("input");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}
