"""`python -m voxtile_server.listener` is `voxtile-listener`."""

import sys

from voxtile_server.listener.cli import main

sys.exit(main())
