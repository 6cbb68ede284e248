"""What a user wrote, validated: datasets, runs, encoders, locations.

In: YAML, JSON and short forms of the command line. Out: frozen values, or one message
that names every fault.
"""

__all__ = [
    "catalog",
    "dataset_entry",
    "datasets",
    "encoder_specs",
    "finetune_specs",
    "locations",
    "short_forms",
    "specs",
    "split_specs",
]
