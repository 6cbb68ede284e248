"""A store in an object store, and the local mirror that is kept in step with it.

In: the paths of finished files. Out: the same files as objects, and back.
"""

__all__ = ["artifact_objects", "mirror", "object_mirror"]
