import pytest

from actors.environments.config import EnvironmentConfig
from actors.environments.protocol import environment_class
from actors.errors import UsageError


class Deaf:
    def reset(self, prompt): ...


class NeedsKey:
    def __init__(self, key): ...
    def reset(self, prompt): ...
    def step(self, message): ...


HERE = "tests.actors.environments.test_protocol"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"path": "calculator"}, "is not an import path; write it as 'package.module:Class'"),
        (
            {"path": "no.such.module:Class"},
            "module 'no.such.module' cannot be imported where it is needed: No module named 'no'",
        ),
        ({"path": f"{HERE}:Nobody"}, "has no function 'Nobody'"),
        ({"path": f"{HERE}:Deaf"}, "Deaf has no step; give a class with"),
        ({"path": f"{HERE}:NeedsKey"}, "does not take sampling.environment.arguments {}: missing .*'key'"),
        ({"path": f"{HERE}:NeedsKey", "arguments": {"key": 1, "lock": 2}}, "unexpected keyword argument 'lock'"),
    ],
)
def test_what_is_no_environment_is_refused_by_name_before_anything_starts(settings, told):
    with pytest.raises(UsageError, match=told):
        environment_class(EnvironmentConfig(**settings))


def test_a_class_with_its_arguments_is_found():
    settings = EnvironmentConfig(path="actors.environments.calculator:Calculator", arguments={"role": "user"})
    assert environment_class(settings)(**settings.arguments).step("<calc>1</calc>") == {"role": "user", "content": "1"}
