"""`python -m isanet_zoo`."""

import sys

from isanet_zoo.commands.main import main

sys.exit(main())
