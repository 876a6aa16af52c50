// openai for Node.

import assert from "node:assert/strict";

import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { EXTRACT, MODEL, PERSON, SPELL, SPELLED, TOO_LONG, URL, WEATHER, WEATHER_TOLD, run } from "./calls.mjs";

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "none", maxRetries: 0 });
const Person = z.object({ name: z.string(), age: z.int(), city: z.string() });
const ask = (text) => ({ model: MODEL, temperature: 0, messages: [{ role: "user", content: text }] });

await run({
  "`chat.completions.create`": async () => {
    const answer = await client.chat.completions.create(ask(SPELL));
    assert.equal(answer.choices[0].message.content, SPELLED);
  },
  "`create({stream: true})`": async () => {
    let text = "";
    for await (const chunk of await client.chat.completions.create({ ...ask(SPELL), stream: true })) {
      text += chunk.choices[0].delta.content ?? "";
    }
    assert.equal(text, SPELLED);
  },
  "`chat.completions.stream()`": async () => {
    const stream = client.chat.completions.stream(ask(SPELL));
    const final = await stream.finalChatCompletion();
    assert.equal(final.choices[0].message.content, SPELLED);
  },
  "`parse()` of a Zod schema": async () => {
    const format = { response_format: zodResponseFormat(Person, "person") };
    const answer = await client.chat.completions.parse({ ...ask(EXTRACT), ...format });
    assert.deepEqual(answer.choices[0].message.parsed, PERSON);
  },
  "`runTools`, to its last answer": async () => {
    const tool = zodFunction({
      name: "get_weather",
      parameters: z.object({ city: z.string() }),
      function: ({ city }) => JSON.stringify({ temperature: city === "Oslo" ? 21 : 0 }),
    });
    for (const stream of [false, true]) {
      const runner = client.chat.completions.runTools({ ...ask(WEATHER), tools: [tool], stream });
      assert.equal(await runner.finalContent(), WEATHER_TOLD);
    }
  },
  "`responses.create`, `responses.stream()`": async () => {
    const fields = { model: MODEL, input: SPELL, temperature: 0 };
    assert.equal((await client.responses.create(fields)).output_text, SPELLED);
    assert.equal((await client.responses.stream(fields).finalResponse()).output_text, SPELLED);
  },
  "`embeddings.create` (base64, as it asks by itself)": async () => {
    const made = await client.embeddings.create({ model: MODEL, input: "tern" });
    assert(Math.abs(made.data[0].embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-3);
  },
  "`BadRequestError`": async () => {
    await assert.rejects(client.chat.completions.create(ask(TOO_LONG)), (error) => {
      assert(error instanceof OpenAI.BadRequestError);
      assert.equal(error.code, "context_length_exceeded");
      assert.match(error.message, /maximum context length/);
      return true;
    });
  },
});
