"""Nash-MD beside TRL's: completions per second, end to end, of both on the same model, prompts and lengths in one run.

    python -m benchmarks.trl_nash_md --trl-python DIR/bin/python [--rounds 3] [--new-tokens 64 512]

TRL 1.13.0 is the last release with NashMDTrainer. It runs in a Python environment of its own (`trl_worker.py`); without
`--trl-python` or TRL_PYTHON this program prints how to make one. It is measured twice:

* TRL: with the key-value cache of its mixture model turned off, as its source intends;
* TRL as released: under transformers 5 that cache stays on and is shared by both models, which is fast, and what is
  sampled is no mixture of the two. Given for completeness.

So is Offbeat (`offbeat_worker.py`):

* sequential: weights published and loaded, completions sampled, judged, trained on, one after the other, on-policy like
  TRL. Whichever part works has all cores to itself.
* overlapped: while the learner judges and trains on one batch, the engine samples the next, with weights one update
  older; the cores are shared out between the two. Importance weights correct for the opponents' age.

One step is the same work on all sides: N completions of the policy and N of the mixture, each of exactly the given
length (no model here can end a sequence), judged by the same reward model; one optimizer step. TRL draws 1 + 1 for each
of N prompts and Offbeat 2 + 2 for each of N / 2, because its leave-one-out baseline needs two.
A round measures all four in turn; processes that wait use no core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record

TRL_VERSION, ACCELERATE_VERSION = "1.13.0", "1.15.0"
VOCABULARY = 128
POSITIONS = 1024
PROMPTS = 256
"""Different prompts; steps take them in turn."""
DRAWS = 2
"""Completions of each role per prompt on Offbeat's side."""
TRL, TRL_RELEASED = "TRL", "TRL as released"
SEQUENTIAL, OVERLAPPED = "sequential", "overlapped"


@dataclass(frozen=True)
class Setting:
    """What all sides are given for one length."""

    model: str
    reward_model: str
    prompts: Sequence[Sequence[int]]
    """Token ids, all prompts of one length: none is padded."""
    new_tokens: int
    completions: int
    """N: completions of each role per step."""
    threads: int
    engine_threads: int
    """Of Offbeat's engine; `threads` are the learner's and the judge's."""
    mixture_beta: float = 0.125
    tau: float = 0.008
    lr: float = 1e-6


def make_models(policy: Path, reward_model: Path) -> int:
    """Random Llamas of one vocabulary, float32: the policy (2.4 million parameters) and the reward model. Returns the
    policy's number of parameters.

    Both special tokens of the tokenizer lie outside the models' vocabulary: nothing can end a sequence, and no token is
    taken for padding.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    def config(hidden: int, layers: int, **more: Any) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 32,
            intermediate_size=4 * hidden,
            max_position_embeddings=POSITIONS,
            bos_token_id=None,
            eos_token_id=None,
            **more,
        )

    torch.manual_seed(0)
    model = LlamaForCausalLM(config(192, 4))
    model.save_pretrained(policy)
    LlamaForSequenceClassification(config(64, 2, num_labels=1)).save_pretrained(reward_model)
    words = {f"w{i}": i for i in range(VOCABULARY)} | {"<pad>": VOCABULARY, "<eos>": VOCABULARY + 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    for directory in (policy, reward_model):
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
        fast.save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())


class Worker:
    """One of the four that are compared, in a process of its own.

    Args:
        command: takes the setting as JSON for its last argument, then a number of steps from each line of its standard
            input, and answers each with a line of JSON. Its first line is sent when it is ready.
        setting: what it is given.
        log: where its messages go.
    """

    def __init__(self, command: Sequence[str], setting: Setting, log: Path) -> None:
        self._log = log
        with log.open("w") as messages:
            self._process = subprocess.Popen(
                [*command, json.dumps(asdict(setting))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(setting.threads)},
            )
        self.ready = self._answer()

    def measure(self, steps: int) -> dict[str, Any]:
        """`step_seconds`, of each of `steps` steps, and what else the worker tells."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended before its time; its last words:\n{self._log.read_text()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process, if need be by force."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()


def measure_length(python: str, setting: Setting, steps: int, rounds: int, logs: Path) -> dict[str, Any]:
    """`rounds` rounds at one length, after one step of each side that is not timed."""
    half = max(1, setting.threads // 2)
    trl = [python, str(Path(__file__).with_name("trl_worker.py"))]
    offbeat = [sys.executable, "-m", "benchmarks.offbeat_worker"]
    sides = {
        TRL: ([*trl, "exact"], setting),
        TRL_RELEASED: ([*trl, "released"], setting),
        SEQUENTIAL: ([*offbeat, SEQUENTIAL], setting),
        OVERLAPPED: ([*offbeat, OVERLAPPED], replace(setting, threads=half, engine_threads=half)),
    }
    with ExitStack() as stack:
        workers = {}
        for name, (command, own) in sides.items():
            workers[name] = Worker(command, own, logs / f"{name}-{setting.new_tokens}.log")
            stack.callback(workers[name].close)
        for worker in workers.values():
            worker.measure(1)
        results = []
        for number in range(1, rounds + 1):
            result = {name: worker.measure(steps) for name, worker in workers.items()}
            for values in result.values():
                values["samples_per_second"] = 2 * setting.completions * steps / sum(values["step_seconds"])
            results.append(result)
            rates = ", ".join(f"{name} {values['samples_per_second']:.2f}" for name, values in result.items())
            print(f"{setting.new_tokens} tokens, round {number}, samples per second: {rates}", flush=True)
    return {
        "completions_per_step": 2 * setting.completions,
        "steps_per_round": steps,
        "threads": {
            TRL: setting.threads,
            f"{SEQUENTIAL}, engine": setting.engine_threads,
            f"{SEQUENTIAL}, learner": setting.threads,
            f"{OVERLAPPED}, engine": half,
            f"{OVERLAPPED}, learner": half,
        },
        "rounds": results,
        "median": medians(results),
        "versions": {"Offbeat": workers[SEQUENTIAL].ready, TRL: workers[TRL].ready},
    }


def medians(rounds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, float]:
    """Over rounds: samples per second of each side, and Offbeat's over TRL's of the same round."""
    values = {name: statistics.median(r[name]["samples_per_second"] for r in rounds) for name in rounds[0]}
    for mode, peer in itertools.product((SEQUENTIAL, OVERLAPPED), (TRL, TRL_RELEASED)):
        values[f"{mode} / {peer}"] = statistics.median(
            r[mode]["samples_per_second"] / r[peer]["samples_per_second"] for r in rounds
        )
    return {name: round(value, 3) for name, value in values.items()}


def trl_python(given: str | None) -> str:
    """TRL's Python. Exits with instructions when there is none."""
    if given and Path(given).is_file():
        return given
    directory = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    raise SystemExit(
        f"{f'{given} does not exist' if given else 'No Python with TRL was given'}. Make an environment of its own, "
        "outside of the repository, that sees the packages of this one:\n"
        f"    {sys.executable} -m venv DIR\n"
        f"    echo {sysconfig.get_path('purelib')} > DIR/lib/{directory}/site-packages/project.pth\n"
        f"    DIR/bin/python -m pip install --no-deps trl=={TRL_VERSION} accelerate=={ACCELERATE_VERSION}\n"
        "and give --trl-python DIR/bin/python, or set TRL_PYTHON to it."
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", default=os.environ.get("TRL_PYTHON"), help="Python that has TRL")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[64, 512], help="lengths")
    parser.add_argument("--completions", type=int, nargs="+", default=[64, 8], help="N, for each length; even")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 1], help="timed steps per round, for each length")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument(
        "--cores", type=int, default=os.cpu_count(), help="cores, and threads of all that work together"
    )
    parser.add_argument("--engine-threads", type=int, help="of Offbeat's engine, sequential; default: --cores")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/trl_nash_md.json"))
    arguments = parser.parse_args()
    if not len(arguments.new_tokens) == len(arguments.completions) == len(arguments.steps):
        parser.error("--new-tokens, --completions and --steps need one number for each length")
    if any(count < DRAWS or count % DRAWS for count in arguments.completions):
        parser.error(f"--completions {arguments.completions} must be multiples of {DRAWS}")
    if max(arguments.new_tokens) + arguments.prompt_tokens > POSITIONS:
        parser.error(f"--prompt-tokens and --new-tokens together may not be more than {POSITIONS}")
    return arguments


def main() -> None:
    arguments = parse()
    python = trl_python(arguments.trl_python)
    prompts = np.random.default_rng(0).integers(VOCABULARY, size=(PROMPTS, arguments.prompt_tokens)).tolist()
    lengths: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        parameters = make_models(directory / "policy", directory / "reward_model")
        model, reward_model = str(directory / "policy"), str(directory / "reward_model")
        for new_tokens, count, steps in zip(arguments.new_tokens, arguments.completions, arguments.steps, strict=True):
            engine_threads = arguments.engine_threads or arguments.cores
            setting = Setting(model, reward_model, prompts, new_tokens, count, arguments.cores, engine_threads)
            lengths[str(new_tokens)] = measure_length(python, setting, steps, arguments.rounds, directory)
    shared = ("mixture_beta", "tau", "lr")
    result = {
        "new_tokens": lengths,
        "settings": {name: vars(setting)[name] for name in shared}
        | {"parameters": parameters, "dtype": "float32", "prompt_tokens": arguments.prompt_tokens},
        "machine": {"cores": arguments.cores, "processor": platform.machine()},
    }
    record.write(arguments.output, result)
    print(json.dumps({length: values["median"] for length, values in lengths.items()}, indent=1))


if __name__ == "__main__":
    main()
