"""What libraries say as they load a small model."""

from __future__ import annotations

import logging

from learner.world.quiet import silence


def test_deepspeed_says_nothing_of_a_missing_gpu_and_everything_else(caplog):
    silence()
    logger = logging.getLogger("DeepSpeed")
    logger.addHandler(caplog.handler)
    try:
        logger.warning("Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it.")
        logger.warning("the loss scale is too small")
    finally:
        logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"the loss scale is too small"}
