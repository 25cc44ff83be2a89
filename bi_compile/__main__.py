"""`python -m bi_compile`."""

import sys

from bi_compile.cli import main

if __name__ == "__main__":
    sys.exit(main())
