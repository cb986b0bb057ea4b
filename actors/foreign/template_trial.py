"""Render a Jinja template with several sets of variables, as a script in a process with limits of its own.

`templates.py` runs it and sends JSON: the template, the variables, the seconds. A signal ends the process if the
template loops. Other errors of the template are ignored here: the template's reader reports them better.
"""

import json
import resource
import signal
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

MEMORY = 2 << 30  # bytes of address space


class Generation(jinja2.ext.Extension):
    """Reads transformers' `{% generation %}` as its content."""

    tags = {"generation"}  # noqa: RUF012 Jinja's own form

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the nodes up to `{% endgeneration %}`."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def refuse(message: str) -> None:
    """Raise an error, called by a template that refuses its messages."""
    raise jinja2.TemplateError(message)


def main() -> None:
    """Render the template; end with exit code 0, or by a signal."""
    given = json.load(sys.stdin)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Limit from here on only, and for this process alone: a busy machine may start Python slowly.
    signal.setitimer(signal.ITIMER_PROF, given["seconds"])
    for variables in given["variables"]:
        try:
            environment.from_string(given["template"]).render(**variables)
        except (MemoryError, OverflowError):  # as the sandbox refuses a long range
            signal.raise_signal(signal.SIGKILL)
        except Exception:
            continue


if __name__ == "__main__":
    main()
