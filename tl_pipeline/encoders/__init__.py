"""What exactly makes an embedding: network, layer, weights, preprocessing, precision.

In: an ``EncoderSpec``. Out: an ``Encoder`` with its key, and its network. ``backbones``
lists the networks, a row each.
"""

__all__ = [
    "backbones",
    "concat",
    "encoder",
    "feature_extractor",
    "labels",
    "loading",
    "networks",
    "resolution",
    "weight_store",
]
