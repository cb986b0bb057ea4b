"""The parts of the acceptance that need a GPU, one by one, on small random models.

Not run on a GPU so far: the machines this was written on have none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actors.generation import weights
from benchmarks.gpu_acceptance.parts import PARTS
from tests.house import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.vllm, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.timeout(600)
def test_the_part_finds_nothing_wrong(part: str, tmp_path: Path) -> None:
    """`nccl` needs two GPUs, one for the learner and one for the engine; it is skipped on one."""
    out = tmp_path / "accepted.json"
    command = [sys.executable, "-m", "benchmarks.gpu_acceptance", "--models", "tiny", "--parts", part]
    done = subprocess.run([*command, "--out", str(out), "--eager"], cwd=ROOT, capture_output=True, text=True)
    assert out.is_file(), done.stderr
    found = json.loads(out.read_text())["parts"]
    reasons = [each["reason"] for each in found if each["status"] == "skipped"]
    if reasons:
        pytest.skip(reasons[0])
    assert done.returncode == 0, [each["reason"] for each in found]


def test_the_fingerprint_is_the_same_on_both_devices() -> None:
    for tensor in (torch.randn(1001), torch.randn(333, 7).to(torch.bfloat16), torch.arange(5, dtype=torch.int8)):
        assert weights.fingerprint(tensor.cuda()) == weights.fingerprint(tensor)
