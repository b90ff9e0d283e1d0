"""The listener's manual names every key of its settings, with its default, and its example is one that is taken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from voxtile_server.listener.settings import Complete, Keep, Limits, Listen, PacsSettings, Rule, Settings, load_settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "listener.md").read_text()
UNIT = ROOT / "server" / "deploy" / "voxtile-listener.service"


def table(name: str) -> dict[str, str]:
    """The rows of the table of `name`, by each key in them."""
    _, _, rest = PAGE.partition(f"| key of `[{name}]` |")
    assert rest
    rows = rest.partition("\n\n")[0].splitlines()[2:]
    return {key: row for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("listen", Listen), ("complete", Complete), ("limits", Limits), ("keep", Keep), ("pacs.NAME", PacsSettings),
     ("[rule]", Rule)],
)  # fmt: skip
def test_every_key_is_there(name: str, kind: type[BaseModel]) -> None:
    rows = table(name)
    assert {*rows} == {*kind.model_fields}
    for key, field in kind.model_fields.items():
        if isinstance(field.default, int | float) and kind not in (Rule, PacsSettings):
            default = str(field.default).lower() if isinstance(field.default, bool) else f"{field.default:g}"
            assert default in rows[key], key


def test_the_example_is_taken(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "listener.toml").write_text(example)
    settings = load_settings(tmp_path / "listener.toml")
    assert [rule.kinds for rule in settings.rule] == [("seg", "sr"), ("seg",)]
    assert {*Settings.model_fields} - {"audit"} <= {
        *re.findall(r"^(?:\[+)?(\w+)", example, re.MULTILINE),
        "limits",
        "keep",
    }
    assert "file that `audit` names" in PAGE


def test_the_unit_starts_the_command_with_the_spool_of_the_example() -> None:
    unit = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if re.match(r"\w+=", line))
    assert unit["ExecStart"].split("/")[-1] == "listener.toml"
    assert "/bin/voxtile-listener " in unit["ExecStart"]
    assert f'spool = "/var/lib/{unit["StateDirectory"]}"' in PAGE
