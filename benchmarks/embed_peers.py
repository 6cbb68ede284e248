"""What others write to embed a folder of photos, each as its short ordinary script.

``embed.py`` starts ``python embed_peers.py PEER …`` for each of them, in a process of
its own. All read by PIL and the transform that belongs to the weights, but img2vec,
which has its own; all use every core, and the GPU where torch sees one.
"""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from embed_networks import NETWORKS, Network, embedder, preset
from photos import files
from PIL import Image
from timeline import Timeline, save_vectors, since_start

BATCH = 32
CORES = os.cpu_count() or 1


@dataclass
class Job:
    """What a script is given; it reports to ``timeline`` after each batch."""

    network: Network
    weights: Path
    photos: list[Path]
    timeline: Timeline = field(default_factory=Timeline)

    @property
    def names(self) -> list[str]:
        """The names of the photos, in their order."""
        return [photo.name for photo in self.photos]


# (names, vectors) of all photos
Embedded = tuple[list[str], Any]


def reference(job: Job) -> Embedded:
    """Exact: fp32 on the CPU, a batch at a time."""
    import torch  # noqa: PLC0415

    network, transform = embedder(job.network, job.weights), preset(job.network)
    job.timeline.loaded()
    vectors = []
    with torch.inference_mode():
        for start in range(0, len(job.photos), BATCH):
            opened = [Image.open(file) for file in job.photos[start : start + BATCH]]
            vectors.append(network(torch.stack([transform(image) for image in opened])))
            job.timeline.add(len(opened))
    return job.names, torch.cat(vectors)


@dataclass(frozen=True)
class _Photos:
    """What a DataLoader reads: pixels by the number of the photo."""

    photos: list[Path]
    transform: Any

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, row: int) -> Any:
        return self.transform(Image.open(self.photos[row]).convert("RGB"))


def _loader(job: Job) -> Any:
    """A DataLoader over the photos; a worker for every core."""
    import torch  # noqa: PLC0415

    return torch.utils.data.DataLoader(
        _Photos(job.photos, preset(job.network)),
        batch_size=BATCH,
        num_workers=CORES,
        pin_memory=torch.cuda.is_available(),
    )


def dataloader(job: Job, *, fast: bool = False) -> Embedded:
    """A DataLoader and a loop."""
    import torch  # noqa: PLC0415

    how: dict[str, Any] = {"device": _device()}
    if fast:
        how |= {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
    network, loader = embedder(job.network, job.weights).to(**how), _loader(job)
    job.timeline.loaded()
    vectors = []
    with torch.inference_mode():
        for batch in loader:
            vectors.append(network(batch.to(**how, non_blocking=True)).float().cpu())
            job.timeline.add(len(batch))
    return job.names, torch.cat(vectors)


def dataloader_bf16(job: Job) -> Embedded:
    """The same with the two lines that make it fast: bf16, and channels last."""
    return dataloader(job, fast=True)


def lightning(job: Job) -> Embedded:
    """``Trainer.predict``."""
    import torch  # noqa: PLC0415
    from lightning import LightningModule, Trainer  # noqa: PLC0415

    class Embedder(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = embedder(job.network, job.weights)

        def predict_step(self, batch: torch.Tensor) -> torch.Tensor:
            vectors = self.network(batch).cpu()
            job.timeline.add(len(vectors))
            return vectors

    trainer = Trainer(
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module, loader = Embedder(), _loader(job)
    job.timeline.loaded()
    return job.names, torch.cat(trainer.predict(module, loader))


def hf_datasets(job: Job) -> Embedded:
    """``Dataset.map`` over batches."""
    import datasets  # noqa: PLC0415
    import torch  # noqa: PLC0415

    network = embedder(job.network, job.weights).to(_device())
    transform = preset(job.network)

    def embed(batch: dict[str, Any]) -> dict[str, Any]:
        pixels = torch.stack([transform(i.convert("RGB")) for i in batch["image"]])
        with torch.inference_mode():
            vectors = network(pixels.to(_device())).cpu()
        job.timeline.add(len(vectors))
        return {"embedding": vectors.numpy()}

    rows = datasets.Dataset.from_dict({"image": [str(file) for file in job.photos]})
    rows = rows.cast_column("image", datasets.Image())
    job.timeline.loaded()
    found = rows.map(embed, batched=True, batch_size=BATCH, remove_columns="image")
    return job.names, found.with_format("numpy")["embedding"][:]


def img2vec(job: Job) -> Embedded:
    """``Img2Vec.get_vec`` of lists of images; squashes to 224x224 without a crop."""
    import torch  # noqa: PLC0415
    from img2vec_pytorch import Img2Vec  # noqa: PLC0415

    network = Img2Vec(cuda=torch.cuda.is_available(), model=job.network.name)
    job.timeline.loaded()
    vectors = []
    for start in range(0, len(job.photos), BATCH):
        batch = job.photos[start : start + BATCH]
        vectors.append(
            network.get_vec([Image.open(file).convert("RGB") for file in batch])
        )
        job.timeline.add(len(batch))
    return job.names, np.concatenate(vectors)


def ray_data(job: Job) -> Embedded:
    """``map`` the transform, ``map_batches`` an actor that holds the network."""
    import ray  # noqa: PLC0415
    import torch  # noqa: PLC0415

    network, weights = job.network, job.weights

    class Embedder:
        def __init__(self) -> None:
            torch.set_num_threads(CORES)  # Ray would give it one
            self.network = embedder(network, weights).to(_device())

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            with torch.inference_mode():
                pixels = torch.from_numpy(batch["pixels"]).to(_device())
                vectors = self.network(pixels).cpu().numpy()
            done = [time.time()] * len(vectors)
            return {"path": batch["path"], "embedding": vectors, "done": done}

    transform = preset(network)

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        pixels = transform(Image.fromarray(row["image"])).numpy()
        return {"path": row["path"], "pixels": pixels}

    ray.init(include_dashboard=False, num_cpus=CORES, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    job.timeline.loaded()
    rows = ray.data.read_images(
        [str(file) for file in job.photos], include_paths=True, mode="RGB"
    )
    found = rows.map(prepare).map_batches(
        Embedder,
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_gpus=int(torch.cuda.is_available()),
    )
    names, vectors, done = [], [], Counter[float]()
    for batch in found.iter_batches(batch_size=BATCH):
        names += [Path(path).name for path in batch["path"]]
        vectors.append(batch["embedding"])
        done.update(batch["done"].tolist())
    # Results arrive in large blocks: the pace is that of the actor.
    for second, images in sorted(done.items()):
        job.timeline.add(images, at=second)
    return names, np.concatenate(vectors)


def _device() -> str:
    import torch  # noqa: PLC0415

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Peer:
    """``title`` for people; ``package`` is what must be installed."""

    title: str
    package: str
    embed: Callable[[Job], Embedded]
    precision: str = "fp32"

    def knows(self, network: Network) -> bool:
        """Whether it can be given this network."""
        return network.img2vec or self.embed is not img2vec


PEERS = {
    "dataloader": Peer(f"DataLoader({CORES})", "torch", dataloader),
    "dataloader-bf16": Peer(
        f"DataLoader({CORES}), channels last", "torch", dataloader_bf16, "bf16"
    ),
    "lightning": Peer("Lightning `Trainer.predict`", "lightning", lightning),
    "datasets": Peer("HF datasets `map`", "datasets", hf_datasets),
    "img2vec": Peer("img2vec_pytorch", "img2vec_pytorch", img2vec),
    "ray": Peer("Ray Data `map_batches`", "ray", ray_data),
}


def versions() -> dict[str, str | None]:
    """Package -> its version in this environment, None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in sorted({peer.package for peer in PEERS.values()}):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def main() -> None:
    """Run one peer, or tell which are installed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("peer", choices=[*PEERS, "reference", "versions"])
    arguments.add_argument("--network", choices=NETWORKS)
    arguments.add_argument("--weights", type=Path)
    arguments.add_argument("--photos", type=Path)
    arguments.add_argument("--first", type=int, help="only so many photos")
    arguments.add_argument("--out", type=Path)
    asked = arguments.parse_args()
    if asked.peer == "versions":
        print(json.dumps(versions()))
        return
    embed = reference if asked.peer == "reference" else PEERS[asked.peer].embed
    photos = files(asked.photos)[: asked.first]
    job = Job(NETWORKS[asked.network], asked.weights, photos)
    names, vectors = embed(job)
    job.timeline.save(asked.out, since_start())
    save_vectors(asked.out, names, np.asarray(vectors, np.float32))


if __name__ == "__main__":
    main()
