"""Lists the outputs that a mask can have beside it. A new one is a module of this package and its line here."""

from voxtile.outputs.base import Output
from voxtile.outputs.page.page import PAGE
from voxtile.outputs.preview import PREVIEW
from voxtile.outputs.probabilities import PROBABILITIES
from voxtile.outputs.regions import REGIONS

OUTPUTS: tuple[Output, ...] = (PREVIEW, PAGE, PROBABILITIES, REGIONS)
