"""Silence libraries that load and save a small model: their output would garble a run's own display."""

import logging

from transformers.utils.logging import disable_progress_bar


def silence() -> None:
    """Turn off transformers' progress bars, and DeepSpeed's warning on stdout that it found no GPU."""
    disable_progress_bar()
    logging.getLogger("DeepSpeed").addFilter(_worth_reading)


def _worth_reading(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()
