"""What a new process imports: that is to be little where nothing new is asked."""

import subprocess
import sys

from tl_pipeline.config.specs import EncoderSpec
from tl_pipeline.store.artifacts import Store

RESOLVE = """
import sys
from tl_pipeline.encoders import resolution as wishes
from tl_pipeline.store.artifacts import Store
from tl_pipeline.config.specs import EncoderSpec

spec, store = EncoderSpec.model_validate_json(sys.argv[1]), Store.open(sys.argv[2])
wishes.check_names(spec, store)
print(wishes.resolve(spec, store).key, *sys.modules)
"""


def resolved_elsewhere(spec: EncoderSpec, store: Store) -> tuple[str, set[str]]:
    """The key of ``spec``, and the modules that finding it took."""
    run = [sys.executable, "-c", RESOLVE, spec.model_dump_json(), str(store.root)]
    key, *modules = subprocess.check_output(run, text=True).split()
    return key, set(modules)
