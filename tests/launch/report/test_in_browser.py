"""Reports in headless Chromium: every figure is drawn, in both colour schemes and on a phone, and nothing complains."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from launch.cli import main
from tests.launch.report.runs import write_long_run, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is on the PATH"),
]
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=3000",
    "--enable-logging=stderr",
    "--dump-dom",
]
PHONE = 390
PROBE = """
<script>
addEventListener("load", function () {
  var page = document.querySelector("iframe").contentDocument;
  var svgs = Array.from(page.querySelectorAll("svg"));
  var drawn = svgs.map(function (svg) {
    var box = svg.getBoundingClientRect(), shapes = Array.from(svg.querySelectorAll("path.line,rect.bar,circle.dot"));
    var seen = shapes.filter(function (shape) {
      var style = getComputedStyle(shape), size = shape.getBoundingClientRect();
      return style.stroke + style.fill !== "nonenone" && size.width + size.height > 0;
    });
    return { width: box.width, height: box.height, right: box.right, shapes: seen.length };
  });
  var colours = getComputedStyle(page.body);
  document.body.textContent = JSON.stringify({
    figures: drawn,
    wide: page.documentElement.scrollWidth,
    followed: page.querySelectorAll("svg .cursor").length,
    plots: page.querySelectorAll("svg[data-tips]").length,
    paper: colours.backgroundColor,
    ink: colours.color
  });
});
</script>
"""
SCHEMES = {"light": "1", "dark": "0"}


def seen(page: Path, scheme: str, width: int, directory: Path) -> tuple[dict, list[str]]:
    """What the browser draws of a page at a width, and what it complains of. The page itself is not touched."""
    frame = directory / f"frame-{scheme}-{width}.html"
    frame.write_text(f'<body><iframe src="{page.name}" style="width:{width}px;height:900px;border:0"></iframe>{PROBE}')
    preferred = f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"
    command = [str(CHROMIUM), *OPTIONS, preferred, "--allow-file-access-from-files", "--window-size=1400,1000"]
    command += [f"--user-data-dir={directory / f'profile-{scheme}-{width}'}", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<body>(\{.*\})</body>", done.stdout)
    assert found, f"the probe wrote nothing; stderr: {done.stderr[-2000:]}"
    return json.loads(unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of a run with every kind of figure, and of two runs."""
    directory = tmp_path_factory.mktemp("pages")
    long, other = write_long_run(directory / "long"), write_run(directory / "other")
    assert main(["report", str(long), "--output", str(directory / "one.html")]) == 0
    assert main(["report", str(long), str(other), "--output", str(directory / "two.html")]) == 0
    return directory


@pytest.mark.parametrize(("name", "figures"), [("one.html", 14), ("two.html", 12)])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", PHONE)])
def test_every_figure_is_drawn_and_nothing_complains(pages, name, figures, scheme, width):
    found, complaints = seen(pages / name, scheme, width, pages)
    assert complaints == []
    assert len(found["figures"]) == figures
    assert all(each["width"] > 200 and each["height"] > 40 and each["shapes"] for each in found["figures"])
    assert found["wide"] <= width
    assert found["followed"] == found["plots"] > 0


def test_the_page_follows_the_reader_s_colour_scheme(pages):
    (light, _), (dark, _) = (seen(pages / "one.html", scheme, 800, pages) for scheme in SCHEMES)
    assert (light["paper"], dark["paper"]) == ("rgb(251, 251, 250)", "rgb(20, 23, 27)")
    assert (light["ink"], dark["ink"]) == ("rgb(31, 35, 40)", "rgb(228, 231, 235)")


def test_a_page_without_its_script_still_has_its_figures(pages):
    text = (pages / "one.html").read_text()
    still = pages / "still.html"
    still.write_text(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    found, _ = seen(still, "light", 1200, pages)
    assert found["followed"] == 0
    assert all(each["shapes"] for each in found["figures"])


def test_the_browser_refuses_whatever_a_page_would_load_or_run(pages):
    """Should foreign text ever become markup: its script does not run, and its image is not asked for."""
    text = (pages / "one.html").read_text()
    attacked = pages / "attacked.html"
    attack = "<img src='missing.png'><script>document.body.style.background = 'rgb(1, 2, 3)'</script>"
    attacked.write_text(text.replace("<main>", f"<main>{attack}", 1))
    found, complaints = seen(attacked, "light", 1200, pages)
    assert found["paper"] == "rgb(251, 251, 250)"
    assert len([line for line in complaints if "Content Security Policy" in line]) == 2


def test_the_probe_sees_a_figure_that_is_not_drawn(pages):
    text = (pages / "one.html").read_text()
    bare = pages / "bare.html"
    bare.write_text(text.replace('class="s0 line"', 'class="s0 line" display="none"'))
    found, _ = seen(bare, "light", 1200, pages)
    assert any(not each["shapes"] for each in found["figures"])
