"""Weights from this process's GPU into an engine in another process, through vLLM's `ipc` and `nccl` transfers.

Not run on a GPU so far: the machines this was written on have none.
"""

import multiprocessing
from multiprocessing.connection import Connection

import pytest
import torch

from actors.errors import WeightMismatchError
from actors.generation import weights
from actors.generation.config import GeneratorConfig, SamplingConfig
from actors.records import Canary
from learner.config import PublicationConfig
from learner.publication.publisher import Publisher
from learner.publication.transfer import WeightSender
from tests.fakes.generators import spec_of
from tests.fakes.models import tiny_llama

pytestmark = [pytest.mark.gpu, pytest.mark.vllm, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

CANARY = weights.canary_tokens(96, 32)


def log_probs(model, token_ids) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0].double()
    chosen = torch.tensor(token_ids[1:])[:, None]
    return torch.log_softmax(logits, -1)[:-1].gather(1, chosen)[:, 0].tolist()


def serve_engine(pipe: Connection, model_dir: str, transport: str, device: str) -> None:
    """Runs in its own process: an engine that does what the pipe says."""
    import os

    os.environ["CUDA_VISIBLE_DEVICES"] = device
    from actors.generation.generator import Generator

    settings = GeneratorConfig(
        dtype="float32", max_model_len=128, gpu_memory_utilization=0.3, enforce_eager=True, canary_tolerance=1e-2
    )
    generator = Generator(
        spec_of(model_dir, settings, SamplingConfig(max_new_tokens=8), name="g0", transport=transport)
    )
    pipe.send(None)
    while (request := pipe.recv()) is not None:
        method, arguments = request
        try:
            pipe.send((getattr(generator, method)(*arguments), None))
        except WeightMismatchError as error:
            pipe.send((None, error))
    generator.close()


class RemoteGenerator:
    """The generator at the other end of a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        assert self._pipe.recv() is None  # ready

    def _call(self, method, *arguments):
        self._pipe.send((method, arguments))
        result, error = self._pipe.recv()
        if error is not None:
            raise error
        return result

    def check_weights(self, manifest):
        self._call("check_weights", manifest)

    def connect_weights(self, init_info):
        self._call("connect_weights", init_info)

    def take_weights(self, manifest, chunks=None):
        return self._call("take_weights", manifest, chunks)

    def status(self):
        return self._call("status")


@pytest.fixture(params=["ipc", "nccl"])
def transfer(request, tmp_path):
    """Two models, a publisher, a generator process started from the first model, and a sender joined to it."""
    transport = request.param
    if transport == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("nccl needs a GPU for the learner and one for the generator")
    a, b = tiny_llama(tmp_path / "a", seed=1), tiny_llama(tmp_path / "b", seed=2)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    device = "0" if transport == "ipc" else "1"
    process = context.Process(target=serve_engine, args=(theirs, str(tmp_path / "a"), transport, device))
    process.start()
    generator = RemoteGenerator(ours)
    sender = WeightSender(transport, generator)
    yield a, b, Publisher(PublicationConfig(transport=transport), tmp_path), generator, sender
    sender.close()
    ours.send(None)
    process.join(60)


def on_gpu(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().cuda() for name, parameter in model.named_parameters()}


def test_sent_weights_are_the_weights_in_use(transfer):
    """The canary is the proof: the engine scored it under what it received, against transformers' log-probs."""
    _, b, publisher, generator, sender = transfer
    tensors = on_gpu(b)
    canary = Canary(CANARY, tuple(log_probs(b, list(CANARY))))
    for version in (1, 2):
        sender.send(publisher.publish(version, tensors, canary), tensors)
        assert generator.status().version == version


def test_another_models_canary_is_refused(transfer):
    a, b, publisher, _, sender = transfer
    tensors = on_gpu(b)
    manifest = publisher.publish(1, tensors, Canary(CANARY, tuple(log_probs(a, list(CANARY)))))
    with pytest.raises(WeightMismatchError, match="nats on the canary"):
        sender.send(manifest, tensors)


def test_a_missing_tensor_is_refused_before_the_transfer(transfer):
    _, b, publisher, generator, sender = transfer
    tensors = on_gpu(b)
    del tensors["model.norm.weight"]
    manifest = publisher.publish(1, tensors, Canary(CANARY, tuple(log_probs(b, list(CANARY)))))
    with pytest.raises(WeightMismatchError, match=r"'model\.norm\.weight' is missing"):
        sender.send(manifest, tensors)
    assert generator.status().version == 0


def test_the_fingerprint_is_the_same_on_both_devices():
    for tensor in (torch.randn(1001), torch.randn(333, 7).to(torch.bfloat16), torch.arange(5, dtype=torch.int8)):
        assert weights.fingerprint(tensor.cuda()) == weights.fingerprint(tensor)
