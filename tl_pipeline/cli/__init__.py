"""What people type: ``tl``, its commands, and what they print.

In: words of a command line. Out: text or JSON, and an exit code. It parses, calls and
prints; the method lives below. It is the one package that starts flows.
"""

__all__ = ["main"]
