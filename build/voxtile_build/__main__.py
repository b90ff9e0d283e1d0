"""`python -m voxtile_build`."""

import sys

from voxtile_build.cli.commands import main

sys.exit(main())
