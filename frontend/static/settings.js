// The parameters' form, and the body of a request that it stands for. An empty field is not sent: the server decides.

import { byId } from "./dom.js";

const NUMBERS = [
  "temperature", "top_p", "top_k", "max_tokens", "seed",
  "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
];
const TOP_LOGPROBS = 6;
const EXAMPLE = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" }, city: { type: "string" } },
  required: ["name", "age", "city"],
  additionalProperties: false,
};

/** A field that cannot be sent as it is. */
export class FieldError extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

export function start() {
  byId("schema").value = JSON.stringify(EXAMPLE, null, 2);
  byId("settings").addEventListener("submit", (event) => event.preventDefault());
  byId("settings").addEventListener("input", refresh);
  byId("reset-button").addEventListener("click", () => {
    byId("settings").reset();
    byId("schema").value = JSON.stringify(EXAMPLE, null, 2);
    refresh();
  });
  refresh();
}

function refresh() {
  byId("schema-field").hidden = byId("format").value !== "json_schema";
  check("schema", readSchema);
  check("tools", readTools);
}

function check(name, read) {
  let problem = "";
  try { read(); } catch (error) { problem = error.message; }
  byId(`${name}-error`).textContent = problem;
  byId(name).setAttribute("aria-invalid", String(problem !== ""));
}

/** The body for these messages. Raises FieldError. */
export function requestBody(model, messages) {
  const system = byId("system").value.trim();
  const body = { model, messages: system ? [{ role: "system", content: system }, ...messages] : messages };
  for (const name of NUMBERS) {
    const input = byId(name);
    if (!input.validity.valid) {
      throw new FieldError(`${input.labels[0].textContent}: ${input.validationMessage}`, input);
    }
    if (input.value !== "") body[name] = Number(input.value);
  }
  const stop = byId("stop").value;
  if (stop) body.stop = [stop.replaceAll("\\n", "\n")];
  const format = byId("format").value;
  if (format === "json_object") body.response_format = { type: "json_object" };
  if (format === "json_schema") {
    body.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema: readSchema() } };
  }
  const tools = readTools();
  if (tools) body.tools = tools;
  if (byId("logprobs").checked) Object.assign(body, { logprobs: true, top_logprobs: TOP_LOGPROBS });
  body.stream = true;
  body.stream_options = { include_usage: true, continuous_usage_stats: true };
  return body;
}

export const wantsJson = () => byId("format").value !== "text";

function readSchema() {
  if (byId("format").value !== "json_schema") return undefined;
  return readJson("schema", "The schema", (value) => typeof value === "object" && value !== null, "a JSON object");
}

function readTools() {
  if (!byId("tools").value.trim()) return undefined;
  return readJson("tools", "The tools", Array.isArray, "a JSON list");
}

function readJson(id, subject, fits, wanted) {
  const field = byId(id);
  let value;
  try {
    value = JSON.parse(field.value);
  } catch (error) {
    throw new FieldError(`${subject} cannot be read: ${error.message}`, field);
  }
  if (!fits(value)) throw new FieldError(`${subject} must be ${wanted}.`, field);
  return value;
}
