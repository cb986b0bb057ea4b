"""What `mkdocs build` adds to the pages: the settings of each verb, and the files of the repository that pages link to.

Pages link to files outside of docs/ as on GitHub, and the site has a page for each. Needs MkDocs and what configuration
models need; must not import the rest of Offbeat.
"""

from __future__ import annotations

import html
import os
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

    from launch.settings.fields import Setting
    from launch.settings.verbs import Verb

OUTSIDE = "repository/"
"""Where pages for files outside of docs/ are, by the file's path in the repository."""
LINK = re.compile(r"(\[[^\]]*\]\()([^)\s]+)(?=\))")
MARKED_FENCE = re.compile(r"^(```\w+) \w+$", re.MULTILINE)
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n"
"""At the head of a page of code: search finds what the documentation says."""
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".sh": "sh"}


def on_startup(**_: Any) -> None:
    """Let Offbeat be imported from here: MkDocs takes back what a hook does to the path while it is imported."""
    sys.path.insert(0, str(ROOT))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each verb's settings, and for each file outside of docs/ that a page leads to."""
    from mkdocs.structure.files import File

    from launch.settings.verbs import VERBS

    for verb in VERBS.values():
        files.append(File.generated(config, f"settings/{verb.name}.md", content=settings_page(verb)))
    pages = [file.src_uri for file in files.documentation_pages() if file.generated_by is None]
    for path in sorted(outside({f"docs/{page}" for page in pages} | {"SECURITY.md", "CONTRIBUTING.md"})):
        files.append(File.generated(config, page_of(path), content=content_of(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to the site's pages, and leave out what marks an example for the tests."""
    return MARKED_FENCE.sub(r"\1", led(markdown, page.file.src_uri))


def led(markdown: str, page: str) -> str:
    """Return the text of a page with every link to a file of the repository as one between pages."""
    own = path_of(page)
    if page.startswith("settings/"):
        return markdown

    def new(link: re.Match[str]) -> str:
        path, anchor = target_of(own, link[2])
        return (
            link[0] if path is None else f"{link[1]}{posixpath.relpath(page_of(path), posixpath.dirname(page))}{anchor}"
        )

    return LINK.sub(new, markdown)


def outside(paths: set[str]) -> set[str]:
    """Return the files outside of docs/ to which `paths`, of the repository, lead, and those that are outside."""
    found, waiting = set(paths), list(paths)
    while waiting:
        own = waiting.pop()
        if not own.endswith(".md"):
            continue
        for _, link in LINK.findall((ROOT / own).read_text("utf-8")):
            path, _ = target_of(own, link)
            if path is not None and path not in found and (ROOT / path).exists():
                found.add(path)
                waiting.append(path)
    return {path for path in found if not path.startswith("docs/")}


def target_of(own: str, link: str) -> tuple[str | None, str]:
    """Return path and anchor of a link in the file `own`; no path if it leads out of the repository or to `own`."""
    path, hash_sign, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", link):
        return None, ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(own), path)), hash_sign + anchor


def page_of(path: str) -> str:
    """Return the page, relative to docs/, of a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{OUTSIDE}{path}" if path.endswith(".md") else f"{OUTSIDE}{path}.md"


def path_of(page: str) -> str:
    """Return the Markdown file of the repository that a page shows."""
    return page.removeprefix(OUTSIDE) if page.startswith(OUTSIDE) else f"docs/{page}"


def content_of(path: str) -> str:
    """Return a page that shows a file: Markdown as it is, a folder's names, or other text as code."""
    file = ROOT / path
    if path.endswith(".md"):
        return file.read_text("utf-8")
    if file.is_dir():
        return f"# {path}\n\n" + "\n".join(f"- `{name}`" for name in sorted(os.listdir(file)) if name[0] not in "._")
    return f"{UNSEARCHED}# {path}\n\n~~~~~{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text('utf-8')}\n~~~~~\n"


def settings_page(verb: Verb) -> str:
    """Return every setting of a verb as Markdown: a table for each section, as `--help` prints it."""
    return "\n".join(_settings_lines(verb))


def _settings_lines(verb: Verb) -> Iterator[str]:
    from launch.settings.fields import by_section

    yield f"# Settings of offbeat {verb.name}\n"
    yield f"In the YAML file as sections, or on the command line as `KEY=VALUE`, for example `{verb.example}`.\n"
    for section, entries in by_section(verb.model).items():
        yield f"\n## {section or 'run'}\n\n{entries[0].title}.\n"
        yield "| setting | type | default | meaning |\n|---|---|---|---|"
        yield from (_row(entry) for entry in entries)


def _row(entry: Setting) -> str:
    kinds = f"kind {', '.join(entry.only_for)}: " if entry.only_for else ""
    cells: tuple[Any, ...] = (
        f"<code>{entry.key}</code>",
        _escaped(entry.allowed),
        f"<code>{_escaped(entry.default)}</code>",
    )
    return f"| {' | '.join(cells)} | {_escaped(kinds + entry.description)} |"


def _escaped(text: str) -> str:
    """Return text that neither a table's cells nor Markdown's signs take for their own."""
    return re.sub(r"[|*_`\[\]\\~]", lambda sign: f"&#{ord(sign[0])};", html.escape(text, quote=False))
