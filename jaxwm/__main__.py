"""`python -m jaxwm`, the same as `jaxwm`."""

import sys

from jaxwm.cli import main

sys.exit(main())
