"""`python -m mimicdet_runtime`: the command `mimicdet` where no script is installed."""

from .cli import main

raise SystemExit(main())
