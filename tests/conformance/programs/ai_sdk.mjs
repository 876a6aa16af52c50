// The Vercel AI SDK, with its providers for OpenAI and what is compatible.

import assert from "node:assert/strict";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embed, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

import { EXTRACT, MODEL, PERSON, SPELL, SPELLED, TOO_LONG, URL, WEATHER, WEATHER_TOLD, run } from "./calls.mjs";

const baseURL = `${URL}/v1`;
const compatible = createOpenAICompatible({
  name: "tern", baseURL, includeUsage: true, supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL, apiKey: "none" });
const Person = z.object({ name: z.string(), age: z.int(), city: z.string() });
const weather = tool({
  description: "Temperature in a city, in degrees Celsius",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => ({ temperature: city === "Oslo" ? 21 : 0 }),
});
const ask = (prompt, model = compatible(MODEL)) => ({ model, prompt, temperature: 0, maxRetries: 0 });
const withTool = { tools: { get_weather: weather }, stopWhen: stepCountIs(3) };

await run({
  "`generateText`": async () => {
    const { text, finishReason, usage } = await generateText(ask(SPELL));
    assert.deepEqual([text, finishReason], [SPELLED, "stop"]);
    assert(usage.outputTokens > 4);
  },
  "`streamText` with usage": async () => {
    const result = streamText(ask(SPELL));
    let text = "";
    for await (const part of result.textStream) text += part;
    assert.equal(text, SPELLED);
    assert((await result.usage).outputTokens > 4);
  },
  "`Output.object` (JSON Schema), generated and streamed": async () => {
    const output = Output.object({ schema: Person });
    assert.deepEqual((await generateText({ ...ask(EXTRACT), output })).output, PERSON);
    assert.deepEqual(await streamText({ ...ask(EXTRACT), output }).output, PERSON);
  },
  "`tools` with steps, generated and streamed": async () => {
    assert.equal((await generateText({ ...ask(WEATHER), ...withTool })).text, WEATHER_TOLD);
    assert.equal(await streamText({ ...ask(WEATHER), ...withTool }).text, WEATHER_TOLD);
  },
  "the OpenAI provider (responses): text, streamed, with a tool": async () => {
    assert.equal((await generateText(ask(SPELL, openai(MODEL)))).text, SPELLED);
    assert.equal(await streamText(ask(SPELL, openai(MODEL))).text, SPELLED);
    assert.equal((await generateText({ ...ask(WEATHER, openai(MODEL)), ...withTool })).text, WEATHER_TOLD);
  },
  "`embed`": async () => {
    const { embedding } = await embed({ model: compatible.embeddingModel(MODEL), value: "tern" });
    assert(embedding.length > 0);
  },
  "`APICallError` that names its reason": async () => {
    await assert.rejects(generateText(ask(TOO_LONG)), (error) => {
      assert(APICallError.isInstance(error));
      assert.match(error.message, /maximum context length/);
      return true;
    });
  },
});
