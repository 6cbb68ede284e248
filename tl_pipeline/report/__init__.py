"""One self-contained HTML page a run: no script, no request leaves the file.

In: a run record and the tables it names. Out: ``reports/<dataset>/<run id>.html``.
"""

from tl_pipeline.report.page import path, render, write

__all__ = ["path", "render", "write"]
