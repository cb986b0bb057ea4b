"""The import law: `launch -> learner -> actors`, never back; heavy packages only where they belong.

Read from the source, so that an import inside a function counts as well.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("actors", "learner", "launch")
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CONFIGS = (
    "actors.data.config",
    "actors.generation.config",
    "actors.judges.config",
    "actors.replay_buffer.config",
    "learner.config",
    "launch.settings.run",
    "launch.data.config",
)
HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed", "datasets", "pyarrow", "numpy", "tensorboard")


def imported(source):
    """Top-level packages that `source` imports anywhere, by statement or by name."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__"):
                names.add(str(node.args[0].value))
    return {name.partition(".")[0] for name in names}


def users_of(package):
    """Our modules that import `package`."""
    return {str(path) for path in MODULES if package in imported((ROOT / path).read_text(encoding="utf-8"))}


def test_every_way_of_importing_is_seen():
    source = (
        "import a.b\nfrom c.d import e\nfrom . import own\ndef f():\n    import g as h\n"
        "import importlib\nimportlib.import_module('i.j')\n__import__('k')\n"
    )
    assert imported(source) == {"a", "c", "g", "importlib", "i", "k"}


def test_there_is_something_to_check():
    assert {path.parts[0] for path in MODULES} == set(PACKAGES)


def test_no_import_is_relative():
    """A relative import would hide from the checks below."""
    for path in MODULES:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level], path


@pytest.mark.parametrize(("below", "above"), [("actors", "learner"), ("actors", "launch"), ("learner", "launch")])
def test_nothing_below_knows_what_is_above(below, above):
    assert not [path for path in users_of(above) if path.startswith(f"{below}/")]


def test_product_code_does_not_import_tests():
    assert not users_of("tests")


def test_only_remote_and_launch_know_ray():
    assert {path for path in users_of("ray") if not path.startswith("launch/")} <= {"actors/remote.py"}


def test_only_the_engine_s_own_modules_and_the_transfer_know_vllm():
    engine = {"actors/generation/engine.py", "actors/generation/mixture.py", "actors/generation/weight_receiver.py"}
    assert users_of("vllm") <= engine | {"learner/publication/transfer.py"}


def test_only_the_learner_s_engine_knows_deepspeed():
    assert users_of("deepspeed") <= {"learner/backend/sharded.py"}


@pytest.mark.parametrize(
    "module", [*CONFIGS, "actors.records", "actors.errors", "launch.settings.loading", "launch.output.board"]
)
def test_configuration_and_records_import_nothing_heavy(module):
    script = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
