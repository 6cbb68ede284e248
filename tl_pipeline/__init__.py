"""Transfer learning on images as a pipeline that runs every night.

``config`` says what is wanted; ``sources``, ``encoders.backbones`` and ``heads`` are
the families one adds to; ``pipeline.stages`` holds one verb a file, ``pipeline.wiring``
puts them in order, and ``store`` keeps what they wrote. Nothing in here imports
Prefect: the flow lives in the package ``flows``, and the command line starts it.
"""
