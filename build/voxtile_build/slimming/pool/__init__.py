"""The pool of patches: cut out of unlabelled scans, changed as other scanners would, labelled once by the teacher."""

from voxtile_build.slimming.pool.labeller import Labeller as Labeller
from voxtile_build.slimming.pool.layout import FEWEST as FEWEST
from voxtile_build.slimming.pool.layout import Layout as Layout
from voxtile_build.slimming.pool.layout import check_room as check_room
from voxtile_build.slimming.pool.layout import patches_within as patches_within
from voxtile_build.slimming.pool.layout import wanted_patches as wanted_patches
from voxtile_build.slimming.pool.pool import Pool as Pool
