"""labelloop's stand-in."""

from label_studio_sdk.converter.brush import encode_rle, mask2rle

__all__ = ["encode_rle", "mask2rle"]
