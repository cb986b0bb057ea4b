"""Token sequences that engines and learners score in tests."""

import random


def canary_tokens(vocab_size: int, length: int) -> tuple[int, ...]:
    """Return the same random tokens in every process."""
    return tuple(random.Random(20).choices(range(vocab_size), k=length))
