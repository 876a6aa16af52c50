"""OpenAI's Responses API: requests, items, events, and the store of past responses."""
