"""The pages: every command is one, every key has a meaning, and the site is built strictly and needs no network."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import voxtile
from docs.generate.links import relocate
from docs.generate.pages import GENERATED, INCLUDED, titles
from docs.generate.programs import PROGRAMS, commands_of, parse
from voxtile_build.engines.release import RELEASE

ROOT = Path(__file__).parents[2]
PAGES = sorted({*ROOT.glob("docs/**/*.md"), *(ROOT / source for source in INCLUDED.values())})
LANGUAGES_OF_COMMANDS = ("", "sh", "console")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def command_lines() -> list[tuple[str, str]]:
    """Every line of a block of commands that calls one of the three programs, with its page."""
    found = []
    for page in PAGES:
        fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
        blocks = [block for language, block in fenced if language in LANGUAGES_OF_COMMANDS]
        blocks += re.findall(r"(?:^    .*\n)+", text_of(page), re.MULTILINE)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            words = line.partition(" #")[0].strip()
            if words.removeprefix(".venv/bin/").split(" ")[0] in PROGRAMS:
                found.append((str(page.relative_to(ROOT)), words.removeprefix(".venv/bin/")))
    return found


def mentions() -> list[tuple[str, str]]:
    """Every command that a sentence names as code, with its page."""
    programs = "|".join(sorted(PROGRAMS, key=len, reverse=True))
    return [
        (str(page.relative_to(ROOT)), " ".join(words.split()))
        for page in PAGES
        for words in re.findall(rf"(?<!`)`((?:{programs})\s[^`]+)`", text_of(page))
    ]


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_every_command_line_parses(page: str, line: str) -> None:
    parse(shlex.split(line))


@pytest.mark.parametrize(("page", "words"), mentions())
def test_every_command_in_a_sentence_exists(page: str, words: str) -> None:
    program, *rest = words.split()
    name = f"{program} {rest[0]}" if len(commands_of(program)) > 1 and not rest[0].startswith("-") else program
    command = {command.name: command for command in commands_of(program)}[name]
    options = {option for parameter in command.parameters for option in parameter.names.split(", ")}
    assert {word for word in rest if word.startswith("--")} - {"--"} <= options | {"--help"}


def test_pages_hold_command_lines() -> None:
    """The tests above look at something."""
    assert len(command_lines()) > 20
    assert len(mentions()) > 10


def test_a_wrong_command_line_is_refused() -> None:
    for line in ("voxtile segment", "voxtile sing", "voxtile-build spec a.toml --wrong", "voxtile-server --wrong 1"):
        with pytest.raises(ValueError, match=r"\S"):
            parse(shlex.split(line))


@pytest.mark.parametrize("place", sorted(GENERATED))
def test_every_row_of_a_generated_page_has_a_meaning(place: str) -> None:
    page = GENERATED[place]()
    column = next((head for head in ("meaning", "what it is for") if f"| {head} |" in page), None)
    position = None
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if column in cells:
            position = cells.index(column)
        elif not line.startswith("|"):
            position = None
        elif position is not None:
            assert cells[position], f"{place}: {line}"


def test_generated_page_is_printed() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "docs.generate", "exit-codes"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed == GENERATED["reference/exit-codes.md"]()


def test_site_is_built_strictly_and_needs_no_network(tmp_path: Path) -> None:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {*GENERATED, *INCLUDED} <= {f"{page.relative_to(tmp_path).with_suffix('')}.md" for page in pages}
    loaded = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(https?:[^\" >]*)")
    assert not [(page.name, url) for page in pages for url in loaded.findall(text_of(page))]
    assert not list(tmp_path.rglob("*.py"))


def python_calls() -> list[tuple[str, str, str]]:
    """Every `voxtile.NAME(…)` on a page: the page, the name and the arguments."""
    call = re.compile(r"\bvoxtile\.([A-Za-z]\w*)\(([^()]*)\)")
    return [(str(page.relative_to(ROOT)), *found) for page in PAGES for found in call.findall(text_of(page))]


@pytest.mark.parametrize(("page", "name", "arguments"), python_calls())
def test_every_python_call_names_what_exists(page: str, name: str, arguments: str) -> None:
    parameters = inspect.signature(getattr(voxtile, name)).parameters
    assert set(re.findall(r"(\w+)=", arguments)) <= set(parameters)


def test_the_gpu_page_names_the_releases_that_the_code_names() -> None:
    page = text_of(ROOT / "docs/how-to/gpu.md")
    assert set(re.findall(r"\b2\d\.\d\d\b", page)) == {RELEASE}


CONTRIBUTING = sorted((ROOT / "docs/contributing").glob("*.md"))
MOST_FILES = 3


@pytest.mark.parametrize("page", CONTRIBUTING, ids=lambda page: page.stem)
def test_contributing_page_names_at_most_three_files_that_exist(page: Path) -> None:
    section = text_of(page).partition("\n## Files to touch\n")[2].partition("\n## ")[0]
    named = re.findall(r"^- (new: )?`([^`]+)`", section, re.MULTILINE)
    assert 0 < len(named) <= MOST_FILES
    for new, path in named:
        assert (ROOT / path).exists() is not bool(new), path
        assert not new or (ROOT / path).parent.exists() or (ROOT / path).parents[1].exists(), path
    placeholders = re.compile(r"[A-Z]{4,}")
    for path in re.findall(r"`((?:client|build|server|tests|docs)/[\w./]+\.\w+)`", text_of(page)):
        assert (ROOT / path).exists() or placeholders.search(path), path


# Links: a reader of the clone follows them as they stand, and the site moves them


def tracked() -> list[str]:
    """The files of the repository; of a copy without git, all that no command has made."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout.splitlines()
    made = {".venv", "out", "__pycache__"}
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [str(path) for path in files if not made & set(path.parts)]


TRACKED = tracked()
TARGET = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def links() -> list[tuple[str, str]]:
    """Every link of a page or notebook of the repository that leads to no other machine."""
    found = []
    for page in TRACKED:
        if not page.endswith((".md", ".ipynb")):
            continue
        text = re.sub(r"^```.*?^```$", "", text_of(ROOT / page), flags=re.MULTILINE | re.DOTALL)
        found += [(page, target) for target in TARGET.findall(text) if ":" not in target]
    return found


def anchors(page: Path) -> set[str]:
    """What a heading of a page can be linked by."""
    kept = [re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in HEADING.findall(text_of(page))]
    return {re.sub(r"\s", "-", heading) for heading in kept}


@pytest.mark.parametrize(("page", "target"), sorted(set(links())))
def test_every_link_leads_to_a_file_of_the_clone(page: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    there = (ROOT / page).parent / path if path else ROOT / page
    assert there.exists(), f"{page} links to {target}, which is not in the clone; name the page: the page *Title*"
    place = os.path.relpath(there.resolve(), ROOT)
    assert any(one == place or one.startswith(f"{place}/") for one in TRACKED), f"{target} is not in the repository"
    assert not anchor or anchor in anchors(there), f"{page} links to {target}, a heading that is not there"


def test_links_are_many() -> None:
    assert len(links()) > 80


NAMED_PAGES = [
    (str(page.relative_to(ROOT)), title) for page in PAGES for title in re.findall(r"\bpage \*([^*]+)\*", text_of(page))
]


@pytest.mark.parametrize(("page", "title"), NAMED_PAGES)
def test_a_page_that_is_named_is_one_of_the_site(page: str, title: str) -> None:
    assert title in titles(), page


def test_a_page_that_is_named_is_a_link_in_the_site() -> None:
    assert NAMED_PAGES
    text = "see the page *Commands* and the page *No such*\n```\npage *Commands*\n```\n"
    moved = relocate(text, "docs/how-to/any.md", "how-to/any.md", INCLUDED, titles())
    assert moved == text.replace("page *Commands* and", "page [Commands](../reference/cli.md) and")


@pytest.mark.parametrize("folder", ["client/voxtile", "build/voxtile_build", "server/voxtile_server", "models"])
def test_pages_that_programs_name_are_in_the_clone(folder: str) -> None:
    for file in (ROOT / folder).rglob("*.py"):
        for path in re.findall(r"\b(?:docs|models)/[\w/-]+\.md\b", text_of(file)):
            assert (ROOT / path).exists() or "NAME" in path, f"{file} names {path}"
