"""What lies in a store, and its upkeep: inventory, garbage collection, compaction.

In: a store. Out: listings, and a store without what nothing needs any more.
"""

__all__ = ["compaction", "gc", "gc_roots", "inventory", "verification"]
