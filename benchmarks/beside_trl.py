"""Offbeat beside TRL: completions per second, end to end, of both on the same model, prompts and lengths in one run.

    python -m benchmarks.beside_trl online_dpo --trl-python DIR/bin/python [--rounds 3] [--new-tokens 64 512]
    python -m benchmarks.beside_trl nash_md --trl-python DIR/bin/python
    python -m benchmarks.beside_trl online_dpo --trl-python DIR/bin/python --mean-tokens 16 128 --output FILE

TRL runs in a Python environment of its own (`trl_worker.py`); without `--trl-python` or TRL_PYTHON this program prints
how to make one. Each algorithm is measured in two of TRL's ways.

* online_dpo, TRL 1.16.0: with gradient checkpointing off, which leaves the key-value cache on and is TRL's fastest; and
  as its defaults are, with gradient checkpointing, which turns the cache off.
* nash_md, TRL 1.13.0, the last release with NashMDTrainer: with the cache of its mixture model turned off, as its
  source intends; and as released, where under transformers 5 that cache stays on and is shared by both models, which is
  fast, and what is sampled is no mixture of the two. Given for completeness.

Offbeat (`offbeat_worker.py`) runs its real loop asynchronously, on Ray: an engine and a learner of one thread each,
with judge and driver beside them. TRL has all cores for whatever it does.

One step is the same work on both sides: as many completions, each of exactly the given length (the model never ends
one), judged by the same reward model; one optimizer step. With `--mean-tokens` the model ends completions, each token
with the same probability, and the given lengths are only where they are cut: then lengths vary as those of real answers
do. For online DPO both draw two completions of a prompt.
For Nash-MD half of them are the mixture's: TRL draws 1 + 1 for a prompt and Offbeat 2 + 2 for each of half as many
prompts, because its leave-one-out baseline needs two. A round measures all in turn; TRL's processes use no core while
they wait, and Offbeat's exist only while it is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks import record

ONLINE_DPO, NASH_MD = "online_dpo", "nash_md"
TRL_VERSION = {ONLINE_DPO: "1.16.0", NASH_MD: "1.13.0"}
ACCELERATE_VERSION = "1.15.0"
MODES = {ONLINE_DPO: ("cached", "defaults"), NASH_MD: ("exact", "released")}
"""TRL's two ways of each algorithm; the first is what Offbeat is compared with."""
WORDS = 126
"""Tokens that are sampled; two special ones follow."""
POSITIONS = 1024
PROMPTS = 256
"""Different prompts; steps take them in turn."""
DRAWS = 2
"""Completions of a prompt: of the policy, and for Nash-MD as many of the mixture on Offbeat's side."""
OFFBEAT = "Offbeat"


@dataclass(frozen=True)
class Setting:
    """Inputs of both sides for one length."""

    algorithm: str
    model: str
    reward_model: str
    prompts: Sequence[Sequence[int]]
    """Token ids, all prompts of one length: none is padded."""
    new_tokens: int
    mean_tokens: int | None
    """Mean length of completions that nothing cuts; None: all have `new_tokens`."""
    completions: int
    """Per step, all together."""
    threads: int
    """Threads of TRL."""
    max_staleness: int
    """Offbeat's bound, in versions."""
    dtype: str = "float32"
    mixture_beta: float = 0.125
    tau: float = 0.008
    beta: float = 0.1
    lr: float = 1e-6


def make_models(policy: Path, reward_model: Path, mean_tokens: int | None = None) -> int:
    """Random Llamas of one vocabulary, float32: the policy (2.4 million parameters) and the reward model. Returns the
    policy's number of parameters.

    The policy samples neither special token: each embedding has 1 in the first dimension, which layers hardly change,
    and the head's rows of these two have -100 there. With `mean_tokens` the end has so much that it is one token in
    that many.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    def config(hidden: int, layers: int, **more: Any) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=WORDS + 2,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 32,
            intermediate_size=4 * hidden,
            max_position_embeddings=POSITIONS,
            bos_token_id=None,
            pad_token_id=WORDS,
            eos_token_id=WORDS + 1,
            **more,
        )

    torch.manual_seed(0)
    model = LlamaForCausalLM(config(192, 4))
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[WORDS:, 0] = -100.0
        if mean_tokens is not None:
            # Measured after random prompts: what the head reads, and what it gives the words.
            hidden = model.model(torch.randint(WORDS, (16, 32))).last_hidden_state.flatten(0, 1)
            words = model.lm_head(hidden)[:, :WORDS].logsumexp(-1).mean()
            model.lm_head.weight[-1] = 0.0
            model.lm_head.weight[-1, 0] = (words - math.log(mean_tokens - 1)) / hidden[:, 0].mean()
    model.save_pretrained(policy)
    LlamaForSequenceClassification(config(64, 2, num_labels=1)).save_pretrained(reward_model)
    words = {f"w{i}": i for i in range(WORDS)} | {"<pad>": WORDS, "<eos>": WORDS + 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    for directory in (policy, reward_model):
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
        fast.save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())


class Worker:
    """One of those that are compared, in a process of its own.

    Args:
        command: takes the setting as JSON for its last argument, then a number of steps from each line of its standard
            input, and answers each with a line of JSON. Its first line is sent when it is ready.
        setting: what it is given.
        log: where its messages go.
        variables: more of its environment.
    """

    def __init__(
        self, command: Sequence[str], setting: Setting, log: Path, variables: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._log = log
        with log.open("w") as messages:
            self._process = subprocess.Popen(
                [*command, json.dumps(asdict(setting))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
                env=os.environ | variables,
            )
        self.ready = self._answer()

    def measure(self, steps: int) -> dict[str, Any]:
        """Let the worker take `steps` steps; return its report, with `step_seconds` of each."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended before its time; its last words:\n{self._log.read_text()[-6000:]}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process, if need be by force."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()


def measure_length(
    python: str, modes: Sequence[str], setting: Setting, steps: dict[str, int], rounds: int, logs: Path, warm: bool
) -> dict[str, Any]:
    """`rounds` rounds at one length; with `warm`, after one step of TRL that is not timed.

    `modes` are TRL's; `steps`: of each side, of TRL in every mode.
    """
    trl = [python, str(Path(__file__).with_name("trl_worker.py"))]
    names = [f"TRL, {mode}" for mode in modes]
    with ExitStack() as stack:
        workers = {}
        for name, mode in zip(names, modes, strict=True):
            log = logs / f"{name}-{setting.new_tokens}.log"
            threads = {"OMP_NUM_THREADS": str(setting.threads)}
            workers[name] = stack.enter_context(closing(Worker([*trl, mode], setting, log, threads)))
            if warm:
                workers[name].measure(1)
        versions: dict[str, Any] = {"TRL": workers[names[0]].ready}
        results = []
        for number in range(1, rounds + 1):
            result = {name: worker.measure(steps["TRL"]) for name, worker in workers.items()}
            command = [sys.executable, "-m", "benchmarks.offbeat_worker"]
            with closing(Worker(command, setting, logs / f"offbeat-{setting.new_tokens}.log")) as offbeat:
                result[OFFBEAT] = offbeat.measure(steps[OFFBEAT])
                versions[OFFBEAT] = offbeat.ready
            for values in result.values():
                seconds = values["step_seconds"]
                values["completions_per_second"] = setting.completions * len(seconds) / sum(seconds)
            results.append(result)
            rates = ", ".join(f"{name} {values['completions_per_second']:.2f}" for name, values in result.items())
            print(f"{setting.new_tokens} tokens, round {number}, completions per second: {rates}", flush=True)
    return {
        "completions_per_step": setting.completions,
        "mean_tokens": setting.mean_tokens,
        "steps_per_round": steps,
        "rounds": results,
        "median": medians(results, names),
        "versions": versions,
    }


def medians(rounds: Sequence[dict[str, dict[str, Any]]], peers: Sequence[str]) -> dict[str, float]:
    """Over rounds: completions per second of each side, and Offbeat's over each of TRL's of the same round."""
    values = {name: statistics.median(r[name]["completions_per_second"] for r in rounds) for name in rounds[0]}
    for peer in peers:
        values[f"{OFFBEAT} / {peer}"] = statistics.median(
            r[OFFBEAT]["completions_per_second"] / r[peer]["completions_per_second"] for r in rounds
        )
    return {name: round(value, 3) for name, value in values.items()}


def trl_python(given: str | None, algorithm: str) -> str:
    """TRL's Python. Exits with instructions when there is none."""
    if given and Path(given).is_file():
        return given
    directory = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = f"trl=={TRL_VERSION[algorithm]} accelerate=={ACCELERATE_VERSION}"
    raise SystemExit(
        f"{f'{given} does not exist' if given else 'No Python with TRL was given'}. Make an environment of its own, "
        "outside of the repository, that sees the packages of this one:\n"
        f"    {sys.executable} -m venv DIR\n"
        f"    echo {sysconfig.get_path('purelib')} > DIR/lib/{directory}/site-packages/project.pth\n"
        f"    DIR/bin/python -m pip install --no-deps {packages}\n"
        "and give --trl-python DIR/bin/python, or set TRL_PYTHON to it."
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithm", choices=list(MODES))
    parser.add_argument("--trl-python", default=os.environ.get("TRL_PYTHON"), help="Python that has TRL")
    parser.add_argument("--modes", nargs="+", help="of TRL; default: both of the algorithm")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[64, 512], help="lengths")
    parser.add_argument("--mean-tokens", type=int, nargs="+", help="of completions, each length; default: all are full")
    parser.add_argument("--completions", type=int, nargs="+", default=[128, 32], help="per step, for each length")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 1], help="TRL's timed steps per round, each length")
    parser.add_argument("--offbeat-steps", type=int, nargs="+", default=[16, 8], help="Offbeat's, for each length")
    parser.add_argument("--warm", type=int, nargs="+", default=[1, 0], help="TRL's steps before, 0 or 1, each length")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--max-staleness", type=int, default=1, help="of Offbeat, in versions")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="cores, and TRL's threads")
    parser.add_argument("--output", type=Path, help="default: in benchmarks/results, by the algorithm's name")
    arguments = parser.parse_args()
    known = MODES[arguments.algorithm]
    arguments.modes = arguments.modes or list(known)
    if not set(arguments.modes) <= set(known):
        parser.error(
            f"--modes {' '.join(arguments.modes)}: TRL's modes of {arguments.algorithm} are {', '.join(known)}"
        )
    arguments.mean_tokens = arguments.mean_tokens or [None] * len(arguments.new_tokens)
    lists = (arguments.mean_tokens, arguments.completions, arguments.steps, arguments.offbeat_steps, arguments.warm)
    if any(len(values) != len(arguments.new_tokens) for values in lists):
        parser.error(
            "--mean-tokens, --completions, --steps, --offbeat-steps and --warm need one number for each of --new-tokens"
        )
    if any(count < 2 * DRAWS or count % (2 * DRAWS) for count in arguments.completions):
        parser.error(f"--completions {arguments.completions} must be multiples of {2 * DRAWS}")
    if max(arguments.new_tokens) + arguments.prompt_tokens > POSITIONS:
        parser.error(f"--prompt-tokens and --new-tokens together may not be more than {POSITIONS}")
    return arguments


def main() -> None:
    arguments = parse()
    python = trl_python(arguments.trl_python, arguments.algorithm)
    prompts = np.random.default_rng(0).integers(WORDS, size=(PROMPTS, arguments.prompt_tokens)).tolist()
    lengths: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for number, new_tokens in enumerate(arguments.new_tokens):
            directory, mean_tokens = Path(name) / str(number), arguments.mean_tokens[number]
            parameters = make_models(directory / "policy", directory / "reward_model", mean_tokens)
            setting = Setting(
                arguments.algorithm,
                str(directory / "policy"),
                str(directory / "reward_model"),
                prompts,
                new_tokens,
                mean_tokens,
                arguments.completions[number],
                threads=arguments.cores,
                max_staleness=arguments.max_staleness,
            )
            steps = {"TRL": arguments.steps[number], OFFBEAT: arguments.offbeat_steps[number]}
            warm = bool(arguments.warm[number])
            lengths[str(new_tokens)] = measure_length(
                python, arguments.modes, setting, steps, arguments.rounds, directory, warm
            )
    shared = ("dtype", "max_staleness", "lr") + (
        ("mixture_beta", "tau") if arguments.algorithm == NASH_MD else ("beta",)
    )
    result = {
        "new_tokens": lengths,
        "settings": {name: vars(setting)[name] for name in shared}
        | {"parameters": parameters, "prompt_tokens": arguments.prompt_tokens},
        "machine": {"cores": arguments.cores, "processor": platform.machine()},
    }
    record.write(arguments.output or Path(f"benchmarks/results/trl_{arguments.algorithm}.json"), result)
    print(json.dumps({length: values["median"] for length, values in lengths.items()}, indent=1))


if __name__ == "__main__":
    main()
