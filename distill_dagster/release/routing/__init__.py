"""When the student answers and when the teacher does: thresholds on the student's confidence, one for each export.

Here are calibration, `routing.json` of a release, and what the request log says about drift. Asking the teacher belongs
to `serving`.
"""
