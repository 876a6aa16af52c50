// Token view: an answer as the tokens that it was made of, each tinted by how unlikely it was.
// Hovering, tapping or focusing one shows what else might have stood there. Arrow keys move between tokens.

import { byId, make, percent } from "./dom.js";

const SPECIAL = { "\n": "⏎", "\t": "⇥", " ": "␣" };

/** A group of tokens that grows; `entries` are logprobs.content of OpenAI's chunks. */
export class TokenView {
  constructor() {
    this.element = make("div", { className: "tokens", role: "group", "aria-label": "Tokens. Arrow keys move." });
    this.entries = [];
    this.element.addEventListener("pointerover", (event) => this.#show(event.target));
    this.element.addEventListener("focusin", (event) => this.#show(event.target));
    this.element.addEventListener("click", (event) => event.target.closest(".token")?.focus());
    this.element.addEventListener("pointerleave", hideCard);
    this.element.addEventListener("focusout", hideCard);
    this.element.addEventListener("keydown", (event) => this.#move(event));
  }

  add(entries) {
    for (const entry of entries) {
      const chance = Math.exp(entry.logprob);
      const token = make("span", { className: "token", tabIndex: this.entries.length ? -1 : 0 }, entry.token);
      token.dataset.index = this.entries.length;
      token.style.setProperty("--doubt", (1 - chance).toFixed(3));
      token.setAttribute("aria-label", `${visible(entry.token)}, ${percent(chance)}`);
      this.element.append(token);
      this.entries.push(entry);
    }
  }

  #show(target) {
    const token = target.closest?.(".token");
    if (token) showCard(token, this.entries[token.dataset.index]);
  }

  #move(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const from = event.target.closest(".token");
    if (!step || !from) return;
    const to = step > 0 ? from.nextElementSibling : from.previousElementSibling;
    event.preventDefault();
    if (!to) return;
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }
}

function visible(text) {
  const shown = [...text].map((letter) => SPECIAL[letter] ?? letter).join("");
  return shown === "" ? "∅" : shown;
}

function logarithm(value) {
  return Math.abs(value) < 0.0005 ? "log p ≈ 0" : `log p ${value.toFixed(3)}`.replace("-", "−");
}

function showCard(token, entry) {
  const card = byId("token-card");
  const rows = [...entry.top_logprobs];
  if (!rows.some((one) => one.token === entry.token)) rows.push(entry);
  card.replaceChildren(
    make("p", { className: "token-name" }, make("b", {}, visible(entry.token)), logarithm(entry.logprob)),
    make("ol", {}, ...rows.map((one) => row(one, one.token === entry.token))),
  );
  card.hidden = false;
  place(card, token.getClientRects()[0] ?? token.getBoundingClientRect());
}

function row({ token, logprob }, chosen) {
  const bar = make("i", { className: "chance" });
  bar.style.setProperty("--share", Math.exp(logprob).toFixed(4));
  return make(
    "li", { className: chosen ? "chosen" : "" },
    make("span", { className: "what" }, visible(token)), bar, make("span", { className: "share" }, percent(Math.exp(logprob))),
  );
}

function place(card, box) {
  const { offsetWidth: width, offsetHeight: height } = card;
  const left = Math.max(8, Math.min(box.left + box.width / 2 - width / 2, innerWidth - width - 8));
  const above = box.top - height - 8;
  card.style.left = `${left}px`;
  card.style.top = `${above > 8 ? above : box.bottom + 8}px`;
}

export function hideCard() {
  byId("token-card").hidden = true;
}
