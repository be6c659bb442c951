"""`python -m nomoat.cli`: the same as `nomoat`."""

from __future__ import annotations

import sys

from nomoat.cli.entry import main

sys.exit(main())
