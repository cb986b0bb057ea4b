import pytest
import torch

from actors.errors import RunError, UsageError, WeightMismatchError
from actors.records import Canary, Manifest
from learner.publication.transfer import GeneratorClient, WeightSender

MANIFEST = Manifest(2, (), Canary((), ()), "nccl")


class RecordingGenerator:
    def __init__(self, refusal=None):
        self.calls, self.refusal = [], refusal

    def check_weights(self, manifest):
        self.calls.append(("check", manifest.version))
        if self.refusal is not None:
            raise self.refusal

    def connect_weights(self, init_info):
        self.calls.append(("connect", init_info))

    def take_weights(self, manifest, chunks=None):
        self.calls.append(("take", manifest.version, chunks))
        return manifest.version


def test_the_generator_checks_before_the_transfer_and_takes_it_in_one_call():
    generator = RecordingGenerator()
    client = GeneratorClient(generator)
    client.init_weight_transfer_engine({"world_size": 2})
    client.manifest = MANIFEST
    client.start_weight_update()
    client.update_weights({"names": ["a"]})
    client.finish_weight_update()
    assert generator.calls == [("connect", {"world_size": 2}), ("check", 2), ("take", 2, {"names": ["a"]})]


def test_a_generator_that_refuses_stops_the_transfer_before_it_starts():
    client = GeneratorClient(RecordingGenerator(WeightMismatchError("'a' is missing")))
    client.manifest = MANIFEST
    with pytest.raises(WeightMismatchError, match="'a' is missing"):
        client.start_weight_update()


def test_weights_without_a_manifest_are_refused():
    with pytest.raises(RunError, match="without a manifest"):
        GeneratorClient(RecordingGenerator()).update_weights({})


def test_a_sender_refuses_transports_that_are_not_its_own():
    with pytest.raises(UsageError, match="'shm' is not sent by a WeightSender"):
        WeightSender("shm", RecordingGenerator())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_sender_without_a_gpu_says_what_to_set():
    with pytest.raises(UsageError, match=r"learner\.gpus_per_rank"):
        WeightSender("nccl", RecordingGenerator())
