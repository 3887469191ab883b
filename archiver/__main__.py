"""`python -m archiver VERB …` is the same as `marpress VERB …`."""

import sys

from archiver.cli import main

sys.exit(main())
