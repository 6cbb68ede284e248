"""Transfer learning on images as a pipeline that runs every night.

``specs`` and ``catalog`` say what is wanted, ``sources``, ``backbones`` and ``heads``
are the families one adds to, ``stages`` holds one verb a file, ``pipeline`` wires them,
and ``artifacts`` keeps what they wrote. Nothing in here imports Prefect: the flow lives
in the package ``flows``, and the command line is what starts it.
"""
