"""tritonserver's log: why a model or the server could not start."""

from __future__ import annotations

from voxtile_server.process import log as server_log

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
