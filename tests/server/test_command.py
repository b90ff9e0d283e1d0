"""`voxtile-server`: what it says, how it ends, and what it leaves (nothing)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import psutil
import pytest

from tests.support import tiny_entries as tiny
from tests.support.numpy_metadata import copy_metadata
from tests.support.served_processes import GONE_WITHIN_S, all_gone, doubled, eventually, family, regions
from voxtile_server import __version__
from voxtile_server.cli import command_parser, main
from voxtile_server.options import ServerOptions

ROOT = Path(__file__).parents[2]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "voxtile_server", *map(str, arguments)]


def free_ports() -> list[str]:
    return ["--grpc-port", "0"]


def refused(*arguments: str | Path, **environment: str) -> str:
    """The one line with which the command ends at once."""
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert line.startswith("error: ")
    return line


def test_bad_input_ends_with_one_line(tmp_path: Path, repository: Path) -> None:
    assert "does not exist" in refused("--repository", tmp_path / "missing")
    assert "asked for twice, by --http-port and --grpc-port" in refused(
        "--repository", repository, "--http-port", "8123", "--grpc-port", "8123"
    )
    assert "--host: 203.0.113.7 is not an address" in refused("--repository", repository, "--host", "203.0.113.7")
    copy_metadata("numpy", tmp_path)
    assert "it needs numpy<2" in refused("--repository", repository, *free_ports(), "--engines", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repositry", "models"], "no such option: --repositry (did you mean --repository?)"),
        ([], "the following arguments are required: --repository"),
        (["--repository", "models", "--http-port", "http"], "argument --http-port: invalid int value: 'http'"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"voxtile-server: error: {said}; see voxtile-server --help\n"


def test_what_stands_after_two_hyphens_is_tritons() -> None:
    parsed = command_parser().parse_args(["--repository", "models", "--", "--log-verbose=1"])
    assert parsed.triton_arguments == ["--log-verbose=1"]


def test_a_failed_download_says_what_failed(tmp_path: Path, repository: Path) -> None:
    line = refused("--repository", repository, *free_ports(), VOXTILE_CACHE=str(tmp_path), PIP_NO_INDEX="1",
                   PIP_FIND_LINKS=str(tmp_path))  # fmt: skip
    assert "pip could not fetch nvidia-pytriton==0.7.0: " in line
    assert "check the network" in line
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_the_cache_is_filled_once(cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "voxtile_server.install.fetch"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "file").touch()
    line = refused("--repository", repository, *free_ports(), VOXTILE_CACHE=str(tmp_path / "file"))
    assert "cannot make the cache folder" in line
    assert "set VOXTILE_CACHE" in line
    line = refused("--repository", repository, *free_ports(), VOXTILE_CACHE=str(tmp_path / "$(two words)"))
    assert "set VOXTILE_CACHE to a path of letters" in line


def test_a_broken_config_is_told(tmp_path: Path) -> None:
    (tiny.write_doubling(tmp_path, "garbled") / "config.pbtxt").write_text("name: 3 three")
    line = refused("--repository", tmp_path, *free_ports())
    assert "model 'garbled': failed to read text proto" in line
    assert "1:7: Expected string, got: 3" in line


def test_options_that_cannot_be_are_refused_by_name(repository: Path) -> None:
    for words, message in (
        (["--threads", "0"], "--threads: expected a whole number from 1, got 0"),
        (["--ready-timeout", "-1"], "--ready-timeout: expected seconds above 0, got -1"),
        (["--load-model", "double"], "--load-model has a meaning only with --model-control-mode explicit"),
        (["more"], "'more' is not an option of tritonserver; they stand after -- and begin with --"),
    ):
        assert message in refused("--repository", repository, *free_ports(), *words)


def test_help_and_version_are_told() -> None:
    told = {
        word: subprocess.run(command(word), cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
        for word in ("--help", "--version")
    }
    assert told["--version"] == f"voxtile-server {__version__}\n"
    for field in get_type_hints(ServerOptions, include_extras=True).values():
        assert all(option.flag in told["--help"] for option in getattr(field, "__metadata__", ()))


def test_the_readme_explains_every_option_and_no_other() -> None:
    readme = (ROOT / "server" / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| option |")[2].partition("\n\n")[0]
    explained = {flag for row in table.splitlines() for flag in re.findall(r"--[a-z][a-z-]+", row.partition(" | ")[0])}
    told = subprocess.run(command("--help"), cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert explained == set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", told, re.MULTILINE)) - {"--help"}


def test_an_unknown_option_ends_with_code_2(repository: Path) -> None:
    for words in (
        (),
        ("--repository", str(repository), "--portt", "1"),
        ("--repository", str(repository), "--threads", "x"),
    ):
        done = subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, "")
        [line] = done.stderr.splitlines()
        assert line.startswith("voxtile-server: ")
        assert line.endswith("see voxtile-server --help")


# --- a command while the server is up -----------------------------------------------------------------


def test_a_command_runs_while_the_server_is_up(repository: Path) -> None:
    code = "import os, sys; print(os.environ['VOXTILE_URL']); sys.exit(7)"
    line = [sys.executable, "-m", "voxtile_server.run_with", "--repository", str(repository), "--"]
    done = subprocess.run([*line, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (7, "")
    assert re.fullmatch(r"127\.0\.0\.1:\d+\n", done.stdout)
    done = subprocess.run([*line, "no-such-program"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (
        2,
        "error: there is no program 'no-such-program' to run; give one after --\n",
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_schedulers_signal_ends_the_command_in_order_and_then_the_server(
    repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    code = (
        "import pathlib, signal, socket, os, sys\n"
        "host, port = os.environ['VOXTILE_URL'].split(':')\n"
        "def end(*_):\n"
        "    socket.create_connection((host, int(port)), 5).close()\n"
        "    sys.exit(75)\n"
        f"signal.signal({int(number)}, end)\n"
        f"pathlib.Path({str(tmp_path / 'began')!r}).touch()\n"
        "while True: signal.pause()\n"
    )
    line = [sys.executable, "-m", "voxtile_server.run_with", "--repository", str(repository), "--"]
    with subprocess.Popen([*line, sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert eventually((tmp_path / "began").exists, 120)
        process.send_signal(number)
        assert process.wait(60) == 75
        assert process.stderr is not None
        assert process.stderr.read() == ""


# --- the foreground -----------------------------------------------------------------------------------


@contextlib.contextmanager
def foreground(repository: Path, ready_file: Path) -> Iterator[subprocess.Popen[str]]:
    arguments = command("--repository", repository, *free_ports(), "--ready-file", ready_file)
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(ready_file: Path) -> dict[str, Any]:
    assert eventually(ready_file.exists)
    facts: dict[str, Any] = json.loads(ready_file.read_text())
    return facts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_tells_where_it_listens_and_ends_when_asked(
    repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with foreground(repository, tmp_path / "ready.json") as process:
        facts = wait_for(tmp_path / "ready.json")
        assert doubled(facts["grpc_url"])
        assert facts["models"] == ["double"]
        processes = family(facts["pid"])
        process.send_signal(number)
        out, err = process.communicate(timeout=GONE_WITHIN_S)
    assert process.returncode == 0
    assert err == f"loading double from {repository}; large models take minutes\n", "told while nobody can ask yet"
    for said in (facts["grpc_url"], "double", str(facts["pid"]), "HTTP     off", "for development"):
        assert said in out
    assert (facts["http_url"], facts["metrics_url"]) == (None, None)
    assert all_gone(processes)
    assert not regions(process.pid)
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_with_its_parent(repository: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    arguments = command("--repository", repository, *free_ports(), "--ready-file", ready)
    code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL) as parent:
        facts = wait_for(ready)
        processes = [*family(facts["pid"]), *psutil.Process(parent.pid).children()]
        parent.kill()
    assert all_gone(processes)
    assert eventually(lambda: list(tmp_path.iterdir()) == [])


def test_an_interrupt_while_loading_leaves_nothing(slow: Path, tmp_path: Path) -> None:
    with foreground(slow, tmp_path / "ready.json") as process:
        children: list[psutil.Process] = []

        def has_stub() -> bool:
            children[:] = psutil.Process(process.pid).children(recursive=True)
            return any("stub" in child.name() for child in children)

        assert eventually(has_stub)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=GONE_WITHIN_S)
    assert process.returncode == 0
    assert all_gone(children)
    assert not regions(process.pid)


def test_the_command_says_when_tritonserver_has_died(repository: Path, tmp_path: Path) -> None:
    with foreground(repository, tmp_path / "ready.json") as process:
        os.kill(wait_for(tmp_path / "ready.json")["pid"], signal.SIGKILL)
        _, err = process.communicate(timeout=GONE_WITHIN_S)
    assert process.returncode == 1
    assert f"tritonserver ended with code {128 + signal.SIGKILL}" in err
