// "Copy as curl": the request as a command. The key is left to the shell's environment.

import { hasKey } from "./api.js";
import { byId } from "./dom.js";

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function command(body) {
  const lines = [
    `curl -N ${quote(new URL("v1/chat/completions", document.baseURI).href)}`,
    `-H ${quote("Content-Type: application/json")}`,
  ];
  if (hasKey()) lines.push('-H "Authorization: Bearer $TERN_API_KEY"');
  lines.push(`-d ${quote(JSON.stringify(body, null, 2))}`);
  return lines.join(" \\\n  ");
}

/** Put text on the clipboard, or show it where that is not allowed. True: it is on the clipboard. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    byId("copy-text").value = text;
    byId("copy-dialog").showModal();
    byId("copy-text").select();
    return false;
  }
}

/** Copy, and let the button say so for a moment. */
export async function copyBy(button, text) {
  if (!(await copy(text))) return;
  const label = button.dataset.label ?? button.textContent;
  Object.assign(button.dataset, { label, copied: "" });
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 1500);
}
