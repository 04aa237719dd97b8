"""ComfyUI: a node that makes the SIGMAS of the best schedule. Copy this folder into ComfyUI/custom_nodes.

ComfyUI's Python must have fastkl (``python -m pip install fastkl``). The node is under sampling/custom_sampling/
schedulers.
"""

from __future__ import annotations

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
