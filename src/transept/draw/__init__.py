"""Pictures with what was found in them: boxes, overlays, labelled sheets.

What other rooms call is imported on first use: Matplotlib takes half a second, which most verbs need not wait for.
"""

from typing import TYPE_CHECKING

from transept.late import late_names

if TYPE_CHECKING:
    from transept.draw.boxes import LARGEST, draw_objects
    from transept.draw.frames import boxed_frame, labelled_frame, tinted_frame
    from transept.draw.legend import shorten
    from transept.draw.overlay import draw_overlay, label_image, shares
    from transept.draw.precision_recall import ClassCurve, draw_precision_recall, draw_threshold_curves
    from transept.draw.scores import draw_calibration, draw_confusion
    from transept.draw.sheet import Labelled, Mark, draw_sheet
    from transept.draw.worst import Compared, Judged, draw_compared, draw_judged

__all__ = [
    "LARGEST",
    "ClassCurve",
    "Compared",
    "Judged",
    "Labelled",
    "Mark",
    "boxed_frame",
    "draw_calibration",
    "draw_compared",
    "draw_confusion",
    "draw_judged",
    "draw_objects",
    "draw_overlay",
    "draw_precision_recall",
    "draw_sheet",
    "draw_threshold_curves",
    "label_image",
    "labelled_frame",
    "shares",
    "shorten",
    "tinted_frame",
]

__getattr__ = late_names(
    "transept.draw",
    {
        "LARGEST": "transept.draw.boxes",
        "ClassCurve": "transept.draw.precision_recall",
        "Compared": "transept.draw.worst",
        "Judged": "transept.draw.worst",
        "Labelled": "transept.draw.sheet",
        "Mark": "transept.draw.sheet",
        "boxed_frame": "transept.draw.frames",
        "draw_calibration": "transept.draw.scores",
        "draw_compared": "transept.draw.worst",
        "draw_confusion": "transept.draw.scores",
        "draw_judged": "transept.draw.worst",
        "draw_objects": "transept.draw.boxes",
        "draw_overlay": "transept.draw.overlay",
        "draw_precision_recall": "transept.draw.precision_recall",
        "draw_sheet": "transept.draw.sheet",
        "draw_threshold_curves": "transept.draw.precision_recall",
        "label_image": "transept.draw.overlay",
        "labelled_frame": "transept.draw.frames",
        "shares": "transept.draw.overlay",
        "shorten": "transept.draw.legend",
        "tinted_frame": "transept.draw.frames",
    },
)
