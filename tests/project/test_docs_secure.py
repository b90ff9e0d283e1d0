"""docs/how-to/secure.md: its certificates work with the real server, and ours is the release that mends its faults."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support import pages
from tests.support import tiny_entries as tiny
from tests.support.commands import run
from tests.support.tls_server import make_authority, make_identity
from voxtile_build.engines.release import RELEASE
from voxtile_server.options import EMBEDDED_RELEASE

PAGE = (pages.ROOT / "docs" / "how-to" / "secure.md").read_text(encoding="utf-8")
COMMANDS = pages.commands(PAGE)
PLACE = "localhost:8001"


def rows() -> list[tuple[str, str, str]]:
    """Bulletin, release and faults of each row of the table of faults."""
    table = PAGE.partition("| bulletin | mended in |")[2].partition("\n\n")[0]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return [(bulletin, release, faults) for bulletin, release, faults, *_ in cells]


def test_every_fault_is_mended_in_the_release_of_the_containers_and_in_none_of_the_embedded_server() -> None:
    found = rows()
    assert len(found) > 15
    releases = [release for _, release, _ in found]
    assert all(re.fullmatch(r"2\d\.(0[1-9]|1[0-2])", release) for release in releases)
    assert releases == sorted(releases)
    assert min(releases) > EMBEDDED_RELEASE
    assert max(releases) <= RELEASE
    assert any(release == "26.07" for release in releases)  # the newest bulletin that we know


def test_no_fault_stands_twice() -> None:
    faults: list[str] = []
    for _, _, named in rows():
        year = ""
        for name in re.findall(r"(?:CVE-(\d{4})-)?(\d{5})\b", named):
            year = name[0] or year
            faults.append(f"{year}-{name[1]}")
    assert len(faults) == len(set(faults)) > 40


def test_every_image_in_the_project_is_of_that_release() -> None:
    deploy = [path for path in (pages.ROOT / "server" / "deploy").rglob("*") if path.is_file()]
    named = [
        release
        for path in [*deploy, pages.ROOT / "server" / "README.md", *(pages.ROOT / "docs" / "how-to").glob("*.md")]
        for release in re.findall(r"nvcr\.io/nvidia/\w+:(\d\d\.\d\d)-py3", path.read_text(encoding="utf-8"))
    ]
    assert len(named) > 6
    assert set(named) == {RELEASE}


def test_what_listens_by_default_is_what_the_page_says() -> None:
    compose = yaml.safe_load((pages.ROOT / "server/deploy/compose.yaml").read_text(encoding="utf-8"))
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    from voxtile_server.cli import DEFAULTS

    assert (DEFAULTS.host, DEFAULTS.grpc_port, DEFAULTS.http_port, DEFAULTS.metrics_port) == (
        "127.0.0.1", 8001, None, None,
    )  # fmt: skip
    assert "| `make serve`, `voxtile-server` | gRPC on 127.0.0.1:8001 |" in PAGE


# Certificates --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """The page's server, in the folder with the page's certificates."""

    url: str
    folder: Path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("secure")
    tiny.write_doubling(folder / "model_repository", "double")
    for command in COMMANDS:
        if command[0] == "openssl" and command[1] in ("req", "x509"):
            pages.run(command, folder)
    [server] = [command for command in COMMANDS if command[0] == "voxtile-server"]
    with pages.served(server, folder) as address:
        yield Running(address.replace("127.0.0.1", "localhost"), folder)


def client_words(running: Running) -> list[str]:
    """What the page's command gives `voxtile models`, with this server's address and whole paths."""
    [command] = [command for command in COMMANDS if command[:2] == ["voxtile", "models"]]
    words = [running.url if word == PLACE else word for word in command[1:]]
    return [str(running.folder / word) if word.endswith((".pem", ".key")) else word for word in words]


def test_the_pages_certificates_let_the_client_in_and_it_shares_memory(running: Running) -> None:
    done = run(*client_words(running))
    assert done.exit_code == 0, done.output
    doctor = run("doctor", *client_words(running)[1:])
    assert "a Triton server answers" in doctor.output


@pytest.mark.parametrize("kind", ["plain", "no certificate", "another authority's", "a server not trusted"])
def test_nobody_else_gets_in(running: Running, kind: str, tmp_path: Path) -> None:
    words = client_words(running)
    stranger = make_authority(tmp_path)
    other = make_identity(tmp_path, "other", stranger)
    match kind:
        case "plain":
            words = words[: words.index("--tls-ca")]
        case "no certificate":
            words = words[: words.index("--tls-cert")]
        case "another authority's":
            words[words.index("--tls-cert") + 1] = str(other.certificate)
            words[words.index("--tls-key") + 1] = str(other.key)
        case _:
            words[words.index("--tls-ca") + 1] = str(stranger.certificate)
    done = run(*words)
    assert done.exit_code != 0
    assert "no Triton server answers gRPC" in done.stderr
    assert "Traceback" not in done.output
    assert len(done.stderr.strip().splitlines()) == 1


def gateway(running: Running, *words: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "voxtile_server.gateway", "--port", "0", "--url", running.url, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_gateway_reaches_such_a_server_and_is_not_ready_without_its_certificate(running: Running) -> None:
    [words] = re.findall(r"`(--triton-ca ca\.pem [^`]+)`", PAGE.replace("\n", " "))
    files = [running.folder / word if word.endswith((".pem", ".key")) else word for word in words.split()]
    for given, status in ((files, "200"), ([], "503")):
        with gateway(running, *given) as process:
            try:
                assert process.stdout is not None
                address = re.search(r"listens on (\S+),", process.stdout.readline())
                assert address
                asked = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{address[1]}/health/ready"]
                assert subprocess.run(asked, capture_output=True, text=True).stdout == status
            finally:
                process.terminate()


def test_the_pages_gateway_asks_for_its_token_and_shows_its_certificate(running: Running) -> None:
    folder = running.folder
    [start] = [command for command in COMMANDS if command[0] == "voxtile-gateway"]
    for line in pages.shell_lines(PAGE):
        if "tokens.txt" in line and not line.startswith("voxtile"):
            subprocess.run(["sh", "-ec", line], cwd=folder, check=True)
    assert (folder / "tokens.txt").stat().st_mode & 0o777 == 0o600
    for kind in (".pem", ".key"):  # made as the server's
        shutil.copy(folder / f"server{kind}", folder / f"gateway{kind}")
    named = {PLACE: running.url, "0.0.0.0": "127.0.0.1"} | {name.name: str(name) for name in folder.iterdir()}
    triton = ["--triton-ca", "ca.pem", "--triton-certificate", "client.pem", "--triton-key", "client.key"]
    with gateway(running, *(named.get(word, word) for word in [*start[1:], *triton])) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"listens on \S+:(\d+),", process.stdout.readline())
            assert address
            url = f"https://localhost:{address[1]}/v1/models"

            def asked(*words: str) -> str:
                curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *words, url]
                return subprocess.run(curl, capture_output=True, text=True).stdout

            trusted, token = ("--cacert", str(folder / "ca.pem")), (folder / "tokens.txt").read_text().strip()
            assert asked(*trusted, "-H", f"Authorization: Bearer {token}") == "200"
            assert asked(*trusted) == asked(*trusted, "-H", f"Authorization: Bearer {token[:-1]}") == "401"
            assert asked("-H", f"Authorization: Bearer {token}") == "000"  # curl does not know the authority
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--triton-certificate", "client.pem"), "give the key too"),
        (("--triton-ca", "missing.pem"), "a file cannot be read"),
        (("--triton-ca", "client.key"), "expected the certificates of authorities as PEM"),
        (("--triton-certificate", "client.pem", "--triton-key", "server.key"), "a key of another certificate"),
        (("--triton-header", "no colon"), "expected NAME:VALUE"),
        (("--triton-header", "a b:c"), "expected a header's name"),
        (("--url", "localhost"), "expected HOST:PORT"),
    ],
)
def test_a_gateway_that_cannot_reach_triton_so_says_it_at_the_start(
    running: Running, words: tuple[str, ...], message: str
) -> None:
    whole = [running.folder / word if word.endswith((".pem", ".key")) else word for word in words]
    with gateway(running, *whole) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert message in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
