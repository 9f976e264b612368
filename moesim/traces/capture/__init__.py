"""Capture of routing from a real model: hooks where its routed blocks choose.

The only room of traces that needs torch and transformers, and only inside its functions. Choices are
read where a block uses them and never recomputed from router logits, which would be wrong for
bias-corrected, grouped and capacity-limited routers.
"""

from moesim.traces.capture.models import load_model, random_model, use_one_thread
from moesim.traces.capture.run import Progress, capture
from moesim.traces.capture.settings import CaptureSettings, Subject, Text

__all__ = [
    "CaptureSettings",
    "Progress",
    "Subject",
    "Text",
    "capture",
    "load_model",
    "random_model",
    "use_one_thread",
]
