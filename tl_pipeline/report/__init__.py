"""One self-contained HTML page a run, and pages of images: no request leaves the file.

In: a run record, the tables and embeddings it names, the bytes of its source for
thumbnails. Out: ``reports/<dataset>/<run id>.html``. A module a section; templates,
style and script in ``templates/``.
"""

from tl_pipeline.report.publishing import path, render, write

__all__ = ["contact_sheet", "occlusion_page", "path", "render", "write"]
