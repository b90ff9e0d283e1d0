"""The gateway's page without a browser: its files, their headers, who may have them, its pure modules."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import voxtile
from tests.support.cards import card
from tests.support.gateways import Gateway, gateway
from voxtile.card import Card
from voxtile.outputs.page import pack
from voxtile.outputs.report import label_volumes
from voxtile_server.gateway.page.routes import PAGE, SHARED, STATIC

OWN = sorted(file for folder in (STATIC, SHARED) for file in folder.iterdir() if file.name != pack.PLACE.name)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with tokens; no Triton stands behind it."""
    pack.pack()
    root = tmp_path_factory.mktemp("gateway")
    tokens = root / "tokens.txt"
    tokens.write_text("one\n")
    with gateway(root / "run", "--url", "127.0.0.1:9", "--token-file", str(tokens)) as running:
        yield running


class Parts(HTMLParser):
    """What a page loads or links to, and what a strict policy would stop."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []
        self._in = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in = tag
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]
        self.inline += [name for name, _ in attrs if name == "style" or name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in in ("script", "style"):
            self.inline.append(data)


def test_the_page_needs_no_token_and_all_else_does(one: Gateway) -> None:
    for path in PAGE:
        assert one.curl(path)[0] == 200, path
        assert one.curl(path, "-I", "-o", "/dev/null")[0] == 200, path
    for path in (
        "/v1/models",
        "/openapi.json",
        "/metrics",
        "/page",
        "/page/",
        "/page/nothing.js",
        "//",
        "/page/../v1/models",
    ):
        assert one.error(path, "--path-as-is")[0] == 401, path


def test_nothing_beside_the_page_is_served(one: Gateway) -> None:
    known = ("--path-as-is", "-H", "Authorization: Bearer one")
    for path in (
        "/page/../routes.py",
        "/page/..%2froutes.py",
        "/page/%2e%2e/%2e%2e/app.py",
        "/page//etc/passwd",
        "/page/",
        "/page/x.js",
    ):
        assert one.error(path, *known)[0] == 404, path
    assert one.error("/", *known, "-X", "POST")[0] == 405


def test_every_file_has_the_policy_and_its_kind(one: Gateway) -> None:
    kinds = {
        ".js": "text/javascript",
        ".css": "text/css",
        ".svg": "image/svg+xml",
        ".html": "text/html",
        ".txt": "text/plain",
    }
    for path in PAGE:
        _, headers, _ = one.curl(path)
        assert headers["content-type"].startswith(kinds[Path(path).suffix or ".html"]), path
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["connect-src"].split()[0] == "'self'"
        assert not re.search(r"unsafe|\*|https?:", headers["content-security-policy"])
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert headers["cache-control"] == "no-cache"


def test_a_file_that_has_not_changed_is_not_sent_again(one: Gateway) -> None:
    path = f"/page/{pack.PLACE.name}"
    _, headers, body = one.curl(path)
    assert len(body) > 2_000_000
    status, again, body = one.curl(path, "-H", f"If-None-Match: {headers['etag']}")
    assert (status, body) == (304, b"")
    assert again["content-security-policy"]


def test_the_page_loads_its_own_files_by_relative_addresses_and_has_nothing_inline() -> None:
    parts = Parts()
    parts.feed((STATIC / "index.html").read_text(encoding="utf-8"))
    assert parts.inline == []
    assert len(parts.loaded) >= 4
    assert {f"/{address}" for address in parts.loaded} <= {*PAGE, "/openapi.json"}
    for file in OWN:
        text = file.read_text(encoding="utf-8")
        imported = re.findall(r"""(?:from |import\()["']([^"']+)""", text) if file.suffix == ".js" else []
        assert {f"/page/{address.removeprefix('./')}" for address in imported} <= set(PAGE), file
        assert not re.search(
            r"""innerHTML|eval\(|["'(]/(?:v1|page)|\.style\s*=|https?://(?!www\.w3\.org/2000/svg)""", text
        ), file


def test_a_gateway_without_niivue_says_what_to_do(tmp_path: Path) -> None:
    """A copy of the code, as a checkout has it where nothing was packed."""
    shutil.copytree(Path(voxtile.__file__).parent, tmp_path / "voxtile", ignore=shutil.ignore_patterns(pack.PLACE.name))
    ask = (
        "from voxtile.outputs.page import pack\nfrom voxtile_server.gateway.page import routes\nimport asyncio\n"
        f"assert str(pack.PLACE).startswith({str(tmp_path)!r})\n"
        "files = routes._Files(directory=routes.STATIC)\n"
        "try: asyncio.run(files.get_response('niivue.js', {'method': 'GET'}))\n"
        "except Exception as error: print(error.status, error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    run = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.startswith("404 ")
    assert pack.COMMAND in run.stdout


# The pure modules, run by Node


def node(module: str, call: str, *values: Any) -> Any:
    """What an expression over a module of the page gives; `values` are its v[0], v[1] …"""
    program = (
        f"import * as m from {json.dumps((STATIC / module).as_uri())};"
        f"const v = {json.dumps(values)};\nconsole.log(JSON.stringify({call}))"
    )
    run = subprocess.run(["node", "--input-type=module", "-e", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    ("names", "channels", "order"),
    [
        (["case_T2.nii.gz", "case_T1.nii.gz"], ["T1", "T2"], [1, 0]),
        (["a t1c.nii", "a-T1.NII.GZ", "a.flair.nii"], ["t1", "t1c", "FLAIR"], [1, 0, 2]),
        (["DOE T1 T2.nii", "DOE T1.nii"], ["T1", "T2"], None),
        (["t1.nii", "t1.nii"], ["T1", "T2"], None),
        (["t1.nii"], ["T1", "T2"], None),
        (["t11.nii", "t22.nii"], ["T1", "T2"], None),
        (["x late phase.nii", "x arterial.nii"], ["arterial", "late phase"], [1, 0]),
        (["0.nii", "1.nii"], ["", "1"], None),
        (["ct.nii.gz", "größe.nii.gz"], ["Größe", "CT"], [1, 0]),
    ],
)
def test_files_are_ordered_only_where_each_name_has_one_channel(
    names: list[str], channels: list[str], order: list[int] | None
) -> None:
    files = [{"name": name, "at": at} for at, name in enumerate(names)]
    found = node("channels.js", "m.ordered(v[0], v[1])", files, channels)
    assert (found and [file["at"] for file in found]) == order


def test_structures_are_named_as_the_report_names_them_and_coloured_apart() -> None:
    labels = [("background", 0), ("left", 3), ("whole", 7), ("core", 3), *((f"rib {n}", 10 + n) for n in range(60))]
    described = card(labels=[{"name": name, "value": value} for name, value in labels], regions=True)
    described["output"] = {"kind": "logits", "dtype": "fp32", "scores": len(labels)}
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[0], mask[1, 0] = 3, 7
    volumes = label_volumes(mask, 0.5, Card.model_validate(described))
    report = {"labels": {name: volume.model_dump() for name, volume in volumes.items()}}
    rows = node("labels.js", "m.rows(v[0], v[1])", described, report)
    assert {row["name"] for row in rows} == set(report["labels"]) - {"background"}
    assert {row["value"]: row["voxels"] for row in rows if row["voxels"]} == {3: 30, 7: 6}
    assert next(row for row in rows if row["value"] == 3)["ml"] == 15
    colours = np.array([row["colour"] for row in rows])
    assert ((colours >= 0) & (colours <= 255)).all()
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(len(colours), dtype=int)
    assert apart.min() > 8
    table = node("labels.js", "m.colormap(v[0])", described)
    assert table["I"] == sorted({value for _, value in labels})
    assert (table["A"][0], set(table["A"][1:])) == (0, {255})
    assert {(row["value"], tuple(row["colour"])) for row in rows} == set(
        zip(table["I"][1:], zip(table["R"][1:], table["G"][1:], table["B"][1:], strict=True), strict=True)
    )


def test_events_are_read_whole_however_they_are_cut() -> None:
    rng = np.random.default_rng(7)
    texts = ["", "a: b", "data: {}", "größe\n\n", '"', "\\n\\n"]
    cases = []
    for _ in range(60):
        chosen = [texts[at] for at in rng.integers(0, len(texts), rng.integers(0, 5))]
        stream = "".join(f"event: running\ndata: {json.dumps({'error': text})}\n\n" for text in chosen)
        ends = sorted(rng.integers(0, len(stream) + 1, rng.integers(0, 7)).tolist())
        cases.append((stream, [*ends, len(stream)], chosen))
    call = """v[0].map(([stream, ends]) => {
        let read = 0;
        const got = [];
        for (const end of ends) {
            const found = m.eventsIn(stream.slice(read, end));
            read += found.length;
            got.push(...found.jobs);
        }
        return got.map(job => job.error);
    })"""
    assert node("gateway.js", call, cases) == [chosen for *_, chosen in cases]


def test_steps_say_what_is_known_and_never_go_back() -> None:
    states: list[dict[str, Any]] = [
        {"sent": 0}, {"sent": 0.5}, {"sent": 1}, {"state": "waiting", "progress": 0},
        {"state": "running", "progress": 0}, {"state": "running", "progress": 0.25},
        {"state": "running", "progress": 1}, {"state": "done", "progress": 1},
    ]  # fmt: skip
    steps = node("steps.js", "v[0].map(state => m.step(state, 30000))", states)
    assert [step["share"] for step in steps] == [0, 0.5, None, None, None, 0.25, 1, 1]
    assert all(step["name"] for step in steps)
    assert steps[5]["detail"] == ": 25 %, about 2 minutes left"  # a quarter took half a minute
    assert node("steps.js", "m.step(v[0], 1000).detail", states[5]) == ": 25 %"


@pytest.mark.parametrize(
    ("text", "said"), [('{"error": "our line"}', "our line"), ("<h1>Bad Gateway</h1>", "502"), ("{}", "502")]
)
def test_a_line_is_told_whoever_answered(text: str, said: str) -> None:
    assert said in node("gateway.js", "m.refusal(502, v[0]).message", text)
