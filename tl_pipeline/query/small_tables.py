"""The small tables of the catalogue: rows made from run records and the store."""

from tl_pipeline.query.head_tables import head_tables
from tl_pipeline.query.image_tables import image_tables
from tl_pipeline.query.run_tables import run_tables
from tl_pipeline.query.small_table import SmallTable
from tl_pipeline.query.store_tables import store_tables
from tl_pipeline.runs.records import RunRecord
from tl_pipeline.store.artifacts import Store


def small_tables(store: Store, records: list[RunRecord]) -> dict[str, SmallTable]:
    """Every small table by its name."""
    return {
        **run_tables(records),
        **image_tables(store, records),
        **head_tables(store, records),
        **store_tables(store, records),
    }
