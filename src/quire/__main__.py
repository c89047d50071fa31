"""``python -m quire`` is ``quire``."""

import sys

from quire.cli.main import main

sys.exit(main())
