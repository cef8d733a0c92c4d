"""From completions to a dataset: candidates, scores, filters, duplicates and the cut.

`candidates`, `scores` and `filters` look at one prompt at a time, and `dedup` at a whole table of texts. `dataset` puts
them together. Nothing here asks a teacher or trains a student.
"""

import os

# Where colorama is installed, numba colours its error messages with it, and colorama writes a colour code whenever a
# process ends.
os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
