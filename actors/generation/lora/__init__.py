"""Adapters in an engine: vLLM's arguments, the slot that holds one, and its kernels on CPU."""
