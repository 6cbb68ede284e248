"""What a user asked for on the command line, and what it means as a run."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import ValidationError

from tl_pipeline.config import catalog
from tl_pipeline.config.encoder_specs import (
    ConcatSpec,
    parse_backbones,
    texts_of,
)
from tl_pipeline.config.finetune_specs import FinetuneSpec
from tl_pipeline.config.specs import (
    Choose,
    ChooseBy,
    Ensemble,
    HeadSpec,
    Method,
    RunSpec,
    SearchSpec,
    TuneSpec,
)
from tl_pipeline.errors import InvalidSpec

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]
StoreOption = Annotated[
    str,
    Parameter(
        name="--store",
        env_var="TL_STORE",
        help="All artifacts: a folder, or s3://BUCKET/NAME or gs://BUCKET/NAME.",
    ),
]
ConcatOption = Annotated[
    tuple[str, ...],
    Parameter(
        negative="",
        help="A,B: one candidate whose embedding is theirs side by side; repeatable.",
    ),
]
RegistryOption = Annotated[
    str | None,
    Parameter(
        name="--registry",
        env_var="MLFLOW_TRACKING_URI",
        help="An MLflow server, such as http://HOST:5000. Default: mlflow.db in the "
        "store.",
    ),
]
CatalogOption = Annotated[
    Path | None,
    Parameter(
        name="--catalog", env_var="TL_CATALOG", help="Default: ./data_catalog.yaml."
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class Request:
    """What to run, shared by ``run``, ``plan`` and ``serve``."""

    dataset: Annotated[str | None, Parameter(show_default=False)] = None
    """A name in the data catalogue, or a folder of images."""

    backbone: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    """NAME or NAME:layer=...,weights=...; repeat to compare."""

    concat: ConcatOption = ()

    head: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    """NAME or NAME:param=value; 0.1/1 is a grid; or quick, or thorough.
    Default: logistic and mlp."""

    finetune: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    """all, head or blocks=N, and what differs: blocks=2,epochs=5; repeat to compare.
    Each backbone is then also fine-tuned."""

    tune: Annotated[bool | str, Parameter(negative="")] = False
    """Compare sides, fits and pools of the backbones on a sample, and go on with the
    best: after DATASET, or --tune=side=96/128,pool=gap/grid2,images=2000,minutes=5."""

    search: str | None = None
    """cross_validation or validation, :folds=,strategy=,configurations=,refit="""

    ensemble: Ensemble | None = None
    """Also average the probabilities of heads: one candidate more."""

    calibration: Method | None = None
    """Of probabilities, by held-out images. Default: temperature."""

    error: float | None = None
    """How often prediction sets may miss, and accepted predictions be wrong: 0.05."""

    choose: Choose | None = None
    """Of candidates that cannot be told apart by held-out images. Default: cheaper."""

    choose_by: ChooseBy | None = None
    """The metric that compares candidates. Default: accuracy."""

    weights: str | None = None
    """Weights of the one backbone: a file, a torchvision name, or random:SEED."""

    config: Path | None = None
    """A YAML file with these fields; what is also given here wins."""

    controls: bool = True
    """Also run the untrained twins and the majority class."""

    seed: int | None = None
    """Of heads, controls and bootstrap."""

    part_rows: int | None = None
    """Images per embedding part file: the most that a crash loses."""

    verify: Annotated[bool, Parameter(negative="")] = False
    """Read every input again instead of trusting size and time."""

    store: StoreOption = "tl_store"
    registry: RegistryOption = None
    catalog: CatalogOption = None

    def spec(self) -> RunSpec:
        """The run that is asked for.

        Raises:
            InvalidSpec, CatalogError: it is not one; the message says why.
        """
        encoders = parse_backbones(self.backbone, self.concat)
        if self.weights:
            encoders = encoders or RunSpec(dataset="-").backbones
            if len(encoders) != 1 or isinstance(encoders[0], ConcatSpec):
                raise InvalidSpec(
                    "--weights is for one backbone; with several write "
                    "--backbone NAME:weights=FILE for each"
                )
            encoders = (encoders[0].model_copy(update={"weights": self.weights}),)
        given: dict[str, Any] = {
            "dataset": self.dataset,
            "backbones": encoders or None,
            "heads": tuple(map(HeadSpec.parse, self.head)) or None,
            "finetune": tuple(map(FinetuneSpec.parse, self.finetune)) or None,
            "tune": self._tune(),
            "search": SearchSpec.parse(self.search) if self.search else None,
            "ensemble": self.ensemble,
            "calibration": self.calibration,
            "error": self.error,
            "choose": self.choose,
            "choose_by": self.choose_by,
            "seed": self.seed,
            "part_rows": self.part_rows,
            "controls": None if self.controls else False,
        }
        if self.config:
            return catalog.load_run(self.config, **given)
        if self.dataset is None:
            raise InvalidSpec(
                "name a DATASET (see `tl catalog`) or a folder, or give --config FILE"
            )
        try:
            return RunSpec(**{name: v for name, v in given.items() if v is not None})
        except ValidationError as errors:
            fault = errors.errors()[0]
            option = str(fault["loc"][0]).replace("_", "-")
            raise InvalidSpec(f"--{option}: {fault['msg']}") from None

    def _tune(self) -> TuneSpec | None:
        if isinstance(self.tune, bool):
            # so that a mapping in --config stays what it is
            return TuneSpec() if self.tune and not self.config else None
        return TuneSpec.parse(self.tune)

    def parameters(self, spec: RunSpec) -> dict[str, Any]:
        """``spec`` and the rest of this request as parameters of the flow."""
        return {
            "dataset": spec.dataset,
            "backbones": list(map(texts_of, spec.backbones)),
            "heads": [head.short() for head in spec.heads],
            "finetune": [how.short() for how in spec.finetune],
            "tune": spec.tune.short() if spec.tune else False,
            "search": spec.search.short(),
            "ensemble": spec.ensemble,
            "controls": spec.controls,
            "calibration": spec.calibration,
            "error": spec.error,
            "choose": spec.choose,
            "choose_by": spec.choose_by,
            "seed": spec.seed,
            "part_rows": spec.part_rows,
            "verify": self.verify,
            "catalog": str(self.catalog) if self.catalog else None,
            "store": self.store,
        }


def use_registry(uri: str | None) -> None:
    """Let this process, and those that it starts, use the registry at ``uri``."""
    if uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
