"""tritonserver's log: why a model or the server could not start."""

from __future__ import annotations

from pathlib import Path

from voxtile_server.process import log as server_log
from voxtile_server.process.log import ServerLog

LOG = """\
I1122 04:05:30.793478 8093 model_lifecycle.cc:472] "loading: bad:1"
[libprotobuf ERROR text_format.cc:337] Error parsing text-format inference.ModelConfig: 1:7: Expected string, got: 3
E1122 04:05:30.793211 8093 model_repository_manager.cc:1460] "Poll failed for model directory 'garbled': failed to read text proto from /r/garbled/config.pbtxt"
E1122 04:05:31.359664 8093 model_lifecycle.cc:642] "failed to load 'bad' version 1: Internal: ConfigError: input \\"x\\" is wrong\\n\\nAt:\\n  /b/serving.py(74): initialize\\n"
E1122 04:05:31.376748 8093 model_repository_manager.cc:703] "Invalid argument: ensemble 'public' depends on 'bad' which has no loaded version. Model 'bad' loading failed with error: version 1 is at UNAVAILABLE state: Internal: …;"
I1122 04:05:31.376690 8093 model_lifecycle.cc:777] "failed to load 'bad'"
"""  # noqa: E501


def test_the_log_gives_each_model_its_reason() -> None:
    assert server_log.model_failures(LOG) == {
        "garbled": "failed to read text proto from /r/garbled/config.pbtxt (line:column 1:7: Expected string, got: 3)",
        "bad": 'ConfigError: input "x" is wrong',
        "public": "ensemble 'public' depends on 'bad' which has no loaded version.",
    }  # fmt: skip
    assert "public" not in server_log.explain(LOG)


def test_a_log_with_no_failed_model_gives_its_last_words() -> None:
    text = 'I1122 04:05:30.7 8093 server.cc:1] "fine"\nerror: Failed to create server\n'
    assert server_log.explain(text) == "its last words: error: Failed to create server"
    assert server_log.explain("") == "its last words: none"


def line(model: str, reason: str = "Internal: broken") -> bytes:
    return f"E1122 04:05:31.3 8093 a.cc:1] \"failed to load '{model}' version 1: {reason}\"\n".encode()


def test_only_what_was_appended_is_read(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "log")
    with log.open() as file:
        file.write(line("first"))
        file.flush()
        assert log.failures() == {"first": "broken"}
        # Whoever read this line again would find another model.
        (tmp_path / "log").write_bytes(line("other"))
        assert len(line("first")) == len(line("other"))
        file.write(line("second"))
        file.flush()
        assert log.failures() == {"first": "broken", "second": "broken"}
        assert log.failures() == {"first": "broken", "second": "broken"}


def test_a_line_counts_when_it_is_whole(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "log")
    whole = line("model", "größer")
    with log.open() as file:
        for position in range(len(whole)):
            assert log.failures() == {}
            file.write(whole[position : position + 1])
            file.flush()
        assert log.failures() == {"model": "größer"}


def test_a_reason_on_the_line_before_is_found_however_the_lines_come(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "log")
    with log.open() as file:
        for text in LOG.splitlines(keepends=True):
            file.write(text.encode())
            file.flush()
            log.failures()
    assert log.failures() == server_log.model_failures(LOG)


def test_a_new_run_does_not_see_the_failures_of_the_last(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "log")
    with log.open() as file:
        file.write(line("first"))
    assert log.failures() == {"first": "broken"}
    with log.open() as file:
        assert (log.failures(), log.text()) == ({}, "")
        file.write(line("second"))
    assert log.failures() == {"second": "broken"}
    assert (tmp_path / "log").read_bytes() == line("first") + line("second")


def test_without_a_run_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert (ServerLog(None).failures(), ServerLog(None).text()) == ({}, "")


def test_models_are_loaded_that_were_loaded_more_often_than_unloaded() -> None:
    """A model that is loaded anew is unloaded after that, in its old version."""

    def line(what: str, model: str, end: str = "") -> str:
        return f"I1129 16:31:56.950266 5329 model_lifecycle.cc:839] \"successfully {what} '{model}'{end}\"\n"

    log = line("loaded", "a") + line("loaded", "b") + line("loaded", "c-d.e_1")
    assert server_log.loaded_models(log) == ["a", "b", "c-d.e_1"]
    log += line("loaded", "a") + line("unloaded", "a", " version 1") + line("unloaded", "b", " version 1")
    assert server_log.loaded_models(log) == ["a", "c-d.e_1"]
    assert server_log.loaded_models("") == []
