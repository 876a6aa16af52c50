// Messages as they are seen: what the user wrote, and an answer while it comes and after.

import { byId, count, duration, make } from "./dom.js";
import { Markdown } from "./markdown.js";
import { TokenView } from "./tokens.js";

export function userMessage(text, { code = false } = {}) {
  const body = make("div", { className: code ? "text code" : "text" }, text);
  return make("li", { className: "message user" }, make("h3", { className: "unseen" }, "You"), body);
}

/** One answer. Fed with the chunks of a stream; knows when its first token came, and how fast the rest: unless most
 *  came at once, as a tool call does, which is read before it is told. */
export class Answer {
  constructor({ json, actions }) {
    this.content = "";
    this.reasoning = "";
    this.toolCalls = [];
    this.finish = null;
    this.usage = null;
    this.begun = performance.now();
    this.firstAt = this.lastAt = null;
    this.text = make("div", { className: json ? "text code" : "text written" });
    this.thought = make("div", { className: "text" });
    this.thinking = make("details", { className: "reasoning", hidden: true }, make("summary", {}, "Reasoning"), this.thought);
    this.calls = make("div", { className: "calls" });
    this.notes = make("ul", { className: "notes" });
    this.facts = make("span", { className: "facts" });
    this.actions = make("span", { className: "actions", hidden: true });
    for (const [label, act] of Object.entries(actions)) this.#addAction(label, act);
    this.tokens = null;
    this.markdown = json ? null : new Markdown(this.text);
    this.frame = 0; // of the browser, in which what has come is shown
    this.element = make(
      "li", { className: "message answer", "aria-busy": "true" },
      make("h3", { className: "unseen" }, "Answer"),
      this.thinking, this.text, this.calls, this.notes,
      make("div", { className: "meta" }, this.facts, this.actions),
    );
  }

  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    for (const choice of chunk.choices ?? []) {
      const delta = choice.delta ?? {};
      if (delta.content || delta.reasoning_content || delta.tool_calls?.length) this.#arrived();
      if (delta.reasoning_content) this.#think(delta.reasoning_content);
      if (delta.content) this.#write(delta.content);
      for (const call of delta.tool_calls ?? []) this.#call(call);
      if (choice.logprobs?.content) this.#score(choice.logprobs.content);
      if (choice.finish_reason) this.finish = choice.finish_reason;
    }
    this.#describe();
  }

  /** What the user is told besides the answer. */
  note(text, kind = "") {
    this.notes.append(make("li", { className: `note-line ${kind}` }, text));
  }

  end(how = null) {
    this.element.removeAttribute("aria-busy");
    this.actions.hidden = false;
    if (how) this.finish = how;
    this.#show();
    this.#describe();
    if (this.finish === "stop" && !this.content && !this.toolCalls.length) this.note("The answer is empty.");
    if (this.text.classList.contains("code") && this.finish === "stop") this.#checkJson();
  }

  /** Ask for what the tools have given; `use(results)` gets a text per call. */
  askForResults(use) {
    const fields = this.toolCalls.map(({ name }, index) => {
      const id = `result-${crypto.getRandomValues(new Uint32Array(1))[0]}-${index}`;
      const input = make("textarea", { id, className: "code", rows: 2, spellcheck: false });
      return { input, label: make("label", { htmlFor: id }, `What ${name} gives`) };
    });
    const form = make(
      "form", { className: "results" },
      ...fields.flatMap(({ input, label }) => [label, input]),
      make("button", { type: "submit" }, "Send results"),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (use(fields.map(({ input }) => input.value))) form.remove();
    });
    this.calls.append(form);
  }

  /** As the next request repeats it. */
  get message() {
    const message = { role: "assistant", content: this.content };
    if (this.toolCalls.length) message.tool_calls = this.toolCalls.map(({ id, name, text }) => (
      { id, type: "function", function: { name, arguments: text } }
    ));
    return message;
  }

  // ── inside ──

  #addAction(label, act) {
    this.actions.append(make("button", { className: "quiet", type: "button", onclick: () => act(this) }, label));
  }

  #arrived() {
    this.lastAt = performance.now();
    if (this.firstAt === null) {
      this.firstAt = this.lastAt;
      this.tokensAtFirst = this.usage?.completion_tokens ?? 1;
    }
  }

  #write(text) {
    if (this.thinking.open && !this.content) this.thinking.open = false;
    this.content += text;
    this.frame ||= requestAnimationFrame(() => this.#show());
  }

  #show() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    if (this.tokens !== null) return;
    if (this.markdown) this.markdown.show(this.content);
    else this.text.textContent = this.content;
  }

  #think(text) {
    this.thinking.hidden = false;
    this.reasoning += text;
    this.thought.append(text);
  }

  #call({ index = this.toolCalls.length, id, function: part = {} }) {
    if (!this.toolCalls[index]) {
      const name = make("b", {});
      const text = make("pre", {});
      this.calls.append(make("div", { className: "call" }, make("p", {}, "Calls ", name), text));
      this.toolCalls[index] = { id, name: "", text: "", shownName: name, shownText: text };
    }
    const call = this.toolCalls[index];
    if (id) call.id = id;
    if (part.name) call.shownName.append(part.name), call.name += part.name;
    if (part.arguments) call.shownText.append(part.arguments), call.text += part.arguments;
  }

  #score(entries) {
    if (this.tokens === null) {
      this.tokens = new TokenView();
      this.text.classList.remove("written");
      this.text.replaceChildren(this.tokens.element);
    }
    this.tokens.add(entries);
  }

  #describe() {
    const parts = [];
    const tokens = this.usage?.completion_tokens ?? 0;
    if (tokens) parts.push(["tokens", count(tokens, "token")]);
    if (this.firstAt !== null) {
      const seconds = (this.lastAt - this.firstAt) / 1000;
      const later = tokens - this.tokensAtFirst;
      const speed = later / seconds;
      if (seconds > 0 && later > tokens / 2) parts.push(["speed", `${speed.toFixed(speed < 100 ? 1 : 0)} tokens/s`]);
      parts.push(["ttft", `first after ${duration((this.firstAt - this.begun) / 1000)}`]);
    }
    const cached = this.usage?.prompt_tokens_details?.cached_tokens;
    if (cached) parts.push(["cached", `${count(cached, "prompt token")} cached`]);
    if (this.finish && this.finish !== "stop") parts.push(["finish", FINISHES[this.finish] ?? this.finish]);
    this.facts.replaceChildren(...parts.map(([kind, text]) => make("span", { "data-fact": kind }, text)));
  }

  #checkJson() {
    try {
      JSON.parse(this.content);
    } catch (error) {
      this.note(`This is not JSON: ${error.message}`, "bad");
      return;
    }
    this.facts.append(make("span", { "data-fact": "json" }, "valid JSON"));
  }
}

const FINISHES = {
  length: "cut off at the limit",
  tool_calls: "waits for the tool",
  content_filter: "filtered",
  stopped: "stopped",
  failed: "failed",
};

/** Say to those who do not see the page. */
export function announce(text) {
  byId("announcer").textContent = text;
}
