"""`python -m isanet_zoo`."""

import sys

from isanet_zoo.cli import main

sys.exit(main())
