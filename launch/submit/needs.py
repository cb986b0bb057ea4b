"""What a run needs of a machine that somebody else sets up: its shared memory."""

from launch.settings.run import RunConfig

SPARE_MIB = 1024
"""For what engines and collectives keep there."""


def shared_memory_mib(config: RunConfig) -> int:
    """Return the shared memory of each machine (MiB): Ray's object store, the versions published there, and 1 GiB.

    A model whose directory cannot be read here counts nothing.
    """
    from actors.errors import OffbeatError
    from launch.doctor.model_facts import read_model
    from launch.doctor.run_checks import published_bytes

    try:
        policy = read_model(config.model.path)
    except (OffbeatError, OSError, ValueError):
        policy = None
    published = 0 if policy is None else published_bytes(config, policy)
    return config.cluster.object_store_mib + (published >> 20) + SPARE_MIB
