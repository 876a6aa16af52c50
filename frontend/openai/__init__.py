"""The OpenAI API: one file per endpoint, with the shapes it reads and writes."""
