"""``tl backbones``: list the pretrained networks, and look into one."""

from typing import TYPE_CHECKING, Any

from cyclopts import App

from tl_pipeline.cli.request import Json

if TYPE_CHECKING:
    from tl_pipeline.encoders.backbones import Backbone

_MOST_AXES = 3  # of an output that some pooling makes a vector
_POOLS = (
    "pool=gap, avg+max, grid2, grid3, gem or flatten makes a vector of a map or of "
    "tokens, cls or cls+mean of tokens with a class token; tokens keeps every place"
)

app = App(name="backbones", help="The pretrained networks: list, look into one.")


@app.default
def backbones(*, search: str | None = None, json: Json = False) -> None:
    """List the pretrained networks, their layers, weights, and what is on disk.

    The width of an embedding is read off the network, so it is shown with --json and
    with --search. Networks named by a prefix (timm, your own, files) are not listed.

    Args:
        search: only names that contain this.
        json: print the networks as JSON, with every layer and its width.
    """
    from tl_pipeline.cli import console
    from tl_pipeline.encoders.backbones import BACKBONES, BY_PREFIX

    found = [row for row in BACKBONES.values() if (search or "") in row.name]
    if json:
        console.print_json([_described(row) for row in found])
        return
    rows = [_line(row, with_width=search is not None) for row in found]
    columns = list(rows[0]) if rows else []
    console.show(rows, columns, as_json=False, empty=f"no backbone has {search!r}")
    console.out.print(
        f"\nand by prefix: {', '.join(BY_PREFIX)}\n"
        "python: and export: run code of the module or file; name only what you trust"
    )


@app.command
def show(name: str, /, *, json: Json = False) -> None:
    """Show one network: its named layers and its graph, with the shapes of outputs.

    Every name in the first column can be given as layer.

    Args:
        name: of the network, or a prefix and what it takes: timm:resnet18.
        json: print it all as JSON.
    """
    from dataclasses import asdict

    from tl_pipeline.cli import console
    from tl_pipeline.encoders import backbones, networks

    row = backbones.find_backbone(name)
    if row.origin in backbones.NON_IMAGE_ENCODERS:
        _show_whole(row, json=json)
        return
    named = backbones.named_weights(row, row.weights)
    graph = networks.graph(row, named.preprocess)
    if json:
        nodes = [asdict(node) for node in graph]
        console.print_json({**_described(row), "graph": nodes})
        return
    if row.origin not in backbones.SELF_CONTAINED:  # whose layers are its graph
        layers = [
            {**layer, "pool": layer["pool"] or "", "output": f"{layer['width']} values"}
            for layer in _layers(row)
        ]
        console.print_rows(layers, ["layer", "node", "pool", "output"])
        console.out.print()
    tree = [
        {
            "layer": "  " * node.name.count(".") + node.name,
            "kind": node.kind,
            "output": " x ".join(map(str, node.shape)),
        }
        for node in graph
        if node.shape and len(node.shape) <= _MOST_AXES
    ]
    console.print_rows(tree, ["layer", "kind", "output"])
    console.out.print(f"\n{_POOLS}\n")
    for weights in backbones.published(row):
        disk = f"on disk: {weights.file}" if weights.file.exists() else "not on disk"
        said = f"{weights.name} {weights.scored}".strip()
        console.out.print(f"{said}, {weights.megabytes:.0f} MB, {disk}")
        console.out.print(f"  licence: {weights.licence}")


def _show_whole(row: "Backbone", *, json: bool) -> None:
    from tl_pipeline.cli import console

    told = _without_graph(row)
    if json:
        console.print_json(told)
        return
    for field, value in told.items():
        console.out.print(f"{field:10} {value}", markup=False)


def _without_graph(row: "Backbone") -> dict[str, Any]:
    """What there is to say of a network that takes no images: it is whole."""
    from tl_pipeline.encoders import backbones
    from tl_pipeline.store.files import file_sha256

    found = backbones.NON_IMAGE_ENCODERS[row.origin].identify(row, None, file_sha256)
    return {
        "backbone": row.name,
        "takes": f"{row.modality}s",
        "layer": row.default_layer,
        "weights": found.name,
        "folder": str(found.place or ""),
        **found.input.model_dump(mode="json"),
    }


def _line(row: "Backbone", *, with_width: bool) -> dict[str, Any]:
    """One network as a row of the table."""
    from tl_pipeline.encoders import backbones

    published = backbones.published(row)
    usual = next(weights for weights in published if weights.name == row.weights)
    named = backbones.named_weights(row, row.weights)
    present = [weights.name for weights in published if weights.file.exists()]
    line: dict[str, Any] = {"backbone": row.name, "layers": list(row.layers)}
    if with_width:
        line["width"] = _layers(row)[0]["width"]
    return line | {
        "input": named.preprocess.crop,
        "M_params": round(usual.parameters / 1e6, 1),
        "MB": usual.megabytes,
        "weights": "; ".join(f"{one.name} {one.scored}".strip() for one in published),
        "on_disk": ", ".join(present) or "no",
    }


def _described(row: "Backbone") -> dict[str, Any]:
    """One network as a document for scripts; of one that brings its weights, less."""
    from tl_pipeline.encoders import backbones

    named = backbones.named_weights(row, row.weights)
    known = {
        "backbone": row.name,
        "origin": row.origin,
        "input": named.preprocess.crop,
        "preprocess": named.preprocess.model_dump(mode="json"),
    }
    if row.origin in backbones.SELF_CONTAINED:
        return known
    layers = _layers(row)
    return known | {
        "layers": layers,
        "width": layers[0]["width"],
        "weights": [
            {
                "name": weights.name,
                "default": weights.name == named.name,
                "score": weights.score,
                "measure": weights.measure,
                "parameters": weights.parameters,
                "megabytes": weights.megabytes,
                "licence": weights.licence,
                "on_disk": weights.file.exists(),
                "file": str(weights.file),
            }
            for weights in backbones.published(row)
        ],
    }


def _layers(row: "Backbone") -> list[dict[str, Any]]:
    """The named layers with the widths of their embeddings, the default first."""
    from tl_pipeline.encoders import backbones, networks

    how = backbones.named_weights(row, row.weights).preprocess
    widths = networks.widths(row, how, list(row.layers.values()))
    return [
        {
            "layer": name,
            "node": layer.node,
            "pool": {"none": None, "mean": "gap"}.get(layer.pooling, layer.pooling),
            "width": width,
        }
        for (name, layer), width in zip(row.layers.items(), widths, strict=True)
    ]
