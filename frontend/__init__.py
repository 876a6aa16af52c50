"""Text in, text out: HTTP, tokenizer, chat template, detokenizer, and the truth about each open stream."""
