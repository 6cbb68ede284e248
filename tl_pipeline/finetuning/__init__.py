"""Fine-tuning: a network and a linear head learn together from pixels.

In: an encoder, a head to start from, images with labels, a ``FinetuneSpec``. Out: the
weights of the network, the head that was trained with them, and a learning curve.
"""

__all__ = [
    "activations",
    "blocks",
    "computing",
    "images",
    "mirroring",
    "network",
    "pixels",
    "processes",
    "training",
]
