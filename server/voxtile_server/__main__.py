"""`python -m voxtile_server`."""

import sys

from voxtile_server.cli import main

sys.exit(main())
