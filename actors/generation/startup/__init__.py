"""Start an engine: vLLM's arguments from a generator's settings, its loader, and no file left behind."""
