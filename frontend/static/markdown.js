// Markdown as models write it, into elements: code, headings, lists, quotes, tables, emphasis. What it does not
// know stays as it is written. Links stay text: where they lead is the model's idea.

import { make } from "./dom.js";

const FENCE = /^\s*(```+|~~~+)\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const ITEM = /^(\s*)([-*+]|\d{1,3}[.)])\s+(.*)$/;
const QUOTE = /^>\s?/;
const RULE = /^\s*([-*_])(\s*\1){2,}\s*$/;
const ROW = /^\s*\|.*\|\s*$/;
const DIVIDER = /^\s*\|(\s*:?-+:?\s*\|)+\s*$/;
const INLINE = /(`+)(.+?)\1(?!`)|\*\*(?=\S)(.+?)\*\*|(?<![\w*])\*(?=\S)([^*\n]+?)\*(?![\w*])/gs;

/** A document that grows: of its blocks only those that have changed are made again. */
export class Markdown {
  constructor(element) {
    this.element = element;
    this.sources = [];
  }

  show(text) {
    const blocks = split(text);
    blocks.forEach((block, i) => {
      const source = block.kind + block.lines.join("\n");
      if (this.sources[i] === source) return;
      const made = MAKERS[block.kind](block);
      if (this.element.children[i]) this.element.children[i].replaceWith(made);
      else this.element.append(made);
      this.sources[i] = source;
    });
    while (this.element.children.length > blocks.length) this.element.lastElementChild.remove();
    this.sources.length = blocks.length;
  }
}

/** [{ kind, lines, … }]: neighbouring lines of a kind belong together, except headings. */
function split(text) {
  const blocks = [];
  let fence = null;
  for (const line of text.split("\n")) {
    const last = blocks.at(-1);
    if (fence) {
      if (line.trim().startsWith(fence) && !line.trim().slice(fence.length).trim()) fence = null;
      else last.lines.push(line);
      continue;
    }
    const opening = FENCE.exec(line);
    if (opening) {
      fence = opening[1];
      blocks.push({ kind: "code", lines: [], language: opening[2] });
      continue;
    }
    const kind = kindOf(line, last);
    if (kind === null) blocks.push(null);
    else if (last && last.kind === kind && kind !== "heading") last.lines.push(line);
    else blocks.push({ kind, lines: [line] });
  }
  return blocks.filter((block) => block !== null);
}

function kindOf(line, last) {
  if (!line.trim()) return null;
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (ITEM.test(line)) return "list";
  if (QUOTE.test(line)) return "quote";
  if (ROW.test(line)) return "table";
  return last?.kind === "list" && /^\s+/.test(line) ? "list" : "paragraph";
}

const MAKERS = {
  paragraph: ({ lines }) => make("p", {}, ...inline(lines.join("\n"))),
  heading: ({ lines }) => {
    const [, marks, text] = HEADING.exec(lines[0]);
    return make("p", { className: "heading", role: "heading", "aria-level": String(Math.min(marks.length + 3, 6)) }, ...inline(text));
  },
  code: ({ lines, language }) => {
    const label = language ? [make("span", { className: "language" }, language)] : [];
    return make("div", { className: "code-block" }, ...label, make("pre", {}, make("code", {}, lines.join("\n"))));
  },
  rule: () => make("hr"),
  quote: ({ lines }) => make("blockquote", {}, ...inline(lines.map((line) => line.replace(QUOTE, "")).join("\n"))),
  list: ({ lines }) => make("ul", {}, ...items(lines).map(({ indent, mark, text }) => {
    const item = make("li", { "data-mark": /\d/.test(mark) ? mark : "•" }, ...inline(text));
    item.style.setProperty("--indent", Math.min(Math.floor(indent / 2), 6));
    return item;
  })),
  table: ({ lines }) => {
    const rows = lines.filter((line) => !DIVIDER.test(line)).map((line) => line.trim().slice(1, -1).split("|"));
    const headed = lines.length > 1 && DIVIDER.test(lines[1]);
    const cells = (row, tag) => row.map((cell) => make(tag, {}, ...inline(cell.trim())));
    return make("div", { className: "table-scroll" }, make("table", {}, ...rows.map((row, i) => (
      make("tr", {}, ...cells(row, headed && i === 0 ? "th" : "td"))
    ))));
  },
};

function items(lines) {
  const found = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item) found.push({ indent: item[1].length, mark: item[2], text: item[3] });
    else found.at(-1).text += `\n${line.trim()}`;
  }
  return found;
}

/** Text and elements of a line or more. */
function inline(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    const [whole, , code, strong, emphasis] = match;
    parts.push(text.slice(end, match.index));
    if (code !== undefined) parts.push(make("code", {}, code));
    else if (strong !== undefined) parts.push(make("strong", {}, ...inline(strong)));
    else parts.push(make("em", {}, ...inline(emphasis)));
    end = match.index + whole.length;
  }
  return [...parts, text.slice(end)].filter((part) => part !== "");
}
