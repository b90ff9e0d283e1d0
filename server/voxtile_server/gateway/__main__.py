"""`python -m voxtile_server.gateway` is `voxtile-gateway`."""

import sys

from voxtile_server.gateway.cli import main

sys.exit(main())
