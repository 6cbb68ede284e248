"""JPEGs decoded by the hardware that some GPUs have for it.

In: bytes of JPEGs. Out: batches of pixels on the GPU, equal to a processor's to 1/255.
"""

__all__ = ["batch_loader", "nvjpeg"]
