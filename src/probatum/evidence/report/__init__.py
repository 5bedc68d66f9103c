"""The report: records rendered to a static site that opens by double click, carries its data and can be mailed.

`write_site` is the whole of it; `current_hashes` is what it compares records with. Records are untrusted input: they
may come from a colleague, so every string is escaped by construction (`markup`), a record of the wrong form is left out
and named on the index, and figures are read only from the record's own folder.
"""

from probatum.evidence.report.reading import current_hashes
from probatum.evidence.report.site import write_site

__all__ = ["current_hashes", "write_site"]
