"""A registered model as one folder that needs none of this package.

In: a model, its store, and the catalogue that tells where its images are. Out: a folder
with one graph from pixels to probabilities, its labels, how a file becomes pixels, and
a script that predicts with it; checked against the model before it is there.
"""

__all__ = ["exporting"]
