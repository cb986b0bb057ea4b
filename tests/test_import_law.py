"""The import law: `launch -> learner -> actors`, never back; which room may import which; heavy packages in few places.

And the limits of size. All of it is read from the source by `tests/house.py`, so an import inside a function counts.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import ARGUMENTS, FILE_LINES, FOLDER_FILES, FUNCTION_LINES, ROOT, TOPS, House, assert_only, imported

HOUSE = House.at(ROOT)
HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed", "datasets", "pyarrow", "numpy", "tensorboard")
CONFIGS = (
    "actors.adapters.config",
    "actors.data.config",
    "actors.environments.config",
    "actors.generation.config",
    "actors.judges.config",
    "actors.replay_buffer.config",
    "learner.config",
    "learner.losses.config",
    "learner.publication.config",
    "learner.reference.config",
    "launch.settings.run",
    "launch.data.config",
    "launch.sweep.config",
)

ALLOWED = {
    "actors": {
        "adapters": "errors hub settings",
        "data": "errors files foreign host records settings world",
        "environments": "data errors records settings user_code",
        "foreign": "errors redaction",
        "generation": "adapters environments errors foreign hub records settings",
        "hub": "errors foreign",
        "judges": "data errors files foreign hub intervals preferences records redaction settings user_code world",
        "preferences": "errors",
        "remote": "errors files generation judges records",
        "replay_buffer": "errors foreign preferences records settings",
        "user_code": "errors",
        "world": "errors records",
    },
    "learner": {
        "backend": "config tensors",
        "config": "deepspeed_keys losses",
        "reference": "backend config losses tensors",
        "stages": "backend config losses records tensors training",
        "training": "backend config games losses publication records tensors",
        "world": "games tensors",
    },
    "launch": {
        "__main__": "cli output",  # the supervisor stands before the command line
        "begin": "doctor settings",
        "cli": "begin data demo doctor evaluate merge plan replay report samples settings submit sweep verify",
        "cluster": "run settings",
        "data": "settings",
        "demo": "output run settings",
        "doctor": "cluster output run settings",
        "evaluate": "cluster run settings",
        "output": "run settings",
        "plan": "output run settings",
        "replay": "cluster output run settings",
        "report": "demo output settings",
        "run": "settings",
        "samples": "output",
        "stages": "cluster output run settings tracking",
        "submit": "cluster doctor settings",
        "sweep": "cluster doctor output settings",
        "tracking": "output settings",
        "train": "cluster doctor output run settings tracking",
        "verify": "doctor output",
    },
}
"""For each top folder: a room (a sub-package or a file), and the rooms beside it that it may import."""
MOST_ARROWS = {"actors": 52, "learner": 23, "launch": 67}

# Exceptions. Each list may only become shorter: an entry that is no exception any more has to be removed.
CYCLES: set[str] = set()
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
MANY_ARGUMENTS: set[str] = set()
FULL_FOLDERS: set[str] = set()
CODE_IN_INIT: set[str] = set()


def users_of(package: str) -> set[str]:
    """Files of ours that import `package`."""
    return {
        HOUSE.paths[name].relative_to(ROOT).as_posix()
        for name, tree in HOUSE.trees.items()
        if package in {each.partition(".")[0] for each in imported(tree)}
    }


# ---------------------------------------------------------------- folders


def test_every_way_of_importing_is_seen():
    source = (
        "import a.b\nfrom c.d import e\nfrom . import own\ndef f():\n    import g as h\n"
        "import importlib\nimportlib.import_module('i.j')\n__import__('k')\n"
    )
    assert imported(ast.parse(source)) == {"a.b", "c.d", "g", "importlib", "i.j", "k"}


def test_there_is_something_to_check():
    assert {name.partition(".")[0] for name in HOUSE.paths} == set(TOPS)


def test_no_import_is_relative():
    """A relative import would hide from the checks below."""
    found = [
        f"{name}: line {node.lineno}"
        for name, tree in HOUSE.trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert found == []


@pytest.mark.parametrize(("below", "above"), [("actors", "learner"), ("actors", "launch"), ("learner", "launch")])
def test_nothing_below_knows_what_is_above(below, above):
    assert not [path for path in users_of(above) if path.startswith(f"{below}/")]


def test_product_code_does_not_import_tests():
    assert not users_of("tests")


@pytest.mark.parametrize("top", TOPS)
def test_rooms_import_only_the_rooms_that_the_table_allows(top):
    arrows = {f"{room} -> {other}" for room, others in HOUSE.arrows(top).items() for other in others}
    allowed = {f"{room} -> {other}" for room, others in ALLOWED[top].items() for other in others.split()}
    assert_only(allowed, arrows)
    assert len(arrows) <= MOST_ARROWS[top]


def test_no_files_import_each_other_in_a_circle():
    assert_only(CYCLES, (" <-> ".join(sorted(cycle)) for cycle in HOUSE.cycles()))


def test_every_package_says_in_its_init_what_it_is_and_nothing_else():
    """A folder of data files needs none: `launch/settings/presets` is a package only to be installed."""
    found = set()
    for name, path in HOUSE.paths.items():
        if path.name == "__init__.py" and len(list(path.parent.glob("*.py"))) > 1:
            tree = HOUSE.trees[name]
            if not ast.get_docstring(tree) or len(tree.body) > 1:
                found.add(path.relative_to(ROOT).as_posix())
    assert_only(CODE_IN_INIT, found)


# ---------------------------------------------------------------- heavy packages


def test_only_remote_and_launch_know_ray():
    assert {path for path in users_of("ray") if not path.startswith("launch/")} <= {"actors/remote.py"}


def test_only_the_engine_s_own_modules_and_the_transfer_know_vllm():
    files = (
        "lora/arguments lora/cpu_kernels lora/slot mixture proof/loaded_weights requests startup/build "
        "startup/known_tensors transfer_group weight_receiver"
    )
    assert users_of("vllm") <= {f"actors/generation/{name}.py" for name in files.split()}


def test_only_the_learner_s_engine_knows_deepspeed():
    assert users_of("deepspeed") <= {"learner/backend/sharded.py", "learner/backend/engine_state.py"}


def test_only_the_figures_of_a_sweep_know_matplotlib():
    """It is an extra: everything else must do without."""
    assert users_of("matplotlib") == {"launch/sweep/figures.py"}


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_only_a_tracker_s_own_file_knows_its_package(package):
    """They are extras: everything else must do without."""
    assert users_of(package) == {f"launch/tracking/{package}_tracker.py"}


def test_configuration_and_records_import_nothing_heavy():
    """All in one process, which names the first module after whose import something heavy is there."""
    modules = [*CONFIGS, "actors.records", "actors.errors", "launch.settings.loading", "launch.output.board"]
    script = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module(module)
    heavy = [name for name in {(*HEAVY, "matplotlib")} if name in sys.modules]
    if heavy:
        sys.exit(f"{{module}} imports {{heavy}}")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- sizes


def test_no_file_has_more_lines_than_one_reads_at_once():
    long = (path for path, lines in HOUSE.file_lines().items() if lines > FILE_LINES)
    assert_only(LONG_FILES, long)


def test_no_function_is_longer_than_a_screen():
    long = (each.place for each in HOUSE.functions() if each.lines > FUNCTION_LINES)
    assert_only(LONG_FUNCTIONS, long)


def test_no_function_takes_more_arguments_than_one_remembers():
    """The commands of the command line are left out: their arguments are its options."""
    many = (each.place for each in HOUSE.functions() if each.arguments > ARGUMENTS and not each.is_command)
    assert_only(MANY_ARGUMENTS, many)


def test_no_folder_holds_more_files_than_one_sees_at_a_glance():
    full = (folder for folder, files in HOUSE.folder_files().items() if files > FOLDER_FILES)
    assert_only(FULL_FOLDERS, full)


# ---------------------------------------------------------------- the counting itself


def test_rooms_cycles_and_sizes_are_counted_as_described(tmp_path: Path):
    sources = {
        "actors/__init__.py": "",
        "actors/a/__init__.py": "",
        "actors/a/one.py": "from actors.b import two\nimport actors.c\n",
        "actors/a/other.py": "from actors.a import one\n",
        "actors/b/__init__.py": "",
        "actors/b/two.py": "def f():\n    from actors.a.one import x\n",
        "actors/c.py": (
            "class C:\n    def f(self, a, /, b, *, c):\n        def g(d): ...\n\n    @x.command()\n    def h(): ...\n"
        ),
        "learner/d.py": "from actors import c\nfrom learner.missing import e\n",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    house = House.at(tmp_path)
    assert house.arrows("actors") == {"a": {"b", "c"}, "b": {"a"}}
    assert house.arrows("learner") == {}, "an import of another top folder is no arrow"
    assert house.cycles() == [{"actors.a.one", "actors.b.two"}]
    assert house.file_lines()["actors/c.py"] == 6
    assert house.folder_files() == {"actors": 1, "actors/a": 2, "actors/b": 1, "learner": 1}
    counted = {each.place: (each.lines, each.arguments, each.is_command) for each in house.functions()}
    assert counted == {
        "actors/b/two.py:f": (2, 0, False),
        "actors/c.py:C.f": (2, 3, False),
        "actors/c.py:C.f.g": (1, 1, False),
        "actors/c.py:C.h": (1, 0, True),
    }
