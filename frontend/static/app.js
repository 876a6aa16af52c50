// The page: which half of it is seen, which model is asked, and with which key.

import { ask, hasKey, setKey, whenKeyIsWanted } from "./api.js";
import * as chat from "./chat.js";
import { byId, make } from "./dom.js";
import * as events from "./events.js";
import * as live from "./live.js";
import * as settings from "./settings.js";

const RETRY = 2000; // milliseconds

function show(page) {
  document.title = page === "live" ? "Tern: engine" : "Tern";
  byId("chat-page").hidden = page === "live";
  byId("live-page").hidden = page !== "live";
  document.body.dataset.page = page;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.page === page) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  live.watch(page === "live");
  if (page !== "live" && matchMedia("(hover: hover)").matches) byId("input").focus();
}

const pageOfAddress = () => (/\/live\/?$/.test(location.pathname) ? "live" : "chat");

function startPages() {
  for (const link of document.querySelectorAll("a[data-page]")) {
    link.addEventListener("click", (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      if (link.dataset.page !== pageOfAddress()) history.pushState(null, "", link.href);
      show(link.dataset.page);
    });
  }
  addEventListener("popstate", () => show(pageOfAddress()));
  show(pageOfAddress());
}

function startPanel() {
  const toggle = (open) => {
    document.body.classList.toggle("panel-open", open);
    byId("panel-button").setAttribute("aria-expanded", String(open));
    if (open) byId("system").focus();
    else byId("panel-button").focus();
  };
  byId("panel-button").addEventListener("click", () => toggle(!document.body.classList.contains("panel-open")));
  byId("panel-close").addEventListener("click", () => toggle(false));
  byId("panel").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.body.classList.contains("panel-open")) toggle(false);
  });
}

function startKey() {
  const dialog = byId("key-dialog");
  whenKeyIsWanted((reason) => {
    byId("key-button").hidden = false;
    if (hasKey()) byId("key-reason").textContent = `${reason}.`;
    if (!dialog.open) dialog.showModal();
  });
  byId("key-button").addEventListener("click", () => dialog.showModal());
  byId("key-cancel").addEventListener("click", () => dialog.close());
  byId("key-form").addEventListener("submit", () => {
    setKey(byId("key").value);
    byId("key").value = "";
    loadModels();
    events.connect();
  });
}

async function loadModels() {
  const select = byId("model");
  try {
    const { data } = await (await ask("v1/models")).json();
    select.replaceChildren(...data.map(({ id }) => make("option", { value: id }, id)));
    chat.suggest(select.value);
    live.refresh();
  } catch (error) {
    live.showStatus("unreachable", error.status === 401 ? "needs a key" : "unreachable");
    if (error.status !== 401) setTimeout(loadModels, RETRY);
  }
}

function onEvent(event) {
  chat.noteEvent(events.sentence(event), event.age_s);
  if (event.age_s > 2) return;
  if (event.kind === "workers_lost") live.showStatus("no_worker");
  else live.refresh();
}

settings.start();
chat.start();
live.start();
startKey();
startPanel();
startPages();
byId("model").addEventListener("change", (event) => chat.suggest(event.target.value));
loadModels();
events.start(onEvent);
