"""`python -m voxtile_build`."""

import sys

from voxtile_build.cli import main

sys.exit(main())
