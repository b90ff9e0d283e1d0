"""Lists the tiling rules. A new one is a module of this package, its line here and its name in `voxtile.card`."""

from voxtile.tiling.rules.base import TilingRule
from voxtile.tiling.rules.monai import MONAI
from voxtile.tiling.rules.nnunet import NNUNET

RULES: dict[str, TilingRule] = {rule.name: rule for rule in (MONAI, NNUNET)}
