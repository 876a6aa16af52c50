// The server as this page talks to it. The key lives in this module's memory, and dies with the page.

let key = "";
let onKeyWanted = () => {};

export const hasKey = () => key !== "";
export const setKey = (value) => { key = value.trim(); };
/** Called with the server's words when it asks for a key, or for another one. */
export const whenKeyIsWanted = (listener) => { onKeyWanted = listener; };

/** What a server has answered instead of what was asked for; `message` is for people. */
export class ServerError extends Error {
  constructor(message, { status = 0, code = null, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

/** Fetch `path` relative to where this page's server is mounted. Raises ServerError; AbortError when aborted. */
export async function ask(path, { body, signal } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key) headers["Authorization"] = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached.");
  }
  if (response.ok) return response;
  const error = await readError(response);
  if (error.status === 401) onKeyWanted(error.message);
  throw error;
}

async function readError(response) {
  const fallback = `The server answered ${response.status} ${response.statusText}`.trim();
  const text = await response.text().catch(() => "");
  let told = null;
  try { told = JSON.parse(text).error; } catch { /* not ours: a proxy's page, perhaps */ }
  return new ServerError(told?.message ?? fallback, {
    status: response.status,
    code: told?.code ?? null,
    param: told?.param ?? null,
    retryAfter: response.headers.get("retry-after"),
  });
}

/** The `data:` of each server-sent event of a response. Raises ServerError when the connection breaks. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The connection broke.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The chunks of a chat completion. Raises ServerError also when the answer ends without its end. */
export async function* completion(body, signal) {
  const response = await ask("v1/chat/completions", { body, signal });
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, { code: chunk.error.code });
    yield chunk;
  }
  throw new ServerError("The connection ended before the answer was complete.");
}
