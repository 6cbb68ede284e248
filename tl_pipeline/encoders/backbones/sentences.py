"""Networks of texts, ``text:NAME``, as the library sentence-transformers keeps them.

NAME is a folder, or a name on the Hugging Face hub, which is looked for in the hub's
cache on this machine; where it lies is no part of what it is. A network is
known by the last part of its name and by the bytes of its files: settings, tokenizer
and weights of every module. Weights must be safetensors: pickles may hold code. A
folder without ``modules.json`` (BERT, GPT-2) is read as the library does: the mean of
the last layer's tokens.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_pipeline.encoders.backbones.backbone import Backbone, Identified, Layer
from tl_pipeline.errors import InvalidSpec, WeightsError
from tl_pipeline.inputs.modalities import Input
from tl_pipeline.inputs.texts import TextInput

if TYPE_CHECKING:
    import torch

CHOICE: str = "text:NAME"
NO_BASELINE: str = ""
_PREFIX = "text:"
_LAYER = Layer("sentence_embedding")
_OWN = "own"
_WEIGHTS = ".safetensors"
_SETTINGS = (".json", ".txt", ".model", ".bpe")
_PICKLES = (".bin", ".pt", ".pth")
_LIBRARY = "sentence_transformers."
# Of the hub's names without an owner, as the library reads them.
_OWNER = "sentence-transformers"


def find(name: str) -> Backbone | None:
    """``text:NAME``, not looked for yet."""
    asked = name.removeprefix(_PREFIX)
    if asked == name or not asked:
        return None
    short = asked.rstrip("/").rpartition("/")[2]
    return Backbone(
        f"{_PREFIX}{short}",
        {"sentence": _LAYER},
        weights=asked,
        origin="text",
        modality="text",
    )


def identify(
    backbone: Backbone, seed: int | None, sha256: Callable[[Path], str]
) -> Identified:
    """The network in its folder.

    Raises:
        InvalidSpec: sentence-transformers is not installed, or would not read it.
        WeightsError: it is not on disk, or its weights are pickles.
    """
    _check_installed(backbone)
    place = _place(backbone.weights)
    if place is None:
        raise WeightsError(_missing(backbone))
    settings, weights = _files(place)
    how = TextInput(
        max_tokens=_max_tokens(place),
        pooling=_pooling(place),
        normalise=any(kind.endswith("Normalize") for kind, _ in _modules(place)),
    )
    if seed is None:
        return Identified(_OWN, _digest(place, settings + weights, sha256), place, how)
    versions = [f"{p} {metadata.version(p)}" for p in ("torch", "transformers")]
    drawn = f"random:{seed} {versions} {_digest(place, settings, sha256)}"
    told = hashlib.sha256(drawn.encode()).hexdigest()
    return Identified(f"random:{seed}", told, place, how)


def fetch(backbone: Backbone) -> None:
    """Download it into the hub's cache by the hub's own loader if it is missing.

    Raises:
        WeightsError: it is a folder that is not there, or cannot be downloaded.
    """
    _check_installed(backbone)
    if _place(backbone.weights) is not None:
        return
    if _is_folder(backbone.weights):
        raise WeightsError(_missing(backbone))
    from huggingface_hub import snapshot_download

    wanted = [f"*{ending}" for ending in (*_SETTINGS, _WEIGHTS)]
    try:
        snapshot_download(_on_hub(backbone.weights), allow_patterns=wanted)
    # Of the hub's faults some are its own, some those of what it is built on.
    except Exception as error:  # noqa: BLE001
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise WeightsError(f"{_missing(backbone)}. Download failed: {said}") from None


def files(place: Path) -> list[Path]:
    """The settings and the weights of all steps.

    Raises:
        InvalidSpec, WeightsError: see ``identify``.
    """
    settings, weights = _files(place)
    return settings + weights


def load(
    backbone: Backbone,  # noqa: ARG001 - the place tells all
    place: Path | None,
    how: Input,
    seed: int | None,
) -> "torch.nn.Module":
    """Lists of n texts to float32 of shape (n, width).

    Raises:
        WeightsError: the library cannot read the folder.
    """
    from tl_pipeline.encoders.backbones.sentence_networks import Sentences

    assert place is not None  # noqa: S101 - see ``identify``
    assert isinstance(how, TextInput)  # noqa: S101
    return Sentences(place, how, seed)


def _check_installed(backbone: Backbone) -> None:
    if importlib.util.find_spec("sentence_transformers") is None:
        raise InvalidSpec(
            f"{backbone.name}: needs the package sentence-transformers: "
            "pip install 'tl-pipeline[text]'"
        )


def _is_folder(name: str) -> bool:
    return name.startswith((".", "~", "/")) or Path(name).is_dir()


def _on_hub(name: str) -> str:
    return name if "/" in name else f"{_OWNER}/{name}"


def _place(name: str) -> Path | None:
    """The folder of a network that is on disk."""
    if _is_folder(name):
        folder = Path(name).expanduser().resolve()
        return folder if folder.is_dir() else None
    kept = _cache() / f"models--{_on_hub(name).replace('/', '--')}"
    try:
        commit = (kept / "refs" / "main").read_text().strip()
    except OSError:
        return None
    folder = kept / "snapshots" / commit
    return folder if folder.is_dir() else None


def _cache() -> Path:
    """Where the hub's library keeps what it downloads (its own rule)."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", str(Path(caches) / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", str(Path(home) / "hub"))).expanduser()


def _missing(backbone: Backbone) -> str:
    if _is_folder(backbone.weights):
        return f"{backbone.name}: there is no folder {backbone.weights}"
    return (
        f"{backbone.name}: {_on_hub(backbone.weights)} is not in the cache of the "
        f"Hugging Face hub, {_cache()}. Put it there, or give the folder that holds "
        "it, with a slash: text:./FOLDER"
    )


def _modules(place: Path) -> list[tuple[str, Path]]:
    """(class, folder) of each step from tokens to the vector.

    Raises:
        InvalidSpec: a step is code of another package than the library.
    """
    listed = _json(place / "modules.json")
    if not isinstance(listed, list):
        return [("Transformer", place), ("Pooling", place)]
    found = [(str(one["type"]), place / str(one["path"])) for one in listed]
    for kind, folder in found:
        if not kind.startswith(_LIBRARY):
            raise InvalidSpec(
                f"{place}: its step {kind} is code that came with it, which is not run"
            )
        if not folder.resolve().is_relative_to(place.resolve()):
            raise InvalidSpec(f"{place}: its step {kind} lies outside, at {folder}")
    return found


def _files(place: Path) -> tuple[list[Path], list[Path]]:
    """The settings and the weights of all steps.

    Raises:
        InvalidSpec: see ``_modules``.
        WeightsError: the weights of a step are missing, or pickled.
    """
    modules = _modules(place)
    folders = sorted({place, *(folder for _, folder in modules if folder.is_dir())})
    files = [file for folder in folders for file in folder.iterdir() if file.is_file()]
    settings = [file for file in files if file.suffix in _SETTINGS]
    weights = [file for file in files if file.suffix == _WEIGHTS]
    whole = {file.parent for file in weights}
    network = modules[0][1]
    pickled = {file.parent for file in files if file.suffix in _PICKLES}
    lacking = (pickled | {network}) - whole
    if lacking:
        raise WeightsError(
            f"{min(lacking)} holds no weights as safetensors; other formats may "
            "hold code and are not read. Save the network anew, with "
            "SentenceTransformer.save"
        )
    return settings, weights


def _digest(place: Path, files: list[Path], sha256: Callable[[Path], str]) -> str:
    """sha256 over the names and hashes of ``files``, in the order of the names."""
    told = sorted(
        f"{file.relative_to(place).as_posix()} {sha256(file)}\n" for file in files
    )
    return hashlib.sha256("".join(told).encode()).hexdigest()


def _pooling(place: Path) -> str:
    """What makes one vector of those of the tokens, in the library's words."""
    at = [folder for kind, folder in _modules(place) if kind.endswith("Pooling")]
    told = _json(at[0] / "config.json") if at and at[0] != place else {}
    if "pooling_mode" in told:
        return str(told["pooling_mode"])
    marks = [key for key, value in told.items() if key.startswith("pooling_mode_")]
    chosen = [key.removeprefix("pooling_mode_") for key in marks if told[key] is True]
    return "+".join(chosen) or "mean_tokens"


def _max_tokens(place: Path) -> int:
    """How many tokens of a text are read: what the network says, or its tokenizer.

    Raises:
        InvalidSpec: neither says it.
    """
    folder = _modules(place)[0][1]
    first = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    config = _json(folder / "config.json")
    tokenizer = _json(folder / "tokenizer_config.json")
    told = [config.get(key) for key in ("max_position_embeddings", "n_positions")]
    told.append(tokenizer.get("model_max_length"))
    found = [first] if first else told
    whole = [int(number) for number in found if isinstance(number, int | float)]
    if not whole or min(whole) > 2**31:
        raise InvalidSpec(
            f"{folder} does not say how many tokens it reads; write max_seq_length "
            "into its sentence_bert_config.json"
        )
    return min(whole)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {error}") from None
