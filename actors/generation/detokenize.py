"""Text of a response from its tokens. Must not import torch or vLLM."""

from collections.abc import Sequence
from typing import Any


def text_after(prompt_ids: Sequence[int], ids: Sequence[int], tokenizer: Any) -> str:
    """Return the text that `ids` add to the prompt's, without special tokens; ids beyond the tokenizer add nothing.

    A sequence is decoded as a stream: decoded apart, a first word would lose its space, and a character that several
    tokens spell would be cut.
    """
    ids = [token for token in ids if token < len(tokenizer)]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        before = tokenizer.decode(prompt_ids, skip_special_tokens=True)
        whole = tokenizer.decode([*prompt_ids, *ids], skip_special_tokens=True)
        apart = not whole.startswith(before)
        return tokenizer.decode(ids, skip_special_tokens=True) if apart else whole[len(before) :]
    from tokenizers.decoders import DecodeStream

    stream, pieces = DecodeStream(ids=list(prompt_ids), skip_special_tokens=True), []
    for token in ids:
        try:
            pieces.append(stream.step(backend, token))
        except Exception as error:  # the tokenizers library raises the bare class for bytes that are no UTF-8
            if not str(error).startswith("Invalid prefix encountered"):
                raise
            stream = DecodeStream(skip_special_tokens=True)
            pieces.append(stream.step(backend, token))
    return "".join(piece for piece in pieces if piece)
