"""Reusable blocks: token mixers, channel mixers, norms, stems, stages; each primitive written once."""
