"""Algorithms of the expert-parallel all-to-all, one small file each.

They price one phase (dispatch or combine) from what its ports carry; see :class:`~.base.Load`.
"""
