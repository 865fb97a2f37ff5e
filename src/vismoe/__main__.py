"""`python -m vismoe` is the `vismoe` command."""

import sys

from vismoe.cli import main

sys.exit(main())
