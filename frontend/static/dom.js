// Elements and numbers. Text enters the document only as text: nothing here, or anywhere, parses HTML.

export const byId = (id) => document.getElementById(id);

/** Make an element. Properties are set as such ("className", "hidden"); "aria-…" and "data-…" as attributes. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** 1234567 → "1,234,567". */
export const whole = (number) => Math.round(number).toLocaleString("en");

/** Seconds for people: 0.0412 → "41 ms", 3.21 → "3.2 s". */
export function duration(seconds) {
  if (seconds < 0.0995) return `${(1000 * seconds).toFixed(seconds < 0.00995 ? 1 : 0)} ms`;
  if (seconds < 0.9995) return `${Math.round(1000 * seconds)} ms`;
  return seconds < 100 ? `${seconds.toFixed(1)} s` : `${whole(seconds)} s`;
}

/** A share of one: 0.98765 → "98.8 %". */
export function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.01) return "<\u200a0.01\u00a0%";
  return `${value >= 99.95 || value === 0 ? value.toFixed(0) : value.toFixed(value < 0.1 ? 2 : 1)}\u00a0%`;
}

export const count = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;
