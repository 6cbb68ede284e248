"""A network of texts as a module. Imports torch and sentence-transformers."""

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from tl_pipeline.errors import WeightsError
from tl_pipeline.inputs.texts import TextInput


class Sentences(nn.Module):
    """Lists of n texts to float32 tensors of shape (n, width).

    With a ``seed`` its weights are drawn anew. Nothing is downloaded, no code of the
    folder is run, and only safetensors are read.

    Raises:
        WeightsError: the library cannot read the folder.
    """

    def __init__(self, place: Path, how: TextInput, seed: int | None) -> None:
        super().__init__()
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            network = SentenceTransformer(
                str(place),
                device="cpu",
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
        # What the library meets in a damaged folder raises what it pleases.
        except Exception as fault:  # noqa: BLE001
            said = f"{type(fault).__name__}: {fault}".partition("\n")[0]
            raise WeightsError(f"{place} cannot be read as a network: {said}") from None
        network.max_seq_length = how.max_tokens
        if network.tokenizer.pad_token is None:  # as GPT-2's, which is masked anyway
            network.tokenizer.pad_token = network.tokenizer.eos_token
        if seed is not None:
            _draw(network, seed)
        self.network = network.float().eval().requires_grad_(False)

    def forward(self, texts: list[str]) -> torch.Tensor:
        """Embed ``texts`` in one pass."""
        found: Any = self.network.encode(
            texts,
            batch_size=len(texts),
            show_progress_bar=False,
            convert_to_tensor=True,
        )
        return found


def _draw(network: SentenceTransformer, seed: int) -> None:
    """Put other weights into ``network``, as before any training.

    Raises:
        WeightsError: it holds no network of transformers.
    """
    first: Any = network[0]
    # By what it is: the library has renamed the attribute, and sets an unknown one
    # without a word.
    held = {
        name: part
        for name, part in first.named_children()
        if isinstance(part, PreTrainedModel)
    }
    if not held:
        raise WeightsError(f"{type(first).__name__} holds no network to draw anew")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, part in held.items():
            setattr(first, name, type(part)(part.config))
        for step in list(network)[1:]:
            for part in step.modules():
                draw: Any = getattr(part, "reset_parameters", None)
                if draw:
                    draw()
