"""Names of the blurs and test charts. Standard library only, so that help is instant."""

from __future__ import annotations

BLURS = ("disk", "gaussian", "sinc", "none")
CHARTS = ("zone-plate", "gratings", "edges", "text", "weave")
