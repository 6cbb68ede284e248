"""``python -m tl_pipeline.cli``: the command ``tl``."""

from tl_pipeline.cli.main import main

main()
