"""Records which model fills a folder of masks, so that another model does not add its own.

Knows nothing of cases or masks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from voxtile.errors import OutputError
from voxtile.outputs.report import write_text
from voxtile.triton.types import ServedModel

RECORD = "voxtile-batch.json"


def claim_folder(outputs: Path, model: ServedModel, changes: Sequence[str]) -> None:
    """Makes the folder, and records the model in it.

    Args:
        outputs: the folder for masks.
        model: the model that fills it.
        changes: what is done otherwise than by the model's own semantics, in words.

    Raises:
        OutputError: it cannot be written, or another model, another build or other options have begun to fill it.
    """
    digest = hashlib.sha256(model.card_text.encode()).hexdigest()
    own = {"model": model.card.name, "card_sha256": digest, "changes": list(changes)}
    record = outputs / RECORD
    try:
        outputs.mkdir(parents=True, exist_ok=True)
        found = json.loads(record.read_text()) if record.exists() else own
    except (OSError, json.JSONDecodeError) as error:
        raise OutputError(f"{outputs}: expected a folder to write masks to ({error})") from None
    if found != own:
        raise OutputError(
            f"{outputs}: holds masks by {found.get('model')!r} of another build or with other options; "
            "choose another folder, or empty this one"
        )
    write_text(json.dumps(own, indent=2) + "\n", record)
