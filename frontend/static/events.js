// What befalls the server, as it says it: one connection while the page is looked at.

import { ask, events } from "./api.js";
import { byId, count, duration, make } from "./dom.js";

const PATIENCE = [1000, 2000, 5000, 10000]; // milliseconds until the next attempt
const MOST_SHOWN = 60;

const seen = new Set();
const shown = [];
let listener = () => {};
let connection = null;

/** What an event means, in a sentence. */
export function sentence({ kind, num_requests: requests, duration_s: seconds, subject, cause }) {
  const streams = count(requests, "stream");
  const because = cause ? ` ${cause}` : " is gone";
  switch (kind) {
    case "engine_core_started": return "Engine core started";
    case "engine_core_restarted": return `Engine core restarted, ${streams} resumed`;
    case "workers_ready": return "Worker ready";
    case "workers_lost": return `Worker${because}${requests ? `, ${streams} waiting` : ""}`;
    case "workers_restarted": return `Worker restarted in ${duration(seconds)}, ${streams} resumed`;
    case "step_failed": return `A step failed (${cause}), ${count(requests, "request")} started again`;
    case "request_crashed": return `A request that cannot be computed was ended (${cause})`;
    case "client_lost": return `${subject}${because}${requests ? `, ${count(requests, "request")} ended` : ""}`;
    default: return kind.replaceAll("_", " ");
  }
}

/** `listen(event)` is called with each event that is new. */
export function start(listen) {
  listener = listen;
  document.addEventListener("visibilitychange", connect);
  connect();
}

/** Also to be called when there is a key. */
export function connect() {
  connection?.abort();
  connection = null;
  if (document.visibilityState !== "visible") return;
  connection = new AbortController();
  follow(connection.signal);
}

async function follow(signal) {
  for (let attempt = 0; !signal.aborted; attempt++) {
    try {
      for await (const data of events(await ask("live/events", { signal }))) {
        attempt = 0;
        take(JSON.parse(data));
      }
    } catch (error) {
      if (error.name === "AbortError" || [401, 404].includes(error.status)) return;
    }
    await new Promise((resolve) => setTimeout(resolve, PATIENCE[Math.min(attempt, PATIENCE.length - 1)]));
  }
}

function take(event) {
  if (seen.has(event.id)) return;
  seen.add(event.id);
  shown.push(event);
  shown.sort((a, b) => b.at - a.at);
  shown.length = Math.min(shown.length, MOST_SHOWN);
  byId("events").replaceChildren(...shown.map(line));
  listener(event);
}

function line(event) {
  const at = new Date(1000 * event.at);
  const time = make("time", { dateTime: at.toISOString() }, at.toLocaleTimeString([], { hour12: false }));
  return make("li", { "data-kind": event.kind }, time, make("span", {}, sentence(event)));
}
