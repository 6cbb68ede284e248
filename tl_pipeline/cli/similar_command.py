"""``tl similar``: the stored images that are most like one."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tl_pipeline.cli.request import CatalogOption, Json, StoreOption
from tl_pipeline.errors import InvalidSpec


def similar(
    image: str,
    /,
    *,
    k: Annotated[int, Parameter(name=["--k", "-k"])] = 12,
    encoder: str | None = None,
    html: Path | None = None,
    store: StoreOption = "tl_store",
    catalog: CatalogOption = None,
    json: Json = False,
) -> None:
    """Find the stored images that are most like one, by the cosine of embeddings.

    Args:
        image: a new file, which is embedded as a run would; or the id or uri of a
            stored image.
        k: how many.
        encoder: its name, key or backbone in the view encoders. Default: the only
            trained one.
        html: also write a contact sheet with their pictures to this file.
        store: folder or URL of all artifacts.
        catalog: the data catalogue, which tells where pictures are.
        json: print JSON.
    """
    from tl_pipeline.cli import console
    from tl_pipeline.query import Reader
    from tl_pipeline.store.artifacts import Store

    near = Reader(Store.open(store)).similar(image, k, encoder, catalog)
    if html:
        try:
            html.write_text(near.html(), encoding="utf-8")
        except OSError as error:
            raise InvalidSpec(f"cannot write {html}: {error.strerror}") from None
    found = near.frame.to_dict("records")
    for row in found:
        row["similarity"] = round(row["similarity"], 4)
    columns = ["similarity", "label", "split", "dataset", "uri"]
    console.show(found, columns, as_json=json, empty="no other image is embedded")
    if html and not json:
        console.out.print(f"contact sheet: {html}")
