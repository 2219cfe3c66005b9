"""``python scripts/convert.py ...`` is ``python -m conversion ...``."""

import sys

from conversion.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
