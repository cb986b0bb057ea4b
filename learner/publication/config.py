"""Settings of the weight sync. Must not import anything heavy."""

from typing import Literal

from pydantic import Field

from actors.settings import Settings


class PublicationConfig(Settings):
    """Weight sync from learner to generators."""

    transport: Literal["shm", "object_store", "gloo", "nccl", "ipc"] = Field(
        default="shm",
        description="shm: one host; object_store: many hosts; gloo, nccl: one broadcast over CPUs, GPUs; ipc: "
        "generators and learner on one GPU",
    )
    chunk_mib: int = Field(default=256, ge=1, description="MiB per message of the object_store transport")
    timeout_seconds: float = Field(
        default=600.0,
        gt=0.0,
        description="seconds for one generator to take one version, its wait for a transfer not counted",
    )
    canary_tokens: int = Field(
        default=32, ge=2, description="tokens of the answer that learner and engines score at each version, at most"
    )
