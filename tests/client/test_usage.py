"""A wrong command line is told in one line, with what may have been meant and where help is."""

from __future__ import annotations

import pytest

from tests.support.commands import run
from voxtile_server.gateway.cli import main as gateway

SEGMENT = ("segment", "scan.nii.gz", "--output", "mask.nii.gz", "--model", "brain")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            (*SEGMENT, "--overlpa", "0.5"),
            "No such option: --overlpa (did you mean --overlap?); see voxtile segment",
        ),
        (("segment", "scan.nii.gz", "--outptu", "mask.nii.gz"), "--outptu (did you mean --output?)"),
        (("segmnet", "scan.nii.gz"), "No such command 'segmnet' (did you mean 'segment'?); see voxtile --help"),
        (("segment",), "Missing argument 'SCAN...'; see voxtile segment --help"),
        (("segment", "scan.nii.gz", "--model", "brain"), "Missing option '--output'"),
        ((*SEGMENT, "--overlap", "half"), "'--overlap': expected a number; see"),
        ((*SEGMENT, "--sw-batch-size", "1.5"), "'--sw-batch-size': expected a number; see"),
        ((*SEGMENT, "--in-flight", "0"), "'--in-flight': expected a number greater than or equal to 1; see"),
        ((*SEGMENT, "--mode", "linear"), "'--mode': 'linear' is not one of 'constant', 'gaussian'; see"),
        ((*SEGMENT, "--spacing", "1", "2"), "'--spacing' requires 3 arguments"),
        ((*SEGMENT, "--header", "no-colon"), "--header is NAME:VALUE, found 'no-colon'; see voxtile segment --help"),
        (("models", "--quite-else"), "No such option: --quite-else; see voxtile models --help"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.startswith("voxtile: ")
    assert done.stderr.count("\n") == 1
    assert "pydantic" not in done.stderr.lower()
    assert "Input should" not in done.stderr


def test_a_command_that_is_given_nothing_shows_its_help() -> None:
    done = run()
    assert done.exit_code == 2
    assert "Usage: voxtile" in done.output
    assert "segment" in done.output


def test_the_end_of_a_command_keeps_its_code() -> None:
    assert run("--version").exit_code == 0
    assert run("models", "--url", "localhost:1").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--prot", "3"),
            "no such option: --prot (did you mean --port?); see voxtile-gateway --help\n",
        ),
        (
            ("--port", "http"),
            "argument --port: invalid int value: 'http'; see voxtile-gateway --help\n",
        ),
        (("--max-uplaod=3",), "no such option: --max-uplaod (did you mean --max-upload?); see"),
    ],
)
def test_a_wrong_line_of_the_gateway_is_one_too(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gateway(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"voxtile-gateway: error: {said}")
    assert told.count("\n") == 1
